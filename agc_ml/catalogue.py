"""Filesets from what people have.

- the input list of the Analysis Grand Challenge: process -> variation -> files with ``nevts``;
- coffea filesets: ``{dataset: [urls]}`` and ``{dataset: {"files": {url: tree}, "metadata": {}}}``;
- our own, JSON or YAML with ``schema: 1``;
- a ROOT file, a folder of them, or a glob;
- ``demo``: the generated events that are part of the package.

What is found elsewhere (a portal, a catalogue of replicas, a server) is in `agc_ml.sources`.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.resources
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import yaml

from agc_ml.datasets import File, Fileset
from agc_ml.errors import FilesetError, UsageError
from agc_ml.formats import (
    SCHEMA,
    described,
    expand,
    from_mapping,
    is_url,
    known_luminosity,
    logical_name,
    to_model,
)
from agc_ml.results import write

FORMATS: Final = (".json", ".yaml", ".yml")
DEMO: Final = "demo"
"""The name of the embedded fileset; a file of that name is ``./demo``."""


def load(source: str | Path, *, dataset: str | None = None) -> Fileset:
    """Read a fileset; ``dataset`` names the one that ROOT files without a catalogue make.

    The string ``demo`` is the embedded one; as a path it is a folder of that name.

    Raises
    ------
    UsageError
        There is nothing of that name.
    FilesetError
        It is no fileset, or has a field that is unknown or wrong.
    """
    try:
        return _load(str(source), dataset, is_demo=source == DEMO)
    except (OSError, RuntimeError, RecursionError) as error:
        raise UsageError(f"{str(source)[:200]}: can't be looked up ({error})") from error


def demo() -> Path:
    """The fileset of the embedded events."""
    return Path(str(importlib.resources.files("agc_ml"))) / "demo" / "fileset.json"


def _load(source: str, dataset: str | None, *, is_demo: bool) -> Fileset:
    path = demo() if is_demo else Path(expand(source, "the command line"))
    if path.suffix.lower() in FORMATS and path.is_file():
        if dataset is not None:
            raise UsageError(
                f"--dataset names loose ROOT files; {source} names its datasets itself"
            )
        return _from_file(path)
    if is_url(source):
        found = [source]
    elif path.is_file():  # also with brackets in its name, which a glob would take for its own
        found = [str(path)]
    elif path.is_dir():
        # not the hidden ones: they are not whole yet
        found = sorted(str(p) for p in path.glob("**/*.root") if not p.name.startswith("."))
    else:
        found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - takes absolute globs
    if not found:
        what = "no *.root files in that folder" if path.is_dir() else "no such file or folder"
        raise UsageError(
            f"{source}: {what}; a fileset is a JSON or YAML file, a ROOT file, a folder or a glob"
        )
    return _from_root_files(source, found, dataset)


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
        if path.suffix.lower() in FORMATS and path.is_file():
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
        text = path.read_text()
        if path.suffix.lower() == ".json":
            raw = json.loads(text, object_pairs_hook=_unique)
        else:
            raw = yaml.load(text, _UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise FilesetError(f"{path}: can't be read as {path.suffix[1:]} ({reason})") from error
    if not isinstance(raw, dict) or not raw or not all(isinstance(key, str) for key in raw):
        raise FilesetError(f"{path}: not a fileset; it should be a mapping of names to datasets")
    return raw


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_doubles([key for key, _ in pairs])
    return dict(pairs)


def _refuse_doubles(keys: Iterable[Any]) -> None:
    for key, times in Counter(keys).items():
        if times > 1:
            raise ValueError(f"{key!r} is there twice")


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML without double keys, of which the plain loader would silently drop the first."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        _refuse_doubles(self.construct_object(key, deep=True) for key, _ in node.value)
        return super().construct_mapping(node, deep=deep)


def _from_root_files(source: str, urls: list[str], dataset: str | None) -> Fileset:
    name = dataset or re.sub(r"\W+", "_", Path(urlsplit(source).path).stem).strip("_") or "files"
    files = tuple(
        File(
            lfn=logical_name(url) if is_url(url) else str(Path(url).absolute()),
            replicas=(url if is_url(url) else str(Path(url).absolute()),),
        )
        for url in urls
    )
    given_by = "--dataset" if dataset else "the file's name (--dataset NAME sets it)"
    made, notes = described(name, files, {}, given_by=given_by)
    return Fileset((made,), *known_luminosity([made]), tuple(notes))
