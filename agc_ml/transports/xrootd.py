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
from agc_ml.transports.base import REPLACED, Data, Range, check
from agc_ml.transports.replica_errors import (
    CorruptError,
    PermanentError,
    ReplacedError,
    ReplicaError,
    TransientError,
)

SETTINGS: Final = {
    "XRD_CONNECTIONWINDOW": "5",
    "XRD_CONNECTIONRETRY": "2",
    "XRD_REQUESTTIMEOUT": "20",
    "XRD_STREAMTIMEOUT": "10",
    "XRD_TIMEOUTRESOLUTION": "1",
    "XRD_STREAMERRORWINDOW": "5",
}
"""The client's own limits, in seconds: by default it waits minutes for a server that is gone."""
LOGINS: Final = {"XrdSecPROTOCOL": "gsi,krb5,sss,pwd,unix,host"}
"""What the client may log in with: not with a token (ztn), which any server could ask it for."""
_GRACE_S: Final = 2.0
_READ: Final = 16  # OpenFlags.READ

# The server's codes, of XProtocol, and words of the client's own errors.
_NO_LEAVE: Final = "no permission"
_PERMANENT: Final = {
    3010: _NO_LEAVE,
    3011: "no such file",
    3016: "it is a folder",
    3030: _NO_LEAVE,
}
_NO_LOGIN: Final = "Auth failed"
_TRUNCATED: Final = 3005
_UNTRUSTED: Final = (
    *("Failed to initialize TLS", "Unable to validate"),
    *("TLS error: resource temporarily unavailable", "error_ssl"),
)
"""No authorities are there, another host's certificate, one that nobody we trust has signed."""
_WRONG_ADDRESS: Final = "Invalid address"
_WRONG_NAME: Final = (
    *("Unknown protocol", "Invalid arguments"),
    "Server was not configured to support encryption",
)


def prepare() -> None:
    """Set the client's limits where nobody did, and keep tokens from it.

    It has to be called before the client is loaded, or it is too late for the limits; and before
    anything is opened. The client looks for a token itself, and a server that asks gets it: also
    one that is not listed, or to which another one sends us with what it should log in with. So
    what the client finds is a decoy. Where tokens may go they are in the URL.
    """
    for name, value in (SETTINGS | LOGINS).items():
        os.environ.setdefault(name, value)
    with contextlib.suppress(PermanentError):  # a file that can't be read here can't be there
        if credentials.found() is None:
            return
    ours = ctypes.CDLL(None)
    ours.getenv.restype = ctypes.c_char_p
    if ours.getenv(b"BEARER_TOKEN") != credentials.DECOY.encode():
        # os.environ, and so the user's own code in this process, keeps the token
        ours.setenv(b"BEARER_TOKEN", credentials.DECOY.encode(), 1)


class XRootDFile:
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
        self._call(self._file.open, _fresh(credentials.with_token(url)), _READ, timeout=timeout)
        try:
            info = self._call(self._file.stat, timeout=timeout)
        except ReplicaError:
            self.close()
            raise
        self.size = int(info.size)
        self.stamp = str(info.modtime)

    def read(self, ranges: Sequence[Range], timeout: float) -> list[Data]:
        """Read parts of the file with one request."""
        wanted = [(start, stop - start) for start, stop in ranges]
        found = self._call(self._file.vector_read, wanted, timeout=timeout)
        parts: list[Data] = [chunk.buffer for chunk in found.chunks]
        for (start, stop), part in zip(ranges, parts, strict=True):
            check(part, start, stop)
        return parts

    def has(self, stamp: str, timeout: float) -> bool:  # noqa: ARG002 - as of all transports
        """Whether it may be: servers behind one name, and caches, have times of their own."""
        return True

    def check_same(self, timeout: float) -> None:
        """See that the open file was not written to. One that took its name is another one."""
        info = self._call(partial(self._file.stat, force=True), timeout=timeout)
        if (int(info.size), str(info.modtime)) != (self.size, self.stamp):
            raise ReplacedError(REPLACED)

    def close(self) -> None:
        """Let go of the file. Nobody waits for a server that may be gone."""
        self._file.close(timeout=1, callback=lambda *_: None)

    def _call(self, function: Callable[..., Any], *arguments: Any, timeout: float) -> Any:
        """Call the client, and wait for its answer no longer than it was told to take."""
        answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        seconds = max(1, int(timeout))
        begun = function(
            *arguments,
            timeout=seconds,
            callback=lambda status, answer, _: answers.put((status, answer)),
        )
        if not begun.ok:
            raise _sorted(begun, self._url)
        try:
            status, answer = answers.get(timeout=seconds + _GRACE_S)
        except queue.Empty:
            raise TransientError(f"no answer within {seconds} s") from None
        if not status.ok:
            raise _sorted(status, self._url)
        return answer


def _fresh(url: str) -> str:
    """The URL for a connection of its own, where the last one failed.

    The client has one connection for all files of a user and server. One that hangs it would go on
    to use, and one that broke it doesn't replace for a while. The name is that of nobody: who is
    let in is a matter of tokens and certificates.
    """
    times = server_health.times_failed(url)
    if not times or "@" in urlsplit(url).netloc:
        return url
    return url.replace("://", f"://again{times}@", 1)


def _sorted(status: Any, url: str) -> ReplicaError:
    message = credentials.redacted(" ".join(str(status.message).split()))
    message = message.removeprefix("[ERROR] ").removeprefix("[FATAL] ")
    reason = _NO_LEAVE if _NO_LOGIN in message else _PERMANENT.get(status.errno)
    if reason is not None:
        hint = credentials.withheld(url) if reason == _NO_LEAVE else ""
        return PermanentError(f"{reason} ({message}){hint}")
    if status.errno == _TRUNCATED:
        return CorruptError(f"cut off, or not readable on its server ({message})")
    if any(words in message for words in _UNTRUSTED):
        return PermanentError(f"its server is not trusted ({message}); X509_CERT_DIR")
    if _WRONG_ADDRESS in message:
        return PermanentError(f"its server's name is not known ({message})")
    if any(words in message for words in _WRONG_NAME):
        return PermanentError(message)
    return TransientError(message)
