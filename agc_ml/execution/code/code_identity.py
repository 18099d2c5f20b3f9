"""Identity of a processor's code: digests of all that decides its results."""

from __future__ import annotations

import ast
import json
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agc_ml.execution.code.canonical import digest
from agc_ml.execution.code.function_processor import FunctionProcessor, state_of
from agc_ml.execution.code.module_versions import refuse_edited
from agc_ml.execution.code.referred_values import ReferredValues
from agc_ml.execution.code.source_files import (
    MAIN,
    imported_sources,
    is_library,
    top_of,
    version_of,
)

POSTPROCESS: Final = "postprocess"
STATE: Final = "self."
"""Begin of the names of values that are attributes of the processor."""
_EMPTY: Final[tuple[Any, ...]] = (None, [], {}, ["set"], ["OrderedDict"])
"""Canonical forms of nothing, and of containers with nothing in them."""
_MOST_SHOWN: Final = 300


@dataclass(frozen=True)
class CodeIdentity:
    """Digests of a processor's code and of its modules.

    Attributes
    ----------
    digest
        Of all of the code.
    chunks
        Of all but ``postprocess``, which decides nothing of a chunk.
    modules
        The sha256 of each module's source.
    values
        Values that the code refers to, among them the processor's attributes, in canonical form.
    plain
        The numbers and text among these, as JSON.
    notes
        Lines about values that can't be compared.
    """

    digest: str
    chunks: str
    modules: dict[str, str]
    values: dict[str, Any]
    plain: bytes = b"{}"
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> dict[str, Any]:
        """Attributes of the processor, or the values that a function was given, canonical."""
        own = {name: value for name, value in self.values.items() if name.startswith(STATE)}
        return {name.removeprefix(STATE): value for name, value in own.items()}

    @property
    def key(self) -> tuple[str, str, str]:
        """Digests and parameters, by which equal processors are equal."""
        return self.digest, self.chunks, json.dumps(self.parameters)


def identify_code(processor: Any, schema: type | None = None) -> CodeIdentity:
    """Identify the code of a processor: its class, all modules it imports, versions of libraries.

    Modules of its own package, of agc_ml and of the user count by their source; libraries by their
    version; a class that no file holds (typed at a prompt, made by a function) by its compiled
    code. So do the values that the code refers to, as they are now, and the ``schema`` of events.

    Raises
    ------
    ProcessorError
        The file of a module was edited after the module was imported.
    """
    cls = type(processor)
    referred = _refer(processor, schema)
    values_of_chunks = _without_state(referred.values)
    _add_postprocess(referred, cls)
    # modules by their source, and without postprocess those of the processor's classes
    paths, libraries = imported_sources({cls.__module__, *referred.modules})
    sources = {name: path.read_bytes() for name, path in sorted(paths.items())}
    modules = {name: digest(source) for name, source in sources.items()}
    for name, sha256 in modules.items():
        refuse_edited(name, sha256, paths[name])
    classes = frozenset(base.__qualname__ for base in cls.__mro__)
    homes = modules.keys() & {base.__module__ for base in cls.__mro__}
    stripped = {name: digest_without_postprocess(sources[name], classes) for name in homes}
    content = {
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "schema": schema and f"{schema.__module__}.{schema.__qualname__}",
        "libraries": {name: version_of(name) for name in sorted(libraries)},
    }
    values = _without_state(referred.values)
    return CodeIdentity(
        digest=_digest({**content, "values": values, "modules": modules}),
        chunks=_digest({**content, "values": values_of_chunks, "modules": modules | stripped}),
        modules=modules,
        values=referred.values,
        plain=_plain(referred),
        notes=tuple(
            f"{name} is a {kind} that can't be compared: --resume does not notice when it changes"
            for name, kind in referred.opaque.items()
        ),
    )


def has_changed(identity: CodeIdentity, processor: Any, schema: type | None = None) -> bool:
    """Return whether a processor refers to other values now than when it was identified."""
    referred = _refer(processor, schema)
    _add_postprocess(referred, type(processor))
    return json.dumps(referred.values) != json.dumps(identity.values)


def _add_postprocess(referred: ReferredValues, cls: type) -> None:
    for base in cls.__mro__:  # super() may call any of them
        if POSTPROCESS in vars(base):
            name = f"{base.__module__}.{base.__qualname__}.{POSTPROCESS}"
            referred.add(name, vars(base)[POSTPROCESS])


def _refer(processor: Any, schema: type | None = None) -> ReferredValues:
    """Follow the values that a processor refers to, without those of ``postprocess``."""
    cls = type(processor)
    package = top_of(cls.__module__)
    referred = ReferredValues(
        lambda name: top_of(name) != package and is_library(name), processor=processor
    )
    referred.add(cls.__qualname__, cls, without=frozenset({POSTPROCESS}))
    if isinstance(processor, FunctionProcessor):
        referred.add("function", processor.function)
    for name, value in state_of(processor).items():
        referred.add(f"{STATE}{name}", value)
    if schema is not None:
        referred.add(schema.__qualname__, schema)
    return referred


def _plain(referred: ReferredValues) -> bytes:
    """Numbers and text that code refers to, also in the user's objects, and the host, as JSON."""
    values = {name: value for name, value in referred.values.items() if name in referred.plain}
    kept = _without_state({**values, **referred.attributes})
    return json.dumps({"host": socket.gethostname(), "values": kept}).encode()


def compare_values(
    processor: Any, stated: bytes, *, is_moved: bool = False
) -> tuple[str | None, tuple[str, ...]]:
    """Compare numbers and text that a processor refers to here with those ``stated``.

    Paths may differ between machines, and where the code ``is_moved``.

    Returns
    -------
    A line that names the first difference, None if there is none; and lines about values that are
    taken for caches, which were filled where the run was started.
    """
    referred = _refer(processor)
    here, there = json.loads(_plain(referred)), json.loads(stated)
    with_paths = here["host"] == there.get("host") and not is_moved
    caches = []
    for name, value in there.get("values", {}).items():
        if name not in here["values"]:
            continue
        now = here["values"][name]
        mine, stated_form = (x if with_paths else _without_paths(x) for x in (now, value))
        if json.dumps(mine) == json.dumps(stated_form):
            continue
        # a container that is empty here may be one that the code fills itself
        line = f"{name} is {now!r} on a worker, and {value!r} where the run was started"
        is_filled = re.findall(r"\w+", name)[-1] in referred.filled or name in referred.attributes
        if now not in _EMPTY or not is_filled:
            return line, ()
        if stated_form not in _EMPTY:
            caches.append(f"{line[:_MOST_SHOWN]}: taken for a cache that the code fills itself")
    return None, tuple(caches)


def _without_paths(value: Any) -> Any:
    """Canonical form of a value, with None in place of text that may be a path."""
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return None if isinstance(value, str) and "/" in value else value


def code_in_use(processor: Any) -> Iterator[tuple[str, str]]:
    """Modules of the user's code that a processor may run, and qualified names in a script."""
    referred = _refer(processor)
    _add_postprocess(referred, type(processor))
    yield from ((module, "") for module in referred.modules - {MAIN})
    for label in referred.labels():
        module, _, name = label.partition(".")
        if module == MAIN:
            yield MAIN, name


def _without_state(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that are not parameters: those count by themselves."""
    return {name: value for name, value in values.items() if not name.startswith(STATE)}


def _digest(content: Mapping[str, Any]) -> str:
    """Digest of JSON, in which the order of dictionaries counts: it may decide a result."""
    return digest(json.dumps(content).encode())


def digest_without_postprocess(source: bytes, classes: Iterable[str] | None = None) -> str:
    """Digest of a module's source without the ``postprocess`` of classes.

    ``classes`` are qualified names, None for all. Where something else in the module mentions
    ``postprocess``, it may decide the output of a chunk, and counts.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return digest(source)
    _remove_postprocess(tree, classes, "")
    rest = ast.dump(tree)
    return digest(source if f"'{POSTPROCESS}'" in rest else rest.encode())


def _remove_postprocess(node: Any, classes: Iterable[str] | None, prefix: str) -> None:
    for inner in getattr(node, "body", []):
        if isinstance(inner, ast.ClassDef):
            name = f"{prefix}{inner.name}"
            if classes is None or name in classes:
                inner.body = [
                    statement
                    for statement in inner.body
                    if not (
                        isinstance(statement, ast.FunctionDef) and statement.name == POSTPROCESS
                    )
                ]
            _remove_postprocess(inner, classes, f"{name}.")
