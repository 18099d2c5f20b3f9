"""What is analysed: files with an identity, datasets, filesets."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, time
from fnmatch import fnmatchcase
from functools import lru_cache
from numbers import Number
from pathlib import Path
from typing import Any, Final, NamedTuple

from agc_ml.errors import FilesetError, UsageError
from agc_ml.inputs.variations import NOMINAL

EVENT_ID: Final = ("run", "luminosityBlock", "event")
"""Branches that tell an event from all others."""


_MOST_DEPTH: Final = 50
_MOST_VALUES: Final = 1_000_000
_NUMBER: Final = re.compile(r'"[-+]?(\d+(?:\.\d*)?[eE]\+?\d+)"')
_CYCLE: Final = re.compile(r";\d+(?=/|$)")


NANOAOD: Final = "NanoAODSchema"
OF_NANOAOD: Final = (NANOAOD, "PFNanoAODSchema", "ScoutingNanoAODSchema")
"""Schemas whose files have an event's identity, and counters of collections."""


class Wanted(NamedTuple):
    """What is wanted of a tree: ``columns`` that have to be there, () all that are.

    Of ``optional`` ones those that are there; ``flat`` or as records, of coffea's ``schema``.
    """

    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    flat: bool = False
    schema: str = NANOAOD

    @property
    def is_of_nanoaod(self) -> bool:
        """Whether collections have counters, and events an identity."""
        return self.schema in OF_NANOAOD

    @property
    def identity(self) -> tuple[str, ...]:
        """Branches of an event's identity, where the schema asks for them."""
        return EVENT_ID if self.is_of_nanoaod and not self.flat else ()

    def with_counters(self) -> list[str]:
        """The columns, with the counters of their collections where the schema has them."""
        return with_counters(self.columns) if self.is_of_nanoaod else list(self.columns)

    def names(self) -> list[str]:
        """Branches that are set up: the columns, and what the schema needs beside them."""
        needed = self.identity if self.columns else ()
        return list(dict.fromkeys([*needed, *self.with_counters()]))

    def of_file(self, lacking: tuple[str, ...]) -> Wanted:
        """Columns of a file that lacks some of the optional ones: the others are needed, too."""
        there = tuple(name for name in self.optional if name not in lacking)
        return self._replace(columns=(*self.columns, *there), optional=())


def with_counters(columns: tuple[str, ...]) -> list[str]:
    """Columns and the counters of their collections: ``Jet_pt`` needs ``nJet``."""
    counters = {f"n{name.partition('_')[0]}" for name in columns if "_" in name}
    return [*columns, *sorted(counters)]


def check_text(what: str, text: str) -> None:
    """Refuse what can be no name and no path; ``what`` it is, says the error.

    Raises
    ------
    FilesetError
        It is empty, holds NUL, or can't be written as UTF-8.
    """
    if not text or "\0" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
        raise FilesetError(f"{what} is empty, or has signs that are not UTF-8 or NUL; rename it")


@lru_cache
def plain_tree(name: str) -> str:
    """Name of a tree without what only spells it: slashes around it, and cycles.

    The cycles of a tree are what it was when it was written, so that one holds the events of
    another: they count as one tree.
    """
    return re.sub("/+", "/", _CYCLE.sub("", name)).strip("/")


@dataclass(frozen=True, slots=True)
class File:
    """A ROOT file.

    Identity is ``lfn`` (logical file name) and, once known, the file's own ``uuid``; ``replicas``
    are the places where it can be read, and change nothing. ``entries`` and ``size`` (bytes) are
    what the catalogue states, None where it does not. ``generated`` is the number of events that
    were generated for the file, of which its entries are the ones that a filter kept (NanoAOD's
    ``Runs/genEventCount``); None: its entries are all. ``dropped`` is the tree of those entries
    that a preselection took out of ``tree``, where a service did that: together they are all.
    """

    lfn: str
    replicas: tuple[str, ...]
    tree: str = "Events"
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
    """A UUID as files' own are written: in lower case, with dashes; what is none stays as it is."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return text


@dataclass(frozen=True, slots=True)
class Known:
    """A file as it was when it was looked into, so it has to be when it is read.

    ``url`` is the replica that was opened, ``stamp`` changes when that one does. ``is_remembered``:
    an earlier run looked into it, so that a difference makes this knowledge doubtful, and not the
    replica.
    """

    url: str
    stamp: str
    size: int
    uuid: str
    entries: int
    is_remembered: bool = False


@dataclass(frozen=True, slots=True)
class Dataset:
    """Files of one process and variation.

    ``xsec`` is the cross-section in pb that events are scaled to (None: unknown, or data);
    ``xsec_source`` where the number comes from, and ``process_xsec`` the one of the process itself
    where ``xsec`` is that over a factor. ``metadata`` is the user's own and reaches the processor
    as it is. Two files with one ``lfn``, or with one stated ``uuid`` and tree, are refused: their
    events would count twice. A tree is the same however it is spelled (`plain_tree`).
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
        names = {"name": self.name, "process": self.process, "variation": self.variation}
        for what, text in names.items():
            check_text(f"dataset {self.name!r}: its {what}", text)
        if not self.files:
            raise FilesetError(f"dataset {self.name}: no files; list at least one")
        if self.xsec_source:
            check_text(f"dataset {self.name}: the source of its xsec", self.xsec_source)
        _refuse_metadata(self)
        for what, value in (("xsec", self.xsec), ("process_xsec", self.process_xsec)):
            if value is not None and not 0 < value < float("inf"):
                raise FilesetError(
                    f"dataset {self.name}: {what} is {value}, it must be a positive number in pb"
                )
        for file in self.files:
            for text in (file.lfn, file.tree, *file.replicas):
                check_text(f"dataset {self.name}: {text!r}", text)
            if file.generated is not None and file.generated < (file.entries or 0):
                raise FilesetError(
                    f"dataset {self.name}: {file.lfn} has {file.entries} entries, but states only "
                    f"{file.generated} generated events; state all, or leave 'generated' out"
                )
        _refuse_doubles(self)

    @property
    def n_events(self) -> int | None:
        """Sum of the entries that the catalogue states; None if any file's are not known."""
        entries = [file.entries for file in self.files]
        return None if None in entries else sum(n for n in entries if n is not None)

    @property
    def n_generated(self) -> int | None:
        """Sum of the events generated, with those that a filter dropped; None as above."""
        numbers = [f.entries if f.generated is None else f.generated for f in self.files]
        return None if None in numbers else sum(n for n in numbers if n is not None)


@dataclass(frozen=True, slots=True)
class Fileset:
    """Datasets that are analysed together, and the integrated luminosity (1/pb) they stand for.

    ``luminosity_source`` is where the number comes from; ``notes`` are what a reader should know of
    how the fileset was made, such as a guess by the loader. ``label`` says on figures whose events
    they are, None where that is not known.

    A file may be in several datasets if they differ in process or variation: their histograms are
    apart, and one sample may stand in for another. Datasets of the same process and variation add
    up to one histogram, so a file that is in two of them counts twice and is refused, whatever
    their metadata say: a processor that takes part of a file for each can tell the parts apart in
    one dataset.
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
                raise FilesetError(f"dataset {name} is there twice; merge the two or rename one")
        _refuse_shared(self.datasets)
        for text in (*self.notes, self.label, self.luminosity_source):
            if text:
                check_text(f"{text[:80]!r}", text)
        if self.luminosity is not None and not 0 < self.luminosity < float("inf"):
            raise FilesetError(
                f"luminosity is {self.luminosity}, it must be a positive number in 1/pb"
            )

    @property
    def digest(self) -> str:
        """Sha256 of all that can change a result; where files are read from can not."""
        content = [
            self.luminosity,
            [
                [
                    *(d.name, d.process, d.variation, d.xsec, d.is_data, dict(d.metadata)),
                    [_identity(f) for f in d.files],
                ]
                for d in self.datasets
            ],
        ]
        text = json.dumps(content, sort_keys=True, default=as_text)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def n_files(self) -> int:
        """Number of files of all datasets."""
        return sum(len(dataset.files) for dataset in self.datasets)

    def limit(self, files: int) -> Fileset:
        """Keep the first ``files`` files of each dataset.

        A stated ``nevts`` of all files is left out where files are.

        Raises
        ------
        UsageError
            ``files`` is less than one.
        """
        if files < 1:
            raise UsageError(f"at least one file a dataset is needed, not {files}")
        limited = tuple(_limited(dataset, files) for dataset in self.datasets)
        left_out = (
            f"{before.name}: metadata -> nevts ({before.metadata['nevts']:,}) counts all "
            f"{len(before.files)} files and is left out: {files} used"
            for before, after in zip(self.datasets, limited, strict=True)
            if "nevts" in before.metadata and "nevts" not in after.metadata
        )
        return replace(self, datasets=limited, notes=(*self.notes, *left_out))

    def select(self, patterns: Iterable[str]) -> Fileset:
        """Keep the datasets whose name matches one of the shell patterns.

        Raises
        ------
        UsageError
            A pattern matches none.
        """
        wanted = list(patterns)
        for pattern in wanted:
            if not any(fnmatchcase(dataset.name, pattern) for dataset in self.datasets):
                names = ", ".join(dataset.name for dataset in self.datasets)
                raise UsageError(f"no dataset matches {pattern!r}; there are: {names}")
        chosen = (d for d in self.datasets if any(fnmatchcase(d.name, p) for p in wanted))
        return replace(self, datasets=tuple(chosen))

    def to_coffea(self) -> dict[str, dict[str, Any]]:
        """The same as a coffea fileset: ``{dataset: {"files": {url: tree}, "metadata": {}}}``."""
        return {
            dataset.name: {
                "files": {file.url: file.tree for file in dataset.files},
                "metadata": self.metadata(dataset),
            }
            for dataset in self.datasets
        }

    def metadata(self, dataset: Dataset) -> dict[str, Any]:
        """What a processor finds in ``events.metadata``, beside file and range.

        ``nevts`` (the name that AGC's processors use for the number to normalise to) is there when
        the catalogue states it; it counts events that a filter dropped, too. The sum over files
        goes before one number for the dataset in its metadata.
        """
        known = {
            "dataset": dataset.name,
            "process": dataset.process,
            "variation": dataset.variation,
            "is_data": dataset.is_data,
            "xsec": dataset.xsec,
            "luminosity": self.luminosity,
            "nevts": dataset.n_generated,
        }
        return {**dataset.metadata, **{k: v for k, v in known.items() if v is not None}}

    @classmethod
    def load(cls, source: str | Path, *, dataset: str | None = None) -> Fileset:
        """Read a fileset in any format that `agc_ml.inputs.loading` knows."""
        from agc_ml.inputs import loading  # noqa: PLC0415 - it builds on this module

        return loading.load(source, dataset=dataset)


def _limited(dataset: Dataset, files: int) -> Dataset:
    if len(dataset.files) <= files:
        return dataset
    metadata = {key: value for key, value in dataset.metadata.items() if key != "nevts"}
    return replace(dataset, files=dataset.files[:files], metadata=metadata)


def _refuse_metadata(dataset: Dataset) -> None:
    """Refuse what is no finite number, or can't be written down and compared."""
    for key, value in dataset.metadata.items():
        where = f"dataset {dataset.name}: metadata -> {key}"
        try:
            _refuse_bombs(value)
            text = json.dumps(value, sort_keys=True, allow_nan=False, default=as_text)
        except (TypeError, ValueError, RecursionError) as error:
            raise FilesetError(f"{where}: it can't be kept ({error}); take it out") from error
        for number in _NUMBER.findall(text):  # YAML takes 1e999 for text
            if float(number) == float("inf"):
                raise FilesetError(f"{where}: {number} is no finite number")
    nevts = dataset.metadata.get("nevts", 0)
    if not isinstance(nevts, int | float) or isinstance(nevts, bool) or nevts < 0:
        raise FilesetError(
            f"dataset {dataset.name}: metadata -> nevts: {nevts!r} is no number of events"
        )


def as_text(value: Any) -> str:
    """Text, for JSON, of what JSON has no form for: a date, or a number such as numpy's.

    Raises
    ------
    TypeError
        It is something else, of which another process may make another text.
    """
    if isinstance(value, date | time | Number):
        return repr(value)
    raise TypeError(
        f"{type(value).__name__} is no number, text, date, list or mapping, and may be another "
        "the next time"
    )


def _refuse_bombs(value: Any) -> None:
    """Refuse what holds itself, or few lines of YAML that stand for billions of values."""
    ahead, n = [(value, 1)], 0
    while ahead:
        inner, depth = ahead.pop()
        n += 1
        if depth > _MOST_DEPTH or n > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_DEPTH} levels, or {_MOST_VALUES:,} values")
        if isinstance(inner, Mapping):
            inner = list(inner.values())
        if isinstance(inner, list | tuple):
            ahead += [(one, depth + 1) for one in inner]


def _refuse_doubles(dataset: Dataset) -> None:
    lfns: dict[str, File] = {}
    places: dict[tuple[str, str], File] = {}
    uuids: dict[tuple[str, str], File] = {}
    for file in dataset.files:
        tree = plain_tree(file.tree)
        if (twin := lfns.get(file.lfn)) is not None and plain_tree(twin.tree) != tree:
            raise FilesetError(
                f"dataset {dataset.name}: {file.lfn} is listed with the trees {twin.tree} and "
                f"{file.tree}; make a dataset of each"
            )
        if twin is not None:
            raise FilesetError(
                f"dataset {dataset.name}: {file.lfn} is listed twice, its events would "
                "count twice; remove one, or make them replicas of one file"
            )
        lfns[file.lfn] = file
        for path in _paths(file):
            if (twin := places.setdefault((path, tree), file)) is not file:
                raise FilesetError(
                    f"dataset {dataset.name}: {twin.lfn} and {file.lfn} are the same file "
                    f"({path}), its events would count twice; remove one"
                )
        if file.uuid is None:
            continue
        if (twin := uuids.get((file.uuid, tree))) is not None:
            raise FilesetError(
                f"dataset {dataset.name}: {twin.lfn} and {file.lfn} are the same file (UUID "
                f"{file.uuid}), its events would count twice; remove one"
            )
        uuids[file.uuid, tree] = file


def _refuse_shared(datasets: Iterable[Dataset]) -> None:
    """Refuse a file in two datasets that add up to one histogram."""
    owners: dict[tuple[str, ...], tuple[Dataset, File]] = {}
    for dataset in datasets:
        for file in dataset.files:
            keys = [("lfn", file.lfn), *(("path", path) for path in _paths(file))]
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


def _paths(file: File) -> set[str]:
    """Replicas on disks: what is elsewhere is known by its lfn."""
    return {replica for replica in file.replicas if "://" not in replica}


def _identity(file: File) -> list[Any]:
    known = [file.lfn, file.tree, file.uuid, file.entries, file.size, file.adler32]
    return known if file.generated is None else [*known, file.generated]
