"""A stream of vectors whose rule changes: the memory learns the new one while it reads, without back-propagation.

A small model is trained on random linear systems x_{t+1} = A x_t, each of which is swapped for another half way.
Afterwards its weights stay as they are; only the synaptic memory changes.
"""

import torch

import ssmn

LENGTH, FEATURES = 64, 4


def systems(batch: int, generator: torch.Generator) -> torch.Tensor:
    """[batch, 2 · LENGTH, FEATURES]: one random rotation for the first half, another for the second."""
    halves = []
    for _ in range(2):
        rotation = torch.linalg.qr(torch.randn(batch, FEATURES, FEATURES, generator=generator)).Q
        x = [torch.randn(batch, FEATURES, generator=generator)]
        for _ in range(LENGTH - 1):
            x.append(torch.einsum("bij,bj->bi", rotation, x[-1]))
        halves.append(torch.stack(x, 1))
    return torch.cat(halves, 1)


def main(steps: int = 150) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    config = ssmn.SSMNConfig(
        input_dim=FEATURES, output_dim=FEATURES, hidden_dim=32, num_layers=2, num_heads=2, window_size=4,
        layer_types=("plastic", "static"),
    )  # fmt: skip
    model = ssmn.SSMN(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    for step in range(steps):
        x = systems(32, generator)
        y, _ = model(x[:, :-1])
        loss = (y - x[:, 1:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:4d}   squared error {loss.item():.3f}")

    x = systems(256, generator)
    with torch.no_grad():
        learning, _ = model(x[:, :-1])
        frozen, _ = model(x[:, :-1], plasticity=ssmn.Plasticity(frozen=True))
    print("steps since the switch   memory on   frozen")
    for first, last in ((0, 3), (4, 7), (8, 15), (16, 31), (32, 62)):
        window = slice(LENGTH + first, LENGTH + last + 1)
        errors = [(y[:, window] - x[:, 1:][:, window]).square().mean().item() for y in (learning, frozen)]
        print(f"{f'{first} to {last}':<22s}   {errors[0]:9.3f}   {errors[1]:6.3f}")


if __name__ == "__main__":
    main()
