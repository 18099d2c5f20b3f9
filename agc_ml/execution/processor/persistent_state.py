"""Persistent state of a process: it outlives a chunk, and would count twice if it was returned.

Attributes of classes, globals, defaults and caches are there for all chunks of a process, also if
each chunk has its own processor. Content that gathers there is not the result of a chunk.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSet
from numbers import Number
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any, Final, NamedTuple

import boost_histogram as bh
import numpy as np

from agc_ml.execution.code.code_objects import cells, codes_in, defaults, parts_of
from agc_ml.execution.code.function_processor import origin, state_of
from agc_ml.execution.code.source_files import is_library
from agc_ml.results.histograms import DenseHist
from agc_ml.results.tables import ColumnTable

_CONTAINERS: Final = (MutableMapping, list, deque, MutableSet)
_BUILT_IN: Final = (dict, MappingProxyType, list, deque, set)
_SUMMABLE: Final = (bh.Histogram, DenseHist, ColumnTable, np.ndarray)
_ACCUMULATORS: Final = ("value_accumulator", "column_accumulator")
_OPEN_TYPES: Final = ("SimpleNamespace", *_ACCUMULATORS)
"""Types of libraries whose attributes are their content."""
_VALUE: Final = object()
"""Key of the content of one of coffea's accumulators."""
_PLAIN: Final = (Number, str, bytes, np.generic, type(None))

_QUIET_CHUNKS: Final = 3
"""Chunks of a dataset without a change, after which a process is not searched any more: a search
takes some ms."""
_MOST: Final = 1000
"""Containers of plain values that are kept to be recognised, and their largest size."""
_LARGE: Final = 1 << 20
"""Bytes from which an array is not compared."""

Place = tuple[Any, ...]
"""Keys that lead to a part of an output."""


def returned_again(output: Any) -> str | None:
    """Place of a part of an output that an earlier chunk of this process returned too, else None.

    Parts that have not changed since, such as a table of constants, are left out.
    """
    parts = {id(value): (place, value) for place, value in _summable_parts(output, "")}
    with _lock:
        again = [place for place, value in parts.values() if _was_returned(value)]
    return again[0] if again else None


_lock: Final = threading.Lock()
_returned: Final[dict[int, weakref.ref[Any]]] = {}
_containers: Final[OrderedDict[int, tuple[Any, Any]]] = OrderedDict()  # with their content


def _was_returned(value: Any) -> bool:
    """Return whether a value was returned before, and note that it was now."""
    if isinstance(value, _CONTAINERS):
        return _was_container_returned(value)
    content = getattr(value, "_hist", value)  # histograms have no weak references themselves
    reference = _returned.get(id(content))
    if reference is not None and reference() is content:
        return not _is_empty(value)
    _returned[id(content)] = weakref.ref(content, functools.partial(_forget, id(content)))
    return False


def _forget(identity: int, _: Any) -> None:
    _returned.pop(identity, None)


def _was_container_returned(container: Any) -> bool:
    """Return whether a container of plain values was returned before, with other content.

    Dictionaries and lists have no weak references. Of other containers the values are looked at.
    """
    is_mapping = isinstance(container, Mapping)
    values = container.values() if is_mapping else container
    if len(container) > _MOST or not all(isinstance(value, _PLAIN) for value in values):
        return False
    known, before = _containers.pop(id(container), (None, None))
    now = dict(container) if is_mapping else list(container)
    _containers[id(container)] = container, now
    if len(_containers) > _MOST:
        _containers.popitem(last=False)
    return known is container and before != now


def _is_empty(value: Any) -> bool:
    if isinstance(value, _CONTAINERS):
        return not value or (isinstance(value, Mapping) and all(map(_is_empty, value.values())))
    if isinstance(value, bh.Histogram):
        return bool(value.empty(flow=True))
    if isinstance(value, ColumnTable):
        return not len(value)
    content: Any = value.bins if isinstance(value, DenseHist) else getattr(value, "value", value)
    if isinstance(content, np.ndarray):
        return not content.any()
    return isinstance(content, _PLAIN) and not content


def _summable_parts(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Parts of an output that can be added to, with their places."""
    if isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):
            value = value.base
        if value.flags.writeable:  # else nobody adds to it
            yield place, value
    elif isinstance(value, _SUMMABLE) or type(value).__name__ == "value_accumulator":
        yield place, value
    elif type(value).__name__ == "column_accumulator":
        yield from _summable_parts(value.value, place)
    elif isinstance(value, (*_CONTAINERS, tuple)):
        if not isinstance(value, tuple):
            yield place, value
        for key, inner in _items(value):
            if not isinstance(inner, _PLAIN):
                yield from _summable_parts(inner, f"{place}[{key!r}]")


class _Known(NamedTuple):
    """A persistent value, its state, and whether it was empty."""

    value: Any
    state: Any
    was_empty: bool


class PersistentState:
    """State of a processor's classes, functions and modules, as it was last seen."""

    def __init__(self, processor: Any) -> None:
        code = origin(processor)
        is_code = isinstance(code, FunctionType | type) or bool(_wrapped(code))
        self._code = code if is_code else type(code)
        self._known = {
            name: _Known(value, _state(value), _is_empty(value))
            for name, value in _persistent_values(self._code)
        }
        self._innocent: set[str] = set()
        self._left = _QUIET_CHUNKS
        self._datasets: set[str] = set()

    def suspects(self, output: Any, dataset: str = "") -> dict[str, Place | None]:
        """Return persistent values that a chunk changed and its output may depend on, by name.

        With each comes the place in the output that holds it; None for a histogram, of which the
        output may have anything. To process the chunk again decides (`acquit`): only values that
        gather something differ then. Only the first chunks of each dataset are examined.
        """
        if dataset not in self._datasets:
            self._datasets.add(dataset)
            self._left = _QUIET_CHUNKS
        suspects: dict[str, Place | None] = {}
        if not self._left:
            return suspects
        self._left -= 1
        for name, value in _persistent_values(self._code):
            state, before = _state(value), self._known.get(name)
            if before is not None and state == before.state:
                continue
            self._left = _QUIET_CHUNKS
            self._known[name] = _Known(value, state, _is_empty(value))
            if name in self._innocent or before is None or before.was_empty:
                continue  # if it was empty, all of it is of this chunk
            place = _place_in(output, value)
            is_filled = isinstance(value, bh.Histogram | DenseHist) and before.value is value
            if place is not None or is_filled:
                suspects[name] = place
        return suspects

    def acquit(self, names: Iterable[str]) -> None:
        """Suspect values no more on which an output did not depend."""
        self._innocent.update(names)


def part_at(output: Any, place: Place) -> Any:
    """Part of an output; None where there is nothing."""
    for key in place:
        try:
            output = output.value if key is _VALUE else output[key]
        except (KeyError, IndexError, TypeError, AttributeError):
            return None
    return output


def are_equal(one: Any, other: Any) -> bool:
    """Return whether two outputs, or parts of them, are equal."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(are_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple | deque) and isinstance(other, list | tuple | deque):
        return len(one) == len(other) and all(map(are_equal, one, other))
    one, other = (x.bins if isinstance(x, DenseHist) else x for x in (one, other))
    if one is other:
        return True
    try:
        if isinstance(one, np.ndarray | float):
            return bool(np.array_equal(one, other, equal_nan=True))
        return bool(np.all(one == other))
    except (TypeError, ValueError):  # arrays of objects, or of other shapes
        return False


def _state(value: Any) -> Any:
    """Return a state that differs when the content does; values in containers have their own."""
    if isinstance(value, _PLAIN):
        return repr(value)  # nan is not equal to itself
    if isinstance(value, ColumnTable):
        return len(value)
    if isinstance(value, _CONTAINERS):
        if len(value) > _MOST:  # containers that gather something grow
            return len(value)
        return [(key, v if isinstance(v, _PLAIN) else id(v)) for key, v in _items(value)]
    content: Any = value.bins if isinstance(value, DenseHist) else value
    if isinstance(value, bh.Histogram):
        content = value.view(flow=True)
    return hashlib.sha256(np.ascontiguousarray(content).tobytes()).digest()


def _items(container: Any) -> list[tuple[Any, Any]]:
    """Keys, or places, and values, as they are now: another thread may be filling it.

    By the methods of Python's own types, as those of others run code of their own.
    """
    if isinstance(container, dict):
        return list(dict.items(container))
    if isinstance(container, Mapping):
        return list(container.items())
    base = next((kind for kind in (list, tuple, deque, set) if isinstance(container, kind)), None)
    return list(enumerate(list(container if base is None else base.__iter__(container))))


def _place_in(output: Any, value: Any, place: Place = ()) -> Place | None:
    """Place in an output of a value, or of an equal one; None if there is none."""
    if output is value and not isinstance(value, _PLAIN):
        return place
    if _are_alike(output, value) and are_equal(output, value):
        return place
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(output, (*_CONTAINERS, tuple)):
        inside = _items(output)
    elif type(output).__name__ in _ACCUMULATORS:
        inside = [(_VALUE, output.value)]
    places = (_place_in(inner, value, (*place, key)) for key, inner in inside)
    return next((inner for inner in places if inner is not None), None)


def _are_alike(one: Any, other: Any) -> bool:
    """Return whether two values are of one type, or of one kind of number or container."""
    kinds = (Number, Mapping, (list, tuple, deque))
    return type(one) is type(other) or any(
        isinstance(one, kind) and isinstance(other, kind) for kind in kinds
    )


def _persistent_values(code: Any) -> Iterator[tuple[str, Any]]:
    """Numbers, containers and histograms that code refers to, by name."""
    seen: dict[int, Any] = {}  # with the values, so that no other object gets an id that was seen
    waiting = [("", code)]
    while waiting:
        name, value = waiting.pop()
        if id(value) in seen and not isinstance(value, Number):
            continue
        seen[id(value)] = value
        waiting += _cached_results(name, value)
        wrapped = _wrapped(value)
        waiting += ((name, part) for part in wrapped)
        if not wrapped:
            if _can_gather(value):
                yield name, value
            waiting += _inside(name, value)


def _wrapped(value: Any) -> list[Any]:
    """Functions inside of methods, properties, caches and decorators, with their arguments."""
    if isinstance(value, FunctionType):
        return [vars(value)["__wrapped__"]] if "__wrapped__" in vars(value) else []
    return list(parts_of(value).values())


def _cached_results(name: str, function: Any) -> Iterator[tuple[str, Any]]:
    """Results kept by a `functools.cache`, which only the garbage collector can list."""
    if not isinstance(function, functools._lru_cache_wrapper):  # noqa: SLF001 - the type of these
        return
    results: list[Any] = []
    for inside in gc.get_referents(function):
        if isinstance(inside, dict) and inside is not vars(function):
            for kept in list(inside.values()):
                is_link = type(kept).__name__ == "_lru_list_elem"
                results += gc.get_referents(kept) if is_link else [kept]
    label = f"{getattr(function, '__name__', name)}()"
    yield from ((f"{label} {i}" if i else label, kept) for i, kept in enumerate(results))


def _can_gather(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, (Number, *_SUMMABLE)):
        return bool(getattr(value, "nbytes", 0) <= _LARGE)
    return isinstance(value, _BUILT_IN)


def _inside(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Values that a value refers to, with names."""
    if isinstance(value, FunctionType):
        yield from _of_function(value)
    elif isinstance(value, type):
        for base in value.__mro__:
            if not is_library(base.__module__):
                yield from _named(base.__name__, vars(base).items())
    elif isinstance(value, (*_BUILT_IN, tuple)):
        inside = ((key, inner) for key, inner in _items(value) if not isinstance(inner, _PLAIN))
        yield from ((f"{name}[{key!r}]", inner) for key, inner in inside)
    kind = type(value)
    is_users = not isinstance(value, type) and not is_library(kind.__module__ or "")
    if is_users or kind.__name__ in _OPEN_TYPES:
        yield from _named(name, state_of(value).items())
        yield kind.__name__, kind


def _named(name: str, values: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    yield from ((f"{name}.{key}", value) for key, value in list(values))


def _of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Defaults, attributes, closures and globals that a function of the user's refers to."""
    if is_library(function.__module__ or ""):
        return
    name = function.__name__
    yield from _named(name, vars(function).items())
    yield from ((f"{name}({parameter})", value) for parameter, value in defaults(function))
    yield from _named(name, cells(function))
    names = dict.fromkeys(name for code in codes_in(function.__code__) for name in code.co_names)
    for variable in names:
        value = function.__globals__.get(variable)
        if isinstance(value, ModuleType) and not is_library(value.__name__):
            space = vars(value)
            yield from _named(variable, ((n, space[n]) for n in names if n in space))
        else:
            yield variable, value
