"""Outputs of a processor as JSON and arrays, without code, as a run directory stores them.

Plain values are plain JSON. Other values are objects with one key that begins with $:

- ``{"$float": "nan"}`` (``inf``, ``-inf``), ``{"$complex": [re, im]}``, ``{"$bytes": "base64"}``
- ``{"$tuple": [...]}``, ``{"$set": [...]}``, ``{"$frozenset": [...]}``
- ``{"$dict": [[key, value], ...]}``: a mapping with a key that is not text, or begins with $
- ``{"$array": "a0"}``: an array, in ``outputs.npz`` under that name
- ``{"$awkward": {"form": ..., "length": n, "buffers": {name: "a1"}}}``: an awkward array
- ``{"$histogram": "h0"}``: a histogram in a list, in ``outputs.zip`` under that name
- ``{"$column": ...}``, ``{"$value": ...}``: coffea's ``column_accumulator``, ``value_accumulator``
- ``{"$scalar": "a0"}``: a date, a duration or a long double of numpy, likewise
- ``{"$weighted": [value, variance]}``: a sum of weights, as a ``Weight`` histogram gives it
- ``{"$statistics": [sumw, sumw2, minw, maxw, n]}``: coffea's ``WeightStatistics``

Numbers of numpy are numbers; all kinds of mappings are mappings, all kinds of lists lists.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple

import boost_histogram as bh
import hist
import numpy as np

from agc_ml.results.histogram_files import unstorable

_PLAIN: Final = "biufcSUmM"  # kinds of arrays without Python objects
_FORMS: Final = ("numbers, text, arrays, histograms, tables (agc_ml.ColumnTable), and lists, "
                 "sets and mappings of them")  # fmt: skip


class Encoded(NamedTuple):
    """Output as JSON, with the arrays and histograms that it names."""

    content: Any
    arrays: dict[str, Any]
    histograms: dict[str, hist.Hist[Any]]


def encode(value: Any) -> Encoded:
    """Turn an output into JSON, arrays and histograms.

    Raises
    ------
    TypeError
        Something in it can't be stored; the message names its place.
    """
    encoded = Encoded(None, {}, {})
    return encoded._replace(content=_encoded(value, "", encoded))


def decode(encoded: Encoded) -> Any:
    """Undo `encode`.

    Raises
    ------
    ValueError, KeyError, TypeError
        It is not a result of `encode`.
    """
    return _decoded(encoded.content, encoded)


def is_deeper(value: Any, levels: int) -> bool:
    """Return whether mappings, lists and tuples are nested more than so many levels."""
    level = [value]
    for _ in range(levels):
        nested = [value for value in level if isinstance(value, Mapping | list | tuple)]
        parts = [value.values() if isinstance(value, Mapping) else value for value in nested]
        level = [value for values in parts for value in values]
        if not level:
            return False
    return any(isinstance(value, Mapping | list | tuple) for value in level)


def check(value: Any) -> None:
    """Reject an output that `encode` would reject, without encoding it.

    Raises
    ------
    TypeError
        Something in it can't be stored; the message names its place.
    """
    _encoded(value, "", None)


def _encoded(value: Any, place: str, into: Encoded | None) -> Any:
    """Return a value as JSON; arrays and histograms go to ``into``, or nowhere if it is None."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return _of_numpy(value, place, into)
    if isinstance(value, str):
        return _of_text(value, place)
    for kind, plain in _SCALARS.items():
        if isinstance(value, kind):
            return plain(value)
    if isinstance(value, Mapping):
        return _of_mapping(value, place, into)
    for kind, name in _SEQUENCES.items():
        if isinstance(value, kind):
            ordered = sorted(value, key=repr) if isinstance(value, AbstractSet) else value
            items = [_encoded(v, f"{place}[{i}]", into) for i, v in enumerate(ordered)]
            return {name: items} if name else items
    return _of_object(value, place, into)


def _of_text(value: str, place: str) -> str:
    text = str.__str__(value)  # the content of an enumeration
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise TypeError(
            f"output{place} is {text!r}, which is not valid text; decode it in another way"
        )
    return text


def _of_float(value: float) -> Any:
    return float(value) if math.isfinite(value) else {"$float": str(float(value))}


_SCALARS: Final[dict[type | tuple[type, ...], Callable[[Any], Any]]] = {
    (bool, type(None)): lambda value: value,
    int: int,
    float: _of_float,
    complex: lambda value: {"$complex": [_of_float(value.real), _of_float(value.imag)]},
    (bytes, bytearray): lambda value: {"$bytes": base64.b64encode(value).decode()},
}
_SEQUENCES: Final[Mapping[Any, str]] = {
    list: "",
    tuple: "$tuple",
    frozenset: "$frozenset",
    AbstractSet: "$set",
}


def _of_numpy(value: Any, place: str, into: Encoded | None) -> Any:
    if value.dtype.kind in "biufcSU" and value.dtype != np.longdouble:
        return _encoded(value.item(), place, into)
    if value.dtype.kind in _PLAIN:
        return {"$scalar": _named(into and into.arrays, "a", lambda: np.asarray(value))}
    return _of_object(np.asarray(value), place, into)


def _of_mapping(value: Mapping[Any, Any], place: str, into: Encoded | None) -> Any:
    is_plain = all(type(key) is str and not key.startswith("$") for key in value)
    pairs = [
        (_encoded(key, f"{place}: key {key!r}", into), _encoded(inner, f"{place}[{key!r}]", into))
        for key, inner in value.items()
    ]
    return dict(pairs) if is_plain else {"$dict": [list(pair) for pair in pairs]}


def _of_object(value: Any, place: str, into: Encoded | None) -> Any:
    kind = {cls.__module__.partition(".")[0] + "." + cls.__name__ for cls in type(value).__mro__}
    if isinstance(value, bh.Histogram):
        problem = unstorable(hist.Hist(value))
        if problem is not None:
            raise TypeError(f"output{place} is a histogram, but {problem}")
        return {"$histogram": _named(into and into.histograms, "h", lambda: hist.Hist(value))}
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        if value.dtype.kind in _PLAIN or (value.dtype.fields and not value.dtype.hasobject):
            return {"$array": _named(into and into.arrays, "a", lambda: np.asarray(value))}
    elif "awkward.Array" in kind:
        return _of_awkward(value, into)
    for cls in kind & _OBJECTS.keys():
        form, content = _OBJECTS[cls]
        return {form: _encoded(content(value), place, into)}
    name = type(value).__name__
    if isinstance(value, np.ndarray):
        name = f"{name} of {'masked values' if np.ma.isMaskedArray(value) else value.dtype}"
    raise TypeError(f"output{place} is a {name}, which can't be stored; return {_FORMS}")


_STATISTICS: Final = ("sumw", "sumw2", "minw", "maxw", "n")
_OBJECTS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "coffea.column_accumulator": ("$column", lambda of: of.value),
    "coffea.value_accumulator": ("$value", lambda of: of.value),
    "coffea.WeightStatistics": ("$statistics", lambda of: [getattr(of, n) for n in _STATISTICS]),
    "boost_histogram.WeightedSum": ("$weighted", lambda of: [of.value, of.variance]),
}


def _named(kept: dict[str, Any] | None, letter: str, make: Callable[[], Any]) -> str:
    if kept is None:
        return ""
    name = f"{letter}{len(kept)}"
    kept[name] = make()
    return name


def _of_awkward(value: Any, into: Encoded | None) -> Any:
    if into is None:
        return {}
    import awkward as ak  # noqa: PLC0415 - heavy

    form, length, buffers = ak.to_buffers(ak.to_packed(ak.materialize(value)))
    names = {
        key: _named(into.arrays, "a", lambda array=array: np.asarray(array))  # type: ignore[misc]
        for key, array in buffers.items()
    }
    return {"$awkward": {"form": json.loads(form.to_json()), "length": length, "buffers": names}}


def lines(content: Any, most: int) -> list[tuple[str, str]]:
    """Return name and text of at most ``most`` encoded outputs, and the number of others."""
    outputs = list(_lines(content, ""))
    more = [("...", f"and {len(outputs) - most} more, in run.json")] if len(outputs) > most else []
    return [*outputs[:most], *more]


def _lines(content: Any, name: str) -> Iterator[tuple[str, str]]:
    special = next(iter(content), "") if isinstance(content, dict) and len(content) == 1 else ""
    if isinstance(content, dict) and content and not special.startswith("$"):
        for key, inner in content.items():
            yield from _lines(inner, f"{name}/{key}" if name else key)
    elif special == "$dict":
        for key, inner in content[special]:
            yield from _lines(inner, f"{name}/{key}" if name else str(key))
    elif special in _TEXTS:
        yield name, _text(content[special])
    elif special:
        kind = {"$array": "array", "$column": "column", "$awkward": "awkward array"}
        yield name, f"{kind.get(special, special[1:])}, in the run directory"
    else:
        yield name, _text(content)


_TEXTS: Final = {"$float", "$value", "$set", "$frozenset", "$tuple", "$weighted", "$statistics"}


def _text(content: Any) -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_SHOWN: Final = 200


def _decoded(content: Any, encoded: Encoded) -> Any:
    if isinstance(content, list):
        return [_decoded(item, encoded) for item in content]
    if not isinstance(content, dict):
        return content
    name = next(iter(content), "")
    if len(content) != 1 or not name.startswith("$"):
        return {key: _decoded(inner, encoded) for key, inner in content.items()}
    return _READERS[name](content[name], encoded)


def _awkward(content: Any, encoded: Encoded) -> Any:
    import awkward as ak  # noqa: PLC0415 - heavy

    buffers = {key: encoded.arrays[name] for key, name in content["buffers"].items()}
    return ak.from_buffers(ak.forms.from_dict(content["form"]), content["length"], buffers)


def _column(content: Any, encoded: Encoded) -> Any:
    from coffea.processor import column_accumulator  # noqa: PLC0415 - heavy

    return column_accumulator(_decoded(content, encoded))


def _value(content: Any, encoded: Encoded) -> Any:
    from coffea.processor import value_accumulator  # noqa: PLC0415 - heavy

    value = _decoded(content, encoded)
    return value_accumulator(type(value), value)


def _statistics(content: Any, encoded: Encoded) -> Any:
    from coffea.analysis_tools import WeightStatistics  # noqa: PLC0415 - heavy

    return WeightStatistics(*_decoded(content, encoded))


_READERS: Final[dict[str, Callable[[Any, Encoded], Any]]] = {
    "$float": lambda text, _: float(text),
    "$complex": lambda parts, encoded: complex(*_decoded(parts, encoded)),
    "$bytes": lambda text, _: base64.b64decode(text),
    "$tuple": lambda items, encoded: tuple(_decoded(items, encoded)),
    "$set": lambda items, encoded: set(_decoded(items, encoded)),
    "$frozenset": lambda items, encoded: frozenset(_decoded(items, encoded)),
    "$dict": lambda pairs, encoded: {
        _decoded(key, encoded): _decoded(inner, encoded) for key, inner in pairs
    },
    "$array": lambda name, encoded: encoded.arrays[name],
    "$histogram": lambda name, encoded: encoded.histograms[name],
    "$scalar": lambda name, encoded: encoded.arrays[name][()],
    "$weighted": lambda parts, encoded: bh.accumulators.WeightedSum(*_decoded(parts, encoded)),
    "$awkward": _awkward,
    "$column": _column,
    "$value": _value,
    "$statistics": _statistics,
}
