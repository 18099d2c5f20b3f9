"""Lasting state of a process: it outlives a chunk, and would count twice if it was returned.

Attributes of classes, globals, defaults and caches are there for all chunks of a process, whatever
is done for processors. What they gather is no result of a chunk.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import inspect
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSet
from numbers import Number
from types import CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, Final, NamedTuple

import boost_histogram as bh
import numpy as np

from agc_ml.execution.processor.code_identity import is_library, state_of
from agc_ml.execution.processor.function_processor import origin
from agc_ml.results.histograms import DenseHist
from agc_ml.results.tables import ColumnTable

_CONTAINERS: Final = (MutableMapping, list, deque, MutableSet)
_COUNTING: Final = (bh.Histogram, DenseHist, ColumnTable, np.ndarray)
_ACCUMULATORS: Final = ("value_accumulator", "column_accumulator")
_VALUE: Final = object()
"""Place of what is in one of coffea's accumulators."""
_PLAIN: Final = (Number, str, bytes, np.generic, type(None))

_CHUNKS: Final = 3
"""Quiet chunks of a dataset after which a process is not looked through any more: that takes some
ms."""
_MOST: Final = 1000
"""Containers of numbers and text, of so many at most, that are kept to see them returned again."""


def returned_again(output: Any) -> str | None:
    """Place of something in an output that an earlier chunk of this process returned, too.

    None if there is no such thing. What has not changed since, such as a table of constants, is
    left out.
    """
    here = {id(value): (place, value) for place, value in _parts(output, "")}
    with _lock:
        again = [place for place, value in here.values() if _is_again(value)]
    return again[0] if again else None


_lock: Final = threading.Lock()
_returned: Final[dict[int, weakref.ref[Any]]] = {}
_containers: Final[OrderedDict[int, tuple[Any, Any]]] = OrderedDict()  # and what was in them


def _is_again(value: Any) -> bool:
    """Return whether it was returned before; from now on it was."""
    if isinstance(value, _CONTAINERS):
        return _is_other_now(value)
    content = getattr(value, "_hist", value)  # histograms have no weak references themselves
    reference = _returned.get(id(content))
    if reference is not None and reference() is content:
        return not _is_empty(value)
    _returned[id(content)] = weakref.ref(content, functools.partial(_forget, id(content)))
    return False


def _forget(identity: int, _: Any) -> None:
    _returned.pop(identity, None)


def _is_other_now(container: Any) -> bool:
    """The same of a container of numbers and text: dictionaries and lists have no weak references.

    Of a container of other things, these tell.
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
    if isinstance(value, bh.Histogram):
        return bool(value.empty(flow=True))
    if isinstance(value, ColumnTable):
        return not len(value)
    content: Any = value.bins if isinstance(value, DenseHist) else getattr(value, "value", value)
    return isinstance(content, (*_PLAIN, np.ndarray)) and not np.asarray(content).any()


def _parts(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Parts of an output that can be added to, with their places."""
    if isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):
            value = value.base
        if value.flags.writeable:  # else nobody adds to it
            yield place, value
    elif isinstance(value, _COUNTING) or type(value).__name__ == "value_accumulator":
        yield place, value
    elif type(value).__name__ == "column_accumulator":
        yield from _parts(value.value, place)
    elif isinstance(value, (*_CONTAINERS, tuple)):
        if not isinstance(value, tuple):
            yield place, value
        for key, inner in _items(value):
            if not isinstance(inner, _PLAIN):
                yield from _parts(inner, f"{place}[{key!r}]")


class Lasting:
    """State of a processor's classes, functions and modules, as it was last seen."""

    def __init__(self, processor: Any) -> None:
        code = _unwrapped(origin(processor))
        self._code = code if isinstance(code, FunctionType | type) else type(code)
        self._before = {name: _Known(v, _state(v), _is_nothing(v)) for name, v in self._all()}
        self._innocent: set[str] = set()
        self._left = _CHUNKS
        self._datasets: set[str] = set()

    def _all(self) -> Iterator[tuple[str, Any]]:
        return _lasting(self._code)

    def suspects(self, output: Any, dataset: str = "") -> dict[str, Place | None]:
        """Return lasting values that a chunk changed and its output may depend on, by name.

        With the place in the output that holds it, None for a histogram of which it may have
        anything. To run the chunk again tells (`acquit`): only what gathers something is another
        one then. The first chunks of each dataset are looked at.
        """
        if dataset not in self._datasets:
            self._datasets.add(dataset)
            self._left = _CHUNKS
        found: dict[str, Place | None] = {}
        if not self._left:
            return found
        self._left -= 1
        for name, value in self._all():
            state, before = _state(value), self._before.get(name)
            if before is not None and state == before.state:
                continue
            self._left = _CHUNKS
            self._before[name] = _Known(value, state, _is_nothing(value))
            if name in self._innocent or before is None or before.was_nothing:
                continue  # what was nothing has only what is the chunk's own
            place = _place_in(output, value)
            is_filled = isinstance(value, bh.Histogram | DenseHist) and before.value is value
            if place is not None or is_filled:
                found[name] = place
        return found

    def acquit(self, names: Iterable[str]) -> None:
        """Suspect something no more: an output did not depend on what was in it."""
        self._innocent.update(names)


class _Known(NamedTuple):
    """Something lasting: what it was, and whether that was nothing."""

    value: Any
    state: Any
    was_nothing: bool


Place = tuple[Any, ...]
"""Keys that lead to a part of an output."""


def at(output: Any, place: Place) -> Any:
    """Part of an output; None where there is nothing."""
    for key in place:
        try:
            output = output.value if key is _VALUE else output[key]
        except (KeyError, IndexError, TypeError, AttributeError):
            return None
    return output


def are_same(one: Any, other: Any) -> bool:
    """Return whether two outputs, or parts of them, are equal."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(are_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple | deque) and isinstance(other, list | tuple | deque):
        return len(one) == len(other) and all(map(are_same, one, other))
    return _are_equal(*(x.bins if isinstance(x, DenseHist) else x for x in (one, other)))


def _state(value: Any) -> Any:
    """Return what differs when the content does; values inside of containers have their own."""
    if isinstance(value, _PLAIN):
        return repr(value)  # nan is not equal to itself
    if isinstance(value, ColumnTable):
        return len(value)
    if isinstance(value, _CONTAINERS):
        if len(value) > _MOST:  # what gathers something grows
            return len(value)
        return [(key, v if isinstance(v, _PLAIN) else id(v)) for key, v in _items(value)]
    content: Any = value.bins if isinstance(value, DenseHist) else value
    if isinstance(value, bh.Histogram):
        content = value.view(flow=True)
    return hashlib.sha256(np.ascontiguousarray(content).tobytes()).digest()


def _items(container: Any) -> list[tuple[Any, Any]]:
    """Keys, or places, and values, as they are now: another thread may be filling it.

    By the methods of Python's own types: those of others run code of their own.
    """
    if isinstance(container, dict):
        return list(dict.items(container))
    if isinstance(container, Mapping):
        return list(container.items())
    base = next((kind for kind in (list, tuple, deque, set) if isinstance(container, kind)), None)
    return list(enumerate(list(container if base is None else base.__iter__(container))))


def _cached(name: str, function: Any) -> Iterator[tuple[str, Any]]:
    """Results kept by a `functools.cache`, which only the garbage collector can list."""
    if not isinstance(function, functools._lru_cache_wrapper):  # noqa: SLF001 - the type of these
        return
    found: list[Any] = []
    for inside in gc.get_referents(function):
        if isinstance(inside, dict) and inside is not vars(function):
            for kept in list(inside.values()):
                is_link = type(kept).__name__ == "_lru_list_elem"
                found += gc.get_referents(kept) if is_link else [kept]
    label = f"{getattr(function, '__name__', name)}()"
    yield from ((f"{label} {i}" if i else label, kept) for i, kept in enumerate(found))


def _is_nothing(value: Any) -> bool:
    if isinstance(value, _CONTAINERS):
        return not value or (isinstance(value, Mapping) and all(map(_is_nothing, value.values())))
    return not value if isinstance(value, _PLAIN) else _is_empty(value)


def _place_in(output: Any, value: Any, place: Place = ()) -> Place | None:
    """Return the place in an output of a value or of an equal one, None if there is none."""
    if output is value and not isinstance(value, _PLAIN):
        return place
    if _are_alike(output, value) and are_same(output, value):
        return place
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(output, (*_CONTAINERS, tuple)):
        inside = _items(output)
    elif type(output).__name__ in _ACCUMULATORS:
        inside = [(_VALUE, output.value)]
    places = (_place_in(inner, value, (*place, key)) for key, inner in inside)
    return next((found for found in places if found is not None), None)


def _are_alike(one: Any, other: Any) -> bool:
    """Return whether two values are of one type, or of one kind of number or container."""
    kinds = (Number, Mapping, (list, tuple, deque))
    return type(one) is type(other) or any(
        isinstance(one, kind) and isinstance(other, kind) for kind in kinds
    )


def _are_equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        if isinstance(one, np.ndarray | float):
            return bool(np.array_equal(one, other, equal_nan=True))
        return bool(np.all(one == other))
    except (TypeError, ValueError):  # of arrays of objects, or of other shapes
        return False


def _lasting(code: Any) -> Iterator[tuple[str, Any]]:
    """Numbers, containers and histograms that code refers to, by name."""
    seen: set[int] = set()
    alive: list[Any] = []  # so that no other object gets an id that was seen
    waiting = [("", code)]
    while waiting:
        name, value = waiting.pop()
        waiting += _cached(name, value)
        value = _unwrapped(value)
        if id(value) in seen and not isinstance(value, Number):
            continue
        seen.add(id(value))
        alive.append(value)
        if _can_gather(value):
            yield name, value
        waiting += _inside(name, value)


def _can_gather(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, (Number, *_COUNTING)):
        return bool(getattr(value, "nbytes", 0) <= _LARGE)
    return isinstance(value, _BASES)


def _inside(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Values that a value refers to, with names."""
    if isinstance(value, FunctionType):
        yield from _of_function(value)
    elif isinstance(value, type):
        yield from _of_class(value)
    elif isinstance(value, (*_BASES, tuple)):
        inside = ((key, v) for key, v in _items(value) if not isinstance(v, _PLAIN))
        yield from ((f"{name}[{key!r}]", v) for key, v in inside)
    kind = type(value)
    is_users = not isinstance(value, type) and not is_library(kind.__module__ or "")
    if is_users or kind.__name__ in _HOLDERS:
        yield from ((f"{name}.{key}", v) for key, v in state_of(value).items())
        yield kind.__name__, kind


_HOLDERS: Final = ("SimpleNamespace", *_ACCUMULATORS)
"""Types of libraries of which the attributes are the content."""
_BASES: Final = (dict, MappingProxyType, list, deque, set)
_LARGE: Final = 1 << 20
"""Bytes from which an array is not compared."""


def _of_class(cls: type) -> Iterator[tuple[str, Any]]:
    for one in cls.__mro__:
        if not is_library(one.__module__):
            yield from ((f"{one.__name__}.{name}", v) for name, v in list(vars(one).items()))


def _of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Defaults, attributes, closures and globals that a function of the user's refers to."""
    if is_library(function.__module__ or ""):
        return
    yield from ((f"{function.__name__}.{n}", v) for n, v in list(vars(function).items()))
    arguments = inspect.signature(function, follow_wrapped=False).parameters.items()
    yield from ((f"{function.__name__}({name})", p.default) for name, p in arguments)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not filled yet
            yield f"{function.__name__}.{name}", cell.cell_contents
    names = dict.fromkeys(_names(function.__code__))
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType) and not is_library(value.__name__):
            found = vars(value)
            yield from ((f"{name}.{n}", found[n]) for n in names if n in found)
        else:
            yield name, value


def _names(code: CodeType) -> Iterator[str]:
    """Names of globals and attributes in code, that of inner functions too."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _unwrapped(value: Any) -> Any:
    """A function without what is around it."""
    while True:
        if isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, MethodType | staticmethod | classmethod):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, functools.cached_property):
            value = value.func
        elif isinstance(value, FunctionType) and "__wrapped__" in vars(value):
            value = vars(value)["__wrapped__"]
        else:
            return value
