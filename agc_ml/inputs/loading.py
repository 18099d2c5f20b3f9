"""Fileset formats in use, read from files; ours is also written.

- the input list of the Analysis Grand Challenge: process -> variation -> files with ``nevts``;
- coffea filesets: ``{dataset: [urls]}`` and ``{dataset: {"files": {url: tree}, "metadata": {}}}``;
- our own, JSON or YAML with ``schema: 1``;
- a ROOT file, a folder of them, or a glob, perhaps with a tree: ``a.root:Events``;
- a text file (``.txt``, ``.txt.gz``) that lists ROOT files and URLs, one a line;
- ``demo``: the generated events that are part of the package.

Portals, catalogues and servers are in `agc_ml.inputs.sources`.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml
from pydantic import ValidationError

from agc_ml import documents
from agc_ml.errors import FilesetError, UsageError
from agc_ml.files import write
from agc_ml.inputs.datasets import EVENTS, File, FilesetContent
from agc_ml.inputs.folders import is_root_file
from agc_ml.inputs.formats import agc, coffea, own
from agc_ml.inputs.formats.metadata import described, known_luminosity
from agc_ml.inputs.formats.schema import SCHEMA, first_problem
from agc_ml.inputs.paths import (
    ResolvedPath,
    expand,
    logical_name,
    resolve,
    split_tree,
)
from agc_ml.transports.base import local_path

FORMATS: Final = (".json", ".yaml", ".yml")
_LIST: Final = ".txt"
DEMO: Final = "demo"
"""Name of the embedded fileset; a file of that name is ``./demo``."""


def read(source: str | Path, *, dataset: str | None = None) -> FilesetContent:
    """Read a fileset; arguments and errors as of `agc_ml.Fileset.load`."""
    try:
        return _read(str(source), dataset, is_demo=source == DEMO)
    except (OSError, RuntimeError, RecursionError) as error:
        raise UsageError(f"{str(source)[:200]}: can't be looked up ({error})") from error


def demo() -> Path:
    """Return the path of the fileset of the embedded events."""
    return Path(str(importlib.resources.files("agc_ml.inputs"))) / "demo" / "fileset.json"


def is_described(path: Path) -> bool:
    """Return whether a file is JSON or YAML by its name, perhaps compressed."""
    return _ending(path) in FORMATS


def is_list(path: Path) -> bool:
    """Return whether a file is a list of files by its name, perhaps compressed."""
    return _ending(path) == _LIST


def _ending(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _read(source: str, dataset: str | None, *, is_demo: bool) -> FilesetContent:
    place = "the command line"
    with _usage_errors():
        path = demo() if is_demo else local_path(expand(source, place))
    # a document or a list of files
    if path is not None and is_described(path) and path.is_file():
        if dataset is not None:
            raise UsageError(
                f"--dataset names loose ROOT files; {source} names its datasets itself"
            )
        return read_document(path)
    if path is not None and is_list(path) and path.is_file():
        return _read_list(path, dataset)
    # ROOT files, named by a path, a URL, a folder or a pattern
    with _usage_errors():
        match = resolve(source, Path.cwd(), place)
    if match.problem or match.is_missing:
        raise UsageError(
            f"{source}: {match.problem or 'no such file or folder'}; a fileset is a JSON or YAML "
            "file, a ROOT file, a folder, a glob, or a .txt with ROOT files, one a line"
        )
    # absolute paths are the logical names here: the same from every folder
    files = [_file(logical_name(url), url, match) for _, url in match.locations]
    name = Path(urlsplit(split_tree(source)[0]).path).name
    stem = re.sub(r"(\.root(\.\d+)?|\.[^.]*)$", "", name, flags=re.IGNORECASE)
    notes = [match.note] if match.note else []
    return _loose_files(stem, files, notes, dataset, "the file's name")


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Report errors in text that was typed, not listed in a file, as wrong usage."""
    try:
        yield
    except FilesetError as error:
        raise UsageError(str(error)) from error


def read_document(path: Path) -> FilesetContent:
    """Read a JSON or YAML file in any of the formats.

    Raises
    ------
    FilesetError
        It can't be read, has none of the formats, or has a field that is unknown or wrong.
    """
    raw = read_mapping(path)
    try:
        if "schema" in raw:
            return own.read(path, raw)
        if agc.is_agc(raw):
            return agc.read(path, raw)
        if coffea.is_coffea(raw):
            return coffea.read(path, raw)
    except ValidationError as error:
        raise FilesetError(f"{path}: {first_problem(error)}") from error
    except FilesetError as error:
        raise FilesetError(f"{path}: {error}") from error
    raise FilesetError(
        f"{path}: not a fileset; known are our own (schema: 1), coffea's ({{dataset: [files]}}) "
        "and AGC's (process -> variation -> files)"
    )


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file with a mapping at its top level, without duplicate keys.

    Raises
    ------
    FilesetError
        It can't be read, is not JSON or YAML, or has a key twice.
    """
    try:
        raw = documents.read(path)
    except (OSError, ValueError) as error:
        raise FilesetError(f"{path}: can't be read as {_ending(path)[1:]} ({error})") from error
    if not isinstance(raw, dict) or not raw or not all(isinstance(key, str) for key in raw):
        raise FilesetError(f"{path}: not a fileset; it should be a mapping of names to datasets")
    return raw


def _read_list(path: Path, dataset: str | None) -> FilesetContent:
    """Read a text file that lists files, one a line; ``#`` begins a comment."""
    files, notes = [], []
    try:
        lines = documents.text(path).splitlines()
    except (OSError, ValueError) as error:
        raise FilesetError(f"{path}: can't be read as a list of files ({error})") from error
    for number, line in enumerate(lines, 1):
        text = re.sub(r"(^|\s+)#.*", "", line).strip()
        if not text:
            continue
        where = f"{path}: line {number}"
        match = resolve(text, path.parent, where)
        problem = match.problem
        names = [Path(url) for _, url in match.locations]
        if any(is_described(name) or is_list(name) for name in names):
            problem = "a list names ROOT files or URLs, not filesets"
        if match.is_missing and not is_root_file(split_tree(text)[0]):
            problem = "no such file; URLs or paths of ROOT files are needed, one a line"
        if problem:
            raise FilesetError(f"{where}: {text[:200]}: {problem}")
        files += [_file(lfn, url, match) for lfn, url in match.locations]
        notes += [match.note] if match.note else []
    if not files:
        raise FilesetError(f"{path}: no files are listed; name URLs or paths, one a line")
    stem = re.sub(r"\.txt(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    return _loose_files(stem, files, notes, dataset, "the list's name")


def _file(lfn: str, url: str, match: ResolvedPath) -> File:
    return File(lfn, (url,), match.tree or EVENTS)


def _loose_files(
    name: str, files: list[File], notes: list[str], dataset: str | None, named_by: str
) -> FilesetContent:
    """Return a fileset of ROOT files that no catalogue describes."""
    name = dataset or re.sub(r"\W+", "_", name).strip("_") or "files"
    given_by = "--dataset" if dataset else f"{named_by} (--dataset NAME sets it)"
    described_, guesses = described(name, tuple(files), {}, given_by=given_by)
    notes = [*guesses, *(f"{name}: {note}" for note in notes)]
    return FilesetContent((described_,), *known_luminosity([described_]), tuple(notes))


def check_target(path: Path) -> None:
    """Reject a name to which `save` can't write a fileset.

    Raises
    ------
    UsageError
        It has none of the endings of our format.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: a fileset is written to a file that ends in .json or .yaml")


def save(fileset: FilesetContent, path: Path) -> None:
    """Write a fileset in our own format, JSON or YAML by the ending of ``path``.

    Raises
    ------
    UsageError
        The ending is neither of them.
    StoreError
        The file can't be written.
    """
    check_target(path)
    model = own.to_model(fileset)
    content = model.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    content = {"schema": SCHEMA, **content}
    is_json = path.suffix.lower() == ".json"
    text = json.dumps(content, indent=1) if is_json else yaml.safe_dump(content, sort_keys=False)
    write(path, lambda temporary: temporary.write_text(text + "\n"))
