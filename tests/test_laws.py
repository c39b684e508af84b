"""Every stateful module obeys every law, under every backend and dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import laws
from laws import CHAT, EXHAUSTIVE, EXHAUSTIVE_CHAT, LAWS, LAYERS, MODELS, OPS, Entry, Subject
from ssmn.config import Backend
from ssmn.ops import backend_status

_WIDE: list[tuple[Backend, torch.dtype]] = [("reference", torch.float64), ("chunked", torch.float64)]
_NARROW: list[tuple[Backend, torch.dtype]] = [("chunked", torch.float32), ("native", torch.float32)]


def _cases(entries: Sequence[Entry], paths: Sequence[tuple[Backend, torch.dtype]], *marks: Any) -> Iterator[Any]:
    for entry in entries:
        for backend, dtype in paths:
            name = f"{entry.name}-{backend}-{str(dtype).removeprefix('torch.')}"
            yield pytest.param(entry, backend, dtype, id=name, marks=marks)


_COMPOSED = [*LAYERS, *MODELS]
_SUBJECTS = [
    *_cases(OPS, [*_WIDE, *_NARROW]),
    *_cases(_COMPOSED, [_WIDE[1], _NARROW[1]]),
    *_cases(CHAT, [_WIDE[1], _NARROW[1]]),
    *_cases([*_COMPOSED, *CHAT], _WIDE[:1], pytest.mark.slow),
    *_cases([*_COMPOSED, *CHAT], _NARROW[:1], pytest.mark.slow),
    *_cases(EXHAUSTIVE, [_WIDE[1], _NARROW[1]], pytest.mark.slow),
    *_cases(EXHAUSTIVE_CHAT, [_WIDE[1], _NARROW[1]], pytest.mark.slow),
]


def _built(entry: Entry, backend: Backend, dtype: torch.dtype) -> Subject:
    if backend_status()[backend]:
        pytest.skip(f"{backend}: {backend_status()[backend]}")
    return entry.build(backend, dtype)


@pytest.mark.parametrize(("entry", "backend", "dtype"), _SUBJECTS)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law: Callable[[Subject], None], entry: Entry, backend: Backend, dtype: torch.dtype) -> None:
    law(_built(entry, backend, dtype))


@pytest.mark.parametrize(("entry", "backend", "dtype"), _SUBJECTS)
def test_save_load_and_go_on(entry: Entry, backend: Backend, dtype: torch.dtype, tmp_path: Path) -> None:
    laws.save_load_go_on(_built(entry, backend, dtype), tmp_path)
