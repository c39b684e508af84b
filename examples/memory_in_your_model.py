"""The synaptic memory as a layer of your own torch module, with its state carried from call to call."""

import torch
from torch import nn

import ssmn
from ssmn.layers import SynapticMemory
from ssmn.state import PlasticState


class Recogniser(nn.Module):
    """Anything per step, then a memory, then anything per step."""

    def __init__(self, features: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(features, width), nn.RMSNorm(width))
        self.memory = SynapticMemory(width, update_rule="delta")
        self.decode = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor, state: PlasticState | None = None) -> tuple[torch.Tensor, PlasticState]:
        hidden = self.encode(x)
        recalled, after = self.memory(hidden, state)
        return self.decode(hidden + recalled), after


def main() -> None:
    torch.manual_seed(0)
    model = Recogniser(features=6, classes=3)
    x = torch.randn(2, 40, 6)

    whole, _ = model(x)
    state, pieces = None, []
    for piece in x.split([1, 7, 32], dim=1):
        y, state = model(piece, state)
        pieces.append(y)
    print("pieces equal the whole to", f"{(torch.cat(pieces, 1) - whole).abs().max().item():.1e}")

    # Truncated back-propagation: the state goes on, its history does not.
    _, state = model(x)
    y, state = model(torch.randn(2, 40, 6), state.detach())
    (gradient,) = torch.autograd.grad(y.square().mean(), model.memory.key.weight)
    print("gradient reaches the key projection:", bool(gradient.abs().sum() > 0))

    # The operation under the layer, on tensors of your own.
    q, k, v = torch.randn(3, 2, 40, 1, 8)
    k = nn.functional.normalize(k, dim=-1)
    o, memory = ssmn.ops.synaptic_memory(
        q, k, v, eta=torch.full((2, 40, 1), 0.5), log_decay=torch.full((2, 40, 1), -1e-3), output_final_state=True
    )
    assert memory is not None  # asked for with output_final_state
    print("read", tuple(o.shape), "memory", tuple(memory.shape))


if __name__ == "__main__":
    main()
