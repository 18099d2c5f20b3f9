"""What can go wrong, one line each.

::

    AgcError              exit code 1: it failed, or is not complete
    ├── UsageError        exit code 2: what was typed makes no sense
    ├── FilesetError      a fileset, or a file that describes one, is wrong
    ├── CatalogueError    a portal, a catalogue or a server can't say where files are
    ├── InputFileError    an input file can't be read, or lacks what is needed
    │   └── DeliveryError no replica of it can be read
    ├── ProcessorError    the processor raised, or kills its worker
    ├── IncompleteError   chunks are missing; the ones that are done are kept
    ├── ClusterError      the Dask cluster is gone, can't be reached, or is not what is needed
    │   └── WaitError     nothing on it goes on, for longer than there is patience
    ├── StoreError        results can't be written
    ├── RunDirectoryError a run directory is damaged or of another version
    ├── HistogramError    histograms are missing, damaged or don't fit together
    ├── FitError          a fit configuration or a fit is wrong
    ├── ModelError        a model is not what it should be, or can't score what it is given
    ├── TrainingError     a training set, a job or the training service is not as it should be
    ├── GenerateError     events can't be generated, or a generated set is not what it says
    └── Interrupted       exit code 130: by Ctrl-C or SIGTERM; what is finished is kept
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class AgcError(Exception):
    """Base of all errors of agc-ml: one line that says what, where and the way out."""

    exit_code: ClassVar[int] = 1


class UsageError(AgcError):
    """What was typed makes no sense: an unknown name, a wrong option, an output that exists."""

    exit_code: ClassVar[int] = 2


class FilesetError(AgcError):
    """A fileset is wrong; the message names the file, the dataset and the field."""


class CatalogueError(AgcError):
    """A portal, a catalogue or a server can't be reached, refuses, or does not know the files."""


class InputFileError(AgcError):
    """An input file can't be read or lacks what the processor needs; the message names it."""


class DeliveryError(InputFileError):
    """No replica of a file can be read; the message names each one with its reason.

    ``is_other_file``: they can be, but are not the file that the fileset describes.
    ``may_be_replaced``: that is so of one at least, and the others can't be read.
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
    """Chunks are missing; the message names them, and what is finished is kept."""


class ClusterError(AgcError):
    """The Dask cluster can't be reached or is lost; what is finished is kept."""


class WaitError(ClusterError):
    """No worker that answers has been at work for too long; what is finished is kept."""


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
    """Nothing can be trained or promoted: a training set, a job or the service is in the way."""


class GenerateError(AgcError):
    """Events can't be generated, or a generated set is damaged or not what its manifest says."""


class Interrupted(AgcError):  # noqa: N818 - it is no fault
    """By Ctrl-C or SIGTERM; the message says what goes on from there."""

    exit_code: ClassVar[int] = 130


def printable(text: str) -> str:
    """The text as a terminal may have it: what it would take for commands is written out.

    Names come from files that others wrote.
    """
    if text.isprintable():
        return text
    return "".join(s if s.isprintable() or s in "\n\t" else ascii(s)[1:-1] for s in text)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on; each one once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def in_one_line(error: BaseException) -> str:
    """Type and first line of an error; of one of ours, which is told as it is, its first line."""
    message = getattr(error, "message", None)  # uproot's text begins with its surroundings
    text = message if isinstance(message, str) and message else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return text if isinstance(error, AgcError) else f"{type(error).__name__}: {text}"
