"""Small saved models for the tests of the command line and of streaming."""

from __future__ import annotations

from pathlib import Path

import torch

from ssmn.config import SSMNConfig, TextSSMNConfig
from ssmn.models import SSMN, TextSSMN
from ssmn.training import Tokenizer

ROWS = SSMNConfig(input_dim=2, output_dim=2, hidden_dim=12, num_layers=3, num_heads=2, window_size=5)


def text_model(seed: int = 0, vocab_size: int = 256, chat_rounds: int = 0) -> TextSSMN:
    """An untrained text model, of bytes unless told otherwise."""
    torch.manual_seed(seed)
    config = TextSSMNConfig(
        vocab_size=vocab_size, hidden_dim=16, num_layers=3, num_heads=2, window_size=6, chat_rounds=chat_rounds
    )
    return TextSSMN(config)


def row_model(seed: int = 0) -> SSMN:
    """An untrained model of two series."""
    torch.manual_seed(seed)
    return SSMN(ROWS)


def save_text_model(folder: Path) -> Path:
    """The byte model with its tokenizer."""
    text_model().save_pretrained(folder)
    Tokenizer.for_bytes().save(folder / "tokenizer.json")
    return folder


def save_row_model(folder: Path) -> Path:
    """The model of two series."""
    row_model().save_pretrained(folder)
    return folder
