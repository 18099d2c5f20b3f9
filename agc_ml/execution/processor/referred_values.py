"""Values that code refers to: globals, defaults, closures, class attributes, as they are now.

A processor gives another result when a number beside it changes, in its module, in another cell of
a notebook, or in a file that was read while the module was imported. So these values, when a run
begins, belong to what identifies its code.
"""

from __future__ import annotations

import contextlib
import copy
import dis
import functools
import hashlib
import importlib
import importlib.util
import io
import itertools
import json
import math
import pickle
import weakref
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from types import (
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, Final, NamedTuple

import numpy as np

_COMPARED: Final = 1 << 20
"""Bytes of a pickle up to which it is compared with that of a copy."""
_HOLD_NOTHING: Final = (
    *(MemberDescriptorType, GetSetDescriptorType),
    *(weakref.ref, weakref.WeakKeyDictionary, weakref.WeakValueDictionary),
)
"""Types of what has no value of its own: descriptors of slots, and what only points to others."""


class Referred:
    """Values that code refers to, by name, followed through functions, classes and modules.

    ``values`` are in canonical form, and ``attributes`` those that are plain of objects of the
    user's; a function, class or module stands in them by its name, and
    what it refers to by names of their own. Where two have the same name the second one is
    ``name#2``, in the order in which they are met. ``plain`` are the names of those that are no
    objects; ``opaque`` has those of which only the type is known, with it; ``modules`` are the
    modules of the code itself; ``filled`` the names, without those of modules and classes, of what
    the code puts something into. ``is_library`` says of a module by its name whether its version
    stands for what is in it; ``itself`` is the object whose attributes are added one by one.
    """

    def __init__(self, is_library: Callable[[str], bool], itself: Any = None) -> None:
        self.values: dict[str, Any] = {}
        self.attributes: dict[str, Any] = {}
        self.plain: set[str] = set()
        self.opaque: dict[str, str] = {}
        self.modules: set[str] = set()
        self.filled: set[str] = set()
        self.itself = itself
        self._is_library = functools.cache(is_library)
        self._seen: set[tuple[str, int]] = set()
        self._labels: dict[int, str] = {}
        self._names: Counter[tuple[str, str]] = Counter()
        self._alive: list[Any] = []  # so that no other object gets an id that was seen

    def add(self, name: str, value: Any, *, without: frozenset[str] = frozenset()) -> None:
        """Follow a value; of classes leave out the functions named in ``without``."""
        if isinstance(value, _HOLD_NOTHING) or (name, id(value)) in self._seen:
            return
        self._seen.add((name, id(value)))
        self._alive.append(value)
        name = self._numbered(name)
        parts = parts_of(value)
        for part, inner in parts.items():
            self.add(f"{name}.{part}", inner)
        if not parts:
            self.values[name] = self._canonical(name, value, without)

    def _numbered(self, name: str, of: str = "values") -> str:
        self._names[of, name] += 1
        number = self._names[of, name]
        return name if number == 1 else f"{name}#{number}"

    def label(self, value: Any, without: frozenset[str] = frozenset()) -> str:
        """Name of a function, class or module; what it refers to is followed once."""
        if id(value) not in self._labels:
            self._alive.append(value)
            label = self._numbered(_label(value), of="labels")
            self._labels[id(value)] = label
            if isinstance(value, type):
                self._add_class(label, value, without)
            elif isinstance(value, ModuleType):
                self._add_module(value)
            else:
                self._add_function(label, value)
        return self._labels[id(value)]

    def labels(self) -> list[str]:
        """Names of the functions and classes that were followed."""
        return list(self._labels.values())

    def _is_of_library(self, module: Any) -> bool:
        """Whether code of a module, None for what was made by exec in no module, is a library's."""
        return module is not None and self._is_library(module)

    def _add_module(self, module: ModuleType) -> None:
        """Follow all of a module: it has another name where it is used, or is handed on."""
        if self._is_library(module.__name__):
            return
        self.modules.add(module.__name__)
        for name, value in list(vars(module).items()):
            if not name.startswith("__"):
                self.add(f"{module.__name__}.{name}", value)

    def _add_class(self, label: str, cls: type, without: frozenset[str]) -> None:
        if self._is_of_library(cls.__module__):
            return
        self.modules.add(cls.__module__)
        self.values[f"{label}: bases"] = [self.label(one, without) for one in cls.__bases__]
        self.values[f"{label}: metaclass"] = self.label(type(cls))
        for name, value in sorted(vars(cls).items()):
            # what Python keeps on classes for itself, such as __slotnames__ or _abc_impl
            is_pythons = name.startswith(("__", "_abc_")) and not callable(value)
            if name not in without and not is_pythons:
                self.add(f"{label}.{name}", value)

    def _add_function(self, label: str, function: FunctionType) -> None:
        space = function.__globals__
        is_librarys = self._is_of_library(function.__module__)
        for variable, value in cells(function):
            # a decorator of a library may hold a function of the user's
            if not is_librarys or isinstance(value, FunctionType | MethodType | functools.partial):
                self.add(f"{label}: {variable}", value)
        if is_librarys:
            return
        if function.__module__ is not None:  # else it was made by exec in no module
            self.modules.add(function.__module__)
        # several have one name: lambdas, and what is made by a function or in a condition
        self.filled.update(name for code in codes_in(function.__code__) for name in _filled(code))
        self.values[f"{label}: code"] = _digest(repr(form_of(function.__code__)).encode())
        for parameter, value in _defaults(function):
            self.add(f"{label}({parameter})", value)
        if self._is_of_library(space.get("__name__")):  # a library's decorator
            return
        for name, value in vars(function).items():
            self.add(f"{label}.{name}", value)
        for variable, value in _globals_of(function, function.__code__, self._is_library):
            self.add(variable, value)

    def _canonical(self, name: str, value: Any, without: frozenset[str]) -> Any:
        if value is self.itself:
            return "itself"
        if isinstance(value, type | FunctionType | ModuleType):
            return self.label(value, without)
        try:
            found = canonical(value)
        except (NotPlainError, RecursionError):  # what holds itself is no plain value
            pass
        else:
            self.plain.add(name)
            return found
        self._note_attributes(name, value, set())
        digest = self._of_object(value)
        if digest is None:
            self.opaque[name] = type(value).__name__
        return f"{type(value).__module__}.{type(value).__qualname__} {digest or ''}".strip()

    def _note_attributes(self, name: str, value: Any, above: set[int]) -> None:
        if self._is_of_library(type(value).__module__) or id(value) in above:
            return
        for attribute, inner in attributes_of(value).items():
            if attribute.startswith("_"):  # what an object notes for itself
                continue
            try:
                self.attributes[f"{name}.{attribute}"] = canonical(inner)
            except (NotPlainError, RecursionError):
                self._note_attributes(f"{name}.{attribute}", inner, {*above, id(value)})

    def _of_object(self, value: Any) -> str | None:
        """Digest of an object's pickle, None where that is not the same each time."""
        try:
            pickled = _Pickler.dumps(value, self)
            same = {id(self.itself): self.itself}
            again = copy.deepcopy(value, same) if len(pickled) < _COMPARED else value
            is_stable = pickled == _Pickler.dumps(again, self)
        except Exception:  # noqa: BLE001 - pickling runs code of any object; it is told as opaque
            return None
        return _digest(pickled) if is_stable else None


class NotPlainError(TypeError):
    """A value is no number, text, array, or collection of these."""


_BITS: Final = 1024


def canonical(value: Any) -> Any:
    """JSON that is the same for the same value in any process, and another one for any other.

    What JSON has no form of is a list that begins with the name of its kind: ``["set", 1, 2]``.
    The order of dictionaries counts. An object of a subclass may hold more, and is no plain value.

    Raises
    ------
    NotPlainError
        It is no plain value: number, text, array, path, or a collection of these.
    """
    kind = type(value)
    if value is None or kind in {bool, str}:
        return value
    if kind is int:  # of long ones Python makes no decimal text
        return value if value.bit_length() <= _BITS else ["int", hex(value)]
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
    """Return whether an object is one of ours that has a form of its own, such as a model."""
    kind = type(value)
    return kind.__module__.partition(".")[0] == "agc_ml" and hasattr(kind, "canonical")


def _float(value: float) -> Any:
    return value if math.isfinite(value) else ["float", repr(value)]


def _list(value: list[Any]) -> Any:
    found = [canonical(item) for item in value]
    is_like_others = bool(found) and isinstance(found[0], str) and found[0] in _KINDS
    return ["list", *found] if is_like_others else found


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
    content = np.ascontiguousarray(value)
    return ["array", _dtype(value), list(value.shape), _digest(content.tobytes())]


def _sorted(value: Any) -> list[Any]:
    return sorted(map(canonical, value), key=json.dumps)


_FORMS: Final[dict[Any, Callable[[Any], Any]]] = {
    float: _float,
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
    bytes: lambda value: ["bytes", _digest(value)],
    bytearray: lambda value: ["bytearray", _digest(value)],
    range: lambda value: ["range", value.start, value.stop, value.step],
    slice: lambda value: ["slice", *map(canonical, (value.start, value.stop, value.step))],
    type(...): lambda _: ["..."],
}
_KINDS: Final = {
    *("int", "float", "list", "dict", "defaultdict", "array", "tuple", "set", "frozenset"),
    *("OrderedDict", "Counter", "mappingproxy", "complex", "bytes", "bytearray", "range"),
    *("slice", "...", "path", "numpy"),
}


class _Pickler(pickle.Pickler):
    """Pickles with nothing in them that depends on the process: no memory of objects, sorted sets.

    Classes, functions and modules are followed, and stand in it by name.
    """

    @classmethod
    def dumps(cls, value: Any, referred: Referred) -> bytes:
        """Pickle a value."""
        file = io.BytesIO()
        pickler = cls(file, protocol=4)
        pickler.fast = True
        pickler.referred = referred
        pickler.dump(value)
        return file.getvalue()

    referred: Referred

    def persistent_id(self, obj: Any) -> str | None:
        """What stands for an object; None: its pickle."""
        if obj is self.referred.itself and obj is not None:
            return "itself"
        if isinstance(obj, type | FunctionType | ModuleType):
            return self.referred.label(obj)
        if type(obj) in {set, frozenset}:
            return f"{type(obj).__name__} {[self._digest(x) for x in sorted(obj, key=self._alone)]}"
        if describes_itself(obj):
            return str(obj.canonical())
        parts = parts_of(obj)
        inner = {name: self._digest(part) for name, part in parts.items()}
        return f"{type(obj).__qualname__} {inner}" if parts else None

    def _digest(self, value: Any) -> str:
        return _digest(self.dumps(value, self.referred))

    def _alone(self, value: Any) -> str:
        """Digest of an element of a set, by which they are put in order."""
        referred = Referred(self.referred._is_library, self.referred.itself)  # noqa: SLF001 - its own
        referred.add("", value)
        return json.dumps(referred.values)


_PARTS: Final[dict[Any, tuple[str, ...]]] = {
    functools.partial: ("func", "args", "keywords"),
    functools.partialmethod: ("func", "args", "keywords"),
    functools.cached_property: ("func",),
    functools.singledispatchmethod: ("dispatcher",),
    functools._lru_cache_wrapper: ("__wrapped__",),  # noqa: SLF001 - the type of what caches
    MethodType: ("__func__", "__self__"),
    classmethod: ("__func__",),
    staticmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
    np.vectorize: ("pyfunc", "otypes", "signature", "excluded"),
}
_NUMBAS: Final = ("py_func", "_dispatcher", "gufunc_builder")


def parts_of(value: Any) -> dict[str, Any]:
    """Functions and arguments in what calls them, such as methods, caches and numba's functions.

    Of types that are known only: an object of another one may hold more than a function.
    """
    names = _PARTS.get(type(value), ())
    if type(value).__module__.startswith("numba."):
        names = tuple(name for name in _NUMBAS if hasattr(value, name))
    found = {name: getattr(value, name) for name in names}
    return {name: part for name, part in found.items() if part is not None}


def attributes_of(value: Any) -> dict[str, Any]:
    """Attributes of an object, those in slots too, past any magic of its own."""
    found: dict[str, Any] = {}
    for cls in type(value).__mro__:
        for name, slot in vars(cls).items():
            if isinstance(slot, MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # not set
                    found[name] = slot.__get__(value)
    with contextlib.suppress(AttributeError):
        found |= object.__getattribute__(value, "__dict__")
    return dict(sorted(found.items()))


def _label(value: Any) -> str:
    if isinstance(value, ModuleType):
        return f"module {value.__name__}"
    return f"{value.__module__}.{value.__qualname__}"


def cells(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Variables that a function has from the one in which it was made."""
    for variable, cell in zip(
        function.__code__.co_freevars, function.__closure__ or (), strict=False
    ):
        try:
            yield variable, cell.cell_contents
        except ValueError:  # not set yet
            continue


def _defaults(function: FunctionType) -> Iterator[tuple[str, Any]]:
    values = function.__defaults__ or ()
    code = function.__code__
    names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
    yield from zip(names, values, strict=True)
    yield from (function.__kwdefaults__ or {}).items()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def form_of(code: CodeType) -> list[Any]:
    """Compiled code, without the places of its lines."""
    constants = [form_of(c) if isinstance(c, CodeType) else canonical(c) for c in code.co_consts]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return [code.co_code.hex(), code.co_exceptiontable.hex(), code.co_flags, *names, constants]


def uses(wanted: str, function: Any, owner: Any, is_library: Callable[[str], bool]) -> bool:
    """Whether a function of ``owner``, or one of the user's that it may call, refers to a text.

    It is a constant in the code, a global, or an attribute of the owner or of its class.
    """
    waiting, followed = [function], set()
    while waiting:
        value = waiting.pop()
        waiting += parts_of(value).values()
        if isinstance(value, str) and value == wanted:
            return True
        is_new = isinstance(value, FunctionType) and value not in followed
        if not is_new or is_library(value.__module__ or ""):
            continue
        followed.add(value)
        waiting += (inner for _, inner in cells(value))
        waiting += (inner for _, inner in _globals_of(value, value.__code__, is_library))
        spaces = [vars(cls) for cls in type(owner).__mro__] + [getattr(owner, "__dict__", {})]
        for code in codes_in(value.__code__):
            waiting += (constant for constant in code.co_consts if isinstance(constant, str))
            waiting += (space[name] for name in code.co_names for space in spaces if name in space)
    return False


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """Code, and that of functions and classes inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


def _globals_of(
    function: FunctionType, code: CodeType, is_library: Callable[[str], bool]
) -> Iterator[tuple[str, Any]]:
    """Globals that a function uses, also in functions inside of it, by name.

    Of modules these are the attributes that are used: ``settings.CUT``; of those that are imported
    inside the function all of which the names occur in it. A module that gets another name, or is
    handed on, is one of the values itself.
    """
    space = function.__globals__
    steps = _steps(code)
    for i, step in enumerate(steps):
        if step.opname in {"LOAD_GLOBAL", "LOAD_NAME"} and step.argval in space:
            name, value = _attribute(steps, i, space, is_library)
            yield f"{space.get('__name__')}.{name}", value
        elif step.opname == "IMPORT_NAME":
            yield from _of_import(steps, i, code, _imported(steps, i, space, is_library))
        if step.argval in {"import_module", "__import__"}:
            yield f"module {steps[i + 1].argval}", _imported(steps, i, space, is_library)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(function, constant, is_library)


class _Step(NamedTuple):
    """Instruction of code."""

    opname: str
    argval: Any


@functools.lru_cache(maxsize=1024)  # a run looks at a processor's code a dozen times
def _steps(code: CodeType) -> tuple[_Step, ...]:
    """Instructions of code; what only makes the number of the next one larger is left out."""
    return tuple(
        _Step(step.opname, step.argval)
        for step in dis.get_instructions(code)
        if step.opname != "EXTENDED_ARG"
    )


_KEYS: Final = (
    *("LOAD_FAST", "LOAD_CONST", "LOAD_DEREF", "LOAD_GLOBAL", "LOAD_ATTR"),
    *("BUILD_TUPLE", "FORMAT_VALUE", "BUILD_STRING"),
)
_FILLS: Final = ("append", "extend", "insert", "add", "update", "setdefault")


def _filled(code: CodeType) -> Iterator[str]:
    """Names of what code puts something into: ``CACHE[key] = value``, ``seen.append(x)``."""
    steps = _steps(code)
    for i, step in enumerate(steps):
        if not step.opname.startswith("LOAD_"):
            continue
        for following in steps[i + 1 :]:
            if following.opname == "STORE_SUBSCR" or following.argval in _FILLS:
                yield str(step.argval)
            if following.opname not in _KEYS:
                break


_READS: Final = ("LOAD_ATTR", "LOAD_METHOD")


def _attribute(
    steps: Sequence[_Step], i: int, space: dict[str, Any], is_library: Callable[[str], bool]
) -> tuple[str, Any]:
    """The global of step ``i``, or its attribute if it is a module of the user's."""
    name, value = steps[i].argval, space[steps[i].argval]
    for following in steps[i + 1 :]:
        is_of_users = isinstance(value, ModuleType) and not is_library(value.__name__)
        if not (is_of_users and following.opname in _READS):
            break
        name, value = f"{name}.{following.argval}", getattr(value, following.argval, None)
    return name, value


def _of_import(
    steps: Sequence[_Step], i: int, code: CodeType, module: Any
) -> Iterator[tuple[str, Any]]:
    """Values of a module, None for none, that is imported in step ``i``."""
    if module is None:
        return
    for name in code.co_names:
        if name in vars(module):
            yield f"{module.__name__}.{name}", vars(module)[name]
    bound = next(step.argval for step in steps[i:] if step.opname.startswith("STORE_"))
    is_handed_on = any(
        step.argval == bound and step.opname.startswith("LOAD_") and after.opname not in _READS
        for step, after in itertools.pairwise(steps[i + 1 :])
    )
    if is_handed_on:
        yield module.__name__, module


def _imported(
    steps: Sequence[_Step], i: int, space: dict[str, Any], is_library: Callable[[str], bool]
) -> Any | None:
    """A module of the user's that a function imports in step ``i``; imported now, if it was not."""
    if steps[i].opname == "IMPORT_NAME":
        name = "." * steps[i - 2].argval + steps[i].argval
    else:  # import_module("name")
        name = steps[i + 1].argval
    try:
        full = importlib.util.resolve_name(name, space.get("__package__"))
        if is_library(full):
            return None
        return importlib.import_module(full)
    except (Exception, SystemExit):  # noqa: BLE001 - the function will say so, if it comes to that
        return None
