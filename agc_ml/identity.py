"""Telling one version of a processor's code from another, here and on workers."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Final

import cloudpickle

from agc_ml.errors import ProcessorError

OURS: Final = "agc_ml"
_TYPE_CHECKING: Final = ("TYPE_CHECKING", "typing.TYPE_CHECKING")

# Per process: the import (its spec is another after a reload) and the source of each module.
_seen: dict[str, tuple[Any, str]] = {}


@dataclass(frozen=True)
class Code:
    """A processor's code: a digest of all of it, and the source of each module, by sha256."""

    digest: str
    modules: dict[str, str]


def code_of(processor: Any) -> Code:
    """Identify the code of a processor: its class, all modules it imports, versions of libraries.

    Modules of its own package, of agc_ml and of the user count by their source; libraries by their
    version; a class that no file holds (typed at a prompt, made by a function) by its compiled code
    and what it closes over.

    Raises
    ------
    ProcessorError
        A module's file was edited after it was imported here: what would run is not what is there.
    """
    cls = type(processor)
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    sources, libraries = _closure(cls.__module__, Path(file)) if file else ({}, set())
    modules = {name: _sha(path) for name, path in sorted(sources.items())}
    for name, digest in modules.items():
        _refuse_edited(name, digest, sources[name])
    content = {
        "class": cls.__qualname__,
        "state": _class_state(cls),
        "modules": modules,
        "libraries": {name: version_of(name) for name in sorted(libraries)},
    }
    text = json.dumps(content, sort_keys=True)
    return Code(hashlib.sha256(text.encode()).hexdigest(), modules)


def _refuse_edited(name: str, digest: str, path: Path) -> None:
    module = sys.modules.get(name)
    if module is None:
        return
    spec, before = _seen.setdefault(name, (module.__spec__, digest))
    if spec is not module.__spec__:
        _seen[name] = (module.__spec__, digest)
    elif before != digest:
        raise ProcessorError(
            f"{path}: edited after it was imported, so the old code would run; start Python anew, "
            "or reload the module"
        )


def ensure(modules: Mapping[str, str]) -> None:
    """Make sure that what this process imports is the code that the driver means.

    A worker that imported an older version forgets it.

    Raises
    ------
    ProcessorError
        The files here are another version, or agc_ml itself changed under a running worker.
    """
    stale = [
        name
        for name, digest in modules.items()
        if name in sys.modules and _seen.get(name, (None, digest))[1] != digest
    ]
    if any(name.partition(".")[0] == OURS for name in stale):
        raise ProcessorError(
            f"{stale[0]} is another version than the driver's; restart the workers"
        )
    if stale:
        for name in modules:
            if name.partition(".")[0] != OURS:
                sys.modules.pop(name, None)
        importlib.invalidate_caches()
        _origin.cache_clear()
    for name, digest in modules.items():
        path = _origin(name)
        if path is not None and _sha(path) != digest:
            raise ProcessorError(f"{path} is another version than the driver's; install the same")
        _seen[name] = (None, digest)


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _closure(name: str, path: Path) -> tuple[dict[str, Path], set[str]]:
    """Source files of a module and of all that it imports in turn; and the libraries among them."""
    home = name.partition(".")[0]
    found: dict[str, Path] = {}
    libraries: set[str] = set()
    waiting = [(name, path)]
    while waiting:
        module, file = waiting.pop()
        if module in found:
            continue
        found[module] = file
        for imported in _imports(module, file):
            origin = _origin(imported)
            top = imported.partition(".")[0]
            if origin is not None and (top in {home, OURS} or not _is_library(origin)):
                waiting.append((imported, origin))
            elif top not in sys.stdlib_module_names:
                libraries.add(top)
    return found, libraries - {home, OURS}


def _imports(module: str, path: Path) -> Iterator[str]:
    """Names of modules that a file imports anywhere, with the packages they are in."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError):  # a broken module that is imported in a try block
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in _walk_what_runs(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level and package:
                base = importlib.util.resolve_name("." * node.level + base, package)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:n]) for n in range(1, len(parts) + 1) if parts[0])


def _walk_what_runs(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a module but those that only a type checker sees."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in _TYPE_CHECKING:
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


@cache
def _origin(name: str) -> Path | None:
    """File of a module; None for what is no module, built in, or an extension."""
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError, SyntaxError):
            return None
        file = spec.origin if spec is not None else None
    return Path(file) if file is not None and file.endswith(".py") else None


@cache
def _library_folders() -> tuple[str, ...]:
    keys = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({sysconfig.get_path(key) for key in keys})


def _is_library(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in _library_folders()) or bool(
        re.search(r"/(site|dist)-packages/", path.as_posix())
    )


@cache
def version_of(top: str) -> str:
    """Version of the distribution that has a package, with its name where that is another."""
    try:
        return version(top)
    except PackageNotFoundError:
        distributions = packages_distributions().get(top, [])
    return ", ".join(f"{name} {version(name)}" for name in sorted(set(distributions)))


def _class_state(cls: type) -> dict[str, Any]:
    """What decides how a class works beyond its source: attributes, closures, unfiled code."""
    state = {}
    for one in cls.__mro__:
        if one.__module__.partition(".")[0] in {"builtins", "abc", "coffea"}:
            continue
        attributes = {
            name: _state(value, one)
            for name, value in vars(one).items()
            if not name.startswith(("__", "_abc_")) or name in {"__init__", "__call__"}
        }
        state[one.__qualname__] = attributes
    return state


def _state(value: Any, cls: type) -> Any:
    function = inspect.unwrap(getattr(value, "__func__", getattr(value, "fget", value)))
    if not isinstance(function, FunctionType):
        return canonical(value)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    state = {"cells": [canonical(c) for c in cells if c is not cls], "name": function.__qualname__}
    has_file = getattr(sys.modules.get(cls.__module__), "__file__", None) is not None
    return state if has_file else {**state, "code": _code(function.__code__)}


def _code(code: CodeType) -> list[Any]:
    constants = [_code(c) if isinstance(c, CodeType) else canonical(c) for c in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]


def canonical(value: Any) -> Any:
    """The same JSON for the same value, in any process; of other objects the digest of a pickle."""
    if value is None or isinstance(value, bool | int | str | float):
        is_finite = not isinstance(value, float) or math.isfinite(value)
        return value if is_finite else repr(value)
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, set | frozenset):
        return ["set", *sorted((canonical(item) for item in value), key=repr)]
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    describe = getattr(value, "canonical", None)
    if callable(describe) and not isinstance(value, type):
        return canonical(describe())
    return _opaque(value)


def _opaque(value: Any) -> str:
    if isinstance(value, type | FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    try:
        digest = hashlib.sha256(cloudpickle.dumps(value)).hexdigest()
    except Exception as error:  # pickling runs code of any object
        raise ProcessorError(f"a {type(value).__name__} in it can't be pickled: {error}") from error
    return f"{type(value).__name__} sha256:{digest}"
