"""Files with an identity, datasets, and the checks that no event counts twice."""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from functools import lru_cache
from numbers import Number
from typing import Any, Final, NamedTuple

from agc_ml.errors import FilesetError
from agc_ml.inputs.variations import NOMINAL

EVENTS: Final = "Events"
"""Name of the tree of events, unless another one is named."""
_MOST_DEPTH: Final = 50
_MOST_VALUES: Final = 1_000_000
_NUMBER: Final = re.compile(r'"[-+]?(\d+(?:\.\d*)?[eE]\+?\d+)"')
_CYCLE: Final = re.compile(r";\d+(?=/|$)")


def check_text(label: str, text: str) -> None:
    """Reject text that can't be a name or a path; errors call it ``label``.

    Raises
    ------
    FilesetError
        It is empty, holds NUL, or can't be written as UTF-8.
    """
    if not text or "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise FilesetError(f"{label} is empty, or has NUL or characters outside UTF-8; rename it")


@lru_cache
def plain_tree(name: str) -> str:
    """Return the name of a tree without cycles and surplus slashes.

    All cycles count as one tree: each of them holds the events of the one before.
    """
    return re.sub("/+", "/", _CYCLE.sub("", name)).strip("/")


@dataclass(frozen=True, slots=True)
class File:
    """A ROOT file.

    Identity is ``lfn`` (logical file name) and, once known, the file's own ``uuid``; ``replicas``
    are the places to read it from, and do not change results. ``entries`` and ``size`` (bytes) are
    as stated by the catalogue, else None. ``generated`` is the number of generated events if a
    filter kept only the entries (NanoAOD's ``Runs/genEventCount``); None: the entries are all.
    ``dropped`` is the tree of entries that a preselection of a service took out of ``tree``.
    """

    lfn: str
    replicas: tuple[str, ...]
    tree: str = EVENTS
    uuid: str | None = None
    entries: int | None = None
    size: int | None = None
    adler32: str | None = None
    generated: int | None = None
    dropped: str | None = None

    def __post_init__(self) -> None:
        if self.uuid is not None:
            object.__setattr__(self, "uuid", _canonical_uuid(self.uuid))

    @property
    def url(self) -> str:
        """The first replica."""
        return self.replicas[0]


def _canonical_uuid(text: str) -> str:
    """Return a UUID in lower case with dashes, as ROOT files have it; other text unchanged."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return text


@dataclass(frozen=True, slots=True)
class ExpectedFile:
    """State of a file at its inspection, compared with each replica that is opened later.

    ``url`` is the inspected replica, ``stamp`` its time of modification or tag.
    ``is_remembered``: an earlier run inspected it, so that a difference blames this record first,
    not the replica.
    """

    url: str
    stamp: str
    size: int
    uuid: str
    entries: int
    is_remembered: bool = False


class FileFacts(NamedTuple):
    """Properties of a file that was opened; None: not known."""

    uuid: str
    entries: int
    size: int
    adler32: str | None = None
    generated: int | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Files of one process and variation.

    ``xsec`` is the cross-section in pb to which events are scaled (None: unknown, or data),
    ``xsec_source`` its reference. ``process_xsec`` is the cross-section of the whole process if
    ``xsec`` is that over a factor. ``metadata`` reaches the processor unchanged. Two files with one
    ``lfn``, or with one stated ``uuid`` and tree, are rejected: their events would count twice.
    """

    name: str
    process: str
    files: tuple[File, ...]
    variation: str = NOMINAL
    xsec: float | None = None
    xsec_source: str | None = None
    is_data: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    process_xsec: float | None = None

    def __post_init__(self) -> None:
        where = f"dataset {self.name}"
        # names and paths that files and terminals can hold
        names = {"name": self.name, "process": self.process, "variation": self.variation}
        for label, text in names.items():
            check_text(f"dataset {self.name!r}: its {label}", text)
        if not self.files:
            raise FilesetError(f"{where}: no files; list at least one")
        if self.xsec_source:
            check_text(f"{where}: the source of its xsec", self.xsec_source)
        _check_metadata(where, self.metadata)
        for label, value in (("xsec", self.xsec), ("process_xsec", self.process_xsec)):
            _check_positive(f"{where}: {label}", value, "pb")
        # files: valid names, and not fewer generated events than entries
        for file in self.files:
            for text in (file.lfn, file.tree, *file.replicas):
                check_text(f"{where}: {text!r}", text)
            if file.generated is not None and file.generated < (file.entries or 0):
                raise FilesetError(
                    f"{where}: {file.lfn} has {file.entries} entries, but states only "
                    f"{file.generated} generated events; state all, or leave 'generated' out"
                )
        _reject_duplicates(where, self.files)

    @property
    def n_events(self) -> int | None:
        """Sum of the entries that the catalogue states; None if any file's are unknown."""
        return _sum_if_known([file.entries for file in self.files])

    @property
    def n_generated(self) -> int | None:
        """Sum of the generated events, with those that a filter dropped; None as above."""
        return _sum_if_known(
            [f.entries if f.generated is None else f.generated for f in self.files]
        )


def _sum_if_known(numbers: list[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _check_positive(label: str, value: float | None, unit: str) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise FilesetError(f"{label} is {value}, it must be a positive number in {unit}")


@dataclass(frozen=True, slots=True)
class FilesetContent:
    """Content of a fileset: the fields of `agc_ml.Fileset`, checked, as formats read them.

    ``luminosity`` is the integrated luminosity in 1/pb, ``luminosity_source`` its reference.
    ``notes`` are remarks for readers on how the fileset was made, such as a guess by the loader.
    ``label`` says on figures whose events these are, None if unknown.

    A file may be in several datasets if they differ in process or variation. Datasets of the same
    process and variation add up to one histogram, so a file in two of them is rejected: its events
    would count twice.
    """

    datasets: tuple[Dataset, ...]
    luminosity: float | None = None
    luminosity_source: str | None = None
    notes: tuple[str, ...] = ()
    label: str | None = None

    def __post_init__(self) -> None:
        if not self.datasets:
            raise FilesetError("the fileset has no datasets")
        for name, times in Counter(dataset.name for dataset in self.datasets).items():
            if times > 1:
                raise FilesetError(f"dataset {name} is listed twice; merge the two or rename one")
        _reject_shared_files(self.datasets)
        for text in (*self.notes, self.label, self.luminosity_source):
            if text:
                check_text(f"{text[:80]!r}", text)
        _check_positive("luminosity", self.luminosity, "1/pb")


def as_text(value: Any) -> str:
    """Return text, for JSON, of a date or a number such as numpy's.

    Raises
    ------
    TypeError
        It is something else, whose text may differ between processes.
    """
    if isinstance(value, date | time | Number):
        return repr(value)
    raise TypeError(
        f"{type(value).__name__} is not a number, text, date, list or mapping, and its text may "
        "differ the next time"
    )


def _check_metadata(where: str, metadata: Mapping[str, Any]) -> None:
    """Reject metadata that can't be written and compared, or holds infinite numbers."""
    for key, value in metadata.items():
        label = f"{where}: metadata -> {key}"
        try:
            _reject_bombs(value)
            text = json.dumps(value, sort_keys=True, allow_nan=False, default=as_text)
        except (TypeError, ValueError, RecursionError) as error:
            raise FilesetError(f"{label}: can't be stored ({error}); remove it") from error
        for number in _NUMBER.findall(text):  # YAML reads 1e999 as text
            if float(number) == float("inf"):
                raise FilesetError(f"{label}: {number} is not a finite number")
    nevts = metadata.get("nevts", 0)
    if not isinstance(nevts, int | float) or isinstance(nevts, bool) or nevts < 0:
        raise FilesetError(f"{where}: metadata -> nevts: {nevts!r} is not a number of events")


def _reject_bombs(value: Any) -> None:
    """Reject a value that contains itself, or a few lines of YAML that expand to billions."""
    stack, n_values = [(value, 1)], 0
    while stack:
        inner, depth = stack.pop()
        n_values += 1
        if depth > _MOST_DEPTH or n_values > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_DEPTH} levels, or {_MOST_VALUES:,} values")
        if isinstance(inner, Mapping):
            inner = list(inner.values())
        if isinstance(inner, list | tuple):
            stack += [(item, depth + 1) for item in inner]


def _reject_duplicates(where: str, files: Iterable[File]) -> None:
    """Reject a file that a dataset lists twice: by name, by path, or by UUID."""
    by_lfn: dict[str, File] = {}
    by_identity: dict[tuple[str, str], File] = {}
    for file in files:
        tree = plain_tree(file.tree)
        if (listed := by_lfn.get(file.lfn)) is not None:
            problem = (
                "twice, its events would count twice; remove one, or make them replicas of one file"
                if plain_tree(listed.tree) == tree
                else f"with the trees {listed.tree} and {file.tree}; make a dataset of each"
            )
            raise FilesetError(f"{where}: {file.lfn} is listed {problem}")
        by_lfn[file.lfn] = file
        for identity in (*_local_paths(file), *([f"UUID {file.uuid}"] if file.uuid else [])):
            twin = by_identity.setdefault((identity, tree), file)
            if twin is not file:
                raise FilesetError(
                    f"{where}: {twin.lfn} and {file.lfn} are the same file ({identity}), its "
                    "events would count twice; remove one"
                )


def _reject_shared_files(datasets: Iterable[Dataset]) -> None:
    """Reject a file in two datasets that add up to one histogram."""
    owners: dict[tuple[str, ...], tuple[Dataset, File]] = {}
    for dataset in datasets:
        for file in dataset.files:
            keys = [("lfn", file.lfn), *(("path", path) for path in _local_paths(file))]
            keys += [] if file.uuid is None else [("uuid", file.uuid)]
            for key in keys:
                place = (*key, plain_tree(file.tree), dataset.process, dataset.variation)
                owner, twin = owners.setdefault(place, (dataset, file))
                if owner is not dataset:
                    raise FilesetError(
                        f"{twin.lfn} in dataset {owner.name} and {file.lfn} in dataset "
                        f"{dataset.name} are the same file ({' '.join(key)}), and both datasets "
                        f"are {dataset.process}, {dataset.variation}: its events would count "
                        "twice; remove one"
                    )


def _local_paths(file: File) -> set[str]:
    """Return the replicas on local disks; files elsewhere are identified by their lfn."""
    return {replica for replica in file.replicas if "://" not in replica}
