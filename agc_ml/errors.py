"""Errors of agc-ml: each message is one line.

::

    AgcError              exit code 1: failed or incomplete
    ├── UsageError        exit code 2: wrong arguments or options
    ├── FilesetError      a fileset, or a file that describes one, is wrong
    ├── CatalogueError    a portal, a catalogue or a server can't list files
    ├── InputFileError    an input file can't be read, or lacks what is needed
    │   └── DeliveryError no replica of it can be read
    ├── ProcessorError    the processor raised, or kills its worker
    ├── IncompleteError   chunks are missing; finished ones are kept
    ├── ClusterError      the Dask cluster is lost, can't be reached, or does not fit
    │   └── WaitError     no progress on the cluster for longer than --patience
    ├── StoreError        results can't be written
    ├── RunDirectoryError a run directory is damaged or of another version
    ├── HistogramError    histograms are missing, damaged or don't fit together
    ├── FitError          a fit configuration or a fit is wrong
    ├── ModelError        a model is damaged or of another kind, or can't score its input
    ├── TrainingError     a training set, a job or the training service is wrong
    ├── GenerateError     events can't be generated, or a generated set is damaged
    └── Interrupted       exit code 130: Ctrl-C or SIGTERM; finished work is kept
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class AgcError(Exception):
    """Base of all errors of agc-ml: one line with the problem, its place and the way out."""

    exit_code: ClassVar[int] = 1


class UsageError(AgcError):
    """Wrong arguments or options: an unknown name, a wrong value, an output that exists."""

    exit_code: ClassVar[int] = 2


class FilesetError(AgcError):
    """A fileset is wrong; the message names the file, the dataset and the field."""


class CatalogueError(AgcError):
    """A portal, a catalogue or a server can't be reached, denies access, or lacks the files."""


class InputFileError(AgcError):
    """An input file can't be read or lacks what the processor needs; the message names it."""


class DeliveryError(InputFileError):
    """No replica of a file can be read; the message names each one with its reason.

    ``is_other_file``: replicas can be read, but are not the file that the fileset describes.
    ``may_be_replaced``: at least one is such a file, and the others can't be read.
    """

    def __init__(
        self, message: str, *, is_other_file: bool = False, may_be_replaced: bool = False
    ) -> None:
        super().__init__(message)
        self.is_other_file = is_other_file
        self.may_be_replaced = may_be_replaced


class ProcessorError(AgcError):
    """The processor raised or kills its worker; the message names the chunk."""


class IncompleteError(AgcError):
    """Chunks are missing; the message names them, and finished chunks are kept."""


class ClusterError(AgcError):
    """The Dask cluster can't be reached or is lost; finished chunks are kept."""


class WaitError(ClusterError):
    """No responding worker has been busy for too long; finished chunks are kept."""


class StoreError(AgcError):
    """Results can't be written: no space, no permission."""


class RunDirectoryError(AgcError):
    """A run directory is damaged, cut off, or written by another version."""


class HistogramError(AgcError):
    """Histograms are missing, hold NaN, or don't fit together; the message names them."""


class FitError(AgcError):
    """A fit configuration is wrong or a fit failed."""


class ModelError(AgcError):
    """A model is missing, damaged or of another kind, or can't score; the message names it."""


class TrainingError(AgcError):
    """Training or promotion failed: a training set, a job or the service is wrong."""


class GenerateError(AgcError):
    """Events can't be generated, or a generated set differs from its manifest."""


class Interrupted(AgcError):  # noqa: N818 - not an error
    """Stopped by Ctrl-C or SIGTERM; the message names the command that resumes."""

    exit_code: ClassVar[int] = 130


def printable(text: str) -> str:
    """Return text with terminal control characters escaped: names may come from foreign files."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, each one once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def in_one_line(error: BaseException) -> str:
    """Return type and first line of an error; of an `AgcError`, only its first line."""
    message = getattr(error, "message", None)  # uproot's full text begins with its context
    text = message if isinstance(message, str) and message else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return text if isinstance(error, AgcError) else f"{type(error).__name__}: {text}"
