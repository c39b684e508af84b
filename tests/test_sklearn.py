"""The scikit-learn estimators: the library's own checks, and what it does not check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason='the extra "timeseries" is not installed')

from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

import ssmn
from ssmn.errors import ConfigError, FileError, RangeError, ShapeError
from ssmn.interfaces.features import delayed, hidden_map, paces_for, pooled, random_stack
from ssmn.interfaces.ridge import Ridge
from ssmn.interfaces.sklearn import SSMNClassifier, SSMNRegressor


@parametrize_with_checks([SSMNRegressor(), SSMNClassifier()])
def test_own_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)
