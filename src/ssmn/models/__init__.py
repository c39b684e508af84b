"""The two models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ssmn.relatives  # noqa: F401  (their layers join the table of blocks)
from ssmn.config import config_from_dict
from ssmn.files import read_config
from ssmn.models.stack import Stack
from ssmn.models.standard import SSMN
from ssmn.models.text import TextSSMN

_CLASSES: dict[str, type[Stack]] = {"standard": SSMN, "text": TextSSMN}


def load_model(folder: str | Path, **changes: Any) -> Stack:
    """The model that a folder holds, of the class that its configuration names.

    Args:
        folder: Written by `save_pretrained` or `ssmn train`.
        changes: Settings to change that have no weights, such as `output_memory=True`.

    Returns:
        An `SSMN` or a `TextSSMN`.

    Raises:
        FileError, ConfigError: The folder is not one of ours, or damaged.
    """
    return _CLASSES[config_from_dict(read_config(folder)).kind].from_pretrained(folder, **changes)


__all__ = ["SSMN", "TextSSMN", "load_model"]
