"""The river estimators: the library's own checks, and what it does not check."""

from __future__ import annotations

import functools
from typing import Any

import pytest

pytest.importorskip("river", reason='the extra "timeseries" is not installed')

from river.checks import yield_checks

from ssmn.interfaces.river import SSMNClassifier, SSMNForecaster, SSMNRegressor


def _checks() -> list[Any]:
    made = []
    for kind in (SSMNRegressor, SSMNClassifier, SSMNForecaster):
        for number, check in enumerate(yield_checks(kind())):
            made.append(pytest.param(kind, check, id=f"{kind.__name__}-{number}-{check.__name__}"))
    return made


@pytest.mark.parametrize(("kind", "check"), _checks())
def test_own_checks_of_river(kind: Any, check: functools.partial[None]) -> None:
    check(kind())
