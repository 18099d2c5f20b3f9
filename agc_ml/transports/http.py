"""Files over http and https: the ranges that are needed, many in a request where servers can."""

from __future__ import annotations

import functools
import io
import logging
import os
import re
import ssl
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urljoin

import urllib3

from agc_ml.transports import credentials
from agc_ml.transports.base import (
    STAMP_SEPARATOR,
    Data,
    Range,
    Transport,
    check_length,
    is_same_version,
)
from agc_ml.transports.file_header import N_BYTES
from agc_ml.transports.replica_errors import (
    PermanentError,
    ReplacedError,
    ReplicaError,
    TransientError,
)

CONNECT_S: Final = 5.0
# A server that sends nothing for so many seconds is taken for gone.
SILENT_S: Final = 8.0
# Ranges that are no further apart are requested as one: each part of an answer costs as much.
GAP: Final = 4096
_MAX_RANGES: Final = 100  # headers of more are longer than servers take
_PARALLEL: Final = 8
_MAX_REDIRECTS: Final = 5
_BUFFER: Final = 1 << 16
# A file older than so many seconds had nothing else written within its second: RFC 9110.
_AGE_S: Final = 60
# Attempts to find the version that was read before: ten mirrors may take turns.
_MIRROR_TRIES: Final = 20
# The same where a tag or a time is equal, and only the other one is not.
_SHARED_STAMP_TRIES: Final = 3
_PERMANENT: Final = {
    401: "no permission: a valid token or certificate is needed",
    403: "no permission",
    404: "no such file",
    410: "no such file",
}
_DENIED: Final = {401, 403}
# Words of the alerts with which a server ends a connection because of our certificate.
_CERTIFICATE_ALERTS: Final = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "HANDSHAKE_FAILURE")
_RANGE_LINE: Final = re.compile(rb"(?i)content-range:\s*bytes\s+(\d+)-(\d+)/(\d+)?")
_RANGE: Final = re.compile(r"bytes\s+(\d+)-(\d+)/(\d+)")
_WHOLE, _PARTIAL, _BEYOND = 200, 206, 416

Part = tuple[int, bytes]


class RangeResponse(NamedTuple):
    """A server's response, with the parts of the file that it sent by their offsets.

    ``size`` is the length of the whole file in bytes, None where the response does not tell.
    """

    status: int
    headers: Any
    parts: list[Part]
    size: int | None

    @property
    def begin(self) -> bytes:
        """Its first part."""
        return self.parts[0][1] if self.parts else b""

    @property
    def stamp(self) -> str:
        """Tag and time of the file, which mirrors may have in common.

        Times are of whole seconds: a file written just now may be written again in this one.
        """
        tag, modified = self.headers.get("ETag", ""), self.headers.get("Last-Modified", "")
        written, now = parsedate_tz(modified), parsedate_tz(self.headers.get("Date", ""))
        if tag and (written is None or now is None or mktime_tz(now) - mktime_tz(written) < _AGE_S):
            modified = ""
        return STAMP_SEPARATOR.join([tag, modified]) if tag or modified else ""


class HttpFile(Transport):
    """A file of a web server.

    It is opened by reading its first bytes: URLs that are signed for reading allow no more.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._takes_many_ranges = True
        response = self._get([(0, N_BYTES)], timeout)
        if response.status == _WHOLE:
            raise PermanentError(
                "its server sends whole files, not the ranges that are needed; use one that knows "
                "ranges (Apache, nginx, XRootD: deploy/xrootd)"
            )
        if response.size is None and response.status != _BEYOND:
            raise PermanentError("its server does not say how large it is (Content-Range)")
        self.size, self.stamp, self.begin = response.size or 0, response.stamp, response.begin
        self._stamps = {response.stamp}
        self._shared_stamps: set[str] = set()  # parts of stamps that mirrors have in common

    def read(self, ranges: Sequence[Range], timeout: float) -> list[Data]:
        """Read parts of the file."""
        merged = _merge(ranges)
        end = time.monotonic() + timeout
        parts = None
        if self._takes_many_ranges and len(merged) > 1:
            parts = self._read_together(merged, end)
            self._takes_many_ranges = parts is not None
        if parts is None:
            parts = self._read_one_by_one(merged, end)
        return _cut_out(ranges, sorted(parts))

    def _read_together(self, ranges: Sequence[Range], end: float) -> list[Part] | None:
        """Request many ranges at a time; None if the server does not support that."""
        parts = []
        for first in range(0, len(ranges), _MAX_RANGES):
            batch = ranges[first : first + _MAX_RANGES]
            response = self._get_same_version(batch, end)
            is_complete = len(batch) == 1 or _is_multipart(response.headers)
            if response.status != _PARTIAL or not is_complete:
                return None
            parts += response.parts
        return parts

    def _read_one_by_one(self, ranges: Sequence[Range], end: float) -> list[Part]:
        def read(wanted: Range) -> Part:
            response = self._get_same_version([wanted], end)
            if response.status != _PARTIAL or not response.parts:
                raise TransientError(f"its server answers {response.status} to a range")
            return response.parts[0]

        if len(ranges) == 1:
            return [read(ranges[0])]
        with ThreadPoolExecutor(min(_PARALLEL, len(ranges))) as pool:
            return list(pool.map(read, ranges))

    def _get_same_version(self, ranges: Sequence[Range], end: float) -> RangeResponse:
        """Request ranges of the file that was opened: another one may have its name by now."""
        response = self._get(ranges, end - time.monotonic())
        stamp = response.stamp
        is_known = stamp in self._stamps or any(
            part in self._shared_stamps for part in stamp.split(STAMP_SEPARATOR)
        )
        if response.size not in {None, self.size} or not (is_known or self._is_mirror(stamp, end)):
            raise ReplacedError
        return response

    def has(self, stamp: str, timeout: float) -> bool:
        """Return whether a mirror still has the version of that stamp."""
        end = time.monotonic() + timeout
        return any(is_same_version(r.stamp, stamp) for r in self._beginnings(_MIRROR_TRIES, end))

    def _is_mirror(self, stamp: str, end: float) -> bool:
        """Return whether a stamp is that of the opened version on another mirror.

        Mirrors mostly have a tag or a time in common: then a few answers that begin as the opened
        file are enough. Else two are needed: one of the version that was opened, which is gone if
        the file was replaced, and one with the stamp that begins so.
        """
        known = frozenset(self._stamps)
        parts = {part for part in stamp.split(STAMP_SEPARATOR) if part}
        shared = parts & {part for other in known for part in other.split(STAMP_SEPARATOR)}
        if shared or not stamp:
            is_same = len(list(self._beginnings(_SHARED_STAMP_TRIES, end))) == _SHARED_STAMP_TRIES
            self._shared_stamps |= shared if is_same else set()
            return is_same
        is_there = False
        for response in self._beginnings(_MIRROR_TRIES, end):
            is_there |= any(is_same_version(response.stamp, other) for other in known)
            if is_there and stamp in self._stamps:
                return True
        self._stamps = set(known)
        return False

    def _beginnings(self, n_tries: int, end: float) -> Iterator[RangeResponse]:
        """Read the first bytes repeatedly, until they are of another file.

        Every other try uses a connection of its own, which may lead to another mirror. The stamps
        of the responses are known from then on.
        """
        for n in range(n_tries):
            response = self._get([(0, N_BYTES)], end - time.monotonic(), is_anew=n % 2 == 1)
            if (response.begin, response.size) != (self.begin, self.size):
                return
            self._stamps.add(response.stamp)
            yield response

    def _get(
        self, ranges: Sequence[Range], timeout: float, *, is_anew: bool = False
    ) -> RangeResponse:
        """Request ranges; retry once if the token was replaced since it was refused.

        ``is_anew`` opens a connection of its own, which may lead to another mirror.
        """
        token = credentials.token_for(self._url)
        try:
            return _get(self._url, ranges, timeout, is_anew=is_anew)
        except PermanentError:
            if credentials.token_for(self._url) == token:
                raise
            return _get(self._url, ranges, timeout, is_anew=is_anew)

    def check_same(self, timeout: float) -> None:
        """Do nothing: each response says which version it is of."""


def _get(url: str, ranges: Sequence[Range], timeout: float, *, is_anew: bool) -> RangeResponse:
    """Request ranges, wherever the server redirects.

    Redirects are followed here: each host gets a token only if it is listed.
    """
    end = time.monotonic() + timeout
    try:
        # without its cache, _pool makes a new pool, and so a new connection
        pool = (_pool.__wrapped__ if is_anew else _pool)(*_identity())
        for _ in range(_MAX_REDIRECTS + 1):
            with _send(pool, url, ranges, end - time.monotonic()) as response:
                location = response.get_redirect_location()
                if location:
                    response.read1(_BUFFER)  # mostly all of it, so that the connection is kept
                    url = urljoin(url, location)
                    continue
                _refuse_status(response, url)
                parts, size = _parts(response, end) if response.status == _PARTIAL else ([], None)
                return RangeResponse(response.status, response.headers, parts, size)
    except urllib3.exceptions.HTTPError as error:
        raise _replica_error(error) from error
    except OSError as error:
        raise PermanentError(f"certificates can't be read: {error}") from error
    raise PermanentError(f"its server redirects more than {_MAX_REDIRECTS} times")


def _send(
    pool: urllib3.PoolManager, url: str, ranges: Sequence[Range], timeout: float
) -> urllib3.BaseHTTPResponse:
    """Send one request; the response has its headers, and its body is still to be read."""
    headers = {"Range": "bytes=" + ",".join(f"{start}-{stop - 1}" for start, stop in ranges)}
    token = credentials.token_for(url)
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return pool.request(
        "GET",
        url,
        headers=headers,
        redirect=False,
        preload_content=False,
        decode_content=False,
        timeout=urllib3.Timeout(
            connect=max(0.1, min(CONNECT_S, timeout)), read=max(0.1, min(SILENT_S, timeout))
        ),
        retries=urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=0),
    )


class _Body(io.RawIOBase):
    """Body of a response as it comes, until ``end``."""

    def __init__(self, response: urllib3.BaseHTTPResponse, end: float) -> None:
        super().__init__()
        self._response = response
        self._end = end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if time.monotonic() > self._end:
            raise TransientError("its server is too slow")
        piece = self._response.read1(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def _parts(response: urllib3.BaseHTTPResponse, end: float) -> tuple[list[Part], int | None]:
    """Split a response while it comes: one buffer for all of it would be new memory each time.

    Each part says its range, and so its length, and how long the whole file is.
    """
    body = io.BufferedReader(_Body(response, end), _BUFFER)
    if not _is_multipart(response.headers):
        match = _RANGE.match(response.headers.get("Content-Range", ""))
        return ([(int(match[1]), body.read())], int(match[3])) if match else ([], None)
    parts: list[Part] = []
    place: tuple[int, int] | None = None
    size = None
    while line := body.readline(_BUFFER):
        if in_head := _RANGE_LINE.match(line):
            place = int(in_head[1]), int(in_head[2])
            size = int(in_head[3]) if in_head[3] else size
        elif place is not None and not line.strip():  # the end of a part's headers
            parts.append((place[0], body.read(place[1] + 1 - place[0])))
            place = None
    return parts, size


def _is_multipart(headers: Any) -> bool:
    return bool(headers.get("Content-Type", "").lower().startswith("multipart/byteranges"))


def _refuse_status(response: urllib3.BaseHTTPResponse, url: str) -> None:
    """Raise the error of a status that is neither the file nor a part of it."""
    status = response.status
    if status in {_WHOLE, _PARTIAL, _BEYOND}:
        return
    if status in _PERMANENT:
        hint = credentials.withheld_hint(url) if status in _DENIED else ""
        raise PermanentError(f"{_PERMANENT[status]} ({status} {response.reason}){hint}")
    is_our_fault = 400 <= status < 500 and status not in {408, 425, 429}  # noqa: PLR2004
    kind = PermanentError if is_our_fault else TransientError
    raise kind(f"its server answers {status} {response.reason}")


def _replica_error(error: urllib3.exceptions.HTTPError) -> ReplicaError:
    cause = getattr(error, "reason", None) or error
    text = credentials.redacted(" ".join(str(cause).split()))
    match cause:
        case urllib3.exceptions.NameResolutionError():
            return PermanentError(f"its server's name is not known ({text.rpartition('(')[2]}")
        case urllib3.exceptions.NewConnectionError():
            return TransientError(f"no connection to its server ({text.rpartition('] ')[2]}")
        case urllib3.exceptions.SSLError():
            return _tls_error(cause.args[0], text)
        case urllib3.exceptions.LocationParseError():
            return PermanentError(f"not a URL: {text}")
        case urllib3.exceptions.TimeoutError():
            return TransientError("its server does not answer")
    return TransientError(f"the connection broke: {text.rpartition(': ')[2] or text}")


def _tls_error(error: object, text: str) -> ReplicaError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return PermanentError(
            f"its server is not trusted ({text}); check X509_CERT_DIR or SSL_CERT_FILE"
        )
    if any(words in (getattr(error, "reason", None) or "") for words in _CERTIFICATE_ALERTS):
        return PermanentError(f"no permission: its server refuses our certificate ({text})")
    return TransientError(f"the connection broke: {text}")


def _identity() -> tuple[str | None, tuple[str, str] | None, float]:
    """Return the folder of trusted authorities, our certificate's files, and their age."""
    certificate = credentials.client_certificate()
    changed = max((Path(file).stat().st_mtime for file in certificate or ()), default=0.0)
    return os.environ.get("X509_CERT_DIR"), certificate, changed


@functools.lru_cache(maxsize=4)
def _pool(
    authorities: str | None, certificate: tuple[str, str] | None, changed: float
) -> urllib3.PoolManager:
    """Return this process's connections, kept for the next file of the same server."""
    for name in ("connectionpool", "poolmanager", "util.retry"):
        logging.getLogger(f"urllib3.{name}").addFilter(_redact)
    context = _tls_context(authorities, certificate, changed)
    return urllib3.PoolManager(maxsize=_PARALLEL, ssl_context=context)


@functools.lru_cache(maxsize=4)
def _tls_context(
    authorities: str | None, certificate: tuple[str, str] | None, _changed: float
) -> ssl.SSLContext:
    """Return a context with authorities and certificate, which take 50 ms to read."""
    context = ssl.create_default_context()
    if authorities:
        context.load_verify_locations(capath=authorities)
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return context


def _redact(record: logging.LogRecord) -> bool:
    """Remove tokens and signatures from urllib3's log lines."""
    record.msg, record.args = credentials.redacted(record.getMessage()), ()
    return True


def _merge(ranges: Sequence[Range]) -> list[Range]:
    """Sort ranges, and merge those that are close to each other."""
    merged: list[Range] = []
    for start, stop in sorted(ranges):
        if merged and start - merged[-1][1] <= GAP:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


def _cut_out(ranges: Sequence[Range], parts: Sequence[Part]) -> list[Data]:
    """Cut ranges out of sorted parts of a file."""
    starts = [start for start, _ in parts]
    pieces: list[Data] = []
    for start, stop in ranges:
        index = bisect_right(starts, start) - 1
        if index < 0:
            raise TransientError(f"its server left out the bytes at {start}")
        begin, data = parts[index]
        piece = memoryview(data)[start - begin : stop - begin]
        check_length(piece, start, stop)
        pieces.append(piece)
    return pieces
