"""Reference histograms published by the Analysis Grand Challenge, as JSON.

``{name: {"contents": [...], "edges": [...]}}`` with names ``{region}_{process}[_{variation}]`` and
contents with flow. A content is the number of events x cross-section x luminosity / number of
entries in the files that were used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agc_ml import documents
from agc_ml.errors import HistogramError
from agc_ml.inputs import agc_published
from agc_ml.inputs.variations import NOMINAL

WHOLE: Final = 1e-6
"""Tolerance of whole counts: sums of six million rounded weights are off by 4e-9."""

_Array = NDArray[np.float64]
_NAME: Final = re.compile(
    rf"(?P<region>.+?)_(?P<process>{'|'.join(agc_published.CROSS_SECTIONS)})(?:_(?P<variation>.+))?"
)


def read(path: Path) -> dict[str, tuple[_Array, _Array, _Array]]:
    """Return edges ``(n_bins + 1,)``, contents and variances ``(n_bins + 2,)`` with flow, by name.

    The file has contents only. The variance of a bin is its content x the event weight of the
    dataset; the weight follows from the number of input files, which is derived from the contents.
    Pseudodata are left out.

    Raises
    ------
    HistogramError
        It is not the published file.
    """
    try:
        raw = documents.json_of(documents.text(path))
    except (OSError, ValueError) as error:
        raise HistogramError(
            f"{path}: neither a ROOT file, nor a zip, nor JSON ({error}); give templates"
        ) from error
    if not isinstance(raw, dict) or not raw:
        raise HistogramError(f"{path}: not the published reference histograms: no mapping of names")
    contents = {
        name: _reference_entry(path, name, entry)
        for name, entry in raw.items()
        if not name.endswith("_pseudodata")
    }
    # each template's dataset, and the number of files that fits all of them
    origins = {name: _origin(path, name) for name in contents}
    files = _n_files(path, contents, origins)
    return {
        name: (edges, values, values * agc_published.event_weight(*origins[name], files))
        for name, (edges, values) in contents.items()
    }


def _reference_entry(path: Path, name: str, entry: Any) -> tuple[_Array, _Array]:
    """Return edges ``(n_bins + 1,)`` and contents ``(n_bins + 2,)``, flow included."""
    try:
        edges = np.array(entry["edges"], dtype=np.float64)
        values = np.array(entry["contents"], dtype=np.float64)
    except (TypeError, KeyError, ValueError) as error:
        raise HistogramError(
            f"{path}: {name}: not a published reference histogram, which has 'contents' and 'edges'"
        ) from error
    if edges.ndim != 1 or values.shape != (len(edges) + 1,) or not np.all(np.diff(edges) > 0):
        raise HistogramError(
            f"{path}: {name}: edges must rise, and contents be one more than they are (with flow)"
        )
    return edges, values


def _origin(path: Path, name: str) -> tuple[str, str]:
    """Return process and variation of the published dataset of a template."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise HistogramError(
            f"{path}: {name}: not a published name, region_process[_variation] "
            f"with the processes {', '.join(agc_published.CROSS_SECTIONS)}"
        )
    process, variation = match["process"], match["variation"]
    return process, variation if variation in agc_published.variations(process) else NOMINAL


def _n_files(
    path: Path,
    contents: Mapping[str, tuple[_Array, _Array]],
    origins: Mapping[str, tuple[str, str]],
) -> int:
    """Return the number of files per dataset, for which nominal contents are counts x weight.

    Raises
    ------
    HistogramError
        No number of files gives whole counts.
    """
    nominal = {
        name: values
        for name, (_, values) in contents.items()
        if name.endswith(f"_{origins[name][0]}") and np.any(values)
    }
    largest = max(len(agc_published.entries(process)) for process in agc_published.CROSS_SECTIONS)
    for files in range(1, largest + 1):
        counts = (
            v / agc_published.event_weight(*origins[name], files) for name, v in nominal.items()
        )
        if nominal and all(np.all(np.abs(c - np.round(c)) < WHOLE) for c in counts):
            return files
    raise HistogramError(
        f"{path}: not the published reference histograms: for no number of input files are the "
        "nominal contents whole counts x weight; give templates with variances, as a ROOT file"
    )
