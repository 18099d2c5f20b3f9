"""Inside of functions, classes and objects: their parts, and what their code refers to."""

from __future__ import annotations

import contextlib
import dis
import functools
import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, Final, NamedTuple

import numpy as np

IsLibrary = Callable[[str], bool]
"""Tells of a module's name whether its version stands for its content."""

_PARTS: Final[dict[Any, tuple[str, ...]]] = {
    functools.partial: ("func", "args", "keywords"),
    functools.partialmethod: ("func", "args", "keywords"),
    functools.cached_property: ("func",),
    functools.singledispatchmethod: ("dispatcher",),
    functools._lru_cache_wrapper: ("__wrapped__",),  # noqa: SLF001 - the type of cached functions
    MethodType: ("__func__", "__self__"),
    classmethod: ("__func__",),
    staticmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
    np.vectorize: ("pyfunc", "otypes", "signature", "excluded"),
}
_NUMBA_PARTS: Final = ("py_func", "_dispatcher", "gufunc_builder")


def parts_of(value: Any) -> dict[str, Any]:
    """Functions and arguments inside of a method, cached function, numba function and the like.

    Only of known types: an object of another one may hold more than a function.
    """
    names = _PARTS.get(type(value), ())
    if type(value).__module__.startswith("numba."):
        names = tuple(name for name in _NUMBA_PARTS if hasattr(value, name))
    return {name: part for name in names if (part := getattr(value, name)) is not None}


def attributes_of(value: Any) -> dict[str, Any]:
    """Attributes of an object by name, those in slots too, without running code of its class."""
    attributes: dict[str, Any] = {}
    for cls in type(value).__mro__:
        for name, slot in vars(cls).items():
            if isinstance(slot, MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # not set
                    attributes[name] = slot.__get__(value)
    with contextlib.suppress(AttributeError):
        attributes |= object.__getattribute__(value, "__dict__")
    return dict(sorted(attributes.items()))


def cells(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Variables of a function's closure, with their values."""
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=False):
        with contextlib.suppress(ValueError):  # not set yet
            yield name, cell.cell_contents


def defaults(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Parameters of a function that have a default, with it."""
    values, code = function.__defaults__ or (), function.__code__
    names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
    yield from zip(names, values, strict=True)
    yield from (function.__kwdefaults__ or {}).items()


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """Code, and that of the functions and classes inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


def reachable(values: Iterable[Any], inside: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    """Values and all that ``inside`` gives of each in turn; each object once."""
    waiting, seen = list(values), {}
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:
            seen[id(value)] = value  # kept, so that no other object gets its id
            yield value
            waiting += inside(value)


def mentions(text: str, function: Any, owner: Any, is_library: IsLibrary) -> bool:
    """Return whether a function of ``owner``, or one of the user's that it may call, has a text.

    The text may be a constant in the code, a global, or an attribute of the owner or its class.
    """
    spaces = [vars(cls) for cls in type(owner).__mro__] + [getattr(owner, "__dict__", {})]

    def inside(value: Any) -> Iterator[Any]:
        yield from parts_of(value).values()
        if not isinstance(value, FunctionType) or is_library(value.__module__ or ""):
            return
        yield from (inner for _, inner in cells(value))
        yield from (inner for _, inner in globals_of(value, value.__code__, is_library))
        for code in codes_in(value.__code__):
            yield from (constant for constant in code.co_consts if isinstance(constant, str))
            yield from (s[name] for name in code.co_names for s in spaces if name in s)

    return any(isinstance(v, str) and v == text for v in reachable([function], inside))


class _Instruction(NamedTuple):
    opname: str
    argval: Any


@functools.lru_cache(maxsize=1024)  # a run looks at a processor's code a dozen times
def _instructions(code: CodeType) -> tuple[_Instruction, ...]:
    """Instructions of code, without prefixes that only enlarge the next one's argument."""
    return tuple(
        _Instruction(step.opname, step.argval)
        for step in dis.get_instructions(code)
        if step.opname != "EXTENDED_ARG"
    )


_KEY_OPERATIONS: Final = (
    "LOAD_FAST",
    "LOAD_CONST",
    "LOAD_DEREF",
    "LOAD_GLOBAL",
    "LOAD_ATTR",
    "BUILD_TUPLE",
    "FORMAT_VALUE",
    "BUILD_STRING",
)
_FILLING_METHODS: Final = ("append", "extend", "insert", "add", "update", "setdefault")
_READING: Final = ("LOAD_ATTR", "LOAD_METHOD")


def filled_names(code: CodeType) -> Iterator[str]:
    """Names of containers that code fills: ``CACHE[key] = value``, ``seen.append(x)``."""
    steps = _instructions(code)
    for i, step in enumerate(steps):
        if not step.opname.startswith("LOAD_"):
            continue
        for following in steps[i + 1 :]:
            if following.opname == "STORE_SUBSCR" or following.argval in _FILLING_METHODS:
                yield str(step.argval)
            if following.opname not in _KEY_OPERATIONS:
                break


def globals_of(
    function: FunctionType, code: CodeType, is_library: IsLibrary
) -> Iterator[tuple[str, Any]]:
    """Globals that a function and those inside of it use, by name.

    Of a module these are the attributes in use, as in ``settings.CUT``; of one that is imported
    inside of the function all whose names occur in it. A module that gets another name, or is
    handed on, is a value itself.
    """
    space = function.__globals__
    steps = _instructions(code)
    for i, step in enumerate(steps):
        if step.opname in {"LOAD_GLOBAL", "LOAD_NAME"} and step.argval in space:
            name, value = _attribute(steps, i, space, is_library)
            yield f"{space.get('__name__')}.{name}", value
        elif step.opname == "IMPORT_NAME":
            name = "." * steps[i - 2].argval + step.argval
            yield from _names_of_import(steps, i, code, _import(name, space, is_library))
        if step.argval in {"import_module", "__import__"}:
            name = steps[i + 1].argval
            yield f"module {name}", _import(name, space, is_library)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from globals_of(function, constant, is_library)


def _attribute(
    steps: Sequence[_Instruction], i: int, space: dict[str, Any], is_library: IsLibrary
) -> tuple[str, Any]:
    """The global of instruction ``i``, or its attribute if it is a module of the user's."""
    name, value = steps[i].argval, space[steps[i].argval]
    for following in steps[i + 1 :]:
        is_users = isinstance(value, ModuleType) and not is_library(value.__name__)
        if not (is_users and following.opname in _READING):
            break
        name, value = f"{name}.{following.argval}", getattr(value, following.argval, None)
    return name, value


def _names_of_import(
    steps: Sequence[_Instruction], i: int, code: CodeType, module: Any
) -> Iterator[tuple[str, Any]]:
    """Values in use of a module, None for a library's, that instruction ``i`` imports."""
    if module is None:
        return
    space = vars(module)
    yield from (
        (f"{module.__name__}.{name}", space[name]) for name in code.co_names if name in space
    )
    variable = next(step.argval for step in steps[i:] if step.opname.startswith("STORE_"))
    is_handed_on = any(
        step.argval == variable and step.opname.startswith("LOAD_") and after.opname not in _READING
        for step, after in itertools.pairwise(steps[i + 1 :])
    )
    if is_handed_on:
        yield module.__name__, module


def _import(name: Any, space: dict[str, Any], is_library: IsLibrary) -> Any | None:
    """Import a module as a function would; None for a library's, or one that can't be imported."""
    try:
        full = importlib.util.resolve_name(name, space.get("__package__"))
        return None if is_library(full) else importlib.import_module(full)
    except (Exception, SystemExit):  # noqa: BLE001 - the function raises it, if it comes to that
        return None
