"""Versions of the user's modules in this process, compared with their files and the driver's."""

from __future__ import annotations

import struct
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple

from agc_ml.errors import ProcessorError
from agc_ml.execution.code.canonical import OURS, compiled_form, digest
from agc_ml.execution.code.code_objects import cells, codes_in, parts_of, reachable
from agc_ml.execution.code.source_files import MAIN, forget_sources, source_of, top_of
from agc_ml.execution.code.user_folder import join_folders

LOOSE: Final = "agc_ml_user_"
"""Begin of the names of modules that loose files become."""
_BITS: Final = 0xFFFFFFFF

CodesByName = Mapping[str, list[Any]] | None
"""Compiled forms of functions and classes in a file, by qualified name; None if it has faults."""


class _Version(NamedTuple):
    """An import of a module (its spec differs after a reload), the sha256 and codes of its file."""

    spec: Any
    sha256: str
    codes: CodesByName


_versions: dict[str, _Version] = {}
"""Versions of modules that this process has seen, by name."""


def refuse_edited(name: str, sha256: str, path: Path) -> None:
    """Reject a module whose file was edited after it was imported.

    Raises
    ------
    ProcessorError
        The code in memory is not the code in the file.
    """
    module = sys.modules.get(name)
    if module is None or name.startswith(LOOSE):  # loose files are loaded again
        return
    before = _versions.get(name, _Version(None, "", {}))
    is_first = before.spec is None or before.spec is not module.__spec__
    if before.sha256 == sha256 and not is_first:
        return
    codes = {} if top_of(name) == OURS else _codes_in_file(path)
    if is_first:
        is_edited = not _is_bytecode_current(module, path) and not _has(module, codes)
    else:  # a notebook may reload functions, and leave the module
        is_edited = codes == before.codes or not _has(module, codes)
    if is_edited:
        raise ProcessorError(
            f"{path}: edited after it was imported, so the old code would run; restart Python, or "
            "reload the module"
        )
    _versions[name] = _Version(module.__spec__, sha256, codes)


def _codes_in_file(path: Path) -> CodesByName:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the import has shown them
            whole = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    codes: dict[str, list[Any]] = {}
    for code in codes_in(whole):
        if code is not whole:
            codes.setdefault(code.co_qualname, []).append(compiled_form(code))
    return codes


def _is_bytecode_current(module: ModuleType, path: Path) -> bool:
    """Return whether Python's cached bytecode was compiled from the file as it is now."""
    if top_of(module.__name__) == OURS or type(module.__loader__) is not SourceFileLoader:
        return True  # other loaders may make any code of a file
    try:
        cached = Path(str(module.__spec__ and module.__spec__.cached))
        head, now = cached.read_bytes()[4:16], path.stat()
        is_older = now.st_mtime_ns <= cached.stat().st_mtime_ns
    except OSError:
        return False
    stated = struct.pack("<III", 0, int(now.st_mtime) & _BITS, now.st_size & _BITS)
    return head == stated and is_older


def _has(module: ModuleType, codes: CodesByName) -> bool:
    """Return whether a module's functions equal those of the same name in its file.

    Functions of other names are of an older version, or made otherwise.
    """
    return codes is not None and all(
        code.co_qualname not in codes or compiled_form(code) in codes[code.co_qualname]
        for code in _codes_in_memory(module)
        if code.co_filename == module.__file__
    )


def _codes_in_memory(module: ModuleType) -> Iterator[CodeType]:
    """Code of the functions that a module holds, in classes, containers and decorators too."""

    def inside(value: Any) -> Iterable[Any]:
        if isinstance(value, FunctionType):
            return [*vars(value).values(), *(inner for _, inner in cells(value))]
        if isinstance(value, type):
            return vars(value).values() if value.__module__ == module.__name__ else ()
        if isinstance(value, dict):
            return dict.values(value)
        return value if isinstance(value, list | tuple) else parts_of(value).values()

    for value in reachable(vars(module).values(), inside):
        if isinstance(value, FunctionType):
            yield value.__code__


def require_same_modules(modules: Mapping[str, str]) -> None:
    """Make sure that this process imports the driver's code; ``modules`` are sha256 by name.

    A worker that imported an older version forgets it.

    Raises
    ------
    ProcessorError
        The files here are another version, or agc_ml itself changed under a running worker.
    """
    modules = {name: sha256 for name, sha256 in modules.items() if name != MAIN}
    stale = [
        name
        for name, sha256 in modules.items()
        if name in sys.modules and name in _versions and _versions[name].sha256 != sha256
    ]
    if any(top_of(name) == OURS for name in stale):
        raise ProcessorError(
            f"{stale[0]} is another version than the driver's; restart the workers"
        )
    if stale:
        forget_modules(modules)
    for name, sha256 in modules.items():
        with suppress(ImportError):  # unpickling the processor reports it
            join_folders(name)
        path = source_of(name)
        if path is not None and digest(path.read_bytes()) != sha256:
            raise ProcessorError(f"{path} is another version than the driver's; install the same")
        _versions[name] = _Version(None, sha256, {})


def forget_modules(modules: Iterable[str]) -> None:
    """Have the user's modules imported again, without the state that earlier runs left in them."""
    for name in modules:
        if top_of(name) not in {OURS, MAIN}:
            sys.modules.pop(name, None)
    forget_sources()
    for name in modules:
        with suppress(ImportError):
            join_folders(name)
