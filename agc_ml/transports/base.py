"""One connection to one replica: what all protocols give, and files of this machine."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from agc_ml.transports.replica_errors import CorruptError, PermanentError, ReplacedError

Range = tuple[int, int]
"""The bytes [start, stop) of a file."""
Data = bytes | memoryview

_FILE_URL: Final = re.compile(
    r"file:(?://(?P<host>[^/]*))?(?P<path>/.*)", re.IGNORECASE | re.DOTALL
)


class Transport(Protocol):
    """An open file.

    ``size`` is its length in bytes; ``stamp`` changes when the file does (`is_one_version`).
    """

    size: int
    stamp: str

    def read(self, ranges: Sequence[Range], timeout: float) -> list[Data]:
        """Read parts of the file, in at most ``timeout`` seconds.

        Raises
        ------
        ReplicaError
            They can't be had; the kind of error says what helps.
        """

    def has(self, stamp: str, timeout: float) -> bool:
        """Return whether it may be the version of that stamp, though it has one of another."""

    def check_same(self, timeout: float) -> None:
        """See that the file was not replaced or overwritten since it was opened.

        Raises
        ------
        ReplacedError
            It was.
        ReplicaError
            It can't be looked at.
        """

    def close(self) -> None:
        """Let go of the file; raises nothing."""


STAMPS: Final = "; "
"""Between the parts of a stamp that tell a version each by itself, such as a tag and a time."""


def is_one_version(stamp: str, other: str) -> bool:
    """Return whether two stamps are of one version of a file, as far as they tell."""
    parts = {*stamp.split(STAMPS)} & {*other.split(STAMPS)}
    return not stamp or not other or any(parts)


def scheme(url: str) -> str:
    """Its protocol: ``file`` for paths, too."""
    return url.partition("://")[0].lower() if "://" in url else "file"


def has_host(url: str) -> bool:
    """Return whether a URL names a host."""
    with suppress(ValueError):  # as of [::1 without the other bracket
        return bool(urlsplit(url).netloc)
    return False


def local_path(url: str) -> Path | None:
    """Path of a file of this machine; None for what is elsewhere.

    It may be written as ``/path``, ``file:/path``, ``file:///path`` or ``file://localhost/path``.
    """
    found = _FILE_URL.fullmatch(url)
    if found is None:
        return None if "://" in url else Path(re.sub("^//+", "/", url))
    is_here = (found["host"] or "localhost").lower() == "localhost"
    return Path(re.sub("^//+", "/", unquote(found["path"]))) if is_here else None


def connect(url: str, timeout: float) -> Transport:
    """Open a replica, in at most ``timeout`` seconds.

    Raises
    ------
    ReplicaError
        It can't be opened.
    """
    kind = scheme(url)
    path = local_path(url)
    if path is not None:
        return LocalFile(path)
    if kind == "file":
        raise PermanentError("it is a file of another machine; file:///PATH is one of this machine")
    if kind in {"root", "roots", "xroot", "xroots"}:
        from agc_ml.transports.xrootd import XRootDFile  # noqa: PLC0415 - an extra

        return XRootDFile(url, timeout)
    if kind in {"http", "https"}:
        from agc_ml.transports.http import HttpFile  # noqa: PLC0415 - on demand

        return HttpFile(url, timeout)
    from agc_ml.transports.fsspec_file import OtherFile  # noqa: PLC0415 - on demand

    return OtherFile(url, timeout)


def check(part: Data, start: int, stop: int) -> None:
    """See that a part is whole.

    Raises
    ------
    CorruptError
        The file ends before ``stop``.
    """
    if len(part) != stop - start:
        raise CorruptError(f"cut off: {len(part)} of {stop - start} bytes at {start} are there")


REPLACED: Final = "it was replaced or changed while it was read"


class LocalFile:
    """A file of this machine. What is read stays the same file, whatever takes its name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # no waiting for a pipe
        except (OSError, ValueError) as error:
            raise PermanentError(f"can't be opened: {_reason(error)}") from error
        status = os.fstat(self._descriptor)
        if stat.S_ISDIR(status.st_mode):
            self.close()
            raise PermanentError("it is a folder, a file is needed")
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise PermanentError("it is a pipe or a device, a file is needed")
        self.size = status.st_size
        self.stamp = str(status.st_mtime_ns)
        self._identity = (status.st_dev, status.st_ino)

    def read(self, ranges: Sequence[Range], timeout: float) -> list[Data]:  # noqa: ARG002 - a disk
        """Read parts of the file."""
        return [self._part(start, stop) for start, stop in ranges]

    def _part(self, start: int, stop: int) -> bytes:
        try:
            part = os.pread(self._descriptor, stop - start, start)
        except OSError as error:
            raise CorruptError(f"can't be read at {start}: {_reason(error)}") from error
        check(part, start, stop)
        return part

    def has(self, stamp: str, timeout: float) -> bool:  # noqa: ARG002 - a disk
        """Return whether it is the version of that stamp."""
        return stamp == self.stamp

    def check_same(self, timeout: float) -> None:  # noqa: ARG002 - a disk
        """See that the file of this name is the open one, and was not written to."""
        try:
            now = self._path.stat()
        except OSError as error:
            raise ReplacedError(f"{REPLACED}: {_reason(error)}") from error
        found = (now.st_dev, now.st_ino, now.st_size, str(now.st_mtime_ns))
        if found != (*self._identity, self.size, self.stamp):
            raise ReplacedError(REPLACED)

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
