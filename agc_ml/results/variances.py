"""Variances of histograms, None if they are unknown.

A histogram without `hist.storage.Weight` holds counts, with the count as variance, until it is
filled with weights or scaled: then boost-histogram marks its variances as unknown. Sums and files
lose that mark, and take the contents as variances. The functions here keep it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import boost_histogram as bh
import hist
import numpy as np
from numpy.typing import NDArray

FLAG: Final = "_variance_known"
"""boost-histogram's mark, in the `__dict__` of a histogram, its pickle and its metadata."""
ADVICE: Final = "book it with storage=hist.storage.Weight(), which keeps them, and run again"
_OWN: Final = (bh.storage.Weight, bh.storage.Mean, bh.storage.WeightedMean)

_Array = NDArray[np.float64]


def of(histogram: hist.Hist[Any], *, flow: bool = False) -> _Array | None:
    """Return the variances of the contents, None if they are unknown.

    Negative or fractional contents are not counts: without a storage for variances they have none.
    """
    stated = histogram.variances(flow=flow)
    if stated is None or not (keeps(histogram) or are_counts(histogram.values(flow=True))):
        return None
    return np.asarray(stated, dtype=np.float64)


def keeps(histogram: hist.Hist[Any]) -> bool:
    """Return whether the storage of a histogram keeps variances beside the contents."""
    return issubclass(histogram.storage_type, _OWN)


def are_counts(values: Any) -> bool:
    """Return whether all contents could be numbers of events."""
    return bool(np.all((values >= 0) & (values == np.floor(values))))


def mark(histogram: hist.Hist[Any], *, known: bool) -> hist.Hist[Any]:
    """Mark the variances of a histogram without a storage for them as known or not; return it."""
    setattr(histogram, FLAG, known or keeps(histogram))
    return histogram


def filled(
    axes: Iterable[Any], values: Any, variances: _Array | None, name: str | None = None
) -> hist.Hist[Any]:
    """Return a histogram of given contents and variances, with flow bins if ``axes`` have them."""
    if variances is None:
        return mark(hist.Hist(*axes, data=values, name=name), known=False)
    histogram = hist.Hist(*axes, storage=hist.storage.Weight(), name=name)
    view: Any = histogram.view(flow=True)
    view["value"], view["variance"] = values, variances
    return histogram


@contextmanager
def kept_in_sum(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[None]:
    """Keep variances known in the histograms ``left`` while others are added to them.

    boost-histogram marks variances as unknown after any arithmetic; sums of counts are counts.
    """
    known = {
        name: all(of(h) is not None for h in (histogram, right.get(name, histogram)))
        for name, histogram in left.items()
        if isinstance(histogram, hist.Hist)
    }
    yield
    for name, is_known in known.items():
        mark(left[name], known=is_known)


def total(histograms: Sequence[hist.Hist[Any]]) -> hist.Hist[Any]:
    """Return the sum of histograms with the same axes and storage; a sum of counts is counts."""
    added = sum(histograms[1:], start=histograms[0])
    return mark(added, known=all(of(histogram) is not None for histogram in histograms))
