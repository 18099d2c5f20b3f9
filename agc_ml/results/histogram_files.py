"""Histograms in files: ROOT, and a zip of UHI-serialised histograms that keeps all axes.

A ROOT file has one-dimensional histograms named ``{region}_{process}[_{variation}]`` (the nominal
one without suffix), the names that the Analysis Grand Challenge uses.

Both keep whether variances are known. The zip has boost-histogram's flag for it in the metadata. In
a ROOT file, a histogram of unknown variances has neither Sumw2 nor a number for the sum of squared
weights (fTsumw2 is NaN).
"""

from __future__ import annotations

import itertools
import json
import lzma
import re
import struct
import tokenize
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import boost_histogram as bh
import hist
import numpy as np

from agc_ml import documents
from agc_ml.errors import HistogramError
from agc_ml.results import variances
from agc_ml.results.categories import CATEGORIES

_ROOT_KEY: Final = re.compile(r"(?:(?!\.{1,2}(?:/|$))[^/;:%\x00-\x1f\x7f]+(?:/(?!$)|$))+")
"""Names that are valid keys in ROOT files, in folders if they have a '/'.

In ROOT, ';' begins a cycle and ':' a name inside of a file; '%' is reserved for the encoding.
"""
_TEMPLATES: Final = "templates"
DAMAGED: Final = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    RecursionError,
    AssertionError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    SyntaxError,  # numpy reads its headers as Python
    tokenize.TokenError,
)
"""Exceptions of libraries that read damaged files of histograms and arrays."""
MAX_UNPACKED: Final = 1 << 32
"""Largest size of histograms, unpacked, in bytes."""
_SMALL: Final = 1 << 16
"""Number of bins that take negligible memory."""
_PLAIN: Final = (str, bool, int, float, type(None))
_ROOT_CLASS: Final = re.compile(r"TH[123][CSIFDL]|TProfile")


def write_root(path: Path, templates: Mapping[str, hist.Hist[Any]]) -> None:
    """Write numeric histograms of up to three axes as ``TH1D``, ``TH2D`` and ``TH3D``.

    Means on one axis are a ``TProfile``. A name that is not a valid key is percent-encoded, and
    kept in the title.
    """
    import uproot  # noqa: PLC0415 - heavy

    with uproot.recreate(path) as file:
        for name, histogram in templates.items():
            if not _is_for_root(histogram):
                continue
            content = with_flow(histogram)
            key = name
            folders = itertools.accumulate(name.split("/")[:-1], "{}/{}".format)
            if not _ROOT_KEY.fullmatch(name) or any(folder in templates for folder in folders):
                key, content.name = _encoded(name), name
            writable = uproot.to_writable(content)
            if variances.of(histogram) is None:
                (statistics,) = writable.base("TH1")
                statistics.members["fTsumw2"] = np.nan
            file[key] = writable


def _is_for_root(histogram: hist.Hist[Any]) -> bool:
    if any(isinstance(axis, CATEGORIES) for axis in histogram.axes):
        return False
    most = 1 if histogram.kind is bh.Kind.MEAN else 3
    return 1 <= histogram.ndim <= most


def _encoded(name: str) -> str:
    return urllib.parse.quote(name, safe="")


def with_flow(histogram: hist.Hist[Any]) -> hist.Hist[Any]:
    """Return a histogram with both flow bins on each numeric axis, as in ROOT files.

    New flow bins are empty; integer contents become floating-point numbers.
    """
    axes = [axis if isinstance(axis, CATEGORIES) else _with_flow(axis) for axis in histogram.axes]
    storage = histogram.storage if variances.keeps(histogram) else hist.storage.Double()
    wider = hist.Hist(*axes, storage=storage, name=histogram.name)
    bins = tuple(
        slice(
            int(new.traits.underflow and not old.traits.underflow),
            -1 if new.traits.overflow and not old.traits.overflow else None,
        )
        for old, new in zip(histogram.axes, axes, strict=True)
    )
    wider.view(flow=True)[bins] = histogram.view(flow=True)
    return variances.mark(wider, known=variances.of(histogram) is not None)


def _with_flow(axis: Any) -> Any:
    if axis.traits.underflow and axis.traits.overflow and not axis.traits.discrete:
        return axis
    names = {"name": axis.name, "label": axis.label}
    if isinstance(axis, hist.axis.Variable) or getattr(axis, "transform", None) is not None:
        return hist.axis.Variable(axis.edges, **names)
    return hist.axis.Regular(len(axis), axis.edges[0], axis.edges[-1], **names)


def read_root(path: Path) -> dict[str, hist.Hist[Any]]:
    """Read all histograms of a ROOT file, by name.

    Histograms without Sumw2 are counts if contents, number of entries and sums of weights agree;
    otherwise they were filled with weights or set, and their variances are unknown.

    Raises
    ------
    HistogramError
        The file can't be read or holds no histogram.
    """
    import uproot  # noqa: PLC0415 - heavy

    histograms: dict[str, hist.Hist[Any]] = {}
    try:
        with uproot.open(path) as file:
            cycles = {key: int(key.rpartition(";")[2]) for key in file.classnames()}
            # the last cycle of a name replaces those before
            for key, kind in sorted(file.classnames().items(), key=lambda item: cycles[item[0]]):
                if _ROOT_CLASS.fullmatch(kind):
                    stored = file[key]
                    name, title = key.rpartition(";")[0], stored.title
                    histograms[title if name == _encoded(title) else name] = _from_root(stored)
    except (*DAMAGED, uproot.DeserializationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise HistogramError(f"{path}: not a readable ROOT file ({reason})") from error
    if not histograms:
        raise HistogramError(f"{path}: no histograms in it")
    return histograms


def _from_root(stored: Any) -> hist.Hist[Any]:
    histogram: hist.Hist[Any] = stored.to_hist()
    view: Any = histogram.view(flow=True)
    if histogram.kind is bh.Kind.MEAN:
        # uproot returns NaN in empty bins
        view["sum_of_weights_squared"][view["sum_of_weights"] == 0] = 0
        return histogram
    values = stored.values(flow=True)
    if stored.weighted:
        # uproot replaces variances that are NaN or negative by 0
        squares = np.asarray(stored.member("fSumw2"), np.float64).reshape(values.T.shape).T
        bins = tuple(slice(int(isinstance(axis, CATEGORIES)), None) for axis in histogram.axes)
        view["variance"] = squares[bins]
        return histogram
    sum_w, sum_w2 = stored.member("fTsumw"), stored.member("fTsumw2")
    inside, total = stored.values(flow=False).sum(), values.sum()
    are_counts = inside <= sum_w == sum_w2 <= total == stored.member("fEntries")
    return variances.mark(histogram, known=bool(are_counts) and variances.are_counts(values))


def unstorable(histogram: hist.Hist[Any]) -> str | None:
    """Return what in a histogram no file can hold, None if it can be stored."""
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
                    return f"{owner} has an attribute {key!r} that can't be stored ({error})"
    return None


def _of_numpy(value: Any) -> Any:
    """Return a numpy number as Python's, for JSON; reject other types."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a number, text, list or dictionary")


def write_zip(
    path: Path, hists: Mapping[str, hist.Hist[Any]], templates: Iterable[str] | None = None
) -> None:
    """Write histograms with all axes, UHI-serialised, and a JSON list of their ``templates``.

    Templates are named as `flatten` does it, as far as datasets have them.
    """
    import uhi.io.zip  # noqa: PLC0415 - only here
    from hist.serialization import to_uhi  # noqa: PLC0415 - only here

    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        if templates is not None:
            archive.writestr(_TEMPLATES, json.dumps(list(templates)))
        for name, histogram in hists.items():
            content: Any = to_uhi(histogram)
            for part in (content, *content["axes"]):
                if "metadata" in part:
                    part["metadata"] = json.loads(json.dumps(part["metadata"], default=_of_numpy))
            if variances.of(histogram) is None:
                # to_uhi drops this flag, from_uhi reads it
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

    with _open_zip(path) as archive:
        names = [n.removesuffix(".json") for n in archive.namelist() if n.endswith(".json")]
        return {name: _from_uhi(uhi.io.zip.read(archive, name)) for name in names}


def templates_in(path: Path) -> list[str] | None:
    """Return the names of templates that `write_zip` stored, None if it did not.

    Raises
    ------
    HistogramError
        The file can't be read.
    """
    with _open_zip(path) as archive:
        if _TEMPLATES not in archive.namelist():
            return None
        return [str(name) for name in json.loads(archive.read(_TEMPLATES))]


@contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip of histograms; raise HistogramError if reading fails."""
    try:
        with documents.opened(path) as file, zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > MAX_UNPACKED:
                raise ValueError(f"it would take {size / 1e9:,.0f} GB of memory")
            yield archive
    except DAMAGED as error:
        raise HistogramError(f"{path}: not readable as histograms ({error})") from error


def check_bins(content: Mapping[str, Any], size: int) -> None:
    """Reject axes with more bins, flow bins included, than ``size``, before they take memory.

    Raises
    ------
    ValueError
        There are more.
    """
    n_bins = 1
    for axis in content["axes"]:
        # the axis itself, and the one from which a transformed axis is built
        stated = (axis, (axis.get("writer_info") or {}).get("boost-histogram") or {})
        if any(fields.get("bins", 0) > max(size, _SMALL) for fields in stated):
            raise ValueError("axes with more bins than contents")
        alone = {"uhi_schema": 1, "axes": [axis], "storage": {"type": "int"}}
        n_bins *= bh.Histogram(alone).axes[0].extent
    if n_bins > size:
        raise ValueError("axes with more bins than contents")


def _from_uhi(content: dict[str, Any]) -> hist.Hist[Any]:
    check_bins(content, np.size(content["storage"]["values"]))
    histogram: hist.Hist[Any] = hist.Hist(content)
    if histogram.kind is bh.Kind.MEAN:
        # the variance of a single entry is 0 / 0, which gives no sum of squared deltas
        view: Any = histogram.view(flow=True)
        deltas = view.dtype.names[-1]
        view[deltas][np.isnan(view[deltas]) & np.isfinite(view["value"])] = 0
    return histogram
