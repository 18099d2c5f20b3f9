"""Histograms: booking them, naming them, writing and reading them.

In memory a run has one `hist.Hist` a region, with the axes observable, process and variation. On
disk there are two forms with the same content: a ROOT file of one-dimensional histograms named
``{region}_{process}[_{variation}]`` (the nominal one has no suffix: the names that the Analysis
Grand Challenge uses), and a zip file of UHI-serialised histograms that keeps the axes.

Both keep whether variances are known. The zip has boost-histogram's mark for it in the metadata. In
a ROOT file a histogram of unknown variances has neither Sumw2 nor a number for the sum of squared
weights (fTsumw2 is NaN).
"""

from __future__ import annotations

import copy
import itertools
import json
import lzma
import re
import struct
import tokenize
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final, Self

import boost_histogram as bh
import hist
import numpy as np

from agc_ml import documents
from agc_ml.errors import HistogramError
from agc_ml.inputs.variations import NOMINAL
from agc_ml.results import variances

_CATEGORIES = (hist.axis.StrCategory, hist.axis.IntCategory)
_ROOT_KEY: Final = re.compile(r"(?:(?!\.{1,2}(?:/|$))[^/;:%\x00-\x1f\x7f]+(?:/(?!$)|$))+")
"""Names that are keys in ROOT files as they are, in folders where they have a '/'.

A ';' begins a cycle there, a ':' a name inside of a file, and '%' is what others are encoded with.
"""
_UNWRITABLE: Final = re.compile(r"[\x00\ud800-\udfff]")
_LISTED: Final = "templates"
DAMAGED: Final = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(NotImplementedError, RecursionError, AssertionError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(SyntaxError, tokenize.TokenError),  # numpy reads its headers as Python
)
"""What libraries raise of files of histograms and arrays in which bits are wrong."""
_MOST: Final = 1 << 32
"""Bytes of histograms, unpacked."""
_FEW: Final = 1 << 16
"""So many bins take no memory worth speaking of."""
_PLAIN: Final = (str, bool, int, float, type(None))
_ROOT_CLASS: Final = re.compile(r"TH[123][CSIFDL]|TProfile")


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

    ``start`` and ``stop`` are in the unit that ``label`` states; flow bins are kept. ``counts`` is
    what an entry is, such as "Events" or "Jets", for figures (`hist.Hist.label`). All of the
    dataset's variations are booked at once, so that a template that nothing passes is there, empty.
    """
    return hist.Hist(
        hist.axis.Regular(n_bins, start, stop, name="observable", label=label),
        hist.axis.StrCategory([process], growth=True, name="process", label="process"),
        hist.axis.StrCategory(variations, growth=True, name="variation", label="variation"),
        storage=hist.storage.Weight(),
        label=counts,
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
        counts: str | None = None,
    ) -> None:
        self.counts = counts
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
        from agc_ml.columnar.histogram_filling import fill  # noqa: PLC0415 - heavy

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
            counts=self.counts,
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
        categories = _categories(histogram)
        for labels in itertools.product(*(axis for _, axis in categories)):
            chosen: dict[int, Any] = dict(zip((i for i, _ in categories), labels, strict=True))
            suffixes = [
                str(label)
                for (_, axis), label in zip(categories, labels, strict=True)
                if not (axis.name == "variation" and label == NOMINAL)
            ]
            full_name = "_".join([name, *suffixes])
            origin = ", ".join(
                [
                    f"histogram {name!r}",
                    *(f"{axis.name or i} {chosen[i]!r}" for i, axis in categories),
                ]
            )
            if full_name in flat:
                raise HistogramError(
                    f"two histograms would be called {full_name} ({origins[full_name]}; and "
                    f"{origin}); rename a histogram or a label"
                )
            origins[full_name] = origin
            if not full_name or _UNWRITABLE.search(full_name):
                raise HistogramError(
                    f"a histogram would be called {full_name!r}, which files can't hold; rename it"
                )
            part: Any = histogram[{i: hist.loc(label) for i, label in chosen.items()}]
            flat[full_name] = part
    return flat


def booked(hists: Mapping[str, hist.Hist[Any]]) -> set[str]:
    """Names, as `flatten` gives them, of the templates that were filled or meant to be.

    Left out are variations of a process that are empty in all histograms: another process has
    them. Nominal templates stay, and so do all where no label of the variation is "nominal".
    """
    parts = [
        (name, labels, part.empty(flow=True))
        for name, histogram in hists.items()
        for labels, part in _parts(histogram)
    ]
    filled = {labels for _, labels, is_empty in parts if not is_empty}
    there = {labels for _, labels, _ in parts}
    return {
        "_".join([name, *_suffixes(labels)])
        for name, labels, _ in parts
        if labels in filled or labels == _nominal(labels) or _nominal(labels) not in there
    }


def _parts(histogram: hist.Hist[Any]) -> Iterator[tuple[tuple[tuple[str, str], ...], Any]]:
    """Category by category: names of axes with their labels, and the part of the histogram."""
    categories = _categories(histogram)
    for labels in itertools.product(*(axis for _, axis in categories)):
        chosen: dict[int, Any] = dict(zip((i for i, _ in categories), labels, strict=True))
        names = [str(axis.name) for _, axis in categories]
        yield (
            tuple(zip(names, map(str, labels), strict=True)),
            histogram[{i: hist.loc(label) for i, label in chosen.items()}],
        )


def _suffixes(labels: Iterable[tuple[str, str]]) -> list[str]:
    return [label for axis, label in labels if (axis, label) != ("variation", NOMINAL)]


def _nominal(labels: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((axis, NOMINAL if axis == "variation" else label) for axis, label in labels)


def _categories(histogram: hist.Hist[Any]) -> list[tuple[int, Any]]:
    """Axes that are taken apart, with their index: none if nothing numeric would be left."""
    axes = list(enumerate(histogram.axes))
    categories = [(i, axis) for i, axis in axes if isinstance(axis, _CATEGORIES)]
    return categories if len(categories) < len(axes) else []


def labels_of(histogram: hist.Hist[Any]) -> list[tuple[str, list[Any]]]:
    """Names and labels of the axes that `flatten` takes apart."""
    return [(axis.name, list(axis)) for _, axis in _categories(histogram)]


def lost_categories(hists: Mapping[str, hist.Hist[Any]]) -> tuple[str, ...]:
    """Say what `flatten` leaves out, a line each: fills of labels that an axis does not have."""
    return tuple(
        f"histogram {name}: {lost:,.6g} of {_entries(histogram).sum():,.6g} entries (with their "
        f"weights) are in no template: their labels are not on its axis {axis.name or index!r} "
        f"({', '.join(map(str, axis))}); book them there, or the axis with growth=True"
        for name, histogram in hists.items()
        for index, axis, lost in _overflows(histogram)
    )


def _overflows(histogram: hist.Hist[Any]) -> Iterator[tuple[int, Any, float]]:
    """Category axes that `flatten` takes apart and that have something in their overflow."""
    for index, axis in _categories(histogram):
        if axis.traits.overflow:
            lost = np.take(_entries(histogram), len(axis), axis=index)
            if lost.any():
                yield index, axis, float(lost.sum())


def _entries(histogram: hist.Hist[Any]) -> Any:
    is_mean = histogram.kind is bh.Kind.MEAN
    return histogram.counts(flow=True) if is_mean else histogram.values(flow=True)


def write_root(path: Path, templates: Mapping[str, hist.Hist[Any]]) -> None:
    """Write numeric histograms of up to three axes as ``TH1D``, ``TH2D`` and ``TH3D``.

    Means of one axis are a ``TProfile``. A name that ROOT can't have as a key is percent-encoded
    there, and stands in the title.
    """
    import uproot  # noqa: PLC0415 - heavy

    with uproot.recreate(path) as file:
        for name, histogram in templates.items():
            if not _is_for_root(histogram):
                continue
            content = with_flow(histogram)
            key = name
            if not _ROOT_KEY.fullmatch(name) or any(folder in templates for folder in _above(name)):
                key, content.name = _encoded(name), name
            written = uproot.to_writable(content)
            if variances.of(histogram) is None:
                (statistics,) = written.base("TH1")
                statistics.members["fTsumw2"] = np.nan
            file[key] = written


def _is_for_root(histogram: hist.Hist[Any]) -> bool:
    if any(isinstance(axis, _CATEGORIES) for axis in histogram.axes):
        return False
    most = 1 if histogram.kind is bh.Kind.MEAN else 3
    return 1 <= histogram.ndim <= most


def _above(name: str) -> Iterable[str]:
    """Folders in which the name of a histogram would be."""
    return itertools.accumulate(name.split("/")[:-1], "{}/{}".format)


def _encoded(name: str) -> str:
    return urllib.parse.quote(name, safe="")


def with_flow(histogram: hist.Hist[Any]) -> hist.Hist[Any]:
    """Give numeric axes both flow bins, empty where there were none, as in ROOT files.

    Integer contents become floating-point numbers.
    """
    axes = [axis if isinstance(axis, _CATEGORIES) else _open(axis) for axis in histogram.axes]
    storage = histogram.storage if variances.keeps(histogram) else hist.storage.Double()
    made = hist.Hist(*axes, storage=storage, name=histogram.name)
    own = tuple(
        slice(
            int(new.traits.underflow and not old.traits.underflow),
            -1 if new.traits.overflow and not old.traits.overflow else None,
        )
        for old, new in zip(histogram.axes, axes, strict=True)
    )
    made.view(flow=True)[own] = histogram.view(flow=True)
    return variances.mark(made, known=variances.of(histogram) is not None)


def _open(axis: Any) -> Any:
    """The same bins on an axis with both flow bins."""
    if axis.traits.underflow and axis.traits.overflow and not axis.traits.discrete:
        return axis
    names = {"name": axis.name, "label": axis.label}
    if isinstance(axis, hist.axis.Variable) or getattr(axis, "transform", None) is not None:
        return hist.axis.Variable(axis.edges, **names)
    return hist.axis.Regular(len(axis), axis.edges[0], axis.edges[-1], **names)


def read_root(path: Path) -> dict[str, hist.Hist[Any]]:
    """Read all histograms of a ROOT file, by name.

    Without Sumw2 they are counts if contents, number of entries and sums of weights say so;
    otherwise they were filled with weights or set, and their variances are not known.

    Raises
    ------
    HistogramError
        The file can't be read or holds no histogram.
    """
    import uproot  # noqa: PLC0415 - heavy

    found: dict[str, hist.Hist[Any]] = {}
    try:
        with uproot.open(path) as file:
            # the last cycle of a name is the one that counts
            for key, kind in sorted(file.classnames().items(), key=lambda item: _cycle(item[0])):
                if _ROOT_CLASS.fullmatch(kind):
                    written = file[key]
                    name, title = key.rpartition(";")[0], written.title
                    found[title if name == _encoded(title) else name] = _from_root(written)
    except (*DAMAGED, uproot.DeserializationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise HistogramError(f"{path}: not a readable ROOT file ({reason})") from error
    if not found:
        raise HistogramError(f"{path}: no histograms in it")
    return found


def _cycle(key: str) -> int:
    return int(key.rpartition(";")[2])


def _from_root(written: Any) -> hist.Hist[Any]:
    histogram: hist.Hist[Any] = written.to_hist()
    view: Any = histogram.view(flow=True)
    if histogram.kind is bh.Kind.MEAN:
        # uproot makes NaN of it in empty bins
        view["sum_of_weights_squared"][view["sum_of_weights"] == 0] = 0
        return histogram
    values = written.values(flow=True)
    if written.weighted:
        # uproot takes variances that are NaN or negative for 0
        squares = np.asarray(written.member("fSumw2"), np.float64).reshape(values.T.shape).T
        own = tuple(slice(int(isinstance(axis, _CATEGORIES)), None) for axis in histogram.axes)
        view["variance"] = squares[own]
        return histogram
    of_weights, of_squares = written.member("fTsumw"), written.member("fTsumw2")
    inside, total = written.values(flow=False).sum(), values.sum()
    are_counts = inside <= of_weights == of_squares <= total == written.member("fEntries")
    return variances.mark(histogram, known=bool(are_counts) and variances.are_counts(values))


def unkept(histogram: hist.Hist[Any]) -> str | None:
    """Say what of a histogram no file could hold, None if all can be kept."""
    if not histogram.ndim:
        return "it has no axes; return a number"
    attributes = [("it", vars(histogram))]
    attributes += [
        (f"its axis {axis.name or i}", axis.__dict__) for i, axis in enumerate(histogram.axes)
    ]
    for owner, values in attributes:
        for key, value in values.items():
            if type(value) not in _PLAIN:
                try:
                    json.dumps(value, default=_of_numpy)
                except (TypeError, ValueError) as error:
                    return f"{owner} has an attribute {key!r} that can't be kept ({error})"
    return None


def _of_numpy(value: Any) -> Any:
    """A number of numpy as Python's; what else json does not know can't be kept."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no number, text, list or dictionary")


def write_zip(
    path: Path, hists: Mapping[str, hist.Hist[Any]], templates: Iterable[str] | None = None
) -> None:
    """Write histograms with all their axes, UHI-serialised, and the names of their ``templates``.

    These are those of `flatten` that datasets have, in a JSON list beside the histograms.
    """
    import uhi.io.zip  # noqa: PLC0415 - only here
    from hist.serialization import to_uhi  # noqa: PLC0415 - only here

    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        if templates is not None:
            archive.writestr(_LISTED, json.dumps(list(templates)))
        for name, histogram in hists.items():
            content: Any = to_uhi(histogram)
            for part in (content, *content["axes"]):
                if "metadata" in part:
                    part["metadata"] = json.loads(json.dumps(part["metadata"], default=_of_numpy))
            if variances.of(histogram) is None:
                # to_uhi leaves it out, and from_uhi takes it
                content["metadata"] = {**content.get("metadata", {}), variances.FLAG: False}
            uhi.io.zip.write(archive, name, content)


def read_zip(path: Path) -> dict[str, hist.Hist[Any]]:
    """Read what `write_zip` wrote.

    Raises
    ------
    HistogramError
        The file is missing, cut off, or holds something else.
    """
    import uhi.io.zip  # noqa: PLC0415 - only here

    try:
        with documents.opened(path) as file, zipfile.ZipFile(file) as archive:
            _check_size(archive)
            names = [n.removesuffix(".json") for n in archive.namelist() if n.endswith(".json")]
            return {name: _from_uhi(uhi.io.zip.read(archive, name)) for name in names}
    except DAMAGED as error:
        raise HistogramError(f"{path}: not readable as histograms ({error})") from error


def _check_size(archive: zipfile.ZipFile) -> None:
    size = sum(one.file_size for one in archive.infolist())
    if size > _MOST:
        raise ValueError(f"it would take {size / 1e9:,.0f} GB of memory")


def check_bins(content: Mapping[str, Any], size: int) -> None:
    """Refuse axes with more bins, flow bins among them, than there are, before they take memory.

    Raises
    ------
    ValueError
        There are more.
    """
    n_bins = 1
    for axis in content["axes"]:
        # as it is made, and as a transformed one is made again
        stated = (axis, (axis.get("writer_info") or {}).get("boost-histogram") or {})
        if any(one.get("bins", 0) > max(size, _FEW) for one in stated):
            raise ValueError("axes with more bins than there are")
        alone = {"uhi_schema": 1, "axes": [axis], "storage": {"type": "int"}}
        n_bins *= bh.Histogram(alone).axes[0].extent
    if n_bins > size:
        raise ValueError("axes with more bins than there are")


def _from_uhi(content: dict[str, Any]) -> hist.Hist[Any]:
    check_bins(content, np.size(content["storage"]["values"]))
    histogram: hist.Hist[Any] = hist.Hist(content)
    if histogram.kind is bh.Kind.MEAN:
        # the variance of a single entry is 0 / 0, of which no sum of squared deltas can be made
        view: Any = histogram.view(flow=True)
        deltas = view.dtype.names[-1]
        view[deltas][np.isnan(view[deltas]) & np.isfinite(view["value"])] = 0
    return histogram


def templates_in(path: Path) -> list[str] | None:
    """Names of the templates that `write_zip` was told, None if it was not.

    Raises
    ------
    HistogramError
        The file can't be read.
    """
    try:
        with documents.opened(path) as file, zipfile.ZipFile(file) as archive:
            _check_size(archive)
            if _LISTED not in archive.namelist():
                return None
            return [str(name) for name in json.loads(archive.read(_LISTED))]
    except DAMAGED as error:
        raise HistogramError(f"{path}: not readable as histograms ({error})") from error
