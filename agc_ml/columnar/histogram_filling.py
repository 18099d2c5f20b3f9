"""Filling histograms as plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agc_ml.columnar.compiled import kernel

Array = NDArray[Any]


@kernel
def fill(bins: Array, start: float, stop: float, values: Array, weights: Array) -> None:
    """Add values to equal bins from ``start`` to ``stop``.

    ``bins`` has shape ``(n_bins + 2, 2)``: sums of weights and of squared weights, with underflow
    and overflow. Values go to the same bin as in Boost.Histogram, NaN to the overflow.
    """
    n_bins = len(bins) - 2
    width = stop - start
    for i in range(len(values)):
        z = (np.float64(values[i]) - start) / width
        place = n_bins + 1
        if z < 0:
            place = 0
        elif z < 1:
            place = int(z * n_bins) + 1
        bins[place, 0] += weights[i]
        bins[place, 1] += weights[i] * weights[i]
