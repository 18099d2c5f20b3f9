"""Processors: finding them, telling one version from another, getting them to workers."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final, get_type_hints

import cloudpickle
from pydantic import TypeAdapter, ValidationError

from agc_ml.errors import ProcessorError, UsageError

ENTRY_POINTS: Final = "agc_ml.processors"
_USER_MODULE: Final = "agc_ml_user_"


@dataclass(frozen=True)
class Shipment:
    """A processor, ready to travel.

    ``blob`` is the pickled processor; ``module`` and ``source`` are the module that a loose file
    becomes on every worker, named by its digest so that an edited file is another module.
    """

    name: str
    processor: Any
    parameters: dict[str, Any]
    code: str
    blob: bytes
    module: str | None = None
    source: bytes = b""


def registered() -> dict[str, str]:
    """Names of the installed processors and what they stand for, ``name -> module:Class``."""
    return {entry.name: entry.value for entry in entry_points(group=ENTRY_POINTS)}


def prepare(processor: Any, settings: Mapping[str, str] | None = None) -> Shipment:
    """Make a processor and all that workers need of it.

    Parameters
    ----------
    processor
        A registered name, ``module:Class``, ``path/to/file.py:Class``, or a processor itself.
    settings
        Values of the class's parameters as text, from a command line.

    Raises
    ------
    UsageError
        There is no such processor or parameter, or a value is of the wrong type.
    ProcessorError
        The processor's code can't be imported or made.
    """
    if not isinstance(processor, str):
        if isinstance(processor, type) or not callable(getattr(processor, "process", None)):
            raise UsageError(f"{processor!r} is no processor: an object with process(events) is")
        return _shipment(type(processor).__name__, processor)
    spec = registered().get(processor, processor)
    where, separator, class_name = spec.rpartition(":")
    if not separator:
        names = ", ".join(sorted(registered()))
        raise UsageError(
            f"no processor {processor!r}; installed are {names}; others go as module:Class or "
            "path/to/file.py:Class"
        )
    source = Path(where).read_bytes() if where.endswith(".py") and Path(where).is_file() else b""
    module = load_source(where, source) if source else _import(processor, where)
    cls = getattr(module, class_name, None)
    if not isinstance(cls, type) or not callable(getattr(cls, "process", None)):
        raise UsageError(f"{processor}: {where} has no processor class {class_name!r}")
    shipment = _shipment(processor, _make(processor, cls, settings or {}))
    if not source:
        return shipment
    return Shipment(**{**vars(shipment), "module": module.__name__, "source": source})


def _import(processor: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and where.startswith(error.name):
            raise UsageError(f"{processor}: there is no module or file {where}") from error
        raise ProcessorError(f"{processor}: importing {where} failed: {error}") from error
    except Exception as error:  # the user's module may raise anything while it is imported
        raise ProcessorError(f"{processor}: importing {where} failed: {error!r}") from error


def load_source(where: str, source: bytes) -> ModuleType:
    """Make a module of a loose file's content, under a name that holds its digest.

    Raises
    ------
    ProcessorError
        It can't be compiled, or raises while it runs.
    """
    name = f"{_USER_MODULE}{hashlib.sha256(source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = where
    sys.modules[name] = module
    try:
        exec(compile(source, where, "exec"), vars(module))  # noqa: S102 - the user's own processor
    except Exception as error:  # the user's module may raise anything while it is imported
        del sys.modules[name]
        raise ProcessorError(f"{where}: can't be loaded: {error!r}") from error
    return module


def _make(processor: str, cls: type, settings: Mapping[str, str]) -> Any:
    parameters = inspect.signature(cls).parameters
    hints = get_type_hints(cls if is_dataclass(cls) else vars(cls).get("__init__", cls))
    values = {}
    for name, text in settings.items():
        if name not in parameters:
            known = ", ".join(parameters) or "none"
            raise UsageError(f"--set {name}: {processor} has no such parameter; it has: {known}")
        try:
            values[name] = TypeAdapter(hints.get(name, str)).validate_strings(text)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise UsageError(f"--set {name}={text}: {message}") from error
    try:
        return cls(**values)
    except Exception as error:  # the user's constructor may raise anything
        raise ProcessorError(f"{processor}: can't be made: {error!r}") from error


def _shipment(name: str, processor: Any) -> Shipment:
    return Shipment(
        name=name,
        processor=processor,
        parameters=_parameters(processor),
        code=code_digest(processor),
        blob=cloudpickle.dumps(processor),
    )


def _parameters(processor: Any) -> dict[str, Any]:
    if is_dataclass(processor):
        state = {f.name: getattr(processor, f.name) for f in fields(processor)}
    else:
        state = dict(vars(processor))
    return {key: value if _is_json(value) else _digest(value) for key, value in state.items()}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _digest(value: Any) -> str:
    return f"{type(value).__name__} sha256:{hashlib.sha256(cloudpickle.dumps(value)).hexdigest()}"


def declared_columns(processor: Any, *, is_data: bool) -> tuple[str, ...]:
    """Branches that a processor declares in ``columns``, () if it declares none and gets all.

    ``simulation_columns`` are those that only simulation has, such as genWeight.
    """
    columns = tuple(getattr(processor, "columns", ()))
    if columns and not is_data:
        columns += tuple(getattr(processor, "simulation_columns", ()))
    return columns


def code_digest(processor: Any) -> str:
    """Sha256 of a processor's source with all modules it imports that are not libraries.

    Libraries are known by their version instead. A class without a source file (typed at a prompt)
    is known by its pickled code.
    """
    module = inspect.getmodule(type(processor))
    digest = hashlib.sha256()
    if module is None or getattr(module, "__file__", None) is None or module.__name__ == "__main__":
        digest.update(cloudpickle.dumps(type(processor)))
    if module is not None and getattr(module, "__file__", None) is not None:
        for path in sorted(_closure(module.__name__, Path(str(module.__file__)))):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update(type(processor).__qualname__.encode())
    return digest.hexdigest()


def _closure(name: str, path: Path) -> set[Path]:
    """Files of a module and, in turn, of all it imports from its own package, ours or the user."""
    home = name.partition(".")[0]
    found, waiting = set(), [(name, path)]
    while waiting:
        module, file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        for imported in _imports(module, file):
            origin = _origin(imported)
            own = imported.partition(".")[0] in {home, "agc_ml"}
            if origin is not None and (own or not _is_library(origin)):
                waiting.append((imported, origin))
    return found


def _imports(module: str, path: Path) -> Iterator[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def _origin(name: str) -> Path | None:
    """File of a module, or None for what is no module, built in, or a C extension."""
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return None
        file = spec.origin if spec is not None else None
    return Path(file) if file is not None and file.endswith(".py") else None


def _is_library(path: Path) -> bool:
    roots = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(path.is_relative_to(root) for root in roots) or bool(
        re.search(r"/(site|dist)-packages/", path.as_posix())
    )
