"""Samples at uneven times: a recurrence that runs by the clock says what a wave is at moments when nobody looked.

Every stream is a damped sine of its own, shown at random times; at some steps its value is hidden and asked for. The
same AMN is trained twice: once told how much time has passed before each step, once not.
"""

import torch

import ssmn
from ssmn.training.irregular import Episodes, Waves


def answers(model: torch.nn.Module, episodes: Episodes, clock: bool) -> torch.Tensor:
    """What the model says at every step, with the time between the steps or without it."""
    elapsed = episodes.elapsed if clock else torch.ones_like(episodes.elapsed)
    return model(episodes.x, elapsed=elapsed)[0]


def main(steps: int = 120) -> None:
    task = Waves(length=32, sines=1)
    test = task.episodes("test", 256, torch.Generator().manual_seed(1))
    for clock in (True, False):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(2)
        model = ssmn.relatives.AMN(input_dim=task.input_dim, hidden_dim=16, output_dim=task.output_dim)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.98))
        for _ in range(steps):
            episodes = task.episodes("train", 32, generator)
            loss = task.loss(answers(model, episodes, clock), episodes)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            error = task.error(answers(model, test, clock), test)
        print(f"squared error {'with' if clock else 'without'} the clock {error:.3f}")

    unit = ssmn.relatives.LinearRecurrentUnit(16)
    _, state = unit(torch.randn(1, 5, 16))
    nothing, gap = torch.zeros(1, 2, 16), torch.tensor([[0.7, 0.7]])
    _, halves = unit(nothing, state, elapsed=gap)
    _, whole = unit(nothing[:, :1], state, elapsed=2 * gap[:, :1])
    print(f"two half steps without input are one whole step: {torch.allclose(halves.hidden, whole.hidden, atol=1e-6)}")


if __name__ == "__main__":
    main()
