"""Values that code refers to: globals, defaults, closures, class attributes, as they are now.

A processor gives another result when a number beside it changes, in its module, in another cell of
a notebook, or in a file that was read while the module was imported. So these values, when a run
begins, belong to what identifies its code.
"""

from __future__ import annotations

import copy
import dis
import functools
import hashlib
import importlib.util
import inspect
import io
import math
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, Final

import numpy as np

_COMPARED: Final = 1 << 20
"""Bytes of a pickle up to which it is compared with that of a copy."""


class Referred:
    """Values that code refers to, by name, followed through functions, classes and modules.

    ``values`` are in canonical form, ``plain`` the names of those that are no objects; ``opaque``
    has those of which only the type is known, with it; ``modules`` are the modules of the code
    itself. ``is_library`` says of a module by its name whether its version stands for what is in
    it.
    """

    def __init__(self, is_library: Callable[[str], bool]) -> None:
        self.values: dict[str, Any] = {}
        self.plain: set[str] = set()
        self.opaque: dict[str, str] = {}
        self.modules: set[str] = set()
        self._is_library = functools.cache(is_library)
        self._seen: set[int] = set()
        self._alive: list[Any] = []  # so that no other object gets an id that was seen

    def add(self, name: str, value: Any, *, without: frozenset[str] = frozenset()) -> None:
        """Follow a value; of classes leave out the functions named in ``without``."""
        value = _unwrapped(value)
        if isinstance(value, ModuleType | MemberDescriptorType):
            return
        if isinstance(value, type):
            self._add_class(value, without)
        elif isinstance(value, FunctionType):
            self._add_function(value)
        elif isinstance(value, functools.partial | MethodType):
            parts = ("func", "args", "keywords", "__func__", "__self__")
            for part in parts:
                if hasattr(value, part):
                    self.add(f"{name}.{part}", getattr(value, part))
        elif name not in self.values:
            self.values[name] = self._canonical(name, value)

    def _is_new(self, value: Any) -> bool:
        if id(value) in self._seen:
            return False
        self._seen.add(id(value))
        self._alive.append(value)
        return True

    def _add_class(self, cls: type, without: frozenset[str]) -> None:
        for one in cls.__mro__:
            if self._is_library(one.__module__) or not self._is_new(one):
                continue
            self.modules.add(one.__module__)
            for name, value in vars(one).items():
                # what Python keeps on classes for itself, such as __slotnames__ or _abc_impl
                is_pythons = name.startswith(("__", "_abc_")) and not callable(value)
                if name not in without and not is_pythons:
                    self.add(f"{one.__module__}.{one.__qualname__}.{name}", value)

    def _add_function(self, function: FunctionType) -> None:
        if self._is_library(function.__module__ or "") or not self._is_new(function):
            return
        name = f"{function.__module__}.{function.__qualname__}"
        self.modules.add(function.__module__)
        if not _has_file(function.__module__):
            self.values[f"{name}: code"] = _digest(repr(_code(function.__code__)).encode())
        names = function.__code__.co_varnames
        for i, value in enumerate(function.__defaults__ or ()):
            self.add(f"{name}({names[function.__code__.co_argcount - 1 - i]})", value)
        for parameter, value in (function.__kwdefaults__ or {}).items():
            self.add(f"{name}({parameter})", value)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
        for variable, cell in cells:
            try:
                self.add(f"{name}: {variable}", cell.cell_contents)
            except ValueError:  # not set yet
                continue
        space = function.__globals__
        if self._is_library(str(space.get("__name__"))):  # a library's decorator
            return
        for variable, value in _globals_of(function, function.__code__, self._is_library):
            self.add(variable, value)

    def _canonical(self, name: str, value: Any) -> Any:
        try:
            found = canonical(value)
        except (NotPlainError, RecursionError):  # what holds itself is no plain value
            pass
        else:
            self.plain.add(name)
            return found
        digest = self._of_object(name, value)
        if digest is None:
            self.opaque[name] = type(value).__name__
        return f"{type(value).__module__}.{type(value).__qualname__} {digest or ''}".strip()

    def _of_object(self, name: str, value: Any) -> str | None:
        """Digest of an object's pickle, None where that is not the same each time."""
        try:
            pickled = _Pickler.dumps(value, name, self)
            again = copy.deepcopy(value) if len(pickled) < _COMPARED else value
            is_stable = pickled == _Pickler.dumps(again, name, self)
        except Exception:  # noqa: BLE001 - pickling runs code of any object; it is told as opaque
            return None
        return _digest(pickled) if is_stable else None


class NotPlainError(TypeError):
    """A value is no number, text, array, or collection of these."""


def canonical(value: Any) -> Any:
    """The same JSON for the same value, in any process.

    Raises
    ------
    NotPlainError
        It is no plain value: number, text, array, path, or a collection of these.
    """
    if value is None or type(value) in {bool, int, str}:
        return value
    for kind, form in _FORMS.items():
        if isinstance(value, kind):
            return form(value)
    if describes_itself(value):
        return canonical(value.canonical())
    raise NotPlainError(type(value).__name__)


def describes_itself(value: Any) -> bool:
    """Whether an object's class, and no magic of its attributes, has a method ``canonical``."""
    return callable(inspect.getattr_static(type(value), "canonical", None))


def _float(value: float) -> float | str:
    return float(value) if math.isfinite(value) else repr(float(value))


def _mapping(value: Mapping[Any, Any]) -> Any:
    if all(isinstance(key, str) for key in value):
        return {str(key): canonical(item) for key, item in value.items()}
    return ["mapping", *([canonical(key), canonical(item)] for key, item in value.items())]


def _scalar(value: Any) -> Any:
    return canonical(value.item()) if value.dtype.kind in "biuf" else repr(value)


def _array(value: Any) -> str:
    if value.dtype.hasobject:
        raise NotPlainError("array of objects")
    content = np.ascontiguousarray(value)
    return f"array {value.dtype.str} {value.shape} sha256:{_digest(content.tobytes())}"


_FORMS: Final[dict[Any, Callable[[Any], Any]]] = {
    Enum: lambda value: f"{type(value).__qualname__}.{value.name}",
    np.generic: _scalar,
    np.ndarray: _array,
    float: _float,
    (list, tuple): lambda value: [canonical(item) for item in value],
    (set, frozenset): lambda value: ["set", *sorted(map(canonical, value), key=repr)],
    Mapping: _mapping,
    int: int,
    str: str,
    complex: repr,
    (bytes, bytearray): lambda value: f"bytes sha256:{_digest(value)}",
    PurePath: str,
    range: repr,
    slice: repr,
}


class _Pickler(pickle.Pickler):
    """Pickles with nothing in them that depends on the process: no memory of objects, sorted sets.

    Classes and functions are followed, and stand in it by name.
    """

    @classmethod
    def dumps(cls, value: Any, name: str, referred: Referred) -> bytes:
        """Pickle a value."""
        file = io.BytesIO()
        pickler = cls(file, protocol=4)
        pickler.fast = True
        pickler.name, pickler.referred = name, referred
        pickler.dump(value)
        return file.getvalue()

    name: str
    referred: Referred

    def persistent_id(self, obj: Any) -> str | None:
        """What stands for an object; None: its pickle."""
        if isinstance(obj, type | FunctionType):
            self.referred.add(self.name, obj)
            return f"{obj.__module__}.{obj.__qualname__}"
        if isinstance(obj, ModuleType):
            return f"module {obj.__name__}"
        if isinstance(obj, set | frozenset):
            return str(sorted(_digest(self.dumps(x, self.name, self.referred)) for x in obj))
        return str(obj.canonical()) if describes_itself(obj) else None


_INNER: Final = ("__func__", "fget", "func", "py_func", "pyfunc", "__wrapped__")
"""Where methods, properties, numba's and numpy's functions, and caches have what they call."""


def _unwrapped(value: Any) -> Any:
    if isinstance(value, type | FunctionType | functools.partial | MethodType):
        return value
    found = (inspect.getattr_static(value, name, None) and getattr(value, name) for name in _INNER)
    return next((inner for inner in found if isinstance(inner, FunctionType)), value)


def _has_file(module: str) -> bool:
    return getattr(sys.modules.get(module), "__file__", None) is not None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _code(code: CodeType) -> list[Any]:
    """Compiled code, for functions that no file holds."""
    constants = [
        _code(c) if isinstance(c, CodeType) else "..." if c is ... else canonical(c)
        for c in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]


def uses(wanted: str, function: Any, owner: Any, is_library: Callable[[str], bool]) -> bool:
    """Whether a function of ``owner``, or one of the user's that it may call, refers to a text.

    It is a constant in the code, a global, or an attribute of the owner or of its class.
    """
    waiting, followed = [function], set()
    while waiting:
        value = _unwrapped(waiting.pop())
        value = getattr(value, "__func__", getattr(value, "func", value))
        if isinstance(value, str) and value == wanted:
            return True
        is_new = isinstance(value, FunctionType) and value not in followed
        if not is_new or is_library(value.__module__ or ""):
            continue
        followed.add(value)
        waiting += inspect.getclosurevars(value).nonlocals.values()
        waiting += (inner for _, inner in _globals_of(value, value.__code__, is_library))
        spaces = [vars(cls) for cls in type(owner).__mro__] + [getattr(owner, "__dict__", {})]
        for code in _codes(value.__code__):
            waiting += (constant for constant in code.co_consts if isinstance(constant, str))
            waiting += (space[name] for name in code.co_names for space in spaces if name in space)
    return False


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of functions inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _globals_of(
    function: FunctionType, code: CodeType, is_library: Callable[[str], bool]
) -> Iterator[tuple[str, Any]]:
    """Globals that a function uses, also in functions inside of it, by name.

    Of modules these are the attributes that are used: ``settings.CUT``; of those that are imported
    inside the function all of which the names occur in it.
    """
    space = function.__globals__
    steps = list(dis.get_instructions(code))
    for i, step in enumerate(steps):
        if step.opname in {"LOAD_GLOBAL", "LOAD_NAME"} and step.argval in space:
            name, value = step.argval, space[step.argval]
            for following in steps[i + 1 :]:
                is_read = following.opname in {"LOAD_ATTR", "LOAD_METHOD"}
                if not (is_read and isinstance(value, ModuleType)) or is_library(value.__name__):
                    break
                name, value = f"{name}.{following.argval}", getattr(value, following.argval, None)
            yield f"{function.__module__}.{name}", value
        elif step.opname == "IMPORT_NAME":
            module = _imported(step.argval, steps[i - 2].argval, space, is_library)
            for name in code.co_names:
                if name in vars(module or object):
                    yield f"{step.argval}.{name}", vars(module)[name]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(function, constant, is_library)


def _imported(
    name: str, level: int, space: dict[str, Any], is_library: Callable[[str], bool]
) -> Any | None:
    """A module of the user's that a function imports; imported now, if it was not yet."""
    try:
        full = importlib.util.resolve_name("." * level + name, space.get("__package__"))
        if is_library(full):
            return None
        return importlib.import_module(full)
    except (Exception, SystemExit):  # noqa: BLE001 - the function will say so, if it comes to that
        return None
