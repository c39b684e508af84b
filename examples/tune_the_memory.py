"""η and λ tuned at inference: the same weights remember longer, shorter, or not at all."""

import torch

import ssmn
from ssmn.layers import SynapticMemory


def remembered(distance: int, plasticity: ssmn.Plasticity, memory: SynapticMemory) -> float:
    """Share of a stored pair that is still read after `distance` other steps (a freshly initialised layer)."""
    generator = torch.Generator().manual_seed(0)
    width = memory.hidden_dim
    cue, fact = torch.randn(2, 64, 1, width, generator=generator)
    others = torch.randn(64, distance, width, generator=generator)
    with torch.no_grad():
        _, state = memory(torch.cat([cue, fact], 1), plasticity=plasticity)
        stored = state.memory
        _, state = memory(others, state, plasticity=plasticity)
        key = torch.nn.functional.normalize(memory.key(cue[:, 0]), dim=-1)
        then, now = (torch.einsum("bk,bkv->bv", key, s[:, 0]) for s in (stored, state.memory))
    return torch.nn.functional.cosine_similarity(then, now).mean().item()


def main() -> None:
    torch.manual_seed(0)
    memory = SynapticMemory(64)
    settings = {
        "as trained": ssmn.Plasticity(),
        "long-term (η 0.05, λ 0.0001)": ssmn.LONG_TERM,
        "short-term (η 0.001, λ 0.01)": ssmn.SHORT_TERM,
        "writes a quarter as strongly": ssmn.Plasticity(eta_scale=0.25),
    }
    distances = (1, 16, 64, 256)
    print(f"{'likeness to what was stored, after':32s}" + "".join(f"{d:7d}" for d in distances) + "  steps")
    for name, plasticity in settings.items():
        row = [remembered(distance, plasticity, memory) for distance in distances]
        print(f"{name:32s}" + "".join(f"{value:7.2f}" for value in row))

    x = torch.randn(1, 10, 64)
    _, state = memory(x)
    _, after = memory(x, state, plasticity=ssmn.Plasticity(frozen=True))
    print("frozen leaves the memory bit-identical:", torch.equal(state.memory, after.memory))


if __name__ == "__main__":
    main()
