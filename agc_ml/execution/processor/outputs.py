"""Outputs of processors: checked on the worker in each chunk, and added.

A processor may return anything that coffea can add: mappings nested to any depth, or a bare
histogram. The keys ``sumw``, ``cutflow`` and ``warnings`` have a meaning; with other content than
the documented one they are outputs like all others.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, MutableMapping, MutableSet
from numbers import Real
from typing import Any, Final

import boost_histogram as bh
import hist
import numpy as np

from agc_ml.errors import ProcessorError
from agc_ml.results import saved_outputs, variances
from agc_ml.results.categories import flatten
from agc_ml.results.histogram_files import unstorable
from agc_ml.results.histograms import DenseHist
from agc_ml.results.tables import ColumnTable, is_name

SUMW: Final = "sumw"
WARNINGS: Final = "warnings"
_HISTOGRAMS: Final = (bh.Histogram, DenseHist)


def check(output: Any, dataset: str = "") -> None:
    """Check the output of ``process()`` for a chunk of a dataset.

    Raises
    ------
    ProcessorError
        A part of it can't be added, normalised or kept in a run directory.
    """
    if not isinstance(output, Mapping | MutableSet) and not _is_addable(output):
        raise ProcessorError(
            f"process() returned {type(output).__name__}; return a dictionary, a histogram or "
            "another object that can be added"
        )
    named = by_name(output, "its output")
    tables(named)
    if saved_outputs.is_deeper(named, MOST_LEVELS):
        raise ProcessorError(f"its output is nested more than {MOST_LEVELS} levels; flatten it")
    try:
        saved_outputs.check(rest(named))
    except TypeError as error:
        raise ProcessorError(str(error)) from error
    sumw = sum_of_weights(named, dataset)
    if sumw is not None and not math.isfinite(sumw):
        raise ProcessorError(
            f"its 'sumw' is {sumw!r}; a finite number is needed, the sum of the chunk's weights"
        )
    if isinstance(named.get(WARNINGS), str):
        raise ProcessorError("its 'warnings' must be a list of lines")
    histograms = collect(named)
    for name, histogram in histograms.items():
        dense = isinstance(histogram, DenseHist)
        values = np.asarray(histogram.bins if dense else histogram.values(flow=True))
        if not np.isfinite(values).all():
            raise ProcessorError(f"its histogram {name} holds NaN or infinite contents")
        problem = None if dense else unstorable(histogram)
        if problem is not None:
            raise ProcessorError(f"its histogram {name}: {problem}")
    flatten({name: h for name, h in histograms.items() if not isinstance(h, DenseHist)})


MOST_LEVELS: Final = 60
"""Levels of nesting of a chunk's output; its JSON may have three times as many."""


def by_name(output: Any, name: str) -> Mapping[Any, Any]:
    """The output as a mapping; another object, such as a bare histogram, under a name."""
    return output if isinstance(output, Mapping) else {name: output}


def sum_of_weights(output: Any, dataset: str) -> float | None:
    """Sum of generator weights that an output of a dataset states, None if it states none.

    It is the key ``sumw`` of the output, or of the mapping under the dataset's name in it: a number
    or ``{dataset: number}``. Several numbers, such as those of variations, state no sum.
    """
    stated = output if isinstance(output, Mapping) else {}
    if SUMW not in stated and isinstance(stated.get(dataset), Mapping):
        stated = stated[dataset]
    sumw = stated.get(SUMW)
    if isinstance(sumw, Mapping):
        sumw = next(iter(sumw.values())) if len(sumw) == 1 else None
    return _number(sumw)


def has_sumw(output: Any) -> bool:
    """Return whether an output has a key ``sumw``, at any depth and with any content."""
    return isinstance(output, Mapping) and (
        SUMW in output or any(has_sumw(value) for value in output.values())
    )


def _number(value: Any) -> float | None:
    if type(value).__name__ == "value_accumulator":
        value = value.value
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    is_number = isinstance(value, Real) and not isinstance(value, np.timedelta64)
    return float(value) if is_number else None


COUNTS: Final = "events"
WEIGHTS: Final = "weights"
BOTH: Final = "both"
_TOLERANCE: Final = 1e-4
"""Of a sum in single precision, relative to that of the absolute values."""


def kind_of_sum(sumw: float, events: int, weights: Any) -> str:
    """Kind of a sum over a chunk: of its ``events``, of its generator ``weights``, or neither, "".

    ``weights`` have shape ``(n_events,)``, or are None.
    """
    counts = sumw == events
    if weights is None:
        return COUNTS if counts else ""
    values = np.asarray(weights, np.float64)
    weighs = bool(abs(sumw - values.sum()) <= _TOLERANCE * np.abs(values).sum())
    if counts and weighs and sumw == values.sum():
        return BOTH
    return COUNTS if counts else WEIGHTS if weighs else ""


def is_sum(sumw: float, whole: float) -> bool:
    """Return whether two sums are equal within single precision."""
    return math.isclose(sumw, whole, rel_tol=_OF_WHOLE)


_OF_WHOLE: Final = 1e-6


def cutflow(output: Any, dataset: str) -> dict[str, dict[str, float]]:
    """Events after each cut, ``{dataset: {cut: events}}``, of an output of one dataset.

    ``{cut: events}`` is that dataset's. A mapping of any other shape is not a cutflow.
    """
    stated = output.get("cutflow") if isinstance(output, Mapping) else None
    if not isinstance(stated, Mapping):
        return {}
    flat = _numbers(stated)
    if flat is not None:
        return {dataset: flat} if flat else {}
    numbers = {text_of(name): _numbers(cuts) for name, cuts in stated.items()}
    cutflows = {name: cuts for name, cuts in numbers.items() if cuts is not None}
    return cutflows if len(cutflows) == len(stated) else {}


def _numbers(cuts: Any) -> dict[str, float] | None:
    stated = cuts.items() if isinstance(cuts, Mapping) else [(None, None)]
    values = {text_of(cut): _number(value) for cut, value in stated}
    numbers = {c: v for c, v in values.items() if v is not None and math.isfinite(v)}
    return numbers if len(numbers) == len(stated) else None


def warnings(output: Any) -> tuple[str, ...] | None:
    """Lines for the report in an output; None if the key has other content."""
    stated = output.get(WARNINGS, ()) if isinstance(output, Mapping) else ()
    if not isinstance(stated, list | tuple | MutableSet):
        return None
    lines = sorted(stated, key=repr) if isinstance(stated, MutableSet) else stated
    return tuple(lines) if all(isinstance(line, str) for line in lines) else None


def text_of(key: Any) -> str:
    """Text of a key; of a text enumeration its value."""
    return str.__str__(key) if isinstance(key, str) else str(key)


def ready(output: Any, seen: dict[int, Any] | None = None) -> Any:
    """Return the output as it may travel and be added in place.

    Integers of numpy, whose sums may overflow, become Python's; an object in two places becomes two
    objects, or both would be added twice; virtual columns are read; histograms of boost-histogram
    become hist's, and mappings mutable.
    """
    seen = {} if seen is None else seen
    if _is_integer(output):
        return int(output)
    if isinstance(output, _IMMUTABLE):
        return output
    if isinstance(output, bh.Histogram) and not isinstance(output, hist.Hist):
        output = hist.Hist(output)
    if isinstance(output, Mapping) and not isinstance(output, MutableMapping):
        output = dict(output)
    identity = id(getattr(output, "_hist", output))  # histograms may share their content
    if identity in seen:
        return ready(copy.deepcopy(output), seen)
    seen[identity] = output
    return _ready_inside(output, seen)


def _is_integer(value: Any) -> bool:
    """Return whether a value is an integer of numpy, also in an array without dimension."""
    kind = value.dtype.kind if isinstance(value, np.generic | np.ndarray) else ""
    return kind in {"i", "u"} and value.ndim == 0


def _ready_inside(output: Any, seen: dict[int, Any]) -> Any:
    """As `ready`, for the content of an output."""
    if _is_awkward(output):
        import awkward as ak  # noqa: PLC0415 - heavy

        return ak.materialize(output)
    if isinstance(output, tuple):
        return tuple(ready(value, seen) for value in output)
    kind = type(output)
    if kind.__name__ == "column_accumulator":
        return kind(ready(output.value, seen))
    if kind.__name__ == "value_accumulator":
        output.value = ready(output.value, seen)
    elif isinstance(output, MutableMapping | list):
        for key, value in output.items() if isinstance(output, Mapping) else enumerate(output):
            output[key] = ready(value, seen)
    return output


def _is_awkward(value: Any) -> bool:
    """Return whether a value is an array of awkward's, or of a derived class such as coffea's."""
    return any((c.__module__, c.__name__) == _AWKWARD for c in type(value).__mro__)


_AWKWARD: Final = ("awkward.highlevel", "Array")
_IMMUTABLE: Final = (int, float, complex, str, bytes, frozenset, np.generic, type(None))


def add(left: Any, right: Any, place: str = "output") -> Any:
    """Add the outputs of two chunks as coffea does; ``left`` may be changed.

    Raises
    ------
    ProcessorError
        They can't be added; the message names the place.
    """
    if _is_addable(left) and _is_addable(right):
        try:
            return _added(left, right)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ProcessorError(f"{place} can't be added: {error}") from error
    if isinstance(left, MutableSet) and isinstance(right, MutableSet):
        left |= right
        return left
    if isinstance(left, MutableMapping) and isinstance(right, MutableMapping):
        for key in list(left):
            if key in right:
                left[key] = add(left[key], right[key], f"{place}[{key!r}]")
        for key, value in right.items():
            if key not in left:
                left[key] = value
        return left
    kinds = " and ".join(dict.fromkeys(type(value).__name__ for value in (left, right)))
    raise ProcessorError(f"{place} can't be added: it is a {kinds}")


def _added(left: Any, right: Any) -> Any:
    shapes = {x.shape for x in (left, right) if isinstance(x, np.ndarray) and x.ndim}
    if len(shapes) > 1:
        raise ValueError(f"arrays of the shapes {' and '.join(map(str, sorted(shapes)))}")
    if isinstance(left, np.ndarray):
        # in place it would keep its kind of numbers, which may be too small for their sum
        are_integers = all(np.asarray(x).dtype.kind in "iu" for x in (left, right))
        return np.add(left, right, dtype=_exact(left, right) if are_integers else None)
    if _is_awkward(left):
        return left + right
    with variances.kept_in_sum({"": left}, {"": right}):
        left += right
    return left


def _exact(left: Any, right: Any) -> Any:
    """Type of integers in which the sum of two arrays is exact."""
    kind = np.result_type(left, right)
    return np.promote_types(kind, np.uint64 if kind.kind == "u" else np.int64)


_MAPPINGS: Final = {"dict", "Counter", "dict_accumulator", "defaultdict_accumulator"}
"""Mappings that are added by key: counters would drop values that are not positive, the others fail
at keys that only one chunk has."""
_ADDING: Final = {"add", "__add__", "__iadd__"}


def _is_addable(value: Any) -> bool:
    """Return whether a value adds itself; of mappings those whose class defines the addition."""
    if not isinstance(value, MutableMapping):
        return hasattr(value, "__add__")
    adding = (cls.__name__ for cls in type(value).__mro__ if _ADDING & vars(cls).keys())
    return next(adding, "dict") not in _MAPPINGS


def rest(output: Mapping[Any, Any]) -> dict[Any, Any]:
    """Parts that are neither histograms nor tables, with their nesting."""
    others: dict[Any, Any] = {}
    for key, value in output.items():
        if isinstance(value, (*_HISTOGRAMS, ColumnTable)):
            continue
        if not isinstance(value, Mapping):
            others[key] = value
        elif (inner := rest(value)) or not value:
            others[key] = inner
    return others


def tables(output: Mapping[Any, Any], prefix: str = "") -> dict[str, ColumnTable]:
    """Tables of a nested output; names of nested ones are joined by ``.``, as they name files."""
    named: dict[str, ColumnTable] = {}
    for key, value in output.items():
        if isinstance(value, ColumnTable):
            name = f"{prefix}{text_of(key)}"
            if not is_name(name):
                raise ProcessorError(
                    f"a table can't be called {name!r:.80}: its file has the same name"
                )
            named[name] = value
        elif isinstance(value, Mapping):
            named |= tables(value, f"{prefix}{text_of(key)}.")
    return named


def collect(output: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Histograms of a nested output, dense ones too; names of nested ones are joined by ``/``.

    Raises
    ------
    ProcessorError
        Two have the same name.
    """
    histograms: dict[str, Any] = {}
    for key, value in output.items():
        name = f"{prefix}{text_of(key)}"
        inner = {name: value} if isinstance(value, _HISTOGRAMS) else {}
        if isinstance(value, Mapping):
            inner = collect(value, f"{name}/")
        if twice := inner.keys() & histograms.keys():
            raise ProcessorError(f"it returns two histograms {min(twice)}")
        histograms |= inner
    return histograms
