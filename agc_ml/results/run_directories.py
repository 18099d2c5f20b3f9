"""Run directories as they are found: which run in one goes on, and what becomes of an old one.

A run that replaces another one is in ``.agc-ml-new`` of its directory until its results stand: if
it stops before that, the old ones are still there, and ``--resume`` goes on with the new ones. Then
they take the place of the old ones: ``run.json`` goes first and comes last, so that a directory of
which only a part is in place looks like no run.
"""

from __future__ import annotations

import itertools
import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from agc_ml import documents, files
from agc_ml.errors import UsageError
from agc_ml.results.run_record import MAX_RECORD, MOVING, NEW, RunRecord, load_record

CHUNKS: Final = "chunks"
_RECORD: Final = "run.json"
KEPT: Final = (CHUNKS, "ledger.jsonl", _RECORD, "measurement.json")
"""What a run that goes on takes over from before."""
_BEGUN: Final = frozenset(KEPT) - {_RECORD}
_CHUNK: Final = re.compile("[0-9a-f]{40}")


class Found(NamedTuple):
    """Where a run is to work, and the record of the run that it goes on with."""

    work: Path
    earlier: RunRecord | None = None


def new_folder(name: str) -> Path:
    """Make ``runs/<processor>-<UTC time>``, with a number behind it if that is taken.

    Raises
    ------
    StoreError
        It can't be made.
    """
    stem = Path(name.rpartition(":")[2] or name).name
    first = Path("runs") / f"{stem}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    others = (first.with_name(f"{first.name}-{n}") for n in itertools.count(2))
    for path in itertools.chain([first], others):
        # who makes it has it: another run may begin in the same second
        with suppress(FileExistsError), files.store_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                path.mkdir()
                break
    return path


def work_of(folder: Path) -> Path:
    """Folder, in a run directory, of the run that ``--resume`` goes on with."""
    return folder / NEW if files.is_plain(folder / NEW) else folder


def find(folder: Path, *, resume: bool, overwrite: bool) -> Found:
    """Look at what is in a folder, and refuse to touch what must not be touched.

    Raises
    ------
    UsageError
        There is something in it, and neither ``resume`` nor ``overwrite`` says what to do with it;
        or it is no run directory.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a file is in the way; name another folder with -o")
    if files.is_unused(folder):
        return Found(folder)
    for name in (NEW, MOVING, CHUNKS, f"{NEW}/{CHUNKS}"):
        files.check_plain(folder / name)
    is_run = any((folder / name).exists() for name in (_RECORD, NEW, MOVING))
    is_begun = _is_begun(folder)
    if overwrite:
        if not is_run and not is_begun:
            raise UsageError(
                f"{folder}: not a run directory, so --overwrite leaves it alone; name another"
            )
        return Found(folder if is_begun and not is_run else folder / NEW)
    if not resume:
        raise UsageError(
            f"{folder}: there is something in it; go on with --resume, replace it with "
            "--overwrite, or name another folder with -o"
        )
    work = work_of(folder)
    if not (work / _RECORD).exists() and (is_begun or work != folder):
        return Found(work)  # killed before it could say what it is
    return Found(work, None if (folder / MOVING).exists() else load_record(work))


def _is_begun(folder: Path) -> bool:
    """Return whether there is nothing but what a run leaves that could not yet say what it is."""
    chunks = folder / CHUNKS
    kept = [path.name for path in chunks.iterdir()] if chunks.is_dir() else []
    names = {path.name for path in folder.iterdir() if path.name[0] != "."}
    return names <= _BEGUN and all(name[0] == "." or _CHUNK.fullmatch(name) for name in kept)


def prepare(found: Found, *, resume: bool) -> None:
    """Make the folder to work in, and clear it of old results, which are made anew.

    Raises
    ------
    StoreError
        It can't be written.
    """
    with files.store_errors(found.work):
        found.work.mkdir(exist_ok=True)
        files.clear(found.work, keep=KEPT if resume else ())


def put_in_place(folder: Path) -> None:
    """Let a run in ``.agc-ml-new`` whose results stand replace the old one, or go on with that.

    Raises
    ------
    StoreError
        The folder can't be written.
    """
    new, moving = folder / NEW, folder / MOVING
    with files.store_errors(folder):
        if files.is_plain(new):
            (folder / _RECORD).unlink(missing_ok=True)
            files.clear(folder, keep=(NEW,))
            new.rename(moving)
        if files.is_plain(moving):
            for path in sorted(moving.iterdir(), key=lambda path: path.name == _RECORD):
                path.rename(folder / path.name)
            moving.rmdir()


def stands(folder: Path) -> bool:
    """Return whether the run in ``.agc-ml-new`` has results to replace the old ones with."""
    if files.is_plain(folder / MOVING):
        return True
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(documents.content(folder / NEW / _RECORD, MAX_RECORD))
        return bool(record["status"] == "complete")
    return False
