"""Interface of an open replica, versions of a file, and the parts of a URL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from agc_ml.transports.replica_errors import CorruptError

Range = tuple[int, int]  # the bytes [start, stop) of a file
Data = bytes | memoryview

XROOTD: Final = frozenset({"root", "roots", "xroot", "xroots"})
HTTP: Final = frozenset({"http", "https"})
# Separates the parts of a stamp, such as a tag and a time, each of which identifies a version.
STAMP_SEPARATOR: Final = "; "

_FILE_URL: Final = re.compile(
    r"file:(?://(?P<host>[^/]*))?(?P<path>/.*)", re.IGNORECASE | re.DOTALL
)


class Transport(Protocol):
    """An open file.

    ``size`` is its length in bytes; ``stamp`` changes when the file does (`is_same_version`).
    """

    size: int
    stamp: str

    def read(self, ranges: Sequence[Range], timeout: float) -> list[Data]:
        """Read parts of the file, in at most ``timeout`` seconds.

        Raises
        ------
        ReplicaError
            The parts can't be read; the class of the error says what may help.
        """

    def has(self, stamp: str, timeout: float) -> bool:  # noqa: ARG002 - only servers take time
        """Return whether the version with another stamp may be here too."""
        return stamp == self.stamp

    def check_same(self, timeout: float) -> None:
        """Reject a file that was replaced or overwritten since it was opened.

        Raises
        ------
        ReplacedError
            It was.
        ReplicaError
            It can't be checked.
        """

    def close(self) -> None:
        """Close the file; raises nothing."""
        return


def is_same_version(stamp: str, other: str) -> bool:
    """Return whether two stamps may belong to the same version of a file."""
    shared = {*stamp.split(STAMP_SEPARATOR)} & {*other.split(STAMP_SEPARATOR)}
    return not stamp or not other or any(shared)


def scheme(url: str) -> str:
    """Return the protocol of a URL; ``file`` for paths too."""
    return url.partition("://")[0].lower() if "://" in url else "file"


def has_host(url: str) -> bool:
    """Return whether a URL names a host."""
    with suppress(ValueError):  # as of [::1 without the other bracket
        return bool(urlsplit(url).netloc)
    return False


def local_path(url: str) -> Path | None:
    """Return the path of a file on this machine; None for other files.

    Accepted are ``/path``, ``file:/path``, ``file:///path`` and ``file://localhost/path``.
    """
    match = _FILE_URL.fullmatch(url)
    if match is None:
        return None if "://" in url else Path(re.sub("^//+", "/", url))
    is_local = (match["host"] or "localhost").lower() == "localhost"
    return Path(re.sub("^//+", "/", unquote(match["path"]))) if is_local else None


def check_length(part: Data, start: int, stop: int) -> None:
    """Reject a part that is shorter than was asked for.

    Raises
    ------
    CorruptError
        The file ends before ``stop``.
    """
    if len(part) != stop - start:
        raise CorruptError(f"cut off: {len(part)} of {stop - start} bytes at {start} are there")
