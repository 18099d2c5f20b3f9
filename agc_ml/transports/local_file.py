"""Files of this machine."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from agc_ml.transports.base import Data, Range, Transport, check_length
from agc_ml.transports.replica_errors import CorruptError, PermanentError, ReplacedError


class LocalFile(Transport):
    """An open file of this machine: the same one, even if another takes its name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # never wait for a pipe
        except (OSError, ValueError) as error:
            raise PermanentError(f"can't be opened: {_reason(error)}") from error
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or a device"
            raise PermanentError(f"it is a {kind}, not a file")
        self.size, self.stamp = status.st_size, str(status.st_mtime_ns)
        self._identity = (status.st_dev, status.st_ino)

    def read(self, ranges: Sequence[Range], timeout: float) -> list[Data]:  # noqa: ARG002 - a disk
        """Read parts of the file."""
        parts: list[Data] = []
        for start, stop in ranges:
            try:
                part = os.pread(self._descriptor, stop - start, start)
            except OSError as error:
                raise CorruptError(f"can't be read at {start}: {_reason(error)}") from error
            check_length(part, start, stop)
            parts.append(part)
        return parts

    def check_same(self, timeout: float) -> None:  # noqa: ARG002 - a disk
        """Reject a file that was written to, or whose name another one has taken."""
        try:
            status = self._path.stat()
        except OSError as error:
            raise ReplacedError(_reason(error)) from error
        current = (status.st_dev, status.st_ino, status.st_size, str(status.st_mtime_ns))
        if current != (*self._identity, self.size, self.stamp):
            raise ReplacedError

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
