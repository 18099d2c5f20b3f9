"""Run directories: creating, resuming and replacing the run in one.

A run that replaces another one is in ``.agc-ml-new`` of its directory until its results are
complete: if it stops before, the old results are still there, and ``--resume`` continues the new
ones. Then they replace the old ones: ``run.json`` is removed first and moved last, so that a
directory with only a part in place does not look like a run.
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
from agc_ml._version import __version__
from agc_ml.errors import UsageError
from agc_ml.results.run_record import MAX_RECORD, MOVING, NEW, RECORD, RunRecord, load_record

CHUNKS: Final = "chunks"
KEPT: Final = (CHUNKS, "ledger.jsonl", RECORD, "measurement.json")
"""Files and folders that a resumed run keeps."""
_BEGUN: Final = frozenset(KEPT) - {RECORD}
_CHUNK: Final = re.compile("[0-9a-f]{40}")


class RunFolder(NamedTuple):
    """Folder for a run to work in, and the record of the run that it resumes."""

    work: Path
    earlier: RunRecord | None = None


def new_folder(name: str) -> Path:
    """Create ``runs/<processor>-<UTC time>``, with a number appended if that exists.

    Raises
    ------
    StoreError
        It can't be created.
    """
    stem = Path(name.rpartition(":")[2] or name).name
    first = Path("runs") / f"{stem}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    others = (first.with_name(f"{first.name}-{n}") for n in itertools.count(2))
    for path in itertools.chain([first], others):
        # another run may begin in the same second: only one of them creates the folder
        with suppress(FileExistsError), files.store_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                path.mkdir()
                break
    return path


def work_of(folder: Path) -> Path:
    """Return the folder, in a run directory, of the run that ``--resume`` continues."""
    return folder / NEW if files.is_plain(folder / NEW) else folder


def find(folder: Path, *, resume: bool, overwrite: bool) -> RunFolder:
    """Return the folder of a new, resumed or replacing run; reject a folder with other content.

    Raises
    ------
    UsageError
        It is not empty and neither ``resume`` nor ``overwrite`` is set, not a run directory, or to
        be resumed and of another release.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a file is in the way; name another folder with -o")
    if files.is_unused(folder):
        return RunFolder(folder)
    # foreign links in place of our folders could lead anywhere
    for name in (NEW, MOVING, CHUNKS, f"{NEW}/{CHUNKS}"):
        files.check_plain(folder / name)
    is_run = any((folder / name).exists() for name in (RECORD, NEW, MOVING))
    is_begun = _is_begun(folder)
    if overwrite:
        # only runs are replaced, never other folders
        if not is_run and not is_begun:
            raise UsageError(
                f"{folder}: not a run directory, so --overwrite leaves it alone; name another"
            )
        return RunFolder(folder if is_begun and not is_run else folder / NEW)
    if not resume:
        raise UsageError(
            f"{folder}: there is something in it; continue it with --resume, replace it with "
            "--overwrite, or name another folder with -o"
        )
    work = work_of(folder)
    if not (work / RECORD).exists() and (is_begun or work != folder):
        return RunFolder(work)  # killed before it wrote a record
    if (folder / MOVING).exists():
        return RunFolder(work)
    earlier = load_record(work)
    _check_version(folder, earlier)
    return RunFolder(work, earlier)


def _check_version(folder: Path, earlier: RunRecord) -> None:
    """Reject a run of another release: its finished chunks are keyed by that release's code."""
    release = earlier.provenance.versions.get("agc-ml", __version__)
    if release != __version__:
        raise UsageError(
            f"{folder}: a run of agc-ml {release}, whose chunks agc-ml {__version__} can't use; "
            f"replace it with --overwrite, or resume it with agc-ml {release}"
        )


def _is_begun(folder: Path) -> bool:
    """Return whether a folder has only the files of a run that wrote no record yet."""
    chunks = folder / CHUNKS
    checkpoints = [path.name for path in chunks.iterdir()] if chunks.is_dir() else []
    names = {path.name for path in folder.iterdir() if path.name[0] != "."}
    return names <= _BEGUN and all(name[0] == "." or _CHUNK.fullmatch(name) for name in checkpoints)


def prepare(target: RunFolder, *, resume: bool) -> None:
    """Create the folder to work in, and remove old results from it.

    Raises
    ------
    StoreError
        It can't be written.
    """
    with files.store_errors(target.work):
        target.work.mkdir(exist_ok=True)
        files.clear(target.work, keep=KEPT if resume else ())


def put_in_place(folder: Path) -> None:
    """Replace the old run by the complete one in ``.agc-ml-new``, or continue doing so.

    Raises
    ------
    StoreError
        The folder can't be written.
    """
    new, moving = folder / NEW, folder / MOVING
    with files.store_errors(folder):
        if files.is_plain(new):
            (folder / RECORD).unlink(missing_ok=True)
            files.clear(folder, keep=(NEW,))
            new.rename(moving)
        if files.is_plain(moving):
            for path in sorted(moving.iterdir(), key=lambda path: path.name == RECORD):
                path.rename(folder / path.name)
            moving.rmdir()


def stands(folder: Path) -> bool:
    """Return whether the run in ``.agc-ml-new`` is complete."""
    if files.is_plain(folder / MOVING):
        return True
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(documents.content(folder / NEW / RECORD, MAX_RECORD))
        return bool(record["status"] == "complete")
    return False
