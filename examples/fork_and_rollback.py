"""A stream's state is a value: fork it, go on twice, compare, merge, save, load, roll back."""

import tempfile
from pathlib import Path

import torch

import ssmn


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    model = ssmn.SSMN(ssmn.SSMNConfig.preset("tiny", input_dim=3, output_dim=3))
    past, left_future, right_future = torch.randn(3, 1, 500, 3)

    _, state = model(past)
    print("position", state.position.tolist(), "bytes", state.nbytes, "(the same at any position)")

    left, right = state.fork(2)
    _, left = model(left_future, left)
    _, right = model(right_future, right)
    difference = left.diff(right)
    print(f"after 500 different steps {len(difference.differing)} of {len(difference)} tensors differ:")
    for entry in difference.differing:
        if "memory" in entry.name:
            print(f"  {entry.name} by up to {entry.max_abs:.2f}")

    # Two streams as one batch, and one of them back out.
    batch = ssmn.StreamState.merge([left, right])
    y, batch = model.step(torch.randn(2, 3), batch)
    print("one step of both:", tuple(y.shape), "then the second alone:", batch.select([1]).position.tolist())

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "monday.safetensors"
        left.save(path, model)
        again = ssmn.StreamState.load(path, model)
        print("saved and loaded:", left.diff(again))

    stream = ssmn.Stream(model)
    stream.push(past)
    stream.checkpoint("before")
    first = stream.push(left_future)
    stream.rollback("before")
    second = stream.push(left_future)
    print("rolled back and repeated, equal to the bit:", torch.equal(first, second))


if __name__ == "__main__":
    main()
