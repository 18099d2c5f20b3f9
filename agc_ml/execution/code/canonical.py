"""Canonical forms of plain values and of compiled code, the same in any process, as JSON."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from pathlib import PurePath
from types import CodeType, MappingProxyType
from typing import Any, Final

import numpy as np

OURS: Final = "agc_ml"
_LONGEST_INT: Final = 1024
"""Bits of an integer up to which Python makes decimal text of it."""


class NotPlainError(TypeError):
    """A value is not a number, text, array, or collection of these."""


def digest(content: bytes) -> str:
    """Return the sha256 of some content, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def canonical(value: Any) -> Any:
    """Return JSON that is equal for equal values in any process, and different for any others.

    Kinds that JSON lacks become a list that begins with their name: ``["set", 1, 2]``. The order
    of dictionaries counts. An object of a subclass may hold more, so it is not a plain value.

    Raises
    ------
    NotPlainError
        The value is not a number, text, array, path, or a collection of these.
    """
    kind = type(value)
    if value is None or kind in {bool, str}:
        return value
    if kind in _FORMS:
        return _FORMS[kind](value)
    if isinstance(value, PurePath) and kind.__module__ == "pathlib":
        return ["path", str(value)]
    if isinstance(value, np.generic) and kind.__module__ == "numpy":
        text = value.tobytes().hex() if value.dtype.kind == "V" else str(value)
        return ["numpy", _dtype(value), text]
    if describes_itself(value):
        return canonical(value.canonical())
    raise NotPlainError(kind.__name__)


def describes_itself(value: Any) -> bool:
    """Return whether an object of agc_ml has a canonical form of its own, such as a model."""
    kind = type(value)
    return kind.__module__.partition(".")[0] == OURS and hasattr(kind, "canonical")


def compiled_form(code: CodeType) -> list[Any]:
    """Return compiled code without the numbers of its lines."""
    constants = [
        compiled_form(one) if isinstance(one, CodeType) else canonical(one)
        for one in code.co_consts
    ]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return [code.co_code.hex(), code.co_exceptiontable.hex(), code.co_flags, *names, constants]


def _list(value: list[Any]) -> Any:
    items = [canonical(item) for item in value]
    # a list that begins as another kind does is marked as a list
    is_ambiguous = bool(items) and isinstance(items[0], str) and items[0] in _MARKS
    return ["list", *items] if is_ambiguous else items


def _items(value: Mapping[Any, Any]) -> list[Any]:
    return [[canonical(key), canonical(item)] for key, item in value.items()]


def _dict(value: dict[Any, Any]) -> Any:
    if all(type(key) is str for key in value):
        return {key: canonical(item) for key, item in value.items()}
    return ["dict", *_items(value)]


def _defaultdict(value: defaultdict[Any, Any]) -> Any:
    factory = value.default_factory
    if factory is not None and getattr(factory, "__module__", "") != "builtins":
        raise NotPlainError("a function makes its values")
    return ["defaultdict", factory and factory.__qualname__, *_items(value)]


def _dtype(value: Any) -> str:
    return value.dtype.str if value.dtype.names is None else repr(value.dtype)


def _array(value: Any) -> Any:
    if value.dtype.hasobject:
        raise NotPlainError("array of objects")
    content = np.ascontiguousarray(value).tobytes()
    return ["array", _dtype(value), list(value.shape), digest(content)]


def _sorted(value: Any) -> list[Any]:
    return sorted(map(canonical, value), key=json.dumps)


_FORMS: Final[dict[Any, Callable[[Any], Any]]] = {
    int: lambda value: value if value.bit_length() <= _LONGEST_INT else ["int", hex(value)],
    float: lambda value: value if math.isfinite(value) else ["float", repr(value)],
    list: _list,
    dict: _dict,
    defaultdict: _defaultdict,
    np.ndarray: _array,
    tuple: lambda value: ["tuple", *map(canonical, value)],
    set: lambda value: ["set", *_sorted(value)],
    frozenset: lambda value: ["frozenset", *_sorted(value)],
    OrderedDict: lambda value: ["OrderedDict", *_items(value)],
    Counter: lambda value: ["Counter", *_items(value)],
    MappingProxyType: lambda value: ["mappingproxy", *_items(value)],
    complex: lambda value: ["complex", repr(value)],
    bytes: lambda value: ["bytes", digest(value)],
    bytearray: lambda value: ["bytearray", digest(value)],
    range: lambda value: ["range", value.start, value.stop, value.step],
    slice: lambda value: ["slice", *map(canonical, (value.start, value.stop, value.step))],
    type(...): lambda _: ["..."],
}
_MARKS: Final = {kind.__name__ for kind in _FORMS} - {"ndarray", "ellipsis"} | {
    "array",
    "...",
    "path",
    "numpy",
}
