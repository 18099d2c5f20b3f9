"""Templates: flat histograms ``{region}_{process}[_{variation}]``, from every place they are kept.

Here they are loaded, checked, merged to the bins of a fit, compared, and made into pseudodata.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import boost_histogram as bh
import hist
import numpy as np
from numpy.typing import NDArray

from agc_ml import documents
from agc_ml.analysis import Pseudodata
from agc_ml.errors import HistogramError, UsageError
from agc_ml.results import agc_reference, histogram_files, variances
from agc_ml.results.categories import flatten, template_names
from agc_ml.results.run_result import RunResult

PSEUDODATA: Final = "pseudodata"

_Array = NDArray[np.float64]


def load(path: str | Path) -> dict[str, hist.Hist[Any]]:
    """Read templates from a run directory, a ROOT file, a zip, or the published reference JSON.

    Pseudodata in a file are left out: they are made anew from the templates (`pseudodata`). Of a
    zip file that does not name its templates the variations that are empty are left out too,
    because a sum of datasets also holds variations there that only another process has.

    Raises
    ------
    UsageError
        There is nothing at ``path``.
    RunDirectoryError
        It is a folder, but no run directory.
    HistogramError
        The file can't be read, or holds something else.
    """
    source = Path(path)
    if source.is_dir():
        found = dict(RunResult.load(source).templates)
    elif source.is_file():
        found = _from_file(source)
    else:
        raise UsageError(
            f"{source}: no such file or folder; give a run directory, a ROOT file, a zip of "
            "histograms, or the published reference JSON"
        )
    others = [name for name in found if not name.endswith(f"_{PSEUDODATA}")]
    regions = [name.removesuffix(PSEUDODATA) for name in found.keys() - set(others)]
    made = {
        f"{region}{PSEUDODATA}"
        for region in regions
        if not others or any(name.startswith(region) for name in others)
    }
    kept = {name: h for name, h in found.items() if name not in made}
    if not kept:
        raise HistogramError(f"{source}: no templates in it")
    return kept


def is_published(path: Path) -> bool:
    """Return whether a file is the published reference JSON."""
    try:
        content = documents.json_of(documents.text(path)) if path.is_file() else None
    except (OSError, ValueError):
        return False
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(one, dict) and "contents" in one for one in content.values())
    )


def _from_file(path: Path) -> dict[str, hist.Hist[Any]]:
    """Read a file by what it begins with, whatever it is called."""
    try:
        with documents.opened(path) as file:
            start = file.read(4)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HistogramError(f"{path}: can't be read ({reason})") from error
    if start == b"root":
        return histogram_files.read_root(path)
    if start[:2] == b"PK":
        content, listed = histogram_files.read_zip(path), histogram_files.templates_in(path)
        flat = flatten(content)
        kept = template_names(content) if listed is None else set(listed)
        return {name: h for name, h in flat.items() if name in kept}
    found = {
        name: variances.filled([hist.axis.Variable(edges, name="observable")], values, spread)
        for name, (edges, values, spread) in agc_reference.read(path).items()
    }
    for histogram in found.values():
        histogram.label = "Events"
    return found


def check(templates: Mapping[str, hist.Hist[Any]]) -> None:
    """Make sure that contents and known variances are finite, and variances not negative.

    Raises
    ------
    HistogramError
        The first histogram, by name, that is not so.
    """
    for name in sorted(templates):
        histogram = templates[name]
        values, spread = _values(histogram), variances.of(histogram, flow=True)
        bad = ~np.isfinite(values)
        if spread is not None and histogram.kind is bh.Kind.COUNT:
            # that of a mean of less than two entries is NaN
            bad |= ~(np.isfinite(spread) & (spread >= 0))
        if np.any(bad):
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            variance = "not known" if spread is None else f"{spread[where]:g}"
            raise HistogramError(
                f"histogram {name}, {_place(histogram, where)}: content "
                f"{values[where]:g}, variance {variance}; contents must be finite, "
                "variances not negative: look for such weights in the input"
            )


def merge(
    histogram: hist.Hist[Any], edges: Sequence[float], *, name: str = "histogram"
) -> hist.Hist[Any]:
    """Merge the bins of a one-dimensional histogram to wider ones, without flow.

    ``edges`` are the ones to keep, rising, all among the histogram's own; what lies outside of them
    is dropped. Contents and variances are added. ``name`` is for the error.

    Raises
    ------
    HistogramError
        An edge is not among the histogram's own, or it holds means.
    """
    if histogram.kind is bh.Kind.MEAN:
        raise HistogramError(f"{name}: holds means, a template for a fit holds numbers of events")
    if histogram.ndim != 1:
        raise HistogramError(f"{name}: has {histogram.ndim} axes, a template for a fit has one")
    own = np.asarray(histogram.axes[0].edges, dtype=np.float64)
    wanted = np.asarray(edges, dtype=np.float64)
    if len(wanted) < 2 or not np.all(np.diff(wanted) > 0):  # noqa: PLR2004 - one bin
        raise HistogramError(
            f"{name}: bin edges {wanted.tolist()} are not two or more rising numbers"
        )
    index = np.array([place(own, edge) for edge in wanted])
    if np.any(index < 0):
        lacking = wanted[index < 0][0]
        raise HistogramError(
            f"{name}: {lacking:g} is not among its bin edges ({len(own) - 1} bins from {own[0]:g} "
            f"to {own[-1]:g}); choose the Binning from them"
        )
    first, last = index[0], index[-1]
    values, spread = (
        None if array is None else np.add.reduceat(array[first:last], index[:-1] - first)
        for array in (histogram.values(), variances.of(histogram))
    )
    axis = histogram.axes[0]
    merged = hist.axis.Variable(wanted, name=axis.name, label=axis.label, flow=False)
    return variances.filled([merged], values, spread)


def pseudodata(
    templates: Mapping[str, hist.Hist[Any]], recipe: Pseudodata
) -> dict[str, hist.Hist[Any]]:
    """Mix the pseudodata of an analysis, ``{region}_pseudodata``, for each region there is.

    The variance is that of the sum, where those of all parts are known.

    Raises
    ------
    HistogramError
        A region lacks one of the templates that are added, or their axes differ.
    """
    return {
        f"{region}_{PSEUDODATA}": _sum(
            templates,
            {f"{region}_{part}": factor for part, factor in recipe.parts.items()},
            recipe.kind,
        )
        for region in _regions(templates, recipe.parts)
    }


def _regions(templates: Iterable[str], parts: Mapping[str, float]) -> list[str]:
    """Regions with a template of the first part of pseudodata.

    A part's name may end as another one's does: the longest one counts.
    """
    first = next(iter(parts))
    longer = tuple(f"_{part}" for part in parts if part.endswith(f"_{first}"))
    return [
        name.removesuffix(f"_{first}")
        for name in templates
        if name.endswith(f"_{first}") and not name.endswith(longer)
    ]


def _sum(
    templates: Mapping[str, hist.Hist[Any]], parts: Mapping[str, float], kind: str
) -> hist.Hist[Any]:
    first = next(iter(parts))
    for name in parts:
        if name not in templates:
            raise HistogramError(
                f"histogram {name} is missing: the {kind} pseudodata are made of it; run over its "
                "dataset too"
            )
        if not _same_axes(templates[first], templates[name]):
            raise HistogramError(f"the bins of {name} are not those of {first}: run both anew")
    values = sum(factor * _values(templates[name]) for name, factor in parts.items())
    known = [variances.of(templates[name], flow=True) for name in parts]
    spreads = [f**2 * v for f, v in zip(parts.values(), known, strict=True) if v is not None]
    total = np.sum(spreads, axis=0) if len(spreads) == len(parts) else None
    return variances.filled(templates[first].axes, values, total)


def place(edges: _Array, edge: float) -> int:
    """Find an edge among others, -1 if it is none: edges of regular axes are rounded."""
    same = np.flatnonzero(edges == edge)
    if len(same):
        return int(same[0])
    if not np.isfinite(edge):
        return -1
    nearest = int(np.argmin(np.abs(edges - edge)))
    widths = np.diff(edges)[max(nearest - 1, 0) : nearest + 1]
    tolerance = 1e-6 * np.min(widths)
    is_near = np.isfinite(tolerance) and abs(edges[nearest] - edge) <= tolerance
    return nearest if is_near else -1


class Difference(NamedTuple):
    """How a histogram differs between two sources A and B.

    ``size`` is the relative difference of content or variance in the worst bin, ``place`` its
    position; it is infinite when there is nothing to compare. ``variances`` is None where they are
    not known.
    """

    name: str
    what: Literal[
        "only in A",
        "only in B",
        "bins differ",
        "contents differ",
        "variances differ",
        "variances are known in A only",
        "variances are known in B only",
    ]
    size: float
    place: str = ""
    values: tuple[float, float] | None = None
    variances: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.values is None:
            return f"{self.name}: {self.what}"
        a, b = self.values
        spread = (
            "variances unknown"
            if self.variances is None
            else f"variance {self.variances[0]:.10g} and {self.variances[1]:.10g}"
        )
        return (
            f"{self.name}: {self.what} by {self.size:.2g}, worst in {self.place}: content {a:.10g} "
            f"and {b:.10g}, {spread}"
        )


def compare(
    a: Mapping[str, hist.Hist[Any]], b: Mapping[str, hist.Hist[Any]], rtol: float = 1e-9
) -> list[Difference]:
    """Compare two sources of histograms bin by bin, flow included; the largest difference first.

    Contents may differ by ``rtol`` times the larger one or its statistical uncertainty (which is
    larger only where weights of both signs cancel), variances by ``rtol`` times the larger one.
    Two NaNs are no difference, nor are flow bins that are missing and empty ones. Where variances
    are unknown in both, contents are compared.

    Raises
    ------
    UsageError
        ``rtol`` is no number from 0 up.
    """
    if not 0 <= rtol < np.inf:
        raise UsageError(f"--rtol {rtol:g}: a number from 0 up is needed")
    found = [Difference(name, "only in A", np.inf) for name in a if name not in b]
    found += [Difference(name, "only in B", np.inf) for name in b if name not in a]
    for name in a:
        if name in b:
            both = histogram_files.with_flow(a[name]), histogram_files.with_flow(b[name])
            found += [one for one in _differences(name, *both) if one.size > rtol]
    return sorted(found, key=lambda difference: (-difference.size, difference.name))


def unknown_in_both(a: Mapping[str, hist.Hist[Any]], b: Mapping[str, hist.Hist[Any]]) -> list[str]:
    """Names of the histograms of which only contents can be compared."""
    return [
        name
        for name in a
        if name in b and variances.of(a[name]) is None and variances.of(b[name]) is None
    ]


def _differences(name: str, a: hist.Hist[Any], b: hist.Hist[Any]) -> Iterator[Difference]:
    if not _same_axes(a, b):
        yield Difference(name, "bins differ", np.inf)
        return
    values = _values(a), _values(b)
    var_a, var_b = (variances.of(histogram, flow=True) for histogram in (a, b))
    if (var_a is None) != (var_b is None):
        yield Difference(
            name,
            "variances are known in B only" if var_a is None else "variances are known in A only",
            np.inf,
        )
    spreads = None if var_a is None or var_b is None else (var_a, var_b)
    floor = np.zeros_like(values[0])
    if spreads is not None:
        floor = np.sqrt(np.abs(np.maximum(*spreads)))
    of_values = _relative(*values, floor=floor)
    of_variances = np.zeros_like(floor)
    if spreads is not None:
        of_variances = _relative(*spreads, floor=of_variances)
    size = np.maximum(of_values, of_variances)
    where = np.unravel_index(int(np.argmax(size)), size.shape)
    yield Difference(
        name,
        "contents differ" if of_values[where] >= of_variances[where] else "variances differ",
        float(size[where]),
        _place(a, tuple(int(i) for i in where)),
        (float(values[0][where]), float(values[1][where])),
        None if spreads is None else (float(spreads[0][where]), float(spreads[1][where])),
    )


def _relative(a: _Array, b: _Array, floor: _Array) -> _Array:
    """Size of the difference in units of the larger of the two; infinite if one is not finite."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scale = np.maximum(np.maximum(np.abs(a), np.abs(b)), floor)
        size = np.abs(a - b) / scale
    size[~np.isfinite(size)] = np.inf
    size[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
    return size


def _same_axes(a: hist.Hist[Any], b: hist.Hist[Any]) -> bool:
    def close(x: Any, y: Any) -> bool:
        if x.extent != y.extent or len(x) != len(y) or x.traits.discrete != y.traits.discrete:
            return False
        if x.traits.discrete:
            return list(x) == list(y)
        return bool(np.allclose(x.edges, y.edges, rtol=1e-9, atol=0))

    return a.ndim == b.ndim and all(close(x, y) for x, y in zip(a.axes, b.axes, strict=True))


def _place(histogram: hist.Hist[Any], index: Iterable[int]) -> str:
    """Name the bin at ``index``, which counts the underflow where there is one."""
    names = []
    for axis, i in zip(histogram.axes, index, strict=True):
        bin_ = i - int(axis.traits.underflow)
        if bin_ < 0:
            names.append("underflow")
        elif bin_ >= len(axis):
            names.append("overflow")
        elif axis.traits.discrete:
            names.append(str(axis.value(bin_)))
        else:
            names.append(f"bin [{axis.edges[bin_]:g}, {axis.edges[bin_ + 1]:g})")
    return " x ".join(names)


def _values(histogram: hist.Hist[Any]) -> _Array:
    """Contents, flow included."""
    return np.asarray(histogram.values(flow=True), dtype=np.float64)


def digest(templates: Mapping[str, hist.Hist[Any]]) -> str:
    """Sha256 of names, edges, contents and variances; the same whatever they were read from."""
    total = hashlib.sha256()
    for name in sorted(templates):
        histogram = templates[name]
        total.update(name.encode())
        arrays = [axis.edges for axis in histogram.axes if not axis.traits.discrete]
        spread = variances.of(histogram, flow=True)
        for array in (*arrays, _values(histogram), np.nan if spread is None else spread):
            total.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
    return total.hexdigest()
