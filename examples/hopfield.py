"""Noisy digits restored by Hopfield networks: Hebb's rule, the pseudo-inverse, and one step of softmax retrieval."""

import torch

from ssmn.relatives.hopfield import DenseNetwork, HebbianNetwork, PseudoInverseNetwork, retrieve

DIGITS = """
.###. ..#.. .###. .###. ...#. ##### .###. ##### .###. .###.
#...# .##.. #...# #...# ..##. #.... #.... ....# #...# #...#
#..## ..#.. ....# ....# .#.#. ####. #.... ...#. #...# #...#
#.#.# ..#.. ...#. ..##. #..#. ....# ####. ..#.. .###. .####
##..# ..#.. ..#.. ....# ##### ....# #...# ..#.. #...# ....#
#...# ..#.. .#... #...# ...#. #...# #...# ..#.. #...# ....#
.###. .###. ##### .###. ...#. .###. .###. ..#.. .###. .###.
"""


def pictures() -> torch.Tensor:
    """[10, 140]: each digit of 7 x 5 points, every point four times as large."""
    rows = [row.split() for row in DIGITS.split("\n")[1:-1]]
    small = [[[1.0 if point == "#" else -1.0 for point in row[digit]] for row in rows] for digit in range(10)]
    return torch.tensor(small).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)


def show(title: str, picture: torch.Tensor) -> list[str]:
    lines = ["".join("#" if point > 0 else "." for point in row) for row in picture.view(14, 10)]
    return [f"{title:<16}", *(f"{line:<16}" for line in lines)]


def main(flipped: int = 20, seed: int = 0) -> None:
    digits = pictures()
    generator = torch.Generator().manual_seed(seed)
    flips = torch.rand(digits.shape, generator=generator).argsort(-1) < flipped
    noisy = torch.where(flips, -digits, digits)

    hebbian, pseudo_inverse = HebbianNetwork.learn(digits), PseudoInverseNetwork.learn(digits)
    restored = {
        "Hebbian": hebbian.recall(noisy, seed=seed).state,
        "pseudo-inverse": pseudo_inverse.recall(noisy, seed=seed).state,
        "dense": DenseNetwork.learn(digits, "exponential").recall(noisy, seed=seed).state,
        "continuous": retrieve(noisy, digits, beta=0.5).pattern.sign(),
    }
    columns = [show("original", digits[3]), show("noisy", noisy[3])]
    columns += [show(name, states[3]) for name, states in restored.items()]
    print(*("".join(line) for line in zip(*columns, strict=True)), sep="\n")
    for name, states in restored.items():
        print(f"{name}: digits restored of 10:", int((states == digits).all(-1).sum()))

    forgetful = pseudo_inverse.remove(digits[3])
    print("at rest before and after the three was removed:",
          bool(pseudo_inverse.stable(digits[3:4])), bool(forgetful.stable(digits[3:4])))  # fmt: skip


if __name__ == "__main__":
    main()
