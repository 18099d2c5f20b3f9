"""Lasting state of a process: it outlives a chunk, and would count twice if it was returned.

Attributes of classes, globals, defaults and caches are there for all chunks of a process, whatever
is done for processors. What they gather is no result of a chunk.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import threading
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping, MutableMapping, MutableSet
from numbers import Number
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final, NamedTuple

import boost_histogram as bh
import numpy as np

from agc_ml.function_processor import origin
from agc_ml.hists import DenseHist
from agc_ml.identity import is_library, state_of
from agc_ml.rows import Rows

_CONTAINERS: Final = (MutableMapping, list, deque, MutableSet)
_COUNTING: Final = (bh.Histogram, DenseHist, Rows, np.ndarray)
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
    if isinstance(value, Rows):
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
        self._held: Counter[str] = Counter()
        self._left = _CHUNKS
        self._datasets: set[str] = set()

    def _all(self) -> Iterator[tuple[str, Any]]:
        return _lasting(self._code)

    def changed_in(self, output: Any, dataset: str = "") -> str | None:
        """What a chunk did with something that was there before it, None if nothing is wrong.

        It filled a histogram that was not empty, or its output holds what it changed. Of what the
        output only has a copy of, it counts if it was more than nothing before the
        chunk; a number, which may be the same by chance, if that is so the second time.
        The first chunks of each dataset are looked at.
        """
        if dataset not in self._datasets:
            self._datasets.add(dataset)
            self._left = _CHUNKS
        if not self._left:
            return None
        self._left -= 1
        found = None
        for name, value in self._all():
            state, before = _state(value), self._before.get(name)
            if before is None or state != before.state:
                self._left = _CHUNKS
                self._before[name] = _Known(value, state, _is_nothing(value))
                found = found or self._problem(name, before, value, output)
        return found

    def _problem(self, name: str, before: _Known | None, value: Any, output: Any) -> str | None:
        if isinstance(value, Number):
            self._held[name] += _holds(output, value, equal=True)
            return f"returns {name}" if self._held[name] > 1 else None
        if before is None or before.value is not value:  # such as the last output, kept to look at
            return None
        if isinstance(value, bh.Histogram | DenseHist) and not before.was_nothing:
            return f"fills {name}"
        if _holds(output, value, equal=not before.was_nothing):
            return f"returns {name}"
        return None


class _Known(NamedTuple):
    """Something lasting: what it was, and whether that was nothing."""

    value: Any
    state: Any
    was_nothing: bool


def _state(value: Any) -> Any:
    """Return what differs when the content does; values inside of containers have their own."""
    if isinstance(value, _PLAIN):
        return repr(value)  # nan is not equal to itself
    if isinstance(value, Rows):
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
    """Keys, or places, and values, as they are now: another thread may be filling it."""
    if isinstance(container, Mapping):
        return list(container.items())
    return list(enumerate(list(container)))


def _is_nothing(value: Any) -> bool:
    if isinstance(value, _CONTAINERS):
        return not value or (isinstance(value, Mapping) and all(map(_is_nothing, value.values())))
    return not value if isinstance(value, _PLAIN) else _is_empty(value)


def _holds(output: Any, value: Any, *, equal: bool) -> bool:
    """Return whether an output is or has a value, or something equal to it."""
    if output is value and not isinstance(value, _PLAIN):
        return True
    if equal and type(output) is type(value) and _are_equal(output, value):
        return True
    inside = output.values() if isinstance(output, Mapping) else output
    if isinstance(output, (*_CONTAINERS, tuple)):
        return any(_holds(inner, value, equal=equal) for inner in inside)
    return False


def _are_equal(one: Any, other: Any) -> bool:
    try:
        return bool(np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other)
    except (TypeError, ValueError):  # of arrays in containers
        return False


def _lasting(code: Any) -> Iterator[tuple[str, Any]]:
    """Numbers, containers and histograms that code refers to, by name."""
    seen: set[int] = set()
    waiting = [("", code)]
    while waiting:
        name, value = waiting.pop()
        value = _unwrapped(value)
        if id(value) in seen and not isinstance(value, Number):
            continue
        seen.add(id(value))
        if isinstance(value, FunctionType):
            waiting += _of_function(value)
        elif isinstance(value, type):
            waiting += _of_class(value)
        elif isinstance(value, bool | str | bytes | None):
            continue
        elif isinstance(value, (Number, *_COUNTING)):
            if getattr(value, "nbytes", 0) <= _LARGE:
                yield name, value
        elif type(value) in _EXACT:  # others run code of their own
            yield name, value
            inside = ((key, v) for key, v in _items(value) if not isinstance(v, _PLAIN))
            waiting += ((f"{name}[{key!r}]", v) for key, v in inside)
        elif not is_library(type(value).__module__ or ""):  # an object of the user's
            waiting += ((f"{name}.{key}", v) for key, v in state_of(value).items())
            waiting.append((type(value).__name__, type(value)))


_EXACT: Final = (dict, defaultdict, OrderedDict, Counter, list, deque, set)
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
