"""The open file of a worker's thread: opening one costs more than processing 100,000 events."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from agc_ml.columnar.basket_records import entries_at
from agc_ml.delivery import opening
from agc_ml.errors import AgcError, DeliveryError, InputFileError, in_one_line
from agc_ml.execution.worker.job import Job
from agc_ml.inputs.datasets import ExpectedFile, File
from agc_ml.transports.credentials import redacted


class _OpenFile(threading.local):
    """The file of a thread's last chunk, and the failures of its replicas."""

    def __init__(self) -> None:
        self.of: tuple[File, ExpectedFile] | None = None
        self.file: Any = None
        self.failures: dict[str, str] = {}
        self.stack = ExitStack()


_open: Final = _OpenFile()


def open_file(job: Job) -> Any:
    """Open the file of a job, or use the open one, and check that its tree has not changed.

    Raises
    ------
    DeliveryError
        No replica can be opened, or the tree has other entries than when it was inspected.
    """
    if _open.of != (job.file, job.known):
        close_file()
        _open.of, _open.failures = (job.file, job.known), {}
    if _open.file is None:
        file = _open.stack.enter_context(opening.open_file(job.file, _open.failures, job.known))
        _open.file = file
        entries = _entries(file, job)
        if entries != job.known.entries:
            raise DeliveryError(
                f"its tree has {entries} entries, and had {job.known.entries}; is it another file?",
                may_be_replaced=True,
            )
    return _open.file


def _entries(file: Any, job: Job) -> int:
    """Entries that the file says it has, read again, with those that a preselection dropped."""
    if job.place is not None:
        return entries_at(file.file.source, job.place)
    from agc_ml.columnar.rntuple_pages import compare_pages  # noqa: PLC0415 - it needs uproot

    trees = [file[name] for name in (job.file.tree, job.file.dropped) if name is not None]
    for tree in trees:
        compare_pages(tree)
    return sum(int(tree.num_entries) for tree in trees)


def replica_failures() -> dict[str, str]:
    """Failures of the open file's replicas, by URL."""
    return _open.failures


def change_of_open_file() -> DeliveryError | None:
    """Return an error if the open file changed while it was read: no processor is to blame then."""
    if _open.file is not None:
        try:
            _open.file.file.source.check_same()
        except DeliveryError as error:
            return error
    return None


def close_file(damage: str | None = None) -> str:
    """Close the open file, and blame its replica for a damage; return its URL, "" if local."""
    where = ""
    if _open.file is not None:
        source = _open.file.file.source
        if damage is not None:
            source.distrust(damage)
        where = "" if source.is_local else redacted(source.url)
    _open.file = None
    _open.stack.close()
    return where


atexit.register(close_file)  # before the libraries are gone that close it


@contextmanager
def input_errors() -> Iterator[None]:
    """Take any error in the block for one of the input: uproot raises anything on damaged files."""
    try:
        yield
    except (AgcError, MemoryError):
        raise
    except Exception as error:
        raise InputFileError(in_one_line(error)) from error
