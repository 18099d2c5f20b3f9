"""Helpers of all back ends: optional libraries, their messages, rows to try models with."""

from __future__ import annotations

import importlib
import re
from typing import Any, Final

import numpy as np

from agc_ml.errors import ModelError
from agc_ml.models.content import Array
from agc_ml.models.model_files import one_line

PROBE_ROWS: Final = 64
PROBE_CELLS: Final = 1 << 22


def import_library(name: str, label: str) -> Any:
    """Import a library that reads models.

    Raises
    ------
    ModelError
        The library is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelError(f"{label}: {name} is not installed: pip install 'agc-ml[ml]'") from error


def library_message(error: Exception) -> str:
    """Beginning of a library's error message, in one line."""
    text = one_line(str(error).partition("Stack trace")[0])
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", text)  # xgboost begins with time and source


def probe_rows(n_features: int) -> Array:
    """Rows to try a model with, float32: zeros first, then small, large and whole numbers."""
    n = max(2, min(PROBE_ROWS, PROBE_CELLS // n_features))
    rng = np.random.default_rng(n_features)
    rows = rng.normal(size=(n, n_features)) * 10.0 ** rng.integers(-1, 6, (n, 1))
    rows[: n // 2] = np.round(rows[: n // 2])
    rows[0] = 0
    return rows.astype(np.float32)
