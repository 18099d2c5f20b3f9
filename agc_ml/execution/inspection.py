"""Inspect a file before any of it is processed: it is complete, and has the needed columns."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from agc_ml.columnar.baskets import (
    Directory,
    Dropped,
    EntriesPlace,
    entries_place,
    in_both,
    part_of,
    uneven,
)
from agc_ml.columnar.columns import directory
from agc_ml.delivery import opening
from agc_ml.errors import DeliveryError, InputFileError
from agc_ml.execution.worker.job import Failure, one_line, trace
from agc_ml.inputs import agc_published
from agc_ml.inputs.columns import NANOAOD, ColumnRequest, with_counters
from agc_ml.inputs.datasets import ExpectedFile, File, plain_tree
from agc_ml.transports.base import is_same_version
from agc_ml.transports.credentials import redacted

_VARIABLE: Final = ("[]", "RVec", "vector")
_FIXED: Final = ("[", "array<")
_PIECE: Final = 1 << 23
_NOT_FLAT: Final = "it can't be a flat column: read such files as records (without flat)"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """An opened file: its identity, size, columns and baskets.

    Attributes
    ----------
    column_bytes
        Compressed size of the needed columns.
    generated, generated_sumw
        Number of generated events whose entries were kept, and the sum of their weights; None
        where the file does not state them.
    adler32
        Checksum, hexadecimal, if requested.
    directory
        Places of the needed columns, for processors that take them flat.
    dropped
        Places of the columns of entries that a preselection dropped, which count as the file's.
    misread
        Columns that only uproot can read.
    uneven
        Lines about branches of another number of entries than the tree, without declared columns.
    lacking
        Optional columns that the file lacks.
    failures
        Lines about replicas that failed.
    url, stamp
        The replica that was opened, and its version.
    place
        Place of the number of entries in the file.
    is_generated
        The file says that agc-ml generated its events.
    """

    entries: int
    uuid: str
    size: int
    n_columns: int
    column_bytes: int | None
    generated: int | None = None
    adler32: str | None = None
    directory: Directory | None = None
    misread: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    url: str = ""
    stamp: str = ""
    dropped: Dropped | None = None
    uneven: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    generated_sumw: float | None = None
    is_generated: bool = False
    place: EntriesPlace | None = None

    def known(self, *, is_remembered: bool) -> ExpectedFile:
        """State that readers of the file compare it with."""
        return ExpectedFile(self.url, self.stamp, self.size, self.uuid, self.entries, is_remembered)

    def is_of_same_file(self, other: FileInfo) -> bool:
        """Return whether another inspection saw the same file."""
        if self.url == other.url and not is_same_version(self.stamp, other.stamp):
            return False
        return (self.uuid, self.size, self.entries) == (other.uuid, other.size, other.entries)

    def parts(self, start: int, stop: int) -> tuple[Directory | None, Dropped | None]:
        """Places of the entries [start, stop): of the kept and of the dropped ones."""
        n_dropped = 0 if self.dropped is None else self.dropped.entries
        of_kept, of_dropped = in_both(start, stop, self.entries - n_dropped)
        kept = None if self.directory is None else part_of(self.directory, *of_kept)
        if self.dropped is None:
            return kept, None
        return kept, self.dropped._replace(directory=part_of(self.dropped.directory, *of_dropped))


def inspect_file(  # noqa: PLR0917 - arguments of a job go by position
    file: File,
    columns: tuple[str, ...],
    flat: bool = False,
    checksum: bool = False,
    optional: tuple[str, ...] = (),
    schema: str = NANOAOD,
) -> FileInfo | Failure:
    """Open a file and check that it is complete and has the needed columns.

    With ``flat`` also find their places, so that no worker parses the tree again; with ``checksum``
    also read the whole file, and compare its adler32 with the fileset's. ``optional`` columns may
    be missing; ``schema`` is the name of coffea's schema that makes the records.
    """
    wanted = ColumnRequest(columns, optional, flat, schema)
    failure = Failure("input", "it has no replica")
    failures: dict[str, str] = {}
    for _ in file.replicas:  # a damaged one comes last the next time
        try:
            with _without_collection(), opening.open_file(file, failures) as opened:
                outcome = _inspect(opened, file, wanted, checksum=checksum)
                opened.file.source.check_same()
                known = tuple(opening.failure_notes(failures))
                return (
                    replace(outcome, failures=known) if isinstance(outcome, FileInfo) else outcome
                )
        except DeliveryError as error:
            return Failure("definite" if error.is_other_file else "input", str(error))
        except Exception as error:  # noqa: BLE001 - uproot raises anything on damaged input; it is reported
            failure = Failure("input", one_line(error), trace(error))
    return failure


def inspection_arguments(
    file: File, wanted: ColumnRequest, *, checksum: bool = False
) -> tuple[Any, ...]:
    """Arguments of `inspect_file`."""
    return (file, wanted.columns, wanted.flat, checksum, wanted.optional, wanted.schema)


def _inspect(
    opened: Any, file: File, wanted: ColumnRequest, *, checksum: bool
) -> FileInfo | Failure:
    from agc_ml.columnar.rntuple_pages import compare_pages  # noqa: PLC0415 - it needs uproot

    name = plain_tree(file.tree)
    # of a path into a tree uproot can't say whether it is there
    if ("/" in name and name not in opened.keys(cycle=False)) or file.tree not in opened:
        names = ", ".join(sorted(set(opened.keys(cycle=False)))[:5]) or "nothing"
        return Failure(
            "definite", f"no tree {file.tree!r} in it (name another as FILE:TREE); it has {names}"
        )
    trees = [opened[name] for name in (file.tree, file.dropped) if name is not None]
    for tree in trees:
        compare_pages(tree)
    tree = trees[0]
    if not hasattr(tree, "num_entries"):
        return Failure("definite", f"{file.tree!r} in it is not a tree")
    there = set(tree.keys())
    lacking = tuple(name for name in wanted.optional if name not in there)
    wanted = wanted.of_file(lacking)
    entries = sum(int(one.num_entries) for one in trees)
    generated, generated_sumw = _generated(opened, file.tree, entries)
    info = FileInfo(
        entries=entries,
        uuid=str(opened.file.uuid),
        size=int(opened.file.source.num_bytes),
        n_columns=len(wanted.columns) or len(there),
        column_bytes=_bytes_of(tree, wanted),
        generated=generated,
        generated_sumw=generated_sumw,
        is_generated=agc_published.ORIGIN in opened.keys(cycle=False, recursive=False),
        adler32=_adler32(opened.file.source) if checksum else None,
        url=redacted(opened.file.source.url),
        stamp=opened.file.source.stamp,
        place=entries_place(opened, file.tree) if file.dropped is None else None,
        uneven=() if wanted.columns else _uneven(tree, tree.keys()),
        lacking=lacking,
    )
    if info.adler32 is not None and file.adler32 not in {None, info.adler32}:
        # this replica is damaged, or another file: try the next one
        raise InputFileError(
            f"its adler32 is {info.adler32}, but the fileset says {file.adler32}; it is damaged"
        )
    problem = _contradiction(file, info) or _unfit_column(tree, wanted)
    problem = problem or next(iter(_uneven(tree, wanted.names())), None)
    problem = problem or (_foreign_counter(tree, wanted.columns) if wanted.flat else None)
    problem = problem or _unfit_for_schema(opened, file.tree, wanted)
    if problem:
        return Failure("definite", problem)
    return _located(info, opened, file, wanted.columns) if wanted.flat else info


def _unfit_for_schema(opened: Any, tree: str, wanted: ColumnRequest) -> str | None:
    """Message about columns that records need and the file lacks, for declared columns."""
    if wanted.flat or not wanted.columns:
        return None
    from coffea.nanoevents import schemas  # noqa: PLC0415 - heavy

    from agc_ml.columnar import records  # noqa: PLC0415 - it needs coffea

    schema = getattr(schemas, wanted.schema)
    return records.lacking(opened, tree, wanted.names(), schema)


def _located(info: FileInfo, opened: Any, file: File, columns: tuple[str, ...]) -> FileInfo:
    tree = opened[file.tree]
    names = [name for name in with_counters(columns) if name in tree]  # not all have a counter
    found, misread = directory(opened, file.tree, names)
    dropped = None
    if file.dropped is not None:
        others = opened[file.dropped]
        where, misread_too = directory(opened, file.dropped, others.keys())
        dropped = Dropped(file.dropped, where, int(others.num_entries))
        misread += misread_too
    return replace(info, directory=found, dropped=dropped, misread=tuple(misread))


@contextmanager
def _without_collection() -> Iterator[None]:
    """Stop the garbage collection, which slows the parsing of large trees by a third."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _adler32(source: Any) -> str:
    value = 1
    for start in range(0, source.num_bytes, _PIECE):
        (piece,) = source.read([(start, min(start + _PIECE, source.num_bytes))])
        value = zlib.adler32(piece, value)
    return f"{value:08x}"


def _generated(opened: Any, tree: str, entries: int) -> tuple[int | None, float | None]:
    """NanoAOD's own number of generated events and sum of their weights, over all runs.

    None if they are fewer than the entries: some of the files that were merged lacked the branch.
    """
    from agc_ml.columnar.rntuple_pages import compare_pages  # noqa: PLC0415 - it needs uproot

    folder = plain_tree(tree).rpartition("/")[0]
    for place in [opened[folder], opened] if folder else [opened]:  # beside the tree first
        kind = place.classnames(cycle=False, recursive=False).get("Runs")
        if kind in {"TTree", "ROOT::RNTuple"}:
            runs = place["Runs"]
            compare_pages(runs)
            count = _of_runs(runs, "genEventCount")
            if count is not None and count >= entries and count > 0:
                return int(count), _of_runs(runs, "genEventSumw")
            break
    return None, None


def _of_runs(runs: Any, name: str) -> float | None:
    """Exact sum of a branch over all runs, None if it is missing for some."""
    import awkward as ak  # noqa: PLC0415 - heavy

    for branch in (name, f"{name}_"):
        if branch in runs.keys():  # noqa: SIM118 - RNTuples only have these
            if uneven(runs[branch]) is not None:
                return None
            return ak.sum(ak.flatten(runs[branch].array(), axis=None)).item()  # type: ignore[no-any-return]
    return None


def _contradiction(file: File, info: FileInfo) -> str | None:
    for field in ("entries", "generated"):
        expected, actual = getattr(file, field), getattr(info, field)
        if None not in {expected, actual} and expected != actual:
            return f"its {field} is {actual}, but the fileset says {expected}; is it another file?"
    if file.generated is not None and file.generated < info.entries:
        return (
            f"it has {info.entries} events, but the fileset states only {file.generated} generated "
            "ones; correct or remove 'generated'"
        )
    return None


def _unfit_column(tree: Any, wanted: ColumnRequest) -> str | None:
    present, columns = set(tree.keys()), wanted.columns
    needed = (*wanted.identity, *columns) if columns else ()
    missing = [name for name in needed if name not in present]
    if missing:
        advice = (
            "choose files of a campaign that has them"
            if present & set(columns)
            else "'columns' of the processor declares branches, and the file has none of them: "
            "rename the attribute if it is for something else"
        )
        return f"branches are missing that the processor needs: {', '.join(missing)}; {advice}"
    for name in columns if wanted.is_of_nanoaod else ():
        kind, counter = str(tree[name].typename), f"n{name.partition('_')[0]}"
        is_vector = any(mark in kind for mark in _VARIABLE)
        if "string" in kind or "char*" in kind:
            return f"branch {name} is of type {kind}, numbers are needed"
        if "_" in name and counter in present and not is_vector:
            return f"branch {name} is of type {kind}, a list of numbers an event is needed"
        if "_" in name and counter not in present and is_vector:
            return f"branch {name} is of type {kind}, but its counter {counter} is missing"
    return None


def _uneven(tree: Any, names: Iterable[str]) -> tuple[str, ...]:
    """Lines about branches of another number of entries than the tree."""
    lines = (uneven(tree.get(name)) for name in names)
    return tuple(line for line in lines if line is not None)


def _foreign_counter(tree: Any, columns: tuple[str, ...]) -> str | None:
    """Message about a list that is not of its collection, as flat columns share their offsets."""
    for name in columns:
        kind = str(tree[name].typename)
        is_fixed = any(mark in kind.replace("[]", "") for mark in _FIXED)
        depth = sum(kind.count(mark) for mark in _VARIABLE)
        if is_fixed or depth > ("_" in name):
            return f"branch {name} is of type {kind}, not a field of a collection; {_NOT_FLAT}"
        counter, expected = _counter_of(tree[name]), f"n{name.partition('_')[0]}"
        # ServiceX writes a counter for each list, which has to agree
        if counter not in {None, expected, f"n{name}"}:
            return f"branch {name} is counted by {counter}, not by {expected}; {_NOT_FLAT}"
    return None


def _counter_of(branch: Any) -> str | None:
    return getattr(getattr(branch, "count_branch", None), "name", None)


def _bytes_of(tree: Any, wanted: ColumnRequest) -> int | None:
    names = set(wanted.with_counters())
    branches = [b for b in getattr(tree, "branches", ()) if not names or b.name in names]
    return sum(int(branch.compressed_bytes) for branch in branches) if branches else None
