"""Bins of histograms as arrays for figures; all of shape ``(n_bins,)``, without flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hist
import numpy as np

from agc_ml.presentation.figures.style import Array
from agc_ml.results import variances

Histogram = hist.Hist[Any]


def edges(histogram: Histogram) -> Array:
    """Bin edges, shape ``(n_bins + 1,)``."""
    return np.asarray(histogram.axes[0].edges, dtype=np.float64)


def values(histogram: Histogram) -> Array:
    """Contents of the bins."""
    return np.asarray(histogram.values(), dtype=np.float64)


def uncertainty(histograms: Sequence[Histogram]) -> Array | None:
    """Statistical uncertainty of a sum; None if that of a part is not known."""
    all_variances = [variances.of(histogram) for histogram in histograms]
    parts = [np.maximum(variance, 0) for variance in all_variances if variance is not None]
    return np.sqrt(sum(parts)) if len(parts) == len(all_variances) else None


def axis_label(histogram: Histogram) -> str:
    """Label of the axis; histograms from ROOT files without a title have a made-up one."""
    label = str(histogram.axes[0].label)
    return "" if label in ("xaxis", "Axis 0", "axis_0") else label
