"""Telling one version of a processor's code from another, here and on workers."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import json
import re
import socket
import struct
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

import agc_ml
from agc_ml import _moved
from agc_ml.errors import ProcessorError, chain
from agc_ml.execution.processor.function_processor import FunctionProcessor
from agc_ml.execution.processor.referred_values import (
    Referred,
    attributes_of,
    cells,
    codes_in,
    form_of,
    parts_of,
)
from agc_ml.execution.processor.user_folder import join_folders

OURS: Final = "agc_ml"
MAIN: Final = "__main__"
"""What a script or a notebook is called: its code travels with the processor."""
_STDIN: Final = "<stdin>"
"""File name that Python gives to code from standard input."""
LOOSE: Final = "agc_ml_user_"
"""Begin of the names of modules that loose files become."""
POSTPROCESS: Final = "postprocess"
STATE: Final = "self."
"""Begin of the names of values that are attributes of the processor."""
_EMPTY: Final[tuple[Any, ...]] = ([], {}, ["set"], ["OrderedDict"])
"""Canonical forms of containers with nothing in them."""
_TYPE_CHECKING: Final = ("TYPE_CHECKING", "typing.TYPE_CHECKING")

# Per process: the import (its spec is another after a reload), the source and the functions of each
# module.
_seen: dict[str, tuple[Any, str, Mapping[str, list[Any]] | None]] = {}


@dataclass(frozen=True)
class Code:
    """A processor's code: digests of it, and the source of each module, by sha256.

    ``digest`` is of all of it, ``chunks`` of all but ``postprocess``, which decides nothing of a
    chunk. ``values`` are those that it refers to, its own attributes among them; ``notes`` name
    what of these can't be compared. ``plain`` are the numbers and the text among them, as JSON.
    """

    digest: str
    chunks: str
    modules: dict[str, str]
    values: dict[str, Any]
    plain: bytes = b"{}"
    notes: tuple[str, ...] = ()


def code_of(processor: Any, *also: Any) -> Code:
    """Identify the code of a processor: its class, all modules it imports, versions of libraries.

    Modules of its own package, of agc_ml and of the user count by their source; libraries by their
    version; a class that no file holds (typed at a prompt, made by a function) by its compiled
    code. So do the values that the code refers to, as they are now. ``also`` is code that belongs
    to it, such as its schema.

    Raises
    ------
    ProcessorError
        A module's file was edited after it was imported here: what would run is not what is there.
    """
    cls = type(processor)
    home = cls.__module__
    found = _referred(processor, also)
    of_chunks = _without_state(found.values)
    _add_postprocess(found, cls)
    sources, libraries = _closure({home, *found.modules})
    modules = {name: _sha(path) for name, path in sorted(sources.items())}
    for name, digest in modules.items():
        _refuse_edited(name, digest, sources[name])
    classes = frozenset(one.__qualname__ for one in cls.__mro__)
    homes = {one.__module__ for one in cls.__mro__}
    stripped = {
        name: without_postprocess(path.read_bytes(), classes) if name in homes else modules[name]
        for name, path in sorted(sources.items())
    }
    content = {
        "class": f"{home}.{cls.__qualname__}",
        "also": [f"{value.__module__}.{value.__qualname__}" for value in also],
        "libraries": {name: version_of(name) for name in sorted(libraries)},
    }
    everything = {**content, "values": _without_state(found.values), "modules": modules}
    return Code(
        digest=_digest(everything),
        chunks=_digest({**content, "values": of_chunks, "modules": stripped}),
        modules=modules,
        values=found.values,
        plain=_plain(found),
        notes=tuple(
            f"{name} is a {kind} that can't be compared: a change of it goes unnoticed by --resume"
            for name, kind in found.opaque.items()
        ),
    )


def is_changed(code: Code, processor: Any, *also: Any) -> bool:
    """Return whether a processor refers to other values now than when it was identified."""
    found = _referred(processor, also)
    _add_postprocess(found, type(processor))
    return json.dumps(found.values) != json.dumps(code.values)


def _add_postprocess(found: Referred, cls: type) -> None:
    for one in cls.__mro__:  # super() may call any of them
        if POSTPROCESS in vars(one):
            found.add(f"{one.__module__}.{one.__qualname__}.{POSTPROCESS}", vars(one)[POSTPROCESS])


def _referred(processor: Any, also: Iterable[Any] = ()) -> Referred:
    """Values that a processor refers to, but for those of ``postprocess``."""
    cls = type(processor)
    package = cls.__module__.partition(".")[0]
    found = Referred(
        lambda name: name.partition(".")[0] != package and is_library(name), itself=processor
    )
    found.add(cls.__qualname__, cls, without=frozenset({POSTPROCESS}))
    if isinstance(processor, FunctionProcessor):
        found.add("function", processor.function)
    for name, value in state_of(processor).items():
        found.add(f"{STATE}{name}", value)
    for value in also:
        found.add(getattr(value, "__qualname__", ""), value)
    return found


def _plain(found: Referred) -> bytes:
    """Numbers and text that code refers to, also in objects of the user's; and on which host."""
    values = {name: value for name, value in found.values.items() if name in found.plain}
    kept = _without_state({**values, **found.attributes})
    return json.dumps({"host": socket.gethostname(), "values": kept}).encode()


def differing(
    processor: Any, stated: bytes, *, is_moved: bool = False
) -> tuple[str | None, tuple[str, ...]]:
    """Compare numbers and text that a processor refers to here with those ``stated``.

    Paths may differ between machines, and where the code ``is_moved``.
    Returns a line that names the first one, None if there is none; and lines about those that are
    taken for caches, which were filled where the run was started.
    """
    found = _referred(processor)
    here, there = json.loads(_plain(found)), json.loads(stated)
    with_paths = here["host"] == there.get("host") and not is_moved
    caches = []
    for name, value in there.get("values", {}).items():
        if name not in here["values"]:
            continue
        now = here["values"][name]
        one, other = ((x if with_paths else _without_paths(x)) for x in (now, value))
        if json.dumps(one) == json.dumps(other):
            continue
        differs = f"{name} is {now!r} on a worker, and {value!r} where the run was started"
        is_filled = re.findall(r"\w+", name)[-1] in found.filled or name in found.attributes
        if not ((now is None or now in _EMPTY) and is_filled):
            return differs, ()
        if other not in (None, *_EMPTY):
            caches.append(f"{differs[:_LINE]}: taken for a cache that the code fills itself")
    return None, tuple(caches)


_LINE: Final = 300


def _without_paths(value: Any) -> Any:
    """Canonical form of a value, with nothing in place of text that may be a path."""
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return None if isinstance(value, str) and "/" in value else value


def code_in_use(processor: Any) -> Iterator[tuple[str, str]]:
    """Modules of the user's code that a processor may run, and qualified names in a script."""
    found = _referred(processor)
    _add_postprocess(found, type(processor))
    for module in found.modules:
        if module != MAIN:
            yield module, ""
    for label in found.labels():
        module, _, name = label.partition(".")
        if module == MAIN:
            yield MAIN, name


def _without_state(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that are no parameters: those count by themselves."""
    return {name: value for name, value in values.items() if not name.startswith(STATE)}


def _digest(content: Mapping[str, Any]) -> str:
    """Digest of JSON, in which the order of dictionaries counts: it may decide a result."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def state_of(processor: Any) -> dict[str, Any]:
    """Attributes of an object, those in slots too; of a function the values that it was given."""
    is_function = isinstance(processor, FunctionProcessor)
    return processor.values if is_function else attributes_of(processor)


def without_postprocess(source: bytes, classes: frozenset[str] | None = None) -> str:
    """Digest of a module's source but for the ``postprocess`` of classes.

    ``classes`` are qualified names, None: all.
    Where something else in the module mentions it, it may decide what a chunk gives, and counts.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return hashlib.sha256(source).hexdigest()
    _remove_postprocess(tree, classes, "")
    rest = ast.dump(tree)
    if f"'{POSTPROCESS}'" in rest:
        return hashlib.sha256(source).hexdigest()
    return hashlib.sha256(rest.encode()).hexdigest()


def _remove_postprocess(node: Any, classes: frozenset[str] | None, prefix: str) -> None:
    for inner in getattr(node, "body", []):
        if isinstance(inner, ast.ClassDef):
            name = f"{prefix}{inner.name}"
            if classes is None or name in classes:
                inner.body = [
                    one
                    for one in inner.body
                    if not (isinstance(one, ast.FunctionDef) and one.name == POSTPROCESS)
                ]
            _remove_postprocess(inner, classes, f"{name}.")


def _refuse_edited(name: str, digest: str, path: Path) -> None:
    module = sys.modules.get(name)
    if module is None or name.startswith(LOOSE):  # those are made anew
        return
    spec, before, codes_before = _seen.get(name, (None, "", {}))
    is_first = spec is None or spec is not module.__spec__
    if before == digest and not is_first:
        return
    codes = {} if name.partition(".")[0] == OURS else _codes_of(path)
    if is_first:
        is_edited = not _is_as_imported(module, path) and not _has(module, codes)
    else:  # a notebook may reload functions, and leave the module
        is_edited = codes == codes_before or not _has(module, codes)
    if is_edited:
        raise ProcessorError(
            f"{path}: edited after it was imported, so the old code would run; start Python anew, "
            "or reload the module"
        )
    _seen[name] = (module.__spec__, digest, codes)


def _codes_of(path: Path) -> Mapping[str, list[Any]] | None:
    """Code of the functions and classes in a file, by qualified name; None if it has faults."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were told when it was imported
            whole = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    found: dict[str, list[Any]] = {}
    for code in codes_in(whole):
        if code is not whole:
            found.setdefault(code.co_qualname, []).append(form_of(code))
    return found


def _is_as_imported(module: ModuleType, path: Path) -> bool:
    """Return whether Python's cached bytecode was compiled from the file as it is now."""
    if module.__name__.partition(".")[0] == OURS or type(module.__loader__) is not SourceFileLoader:
        return True  # what a loader of another kind makes of a file is not what it says
    try:
        cached = Path(str(module.__spec__ and module.__spec__.cached))
        head, now = cached.read_bytes()[4:16], path.stat()
        is_older = now.st_mtime_ns <= cached.stat().st_mtime_ns
    except OSError:
        return False
    stated = struct.pack("<III", 0, int(now.st_mtime) & _BITS, now.st_size & _BITS)
    return head == stated and is_older


_BITS: Final = 0xFFFFFFFF


def _has(module: ModuleType, codes: Mapping[str, list[Any]] | None) -> bool:
    """Return whether a module's functions equal those of the same name in its file.

    Others are of an older version, or were made otherwise.
    """
    return codes is not None and all(
        code.co_qualname not in codes or form_of(code) in codes[code.co_qualname]
        for code in _codes_in_use(module)
        if code.co_filename == module.__file__
    )


def _codes_in_use(module: ModuleType) -> Iterator[CodeType]:
    """Code of the functions that a module holds, in classes and in what is around functions too."""
    waiting, seen = list(vars(module).values()), set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, FunctionType):
            yield one.__code__
            waiting += [*vars(one).values(), *(value for _, value in cells(one))]
        elif isinstance(one, type) and one.__module__ == module.__name__:
            waiting += vars(one).values()
        elif isinstance(one, dict):
            waiting += dict.values(one)
        elif isinstance(one, list | tuple):
            waiting += one
        else:
            waiting += parts_of(one).values()


def ensure(modules: Mapping[str, str]) -> None:
    """Make sure that what this process imports is the code that the driver means.

    A worker that imported an older version forgets it.

    Raises
    ------
    ProcessorError
        The files here are another version, or agc_ml itself changed under a running worker.
    """
    modules = {name: digest for name, digest in modules.items() if name != MAIN}
    stale = [
        name
        for name, digest in modules.items()
        if name in sys.modules and _seen.get(name, (None, digest, {}))[1] != digest
    ]
    if any(name.partition(".")[0] == OURS for name in stale):
        raise ProcessorError(
            f"{stale[0]} is another version than the driver's; restart the workers"
        )
    if stale:
        forget(modules)
    for name, digest in modules.items():
        with suppress(ImportError):  # which unpickling the processor tells
            join_folders(name)
        path = _origin(name)
        if path is not None and _sha(path) != digest:
            raise ProcessorError(f"{path} is another version than the driver's; install the same")
        _seen[name] = (None, digest, {})


def forget(modules: Iterable[str]) -> None:
    """Have the user's modules imported anew, without what earlier runs left in them."""
    for name in modules:
        if name.partition(".")[0] not in {OURS, MAIN}:
            sys.modules.pop(name, None)
    importlib.invalidate_caches()
    _origin.cache_clear()
    _is_of_library.cache_clear()
    for name in modules:
        with suppress(ImportError):
            join_folders(name)


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _closure(homes: set[str]) -> tuple[dict[str, Path], set[str]]:
    """Source files of modules and of all that they import in turn; and the libraries among them."""
    own = {name.partition(".")[0] for name in homes}
    found: dict[str, Path] = {}
    libraries: set[str] = set()
    files = ((name, getattr(sys.modules.get(name), "__file__", None)) for name in sorted(homes))
    waiting = [(name, Path(file)) for name, file in files if file not in {None, _STDIN}]
    while waiting:
        module, file = waiting.pop()
        if module in found:
            continue
        found[module] = file
        for imported in _imports(module, file):
            top = imported.partition(".")[0]
            if top not in {*own, OURS} and _is_of_library(top):
                if top not in sys.stdlib_module_names:
                    libraries.add(top)
                continue
            origin = _origin(imported)
            if origin is not None:
                waiting.append((imported, origin))
    return found, libraries - {*own, OURS}


def _imports(module: str, path: Path) -> tuple[str, ...]:
    """Names of modules that a file imports anywhere, with the packages they are in."""
    try:
        return _imports_of(module, path.name, path.read_bytes())
    except (OSError, SyntaxError):  # a broken module that is imported in a try block
        return ()


@lru_cache(maxsize=1024)
def _imports_of(module: str, file: str, source: bytes) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_imported_in(module, file, ast.parse(source))))


def _imported_in(module: str, file: str, tree: ast.AST) -> Iterator[str]:
    package = module if file == "__init__.py" else module.rpartition(".")[0]
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


_BLOCKS: Final = ("body", "orelse", "handlers", "finalbody", "cases")


def _walk_what_runs(tree: ast.AST) -> Iterator[ast.AST]:
    """All statements of a module but those that only a type checker sees."""
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        is_name = isinstance(node, ast.If) and isinstance(node.test, ast.Name | ast.Attribute)
        is_for_checker = is_name and ast.unparse(node.test) in _TYPE_CHECKING
        for block in ("orelse",) if is_for_checker else _BLOCKS:
            waiting += getattr(node, block, ())


@cache
def _is_of_library(top: str) -> bool:
    """Return whether a package at the top is Python's or installed; its modules would import it."""
    if top in sys.stdlib_module_names:
        return True
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return True
    if spec is None:
        return True
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    is_compiled = spec.origin is not None and not spec.origin.endswith(".py")
    return is_compiled or any(_is_library(Path(place)) for place in places)


@cache
def _origin(name: str) -> Path | None:
    """File of a module; None for what is no module, built in, or an extension."""
    if name.startswith(f"{OURS}."):  # to ask for a module would import the packages it is in
        public = agc_ml.HOMES.get(name.removeprefix(f"{OURS}."))  # as of agc_ml.blocks
        name = _moved.home(name) if public is None else f"{OURS}.{public}"
        place = Path(__file__).parents[2].joinpath(*name.split(".")[1:])
        files = (place.with_suffix(".py"), place / "__init__.py")
        return next((file for file in files if file.is_file()), None)
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
def is_of_library(path: str) -> bool:
    """Whether a file belongs to Python or an installed package, whose version stands for it."""
    return _is_library(Path(path))


def place_in_code(error: BaseException) -> str:
    """Place in the user's code of an error, ", at FILE, line N"; "" if it was in none."""
    for one in chain(error):
        for frame, line in reversed(list(traceback.walk_tb(one.__traceback__))):
            file = frame.f_code.co_filename
            if not file.startswith("<frozen") and not _is_ours(file) and not is_of_library(file):
                return f", at {file}, line {line}"
    return ""


def _is_ours(file: str) -> bool:
    return Path(file).is_relative_to(Path(__file__).parents[2])


def is_library(module: str) -> bool:
    """Whether a module, by its name, is no code of the user's: its version or source stands for it.

    Modules without a file, such as a notebook's, are the user's; agc_ml's own are not.
    """
    top = module.partition(".")[0]
    if top == MAIN:
        return False
    if top in {OURS, "coffea"} or top in sys.stdlib_module_names:
        return True
    if module in sys.modules:
        file = getattr(sys.modules[module], "__file__", None)
        places = getattr(sys.modules[module], "__path__", ()) if file is None else (file,)
        return any(_is_library(Path(place)) for place in places)
    return _is_of_library(top)  # of what a function may import one day


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Distributions by package: to read the lists of their files takes half a second."""
    return packages_distributions()


@cache
def version_of(top: str) -> str:
    """Version of the distribution that has a package, with its name where that is another."""
    try:
        return version(top)
    except PackageNotFoundError:
        distributions = _distributions().get(top, [])
    return ", ".join(f"{name} {version(name)}" for name in sorted(set(distributions)))
