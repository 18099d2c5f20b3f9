"""Category axes of histograms, taken apart into templates ``{region}_{process}[_{variation}]``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import boost_histogram as bh
import hist
import numpy as np

from agc_ml.errors import HistogramError
from agc_ml.inputs.variations import NOMINAL

CATEGORIES: Final = (hist.axis.StrCategory, hist.axis.IntCategory)
_UNWRITABLE: Final = re.compile(r"[\x00\ud800-\udfff]")


def flatten(hists: Mapping[str, hist.Hist[Any]]) -> dict[str, hist.Hist[Any]]:
    """Return a numeric histogram for each combination of categories, by template name.

    Works for any category axes, in their order; a variation called nominal gives no suffix. A sum
    of datasets also holds combinations that no dataset has (a W+jets variation of single top): the
    caller has to select the true ones.

    Raises
    ------
    HistogramError
        Two would have the same name, or one has a name or a storage that can't be written.
    """
    flat: dict[str, hist.Hist[Any]] = {}
    origins: dict[str, str] = {}
    for name, histogram in hists.items():
        if histogram.storage_type is bh.storage.MultiCell:
            raise HistogramError(
                f"histogram {name}: the storage MultiCell can't be written; book a histogram for "
                "each of its cells, or an axis of categories"
            )
        # one template for each combination of labels
        for labels, part in _parts(histogram):
            template = _template_name(name, [(axis.name, label) for _, axis, label in labels])
            places = (f"{axis.name or i} {label!r}" for i, axis, label in labels)
            origin = ", ".join([f"histogram {name!r}", *places])
            if template in flat:
                raise HistogramError(
                    f"two histograms would be called {template} ({origins[template]}; and "
                    f"{origin}); rename a histogram or a label"
                )
            if not template or _UNWRITABLE.search(template):
                raise HistogramError(
                    f"a histogram would be called {template!r}, which files can't hold; rename it"
                )
            flat[template], origins[template] = part, origin
    return flat


def template_names(hists: Mapping[str, hist.Hist[Any]]) -> set[str]:
    """Return the names, as of `flatten`, of templates that were filled or booked on purpose.

    Left out are variations of a process that are empty in all histograms: another process has
    them. Nominal templates stay, and so do all if no label of the variation is "nominal".
    """
    parts = [
        (name, tuple((axis.name, str(label)) for _, axis, label in labels), part)
        for name, histogram in hists.items()
        for labels, part in _parts(histogram)
    ]
    filled = {labels for _, labels, part in parts if not part.empty(flow=True)}
    booked = {labels for _, labels, _ in parts}

    def is_kept(labels: tuple[tuple[str, str], ...]) -> bool:
        nominal = tuple((axis, NOMINAL if axis == "variation" else label) for axis, label in labels)
        return labels in filled or labels == nominal or nominal not in booked

    return {_template_name(name, labels) for name, labels, _ in parts if is_kept(labels)}


def _parts(
    histogram: hist.Hist[Any],
) -> Iterator[tuple[list[tuple[int, Any, Any]], hist.Hist[Any]]]:
    """Yield each combination of categories (index, axis, label) with its part of the histogram."""
    categories = _categories(histogram)
    for labels in itertools.product(*(axis for _, axis in categories)):
        chosen = [(i, axis, label) for (i, axis), label in zip(categories, labels, strict=True)]
        part: Any = histogram[{i: hist.loc(label) for i, _, label in chosen}]
        yield chosen, part


def _template_name(name: str, labels: Iterable[tuple[str, Any]]) -> str:
    suffixes = (str(label) for axis, label in labels if (axis, label) != ("variation", NOMINAL))
    return "_".join([name, *suffixes])


def _categories(histogram: hist.Hist[Any]) -> list[tuple[int, Any]]:
    """Return the axes to take apart, with their index: none if nothing numeric would be left."""
    axes = list(enumerate(histogram.axes))
    categories = [(i, axis) for i, axis in axes if isinstance(axis, CATEGORIES)]
    return categories if len(categories) < len(axes) else []


def labels_of(histogram: hist.Hist[Any]) -> list[tuple[str, list[Any]]]:
    """Return names and labels of the axes that `flatten` takes apart."""
    return [(axis.name, list(axis)) for _, axis in _categories(histogram)]


def lost_categories(hists: Mapping[str, hist.Hist[Any]]) -> tuple[str, ...]:
    """Return a warning for each axis with entries under labels that it does not have.

    `flatten` leaves these entries out.
    """
    return tuple(
        f"histogram {name}: {lost:,.6g} of {_entries(histogram).sum():,.6g} entries (with their "
        f"weights) are in no template: their labels are not on its axis {axis.name or index!r} "
        f"({', '.join(map(str, axis))}); book them there, or the axis with growth=True"
        for name, histogram in hists.items()
        for index, axis, lost in _overflows(histogram)
    )


def _overflows(histogram: hist.Hist[Any]) -> Iterator[tuple[int, Any, float]]:
    """Yield the category axes with entries in their overflow."""
    for index, axis in _categories(histogram):
        if axis.traits.overflow:
            lost = np.take(_entries(histogram), len(axis), axis=index)
            if lost.any():
                yield index, axis, float(lost.sum())


def _entries(histogram: hist.Hist[Any]) -> Any:
    is_mean = histogram.kind is bh.Kind.MEAN
    return histogram.counts(flow=True) if is_mean else histogram.values(flow=True)
