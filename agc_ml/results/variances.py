"""Variances of histograms, where they are known.

A histogram without `hist.storage.Weight` holds counts, whose variance is their number, until it is
filled with weights or scaled: boost-histogram says then that its variances are not known. Sums and
files lose that, and make a variance of the contents. Here it is kept.
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
"""boost-histogram's own mark, in the `__dict__` of a histogram, its pickle and its metadata."""
ADVICE: Final = "book it with storage=hist.storage.Weight(), which keeps them, and run again"
_OWN: Final = (bh.storage.Weight, bh.storage.Mean, bh.storage.WeightedMean)

_Array = NDArray[np.float64]


def of(histogram: hist.Hist[Any], *, flow: bool = False) -> _Array | None:
    """Variances of the contents; None where they are not known.

    Contents that are no numbers of events, negative or not whole, have none without a storage that
    keeps them, whatever the histogram says.
    """
    found = histogram.variances(flow=flow)
    if found is None or not (keeps(histogram) or are_counts(histogram.values(flow=True))):
        return None
    return np.asarray(found, dtype=np.float64)


def keeps(histogram: hist.Hist[Any]) -> bool:
    """Return whether the storage of a histogram keeps variances beside the contents."""
    return issubclass(histogram.storage_type, _OWN)


def are_counts(values: Any) -> bool:
    """Return whether all contents could be numbers of events."""
    return bool(np.all((values >= 0) & (values == np.floor(values))))


def mark(histogram: hist.Hist[Any], *, known: bool) -> hist.Hist[Any]:
    """Note whether a histogram without a storage for them has known variances; gives it back."""
    setattr(histogram, FLAG, known or keeps(histogram))
    return histogram


def filled(
    axes: Iterable[Any], values: Any, variances: _Array | None, name: str | None = None
) -> hist.Hist[Any]:
    """Build a histogram of given contents and variances, with flow where ``axes`` have it."""
    if variances is None:
        return mark(hist.Hist(*axes, data=values, name=name), known=False)
    histogram = hist.Hist(*axes, storage=hist.storage.Weight(), name=name)
    view: Any = histogram.view(flow=True)
    view["value"], view["variance"] = values, variances
    return histogram


@contextmanager
def kept_in_sum(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[None]:
    """Let sums of counts be counts: what is added to the histograms ``left`` inside stays known.

    boost-histogram knows no variances after any arithmetic.
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
    """Sum of histograms with the same axes and storage; that of counts is counts."""
    added = sum(histograms[1:], start=histograms[0])
    return mark(added, known=all(of(histogram) is not None for histogram in histograms))
