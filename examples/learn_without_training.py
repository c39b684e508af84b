"""An unknown linear system is followed by a model that nobody has trained: its plastic read-out learns from every step.

Two sensors with offsets of their own, whose rule changes half way. Before every reading the model says what it will be;
the reading then teaches it. No weight ever changes; what is learned is part of the stream's state.
"""

import torch

import ssmn

HALF = 300
NOISE = 0.1


def readings(generator: torch.Generator) -> torch.Tensor:
    """[2 · HALF, 2]: a slow rotation one way, then the other, shaken by noise that nobody can predict."""
    x, rows = torch.zeros(2), []
    for step in range(2 * HALF):
        turn = torch.tensor([[0.0, -0.6], [0.6, 0.0]]) * (1 if step < HALF else -1)
        matrix = 0.95 * torch.linalg.matrix_exp(turn)
        x = matrix @ x + NOISE * torch.randn(2, generator=generator)
        rows.append(x)
    return torch.tensor([20.0, 1013.0]) + torch.tensor([1.0, 30.0]) * torch.stack(rows)


def main(picture: str | None = None) -> None:
    torch.manual_seed(0)
    config = ssmn.SSMNConfig(
        input_dim=2, output_dim=2, hidden_dim=16, num_layers=2, num_heads=2, window_size=8, normalise="running",
        readout="rls", readout_features="inputs", readout_forget=0.03, readout_ridge=0.01,
    )  # fmt: skip
    x = readings(torch.Generator().manual_seed(1))
    model = ssmn.SSMN(config)
    errors = {}
    for name, frozen in (("learning", False), ("frozen", True)):
        stream, said = ssmn.Stream(model), []
        for row in x.unsqueeze(1):  # what it says of the next row, after it was told this one
            said.append(stream.step(row, target=row, plasticity=ssmn.Plasticity(frozen=frozen)))
        units = NOISE * torch.tensor([1.0, 30.0])
        errors[name] = ((torch.cat(said)[:-1] - x[1:]) / units).square().mean(1)
    print("squared error, 1 = the noise   learning   frozen")
    for first, last in ((10, 29), (30, 99), (100, 298), (300, 319), (320, 349), (350, 598)):
        cells = [f"{error[first : last + 1].mean():8.2f}" for error in errors.values()]
        print(f"steps {f'{first} to {last}':<24s} {cells[0]} {cells[1]}")
    if picture is not None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3), layout="constrained")
        axes = figure.subplots()
        for name, error in errors.items():
            axes.semilogy(error.unfold(0, 10, 1).mean(1), label=name)
        axes.set(xlabel="step", ylabel="squared error / noise", title="the rule changes at step 300")
        axes.legend()
        figure.savefig(picture)


if __name__ == "__main__":
    main()
