"""Histograms: booking them, naming them, writing and reading them.

In memory a run has one `hist.Hist` a region, with the axes observable, process and variation. On
disk there are two forms with the same content: a ROOT file of one-dimensional histograms named
``{region}_{process}[_{variation}]`` (the nominal one has no suffix: the names that the Analysis
Grand Challenge uses), and a zip file of UHI-serialised histograms that keeps the axes.
"""

from __future__ import annotations

import copy
import itertools
import zipfile
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Self

import hist
import numpy as np

from agc_ml.errors import HistogramError
from agc_ml.variations import NOMINAL

_CATEGORIES = (hist.axis.StrCategory, hist.axis.IntCategory)


def book(
    n_bins: int,
    start: float,
    stop: float,
    *,
    label: str,
    process: str,
    variations: Iterable[str],
) -> hist.Hist[Any]:
    """Book an empty weighted histogram with the axes observable, process and variation.

    ``start`` and ``stop`` are in the unit that ``label`` states; flow bins are kept. All of the
    dataset's variations are booked at once, so that a template that nothing passes is there, empty.
    """
    return hist.Hist(
        hist.axis.Regular(n_bins, start, stop, name="observable", label=label),
        hist.axis.StrCategory([process], growth=True, name="process", label="process"),
        hist.axis.StrCategory(variations, growth=True, name="variation", label="variation"),
        storage=hist.storage.Weight(),
    )


class DenseHist:
    """What `book` gives, as a plain array while chunks are filled and added up.

    ``bins`` has shape ``(n_variations, n_bins + 2, 2)``: sums of weights and of squared weights,
    with flow. `hist` makes the histogram of it.
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
    ) -> None:
        self.axis = (n_bins, float(start), float(stop))
        self.label = label
        self.process = process
        self.variations = tuple(variations)
        self.bins = np.zeros((len(self.variations), n_bins + 2, 2))

    def fill(self, variation: str, values: Any, weights: Any) -> None:
        """Add values of one variation, of shape ``(n,)``, with a weight each or one for all.

        Raises
        ------
        HistogramError
            The variation was not booked, or there are not as many weights as values.
        """
        from agc_ml.kernels.filling import fill  # noqa: PLC0415 - heavy

        if variation not in self.variations:
            raise HistogramError(
                f"variation {variation!r} was not booked; there are {', '.join(self.variations)}"
            )
        x, w = np.asarray(values), np.asarray(weights, dtype=np.float64)
        if x.ndim != 1 or w.shape not in {(), x.shape}:
            raise HistogramError(
                f"variation {variation}: values of shape {x.shape}, weights of shape {w.shape}; "
                "one weight a value is needed"
            )
        w = w if w.shape else np.full(len(x), w)
        _, start, stop = self.axis
        fill(self.bins[self.variations.index(variation)], start, stop, x, w)

    def __iadd__(self, other: Any) -> Self:
        if not isinstance(other, DenseHist) or self._booking() != other._booking():
            raise ValueError("histograms that were booked differently")
        self.bins += other.bins
        return self

    def __add__(self, other: Any) -> DenseHist:
        total = copy.deepcopy(self)
        total += other
        return total

    def _booking(self) -> tuple[Any, ...]:
        return self.axis, self.label, self.process, self.variations

    def hist(self) -> hist.Hist[Any]:
        """The same as a histogram with the axes observable, process and variation."""
        n_bins, start, stop = self.axis
        booked = book(
            *(n_bins, start, stop),
            label=self.label,
            process=self.process,
            variations=self.variations,
        )
        view: Any = booked.view(flow=True)
        n = len(self.variations)
        view["value"][:, 0, :n] = self.bins[:, :, 0].T
        view["variance"][:, 0, :n] = self.bins[:, :, 1].T
        return booked


def materialised(output: Any) -> Any:
    """A processor's output, nested as it is, with histograms in place of dense ones."""
    if isinstance(output, DenseHist):
        return output.hist()
    if isinstance(output, MutableMapping):
        for key, value in output.items():
            output[key] = materialised(value)
    return output


def flatten(hists: Mapping[str, hist.Hist[Any]]) -> dict[str, hist.Hist[Any]]:
    """Take the category axes apart: ``{region}_{process}[_{variation}]`` -> numeric histogram.

    Works for any category axes, in their order; a variation called nominal gives no suffix. After
    datasets were added up the product of the categories holds combinations that no dataset has
    (a W+jets variation of single top): the caller knows the true ones, and picks them.

    Raises
    ------
    HistogramError
        Two would have the same name.
    """
    flat: dict[str, hist.Hist[Any]] = {}
    for name, histogram in hists.items():
        axes = list(enumerate(histogram.axes))
        categories = [(i, axis) for i, axis in axes if isinstance(axis, _CATEGORIES)]
        if len(categories) == len(axes):  # nothing numeric would be left
            categories = []
        for labels in itertools.product(*(axis for _, axis in categories)):
            chosen: dict[int, Any] = dict(zip((i for i, _ in categories), labels, strict=True))
            suffixes = [
                str(label)
                for (_, axis), label in zip(categories, labels, strict=True)
                if not (axis.name == "variation" and label == NOMINAL)
            ]
            full_name = "_".join([name, *suffixes])
            if full_name in flat:
                raise HistogramError(f"two histograms would be called {full_name}; rename one")
            part: Any = histogram[{i: hist.loc(label) for i, label in chosen.items()}]
            flat[full_name] = part
    return flat


def write_root(path: Path, templates: Mapping[str, hist.Hist[Any]]) -> None:
    """Write numeric histograms of up to three axes as ``TH1D``, ``TH2D`` and ``TH3D``."""
    import uproot  # noqa: PLC0415 - heavy

    with uproot.recreate(path) as file:
        for name, histogram in templates.items():
            is_numeric = not any(isinstance(axis, _CATEGORIES) for axis in histogram.axes)
            if is_numeric and 1 <= histogram.ndim <= 3:  # noqa: PLR2004 - what ROOT has
                file[name] = _with_float_storage(histogram)


def _with_float_storage(histogram: hist.Hist[Any]) -> hist.Hist[Any]:
    """Give integer counts, which uproot can't write, as floating-point ones."""
    if not isinstance(histogram.storage_type(), hist.storage.Int64 | hist.storage.AtomicInt64):
        return histogram
    return hist.Hist(*histogram.axes, storage=hist.storage.Double(), data=histogram.view(flow=True))


def read_root(path: Path) -> dict[str, hist.Hist[Any]]:
    """Read all histograms of a ROOT file, by name.

    Raises
    ------
    HistogramError
        The file can't be read or holds no histogram.
    """
    import uproot  # noqa: PLC0415 - heavy

    try:
        with uproot.open(path) as file:
            found = {
                name: file[name].to_hist()
                for name, kind in file.classnames(cycle=False).items()
                if kind.startswith(("TH1", "TH2", "TH3"))
            }
    except (OSError, ValueError, uproot.DeserializationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise HistogramError(f"{path}: not a readable ROOT file ({reason})") from error
    if not found:
        raise HistogramError(f"{path}: no histograms in it")
    return found


def write_zip(path: Path, hists: Mapping[str, hist.Hist[Any]]) -> None:
    """Write histograms with all their axes, UHI-serialised."""
    import uhi.io.zip  # noqa: PLC0415 - only here

    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        for name, histogram in hists.items():
            uhi.io.zip.write(archive, name, histogram)


def read_zip(path: Path) -> dict[str, hist.Hist[Any]]:
    """Read what `write_zip` wrote.

    Raises
    ------
    HistogramError
        The file is missing, cut off, or holds something else.
    """
    import uhi.io.zip  # noqa: PLC0415 - only here

    try:
        with zipfile.ZipFile(path) as archive:
            names = [n.removesuffix(".json") for n in archive.namelist() if n.endswith(".json")]
            return {name: hist.Hist(uhi.io.zip.read(archive, name)) for name in names}
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise HistogramError(f"{path}: not readable as histograms ({error})") from error
