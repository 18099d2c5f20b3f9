"""Source files of modules: the ones a processor imports in turn, and the libraries among them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any, Final

import agc_ml
from agc_ml import _moved
from agc_ml.errors import chain
from agc_ml.execution.code.canonical import OURS

MAIN: Final = "__main__"
"""Module of a script or a notebook: its code travels with the processor."""
_STDIN: Final = "<stdin>"
"""File name that Python gives to code from standard input."""
_ROOT: Final = Path(__file__).parents[2]
_TYPE_CHECKING: Final = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
_BLOCKS: Final = ("body", "orelse", "handlers", "finalbody", "cases")


def top_of(module: str) -> str:
    """Name of the package at the top of a module's name."""
    return module.partition(".")[0]


def imported_sources(modules: set[str]) -> tuple[dict[str, Path], set[str]]:
    """Source files of modules and of all that they import in turn, and the libraries in use."""
    own = {OURS, *map(top_of, modules)}
    sources: dict[str, Path] = {}
    libraries: set[str] = set()
    files = ((name, getattr(sys.modules.get(name), "__file__", None)) for name in sorted(modules))
    waiting = [(name, Path(file)) for name, file in files if file not in {None, _STDIN}]
    while waiting:
        module, file = waiting.pop()
        if module in sources:
            continue
        sources[module] = file
        for name in _imports(module, file):
            top = top_of(name)
            if top not in own and _is_installed(top):
                libraries.add(top)
            elif (path := source_of(name)) is not None:
                waiting.append((name, path))
    return sources, libraries - sys.stdlib_module_names


def _imports(module: str, path: Path) -> tuple[str, ...]:
    """Names of modules that a file imports anywhere, and of the packages they are in."""
    try:
        return _imports_of(module, path.name, path.read_bytes())
    except (OSError, SyntaxError):  # a broken module that is imported in a try block
        return ()


@lru_cache(maxsize=1024)
def _imports_of(module: str, file: str, source: bytes) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_imported_names(module, file, ast.parse(source))))


def _imported_names(module: str, file: str, tree: ast.AST) -> Iterator[str]:
    package = module if file == "__init__.py" else module.rpartition(".")[0]
    for node in _statements(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level and package:
                base = importlib.util.resolve_name("." * node.level + base, package)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:n]) for n in range(1, len(parts) + 1) if parts[0])


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All statements of a module without those that only a type checker sees."""
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        is_name = isinstance(node, ast.If) and isinstance(node.test, ast.Name | ast.Attribute)
        is_for_checker = is_name and ast.unparse(node.test) in _TYPE_CHECKING
        for block in ("orelse",) if is_for_checker else _BLOCKS:
            waiting += getattr(node, block, ())


@cache
def source_of(name: str) -> Path | None:
    """Source file of a module; None if there is no such module, or it is built in or compiled."""
    if name.startswith(f"{OURS}."):  # to ask for a module would import the packages it is in
        public = agc_ml.HOMES.get(name.removeprefix(f"{OURS}."))  # as of agc_ml.blocks
        name = _moved.home(name) if public is None else f"{OURS}.{public}"
        place = _ROOT.joinpath(*name.split(".")[1:])
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
def _is_installed(top: str) -> bool:
    """Return whether a top package is Python's or installed; its modules would import it."""
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
    return is_compiled or any(map(is_of_library, places))


def forget_sources() -> None:
    """Look for modules anew: their files may have changed."""
    importlib.invalidate_caches()
    source_of.cache_clear()
    _is_installed.cache_clear()


@cache
def is_of_library(path: str) -> bool:
    """Return whether a file belongs to Python or an installed package, known by its version."""
    folders = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(Path(path).is_relative_to(folder) for folder in folders) or bool(
        re.search(r"/(site|dist)-packages/", Path(path).as_posix())
    )


def is_library(module: str) -> bool:
    """Return whether a module, by name, is not the user's: its version or source stands for it.

    Modules without a file, such as a notebook's, are the user's; agc_ml's own are not.
    """
    top = top_of(module)
    if top == MAIN:
        return False
    if top in {OURS, "coffea"} or top in sys.stdlib_module_names:
        return True
    if module in sys.modules:
        file = getattr(sys.modules[module], "__file__", None)
        places = getattr(sys.modules[module], "__path__", ()) if file is None else (file,)
        return any(map(is_of_library, places))
    return _is_installed(top)  # of modules that a function may import later


def place_in_code(error: BaseException) -> str:
    """Place of an error in the user's code, ", at FILE, line N"; "" if there is none."""
    for cause in chain(error):
        for frame, line in reversed(list(traceback.walk_tb(cause.__traceback__))):
            file = frame.f_code.co_filename
            is_ours = file.startswith("<frozen") or Path(file).is_relative_to(_ROOT)
            if not is_ours and not is_of_library(file):
                return f", at {file}, line {line}"
    return ""


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Distributions by package: reading the lists of their files takes half a second."""
    return packages_distributions()


@cache
def version_of(top: str) -> str:
    """Version of the distribution of a package, with its name if that is a different one."""
    try:
        return version(top)
    except PackageNotFoundError:
        distributions = _distributions().get(top, [])
    return ", ".join(f"{name} {version(name)}" for name in sorted(set(distributions)))
