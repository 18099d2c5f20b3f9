"""Files over root://, with the XRootD client."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from agc_ml.transports import credentials, server_health
from agc_ml.transports.base import Data, Range, Transport, check_length
from agc_ml.transports.replica_errors import (
    CorruptError,
    PermanentError,
    ReplacedError,
    ReplicaError,
    TransientError,
)

# The client's own limits, in seconds: by default it waits minutes for a server that is gone.
SETTINGS: Final = {
    "XRD_CONNECTIONWINDOW": "5",
    "XRD_CONNECTIONRETRY": "2",
    "XRD_REQUESTTIMEOUT": "20",
    "XRD_STREAMTIMEOUT": "10",
    "XRD_TIMEOUTRESOLUTION": "1",
    "XRD_STREAMERRORWINDOW": "5",
}
# Logins that the client may use: not with a token (ztn), for which any server could ask.
LOGINS: Final = {"XrdSecPROTOCOL": "gsi,krb5,sss,pwd,unix,host"}
_GRACE_S: Final = 2.0
_READ: Final = 16  # OpenFlags.READ

# The server's codes, of XProtocol, and words of the client's own errors.
_NO_PERMISSION: Final = "no permission"
_PERMANENT: Final = {
    3010: _NO_PERMISSION,
    3011: "no such file",
    3016: "it is a folder",
    3030: _NO_PERMISSION,
}
_LOGIN_FAILED: Final = "Auth failed"
_TRUNCATED: Final = 3005
# No authorities are there, another host's certificate, a signature of nobody we trust.
_UNTRUSTED: Final = (
    "Failed to initialize TLS",
    "Unable to validate",
    "TLS error: resource temporarily unavailable",
    "error_ssl",
)
_WRONG_ADDRESS: Final = "Invalid address"
_WRONG_NAME: Final = (
    "Unknown protocol",
    "Invalid arguments",
    "Server was not configured to support encryption",
)


def prepare() -> None:
    """Set the client's limits where nobody did, and hide tokens from it.

    Call it before the client is loaded, which reads its limits then, and before anything is opened.
    The client looks for a token itself and gives it to any server that asks, also to one that is
    not listed, or to which another server redirects. So it finds a decoy in its environment; a
    token for a listed host is in the URL.
    """
    for name, value in (SETTINGS | LOGINS).items():
        os.environ.setdefault(name, value)
    with contextlib.suppress(PermanentError):  # a file that we can't read the client can't read
        if credentials.bearer_token() is None:
            return
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    if libc.getenv(b"BEARER_TOKEN") != credentials.DECOY.encode():
        # os.environ, and so the user's own code in this process, keeps the token
        libc.setenv(b"BEARER_TOKEN", credentials.DECOY.encode(), 1)


class XRootDFile(Transport):
    """An open file of an XRootD server."""

    def __init__(self, url: str, timeout: float) -> None:
        prepare()
        try:
            from XRootD import client  # noqa: PLC0415 - an extra, and heavy
        except ImportError as error:
            raise PermanentError(
                "root:// needs the XRootD client: pip install 'agc-ml[xrootd]'"
            ) from error
        self._file = client.File()
        self._url = url
        address = _on_new_connection(credentials.with_token(url))
        self._call(self._file.open, address, _READ, timeout=timeout)
        try:
            self.size, self.stamp = self._size_and_stamp(timeout)
        except ReplicaError:
            self.close()
            raise

    def read(self, ranges: Sequence[Range], timeout: float) -> list[Data]:
        """Read parts of the file with one request."""
        offsets = [(start, stop - start) for start, stop in ranges]
        answer = self._call(self._file.vector_read, offsets, timeout=timeout)
        parts: list[Data] = [chunk.buffer for chunk in answer.chunks]
        for (start, stop), part in zip(ranges, parts, strict=True):
            check_length(part, start, stop)
        return parts

    def has(self, stamp: str, timeout: float) -> bool:  # noqa: ARG002 - as of all transports
        """Return True: servers behind one name, and caches, have times of their own."""
        return True

    def check_same(self, timeout: float) -> None:
        """Reject the open file if it was written to. One that took its name is another file."""
        if self._size_and_stamp(timeout, force=True) != (self.size, self.stamp):
            raise ReplacedError

    def close(self) -> None:
        """Close the file, without waiting for a server that may be gone."""
        self._file.close(timeout=1, callback=lambda *_: None)

    def _size_and_stamp(self, timeout: float, *, force: bool = False) -> tuple[int, str]:
        info = self._call(partial(self._file.stat, force=force), timeout=timeout)
        return int(info.size), str(info.modtime)

    def _call(self, function: Callable[..., Any], *arguments: Any, timeout: float) -> Any:
        """Call the client, and wait for its answer little longer than its own timeout."""
        answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        seconds = max(1, int(timeout))
        status = function(
            *arguments,
            timeout=seconds,
            callback=lambda status, answer, _: answers.put((status, answer)),
        )
        if not status.ok:
            raise _replica_error(status, self._url)
        try:
            status, answer = answers.get(timeout=seconds + _GRACE_S)
        except queue.Empty:
            raise TransientError(f"no answer within {seconds} s") from None
        if not status.ok:
            raise _replica_error(status, self._url)
        return answer


def _on_new_connection(url: str) -> str:
    """Return the URL for a connection of its own, where the last one failed.

    The client has one connection for all files of a user and server. It would go on with one that
    hangs, and does not replace one that broke for a while. The user name means nobody: access is a
    matter of tokens and certificates.
    """
    n_failures = server_health.n_failures(url)
    if not n_failures or "@" in urlsplit(url).netloc:
        return url
    return url.replace("://", f"://again{n_failures}@", 1)


def _replica_error(status: Any, url: str) -> ReplicaError:
    message = credentials.redacted(" ".join(str(status.message).split()))
    message = message.removeprefix("[ERROR] ").removeprefix("[FATAL] ")
    reason = _NO_PERMISSION if _LOGIN_FAILED in message else _PERMANENT.get(status.errno)
    if reason is not None:
        hint = credentials.withheld_hint(url) if reason == _NO_PERMISSION else ""
        return PermanentError(f"{reason} ({message}){hint}")
    if status.errno == _TRUNCATED:
        return CorruptError(f"cut off, or not readable on its server ({message})")
    if any(words in message for words in _UNTRUSTED):
        return PermanentError(f"its server is not trusted ({message}); check X509_CERT_DIR")
    if _WRONG_ADDRESS in message:
        return PermanentError(f"its server's name is not known ({message})")
    if any(words in message for words in _WRONG_NAME):
        return PermanentError(message)
    return TransientError(message)
