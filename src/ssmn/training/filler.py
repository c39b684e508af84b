"""Stretches of real text to put between what is to be remembered."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ssmn.errors import TrainingError
from ssmn.training.tokenizer import Tokenizer

Side = Literal["train", "held-out"]


@dataclass(frozen=True, eq=False)
class Filler:
    """Tokens of a text to train on and of one that is held out.

    Attributes:
        tokenizer: Byte pairs learnt from the text to train on.
        tokens: [N] int64 for either side.
    """

    tokenizer: Tokenizer
    tokens: Mapping[Side, Tensor]

    def draw(self, generator: torch.Generator, rows: int, length: int, side: Side) -> Tensor:
        """Rows `[rows, length]` from random places; a text that ends goes on at its beginning."""
        tokens = self.tokens[side]
        begins = torch.randint(len(tokens), (rows, 1), generator=generator)
        return tokens[(begins + torch.arange(length)) % len(tokens)]


@functools.lru_cache(maxsize=2)
def text_filler(folder: str, vocab_size: int, text_bytes: int) -> Filler:
    """The text of a corpus: what `python -m ssmn.training.corpus` writes, or any folder of that form.

    Args:
        folder: Has text files in `train` and in `held-out`.
        vocab_size: Byte pairs to learn, at most.
        text_bytes: About how much to read of either side: as large a part of every file.

    Returns:
        The tokens.

    Raises:
        TrainingError: There is no such text.
    """
    texts = {side: _part(Path(folder) / side, text_bytes) for side in ("train", "held-out")}
    tokenizer = Tokenizer.train_bpe([texts["train"]], vocab_size)
    encoded = {side: torch.from_numpy(tokenizer.encode(text).astype(np.int64)) for side, text in texts.items()}
    return Filler(tokenizer, encoded)  # type: ignore[arg-type]


def _part(folder: Path, most: int) -> str:
    files = sorted(folder.glob("**/*.txt"))
    size = sum(file.stat().st_size for file in files)
    if not size:
        raise TrainingError(
            f"text filler: {folder} holds no *.txt; fetch a corpus with: python -m ssmn.training.corpus --out data/text"
        )
    share = min(1.0, most / size)
    parts = []
    for file in files:
        with file.open("rb") as handle:
            parts.append(handle.read(round(file.stat().st_size * share)).decode("utf-8", "ignore"))
    return "".join(parts)
