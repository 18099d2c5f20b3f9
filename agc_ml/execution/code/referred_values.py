"""Values that code refers to: globals, defaults, closures, class attributes, as they are now.

A processor gives another result when a number beside it changes, in its module, in another cell of
a notebook, or in a file that was read while the module was imported. So these values, when a run
begins, are part of the identity of its code.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import pickle
import weakref
from collections import Counter
from types import (
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, Final

from agc_ml.execution.code.canonical import (
    NotPlainError,
    canonical,
    compiled_form,
    describes_itself,
    digest,
)
from agc_ml.execution.code.code_objects import (
    IsLibrary,
    attributes_of,
    cells,
    codes_in,
    defaults,
    filled_names,
    globals_of,
    parts_of,
)

_LARGEST_COMPARED: Final = 1 << 20
"""Bytes of a pickle up to which it is compared with the pickle of a copy."""
_WITHOUT_VALUE: Final = (
    MemberDescriptorType,
    GetSetDescriptorType,
    weakref.ref,
    weakref.WeakKeyDictionary,
    weakref.WeakValueDictionary,
)
"""Types without a value of their own: descriptors of slots, and references to other objects."""


class ReferredValues:
    """Values that code refers to, by name, followed through functions, classes and modules.

    A function, class or module stands in ``values`` by its name, and the values that it refers to
    have names of their own. Where two have the same name the second one is ``name#2``, in the order
    in which they are met.

    Attributes
    ----------
    values
        Canonical forms by name.
    attributes
        Plain attributes of the user's objects.
    plain
        Names of the values that are numbers, text, arrays or collections of these.
    opaque
        Names and types of values of which only the type is known.
    modules
        Modules of the code itself.
    filled
        Names, without modules and classes, of containers that the code fills.
    """

    def __init__(self, is_library: IsLibrary, processor: Any = None) -> None:
        """``processor`` is the object whose attributes are added one by one."""
        self.values: dict[str, Any] = {}
        self.attributes: dict[str, Any] = {}
        self.plain: set[str] = set()
        self.opaque: dict[str, str] = {}
        self.modules: set[str] = set()
        self.filled: set[str] = set()
        self.processor = processor
        self.is_library = functools.cache(is_library)
        self._seen: set[tuple[str, int]] = set()
        self._labels: dict[int, str] = {}
        self._names: Counter[tuple[str, str]] = Counter()
        self._alive: list[Any] = []  # so that no other object gets an id that was seen

    def add(self, name: str, value: Any, *, without: frozenset[str] = frozenset()) -> None:
        """Follow a value; of classes leave out the functions named in ``without``."""
        if isinstance(value, _WITHOUT_VALUE) or (name, id(value)) in self._seen:
            return
        self._seen.add((name, id(value)))
        self._alive.append(value)
        name = self._numbered(name)
        parts = parts_of(value)
        for part, inner in parts.items():
            self.add(f"{name}.{part}", inner)
        if not parts:
            self.values[name] = self._form(name, value, without)

    def _numbered(self, name: str, of: str = "values") -> str:
        self._names[of, name] += 1
        number = self._names[of, name]
        return name if number == 1 else f"{name}#{number}"

    def label(self, value: Any, without: frozenset[str] = frozenset()) -> str:
        """Return the name of a function, class or module, and follow it the first time."""
        if id(value) not in self._labels:
            self._alive.append(value)
            is_module = isinstance(value, ModuleType)
            name = (
                f"module {value.__name__}"
                if is_module
                else f"{value.__module__}.{value.__qualname__}"
            )
            label = self._labels[id(value)] = self._numbered(name, of="labels")
            if isinstance(value, type):
                self._add_class(label, value, without)
            elif is_module:
                self._add_module(value)
            else:
                self._add_function(label, value)
        return self._labels[id(value)]

    def labels(self) -> list[str]:
        """Names of the functions and classes that were followed."""
        return list(self._labels.values())

    def _is_in_library(self, module: Any) -> bool:
        """Return whether a module, None for code that exec made in none, is a library's."""
        return module is not None and self.is_library(module)

    def _add_module(self, module: ModuleType) -> None:
        """Follow all of a module that has another name where it is used, or is handed on."""
        if self.is_library(module.__name__):
            return
        self.modules.add(module.__name__)
        for name, value in list(vars(module).items()):
            if not name.startswith("__"):
                self.add(f"{module.__name__}.{name}", value)

    def _add_class(self, label: str, cls: type, without: frozenset[str]) -> None:
        if self._is_in_library(cls.__module__):
            return
        self.modules.add(cls.__module__)
        self.values[f"{label}: bases"] = [self.label(base, without) for base in cls.__bases__]
        self.values[f"{label}: metaclass"] = self.label(type(cls))
        for name, value in sorted(vars(cls).items()):
            # Python's own attributes of a class, such as __slotnames__ or _abc_impl
            is_pythons = name.startswith(("__", "_abc_")) and not callable(value)
            if name not in without and not is_pythons:
                self.add(f"{label}.{name}", value)

    def _add_function(self, label: str, function: FunctionType) -> None:
        code, space = function.__code__, function.__globals__
        in_library = self._is_in_library(function.__module__)
        for variable, value in cells(function):
            # a decorator of a library may hold a function of the user's
            if not in_library or isinstance(value, FunctionType | MethodType | functools.partial):
                self.add(f"{label}: {variable}", value)
        if in_library:
            return
        if function.__module__ is not None:
            self.modules.add(function.__module__)
        # several may have one name: lambdas, and functions made in a function or a condition
        self.filled.update(name for one in codes_in(code) for name in filled_names(one))
        self.values[f"{label}: code"] = digest(repr(compiled_form(code)).encode())
        for parameter, value in defaults(function):
            self.add(f"{label}({parameter})", value)
        if self._is_in_library(space.get("__name__")):  # a library's decorator
            return
        for name, value in vars(function).items():
            self.add(f"{label}.{name}", value)
        for variable, value in globals_of(function, code, self.is_library):
            self.add(variable, value)

    def _form(self, name: str, value: Any, without: frozenset[str]) -> Any:
        if value is self.processor:
            return "itself"
        if isinstance(value, type | FunctionType | ModuleType):
            return self.label(value, without)
        try:
            form = canonical(value)
        except (NotPlainError, RecursionError):  # a value that holds itself is not plain
            self._add_attributes(name, value, set())
        else:
            self.plain.add(name)
            return form
        pickled = self._digest_of_object(value)
        if pickled is None:
            self.opaque[name] = type(value).__name__
        return f"{type(value).__module__}.{type(value).__qualname__} {pickled or ''}".strip()

    def _add_attributes(self, name: str, value: Any, above: set[int]) -> None:
        if self._is_in_library(type(value).__module__) or id(value) in above:
            return
        for attribute, inner in attributes_of(value).items():
            if attribute.startswith("_"):  # the object's own notes
                continue
            try:
                self.attributes[f"{name}.{attribute}"] = canonical(inner)
            except (NotPlainError, RecursionError):
                self._add_attributes(f"{name}.{attribute}", inner, {*above, id(value)})

    def _digest_of_object(self, value: Any) -> str | None:
        """Return the digest of an object's pickle, None if that is not the same each time."""
        try:
            pickled = _Pickler.dumps(value, self)
            memo = {id(self.processor): self.processor}
            again = copy.deepcopy(value, memo) if len(pickled) < _LARGEST_COMPARED else value
            is_stable = pickled == _Pickler.dumps(again, self)
        except Exception:  # noqa: BLE001 - pickling runs code of any object; it counts as opaque
            return None
        return digest(pickled) if is_stable else None


class _Pickler(pickle.Pickler):
    """Pickles that do not depend on the process: no memory of objects, sorted sets.

    Classes, functions and modules are followed, and stand in the pickle by name.
    """

    referred: ReferredValues

    @classmethod
    def dumps(cls, value: Any, referred: ReferredValues) -> bytes:
        """Pickle a value."""
        file = io.BytesIO()
        pickler = cls(file, protocol=4)
        pickler.fast = True
        pickler.referred = referred
        pickler.dump(value)
        return file.getvalue()

    def persistent_id(self, obj: Any) -> str | None:
        """Return text that stands for an object; None to pickle it."""
        if obj is self.referred.processor and obj is not None:
            return "itself"
        if isinstance(obj, type | FunctionType | ModuleType):
            return self.referred.label(obj)
        if type(obj) in {set, frozenset}:
            elements = [self._digest(element) for element in sorted(obj, key=self._sort_key)]
            return f"{type(obj).__name__} {elements}"
        if describes_itself(obj):
            return str(obj.canonical())
        inner = {name: self._digest(part) for name, part in parts_of(obj).items()}
        return f"{type(obj).__qualname__} {inner}" if inner else None

    def _digest(self, value: Any) -> str:
        return digest(self.dumps(value, self.referred))

    def _sort_key(self, element: Any) -> str:
        """Return text by which the elements of a set are put in order."""
        referred = ReferredValues(self.referred.is_library, self.referred.processor)
        referred.add("", element)
        return json.dumps(referred.values)
