"""What a processor may return: checked on the worker, in the chunk where it goes wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import hist
import numpy as np

from agc_ml.errors import ProcessorError
from agc_ml.hists import DenseHist, flatten
from agc_ml.rows import Rows

_LEVELS = 2  # of a cutflow: dataset -> cut


def check(output: Any) -> None:
    """Check what ``process()`` returned for a chunk.

    Raises
    ------
    ProcessorError
        It is no dictionary, or something in it can't be added up, normalised or written.
    """
    if not isinstance(output, Mapping):
        raise ProcessorError(f"process() returned {type(output).__name__}, not a dictionary")
    sumw = output.get("sumw", 0.0)
    if not isinstance(sumw, Real) or not math.isfinite(sumw):
        raise ProcessorError(
            f"its 'sumw' is {sumw!r}; one finite number is needed, the sum of the chunk's weights"
        )
    cutflow = output.get("cutflow", {})
    if not _is_numbers(cutflow, _LEVELS):
        raise ProcessorError("its 'cutflow' must be {dataset: {cut: number of events}}")
    warnings = output.get("warnings", [])
    if isinstance(warnings, str) or not all(isinstance(text, str) for text in warnings):
        raise ProcessorError("its 'warnings' must be a list of lines")
    histograms = collect(output)
    for name, histogram in histograms.items():
        dense = isinstance(histogram, DenseHist)
        values = np.asarray(histogram.bins if dense else histogram.values(flow=True))
        if not np.isfinite(values).all():
            raise ProcessorError(f"its histogram {name} holds NaN or infinite contents")
    flatten({name: h for name, h in histograms.items() if not isinstance(h, DenseHist)})


def tables(output: Mapping[Any, Any]) -> dict[str, Rows]:
    """The tables of an output, by name."""
    return {str(key): value for key, value in output.items() if isinstance(value, Rows)}


def _is_numbers(value: Any, levels: int) -> bool:
    if not levels:
        return isinstance(value, Real) and math.isfinite(value)
    return isinstance(value, Mapping) and all(_is_numbers(v, levels - 1) for v in value.values())


def collect(output: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """All histograms of a nested output, dense ones too; names of nested ones are joined by ``/``.

    Raises
    ------
    ProcessorError
        Two have the same name.
    """
    found: dict[str, Any] = {}
    for key, value in output.items():
        name = f"{prefix}{key}"
        inner = (
            {name: value}
            if isinstance(value, hist.Hist | DenseHist)
            else collect(value, f"{name}/")
            if isinstance(value, Mapping)
            else {}
        )
        for inner_name, histogram in inner.items():
            if inner_name in found:
                raise ProcessorError(f"it returns two histograms {inner_name}")
            found[inner_name] = histogram
    return found
