"""Files by any other protocol that fsspec knows, such as s3:// with the package s3fs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from agc_ml.transports import xrootd
from agc_ml.transports.base import REPLACED, Data, Range, check, scheme
from agc_ml.transports.replica_errors import (
    PermanentError,
    ReplacedError,
    ReplicaError,
    TransientError,
)


class OtherFile:
    """A file of an fsspec file system. How long it may take is that file system's business."""

    def __init__(self, url: str, timeout: float) -> None:  # noqa: ARG002 - as of all transports
        from fsspec.core import url_to_fs  # noqa: PLC0415 - on demand

        xrootd.prepare()  # its client may be behind another file system, as in simplecache::root://
        try:
            self._system, self._path = url_to_fs(url)
            info: dict[str, Any] = self._system.info(self._path)
        except (ValueError, ImportError) as error:
            raise PermanentError(
                f"{scheme(url)}:// is no protocol known here ({error}); known are root, roots, "
                "http, https, paths, and those of installed fsspec packages"
            ) from error
        except Exception as error:  # each file system has its own
            raise _sorted(error) from error
        self.size = int(info["size"] or 0)
        self.stamp = _stamp(info)

    def read(self, ranges: Sequence[Range], timeout: float) -> list[Data]:  # noqa: ARG002
        """Read parts of the file."""
        starts, stops = zip(*ranges, strict=True)
        paths = [self._path] * len(ranges)
        try:
            parts: list[Any] = self._system.cat_ranges(paths, list(starts), list(stops))
        except Exception as error:  # as above
            raise _sorted(error) from error
        for (start, stop), part in zip(ranges, parts, strict=True):
            if isinstance(part, Exception):
                raise _sorted(part)
            check(part, start, stop)
        return parts

    def has(self, stamp: str, timeout: float) -> bool:  # noqa: ARG002 - as of all transports
        """Return whether it is the version of that stamp."""
        return stamp == self.stamp

    def check_same(self, timeout: float) -> None:  # noqa: ARG002 - as of all transports
        """See that the file system says of it what it said when it was opened."""
        try:
            self._system.invalidate_cache(self._path)
            info: dict[str, Any] = self._system.info(self._path)
        except Exception as error:  # as above
            raise _sorted(error) from error
        if (int(info["size"] or 0), _stamp(info)) != (self.size, self.stamp):
            raise ReplacedError(REPLACED)

    def close(self) -> None:
        """Nothing is held."""


def _stamp(info: dict[str, Any]) -> str:
    """Tag or time of modification, under whatever name a file system gives it."""
    there = {key.lower().replace("_", "").replace("-", ""): value for key, value in info.items()}
    return next((str(there[name]) for name in _STAMPS if there.get(name)), "")


_STAMPS: Final = ("etag", "mtime", "lastmodified", "modified", "updated", "created")
"""Of s3fs and ossfs, local and SFTP, adlfs, WebDAV, gcsfs, and others."""


def _sorted(error: Exception) -> ReplicaError:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    may_pass = isinstance(error, OSError) and not isinstance(
        error, FileNotFoundError | PermissionError
    )
    return TransientError(text) if may_pass else PermanentError(text)
