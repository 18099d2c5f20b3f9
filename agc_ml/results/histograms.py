"""Histograms as processors book and fill them, with the axes observable, process and variation."""

from __future__ import annotations

import copy
from collections.abc import Iterable, MutableMapping
from typing import Any, Self

import hist
import numpy as np

from agc_ml.errors import HistogramError


def book(
    n_bins: int,
    start: float,
    stop: float,
    *,
    label: str,
    process: str,
    variations: Iterable[str],
    counts: str | None = None,
) -> hist.Hist[Any]:
    """Book an empty weighted histogram with the axes observable, process and variation.

    ``start`` and ``stop`` are in the unit that ``label`` states; flow bins are kept. ``counts``
    names an entry on figures, such as "Events" or "Jets" (`hist.Hist.label`). All variations of the
    dataset are booked at once, so that a template without events exists, empty.
    """
    return hist.Hist(
        hist.axis.Regular(n_bins, start, stop, name="observable", label=label),
        hist.axis.StrCategory([process], growth=True, name="process", label="process"),
        hist.axis.StrCategory(variations, growth=True, name="variation", label="variation"),
        storage=hist.storage.Weight(),
        label=counts,
    )


class DenseHist:
    """Histogram as of `book`, as a plain array while chunks are filled and added up.

    ``bins`` has shape ``(n_variations, n_bins + 2, 2)``: sums of weights and of squared weights,
    with flow. `hist` converts it.
    """

    def __init__(
        self,
        n_bins: int,
        start: float,
        stop: float,
        *,
        label: str,
        process: str,
        variations: Iterable[str],
        counts: str | None = None,
    ) -> None:
        self.counts = counts
        self.axis = (n_bins, float(start), float(stop))
        self.label = label
        self.process = process
        self.variations = tuple(variations)
        self.bins = np.zeros((len(self.variations), n_bins + 2, 2))

    def fill(self, variation: str, values: Any, weights: Any) -> None:
        """Fill values of one variation, of shape ``(n,)``, with a weight for each or one for all.

        Raises
        ------
        HistogramError
            The variation was not booked, or there are not as many weights as values.
        """
        from agc_ml.columnar.histogram_filling import fill  # noqa: PLC0415 - heavy

        if variation not in self.variations:
            raise HistogramError(
                f"variation {variation!r} was not booked; booked are {', '.join(self.variations)}"
            )
        x, w = np.asarray(values), np.asarray(weights, dtype=np.float64)
        if x.ndim != 1 or w.shape not in {(), x.shape}:
            raise HistogramError(
                f"variation {variation}: values of shape {x.shape}, weights of shape {w.shape}; "
                "one weight per value is needed"
            )
        w = w if w.shape else np.full(len(x), w)
        _, start, stop = self.axis
        fill(self.bins[self.variations.index(variation)], start, stop, x, w)

    def __iadd__(self, other: Any) -> Self:
        if not isinstance(other, DenseHist) or self._booking() != other._booking():
            raise ValueError("histograms were booked differently")
        self.bins += other.bins
        return self

    def __add__(self, other: Any) -> DenseHist:
        total = copy.deepcopy(self)
        total += other
        return total

    def _booking(self) -> tuple[Any, ...]:
        return self.axis, self.label, self.process, self.variations

    def hist(self) -> hist.Hist[Any]:
        """Return a histogram with the axes observable, process and variation."""
        n_bins, start, stop = self.axis
        booked = book(
            n_bins,
            start,
            stop,
            label=self.label,
            process=self.process,
            variations=self.variations,
            counts=self.counts,
        )
        view: Any = booked.view(flow=True)
        n = len(self.variations)
        view["value"][:, 0, :n] = self.bins[:, :, 0].T
        view["variance"][:, 0, :n] = self.bins[:, :, 1].T
        return booked


def materialised(output: Any) -> Any:
    """Return a processor's output with each `DenseHist` in it replaced by its histogram."""
    if isinstance(output, DenseHist):
        return output.hist()
    if isinstance(output, MutableMapping):
        for key, value in output.items():
            output[key] = materialised(value)
    return output
