"""Files over any other protocol that fsspec knows, such as s3:// with the package s3fs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from agc_ml.transports import xrootd
from agc_ml.transports.base import Data, Range, Transport, check_length, scheme
from agc_ml.transports.replica_errors import (
    PermanentError,
    ReplacedError,
    ReplicaError,
    TransientError,
)

# Stamps of s3fs and ossfs, local and SFTP, adlfs, WebDAV, gcsfs, and others.
_STAMP_KEYS: Final = ("etag", "mtime", "lastmodified", "modified", "updated", "created")


class FsspecFile(Transport):
    """A file of an fsspec file system, which has timeouts of its own."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs  # noqa: PLC0415 - on demand

        xrootd.prepare()  # its client may be behind another file system, as in simplecache::root://
        try:
            self._system, self._path = url_to_fs(url)
            self.size, self.stamp = _size_and_stamp(self._system.info(self._path))
        except (ValueError, ImportError) as error:
            raise PermanentError(
                f"protocol {scheme(url)}:// is not known here ({error}); known are root, roots, "
                "http, https, paths, and those of installed fsspec packages"
            ) from error
        except Exception as error:  # each file system has its own
            raise _replica_error(error) from error

    def read(self, ranges: Sequence[Range], timeout: float) -> list[Data]:  # noqa: ARG002
        """Read parts of the file."""
        starts, stops = zip(*ranges, strict=True)
        paths = [self._path] * len(ranges)
        try:
            parts: list[Any] = self._system.cat_ranges(paths, list(starts), list(stops))
        except Exception as error:  # as above
            raise _replica_error(error) from error
        for (start, stop), part in zip(ranges, parts, strict=True):
            if isinstance(part, Exception):
                raise _replica_error(part)
            check_length(part, start, stop)
        return parts

    def check_same(self, timeout: float) -> None:  # noqa: ARG002 - as of all transports
        """Reject a file whose size or stamp differs from when it was opened."""
        try:
            self._system.invalidate_cache(self._path)
            current = _size_and_stamp(self._system.info(self._path))
        except Exception as error:  # as above
            raise _replica_error(error) from error
        if current != (self.size, self.stamp):
            raise ReplacedError


def _size_and_stamp(info: dict[str, Any]) -> tuple[int, str]:
    """Return a file's length, and its tag or time, under whatever key a file system has it."""
    values = {key.lower().replace("_", "").replace("-", ""): value for key, value in info.items()}
    stamp = next((str(values[key]) for key in _STAMP_KEYS if values.get(key)), "")
    return int(info["size"] or 0), stamp


def _replica_error(error: Exception) -> ReplicaError:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    may_pass = isinstance(error, OSError) and not isinstance(
        error, FileNotFoundError | PermissionError
    )
    return TransientError(text) if may_pass else PermanentError(text)
