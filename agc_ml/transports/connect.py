"""Opening a replica with the transport of its protocol."""

from __future__ import annotations

from agc_ml.transports.base import HTTP, XROOTD, Transport, local_path, scheme
from agc_ml.transports.local_file import LocalFile
from agc_ml.transports.replica_errors import PermanentError


def connect(url: str, timeout: float) -> Transport:
    """Open a replica, in at most ``timeout`` seconds.

    Raises
    ------
    ReplicaError
        It can't be opened.
    """
    path = local_path(url)
    if path is not None:
        return LocalFile(path)
    protocol = scheme(url)
    if protocol == "file":
        raise PermanentError("a file of another machine; file:///PATH is a file of this machine")
    # Each transport loads a client library, so they are imported on demand.
    if protocol in XROOTD:
        from agc_ml.transports.xrootd import XRootDFile  # noqa: PLC0415 - an extra

        return XRootDFile(url, timeout)
    if protocol in HTTP:
        from agc_ml.transports.http import HttpFile  # noqa: PLC0415 - on demand

        return HttpFile(url, timeout)
    from agc_ml.transports.fsspec_file import FsspecFile  # noqa: PLC0415 - on demand

    return FsspecFile(url)
