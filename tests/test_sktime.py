"""The sktime forecaster: the library's own checks, and what it does not check."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("sktime", reason='the extra "timeseries" is not installed')
