"""Filesets from what people have.

- the input list of the Analysis Grand Challenge: process -> variation -> files with ``nevts``;
- coffea filesets: ``{dataset: [urls]}`` and ``{dataset: {"files": {url: tree}, "metadata": {}}}``;
- our own, JSON or YAML with ``schema: 1``;
- a ROOT file, a folder of them, or a glob, perhaps with a tree: ``a.root:Events``;
- a list of these: a file that ends in ``.txt``, also ``.txt.gz``, with one or a URL a line;
- ``demo``: the generated events that are part of the package.

What is found elsewhere (a portal, a catalogue of replicas, a server) is in `agc_ml.inputs`.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import yaml

from agc_ml import documents
from agc_ml.errors import FilesetError, UsageError
from agc_ml.files import write
from agc_ml.inputs.fileset import File, Fileset
from agc_ml.inputs.formats import SCHEMA, described, from_mapping, known_luminosity, to_model
from agc_ml.inputs.paths import expand, is_root_file, logical_name, meant, split_tree
from agc_ml.transports.base import local_path

FORMATS: Final = (".json", ".yaml", ".yml")
_LIST: Final = ".txt"
DEMO: Final = "demo"
"""The name of the embedded fileset; a file of that name is ``./demo``."""


def load(source: str | Path, *, dataset: str | None = None) -> Fileset:
    """Read a fileset; ``dataset`` names the one that ROOT files without a catalogue make.

    The string ``demo`` is the embedded one; as a path it is a folder of that name.

    Raises
    ------
    UsageError
        There is nothing of that name, or it can't be looked up.
    FilesetError
        It is no fileset, or has a field that is unknown or wrong.
    """
    try:
        return _load(str(source), dataset, is_demo=source == DEMO)
    except (OSError, RuntimeError, RecursionError) as error:
        raise UsageError(f"{str(source)[:200]}: can't be looked up ({error})") from error


def demo() -> Path:
    """The fileset of the embedded events."""
    return Path(str(importlib.resources.files("agc_ml.inputs"))) / "demo" / "fileset.json"


def is_described(path: Path) -> bool:
    """Return whether it is called like JSON or YAML, perhaps compressed."""
    return _ending(path) in FORMATS


def is_list(path: Path) -> bool:
    """Return whether it is called like a list of files, perhaps compressed."""
    return _ending(path) == _LIST


def _ending(path: Path) -> str:
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def _load(source: str, dataset: str | None, *, is_demo: bool) -> Fileset:
    place = "the command line"
    with _typed():
        path = demo() if is_demo else local_path(expand(source, place))
    if path is not None and is_described(path) and path.is_file():
        if dataset is not None:
            raise UsageError(
                f"--dataset names loose ROOT files; {source} names its datasets itself"
            )
        return _from_file(path)
    if path is not None and is_list(path) and path.is_file():
        return _from_list(path, dataset)
    with _typed():
        found = meant(source, Path.cwd(), place)
    if found.problem or found.is_missing:
        raise UsageError(
            f"{source}: {found.problem or 'no such file or folder'}; a fileset is a JSON or YAML "
            "file, a ROOT file, a folder, a glob, or a .txt with ROOT files, one a line"
        )
    # where files of the command line are is their name: it is the same from every folder
    files = [_file(logical_name(url), url, found.tree) for _, url in found.places]
    name = Path(urlsplit(split_tree(source)[0]).path).name
    stem = re.sub(r"(\.root(\.\d+)?|\.[^.]*)$", "", name, flags=re.IGNORECASE)
    notes = [found.note] if found.note else []
    return _loose(stem, files, notes, dataset, "the file's name")


@contextlib.contextmanager
def _typed() -> Iterator[None]:
    """Take what is wrong with a text that was typed, not listed in a file, for wrong usage."""
    try:
        yield
    except FilesetError as error:
        raise UsageError(str(error)) from error


def find(folder: Path) -> list[tuple[Path, Fileset]]:
    """Filesets among the JSON and YAML files of a folder.

    Raises
    ------
    UsageError
        There is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    found = []
    for path in sorted(folder.iterdir()):
        if is_described(path) and path.is_file():
            with contextlib.suppress(FilesetError):  # other JSON and YAML files are no news
                found.append((path, _from_file(path)))
    return found


class Facts(NamedTuple):
    """What opening a file tells of it; None: it does not tell."""

    uuid: str
    entries: int
    size: int
    adler32: str | None = None
    generated: int | None = None


def with_facts(fileset: Fileset, facts: Mapping[tuple[str, str], Facts]) -> Fileset:
    """The fileset with what opening its files found, by name of the dataset and lfn.

    Files without facts stay as they are, and so does what the facts do not tell.

    Raises
    ------
    FilesetError
        Two files turn out to be one (same UUID), so that events would count twice.
    """

    def known(dataset: str, file: File) -> File:
        found = facts.get((dataset, file.lfn))
        told = {} if found is None else found._asdict()
        return replace(file, **{key: value for key, value in told.items() if value is not None})

    datasets = tuple(
        replace(d, files=tuple(known(d.name, f) for f in d.files)) for d in fileset.datasets
    )
    return replace(fileset, datasets=datasets)


def check_target(path: Path) -> None:
    """Refuse a name that `save` would not write a fileset to.

    Raises
    ------
    UsageError
        It ends in none of what `load` knows as a fileset.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: a fileset is written to a file that ends in .json or .yaml")


def save(fileset: Fileset, path: Path) -> None:
    """Write a fileset in our own format, JSON or YAML by the ending of ``path``.

    Raises
    ------
    UsageError
        The ending is of neither.
    StoreError
        The file can't be written.
    """
    check_target(path)
    model = to_model(fileset)
    content = model.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    content = {"schema": SCHEMA, **content}
    is_json = path.suffix.lower() == ".json"
    text = json.dumps(content, indent=1) if is_json else yaml.safe_dump(content, sort_keys=False)
    write(path, lambda temporary: temporary.write_text(text + "\n"))


def _from_file(path: Path) -> Fileset:
    return from_mapping(path, read_mapping(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file that is a mapping at its top level, without double keys.

    Raises
    ------
    FilesetError
        It can't be read, is no JSON or YAML, or has a key twice.
    """
    try:
        raw = documents.read(path)
    except (OSError, ValueError) as error:
        kind = _ending(path)[1:]
        raise FilesetError(f"{path}: can't be read as {kind} ({error})") from error
    if not isinstance(raw, dict) or not raw or not all(isinstance(key, str) for key in raw):
        raise FilesetError(f"{path}: not a fileset; it should be a mapping of names to datasets")
    return raw


def _from_list(path: Path, dataset: str | None) -> Fileset:
    """Files that a text lists, one a line; what follows ``#`` is a comment."""
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
        found = meant(text, path.parent, where)
        problem = found.problem
        names = [Path(url) for _, url in found.places]
        if any(is_described(name) or is_list(name) for name in names):
            problem = "a list names ROOT files or URLs, no filesets"
        if found.is_missing and not is_root_file(split_tree(text)[0]):
            problem = "no such file; URLs or paths of ROOT files are needed, one a line"
        if problem:
            raise FilesetError(f"{where}: {text[:200]}: {problem}")
        files += [_file(place.lfn, place.url, found.tree) for place in found.places]
        notes += [found.note] if found.note else []
    if not files:
        raise FilesetError(f"{path}: no files are listed; name URLs or paths, one a line")
    stem = re.sub(r"\.txt(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    return _loose(stem, files, notes, dataset, "the list's name")


def _file(lfn: str, url: str, tree: str | None) -> File:
    file = File(lfn=lfn, replicas=(url,))
    return file if tree is None else replace(file, tree=tree)


def _loose(
    name: str, files: list[File], notes: list[str], dataset: str | None, named_by: str
) -> Fileset:
    """A fileset of ROOT files that no catalogue names."""
    name = dataset or re.sub(r"\W+", "_", name).strip("_") or "files"
    given_by = "--dataset" if dataset else f"{named_by} (--dataset NAME sets it)"
    made, guessed = described(name, tuple(files), {}, given_by=given_by)
    notes = [f"{name}: {note}" for note in notes]
    return Fileset((made,), *known_luminosity([made]), (*guessed, *notes))
