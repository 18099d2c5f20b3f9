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

from agc_ml.transports import credentials
from agc_ml.transports.base import REPLACED, STAMPS, Data, Range, is_one_version
from agc_ml.transports.file_header import N_BYTES
from agc_ml.transports.replica_errors import (
    CorruptError,
    PermanentError,
    ReplacedError,
    ReplicaError,
    TransientError,
)

CONNECT_S: Final = 5.0
SILENT_S: Final = 8.0
"""A server that sends nothing for so long is taken for gone."""
GAP: Final = 4096
"""Ranges that are no further apart are asked for as one: a part of an answer costs as much."""
_MOST_RANGES: Final = 100  # headers of more are longer than servers take
_AT_ONCE: Final = 8
_MOST_REDIRECTS: Final = 5
_PIECE: Final = 1 << 16
_AGE_S: Final = 60
"""A file whose time is older than this had nothing else written within that second: RFC 9110."""
_TRIES: Final = 20
"""So often a server is asked for the version that was read before: ten mirrors may take turns."""
_LOOKS: Final = 3
"""So often where a tag or a time is the same, and only the other one is not."""
_PERMANENT: Final = {
    401: "no permission: a valid token or certificate is needed",
    403: "no permission",
    404: "no such file",
    410: "no such file",
}
_UNKNOWN: Final = {401, 403}
"""With these a server says that it does not know us, or not enough."""
_REFUSED: Final = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "HANDSHAKE_FAILURE")
"""Words of the alerts with which a server ends a connection because of who we are."""
_RANGE_LINE: Final = re.compile(rb"(?i)content-range:\s*bytes\s+(\d+)-(\d+)/(\d+)?")
_RANGE: Final = re.compile(r"bytes\s+(\d+)-(\d+)/(\d+)")
_LINE: Final = 1 << 12
_PARTIAL: Final = 206
_WHOLE: Final = 200
_BEYOND: Final = 416

Part = tuple[int, bytes]


class Answer(NamedTuple):
    """Answer of a server, with the parts of the file that it sent by their offsets.

    ``size`` is the length of the whole file in bytes, None where the answer does not tell.
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
        """What changes when the file does: its tag and its time, that mirrors may have in common.

        Times are of whole seconds: what was written just now may be written again in this one.
        """
        tag, modified = self.headers.get("ETag", ""), self.headers.get("Last-Modified", "")
        written, now = parsedate_tz(modified), parsedate_tz(self.headers.get("Date", ""))
        if tag and (written is None or now is None or mktime_tz(now) - mktime_tz(written) < _AGE_S):
            modified = ""
        return STAMPS.join([tag, modified]) if tag or modified else ""


class HttpFile:
    """A file of a web server.

    It is opened by reading its first bytes: addresses that are signed for reading allow no more.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._takes_many = True
        answer = self._get([(0, N_BYTES)], timeout)
        if answer.status == _WHOLE:
            raise PermanentError(
                "its server sends whole files, not the parts that are needed; use one that knows "
                "ranges (Apache, nginx, XRootD: deploy/xrootd)"
            )
        if answer.size is None and answer.status != _BEYOND:
            raise PermanentError("its server does not say how large it is (Content-Range)")
        self.size = answer.size or 0
        self.stamp = answer.stamp
        self.begin = answer.begin
        self._stamps = {answer.stamp}
        self._trusted: set[str] = set()  # parts of stamps that mirrors have in common

    def read(self, ranges: Sequence[Range], timeout: float) -> list[Data]:
        """Read parts of the file."""
        wanted = _joined(ranges)
        end = time.monotonic() + timeout
        parts = self._together(wanted, end) if self._takes_many and len(wanted) > 1 else None
        if parts is None:
            self._takes_many = self._takes_many and len(wanted) == 1
            parts = self._one_by_one(wanted, end)
        return _cut_out(ranges, sorted(parts))

    def _together(self, ranges: Sequence[Range], end: float) -> list[Part] | None:
        """Ask for many ranges in a request; None if the server does not know how to answer."""
        parts = []
        for first in range(0, len(ranges), _MOST_RANGES):
            some = ranges[first : first + _MOST_RANGES]
            answer = self._get_same(some, end)
            is_part = len(some) == 1 or _is_multipart(answer.headers)
            if answer.status != _PARTIAL or not is_part:
                return None
            parts += answer.parts
        return parts

    def _one_by_one(self, ranges: Sequence[Range], end: float) -> list[Part]:
        def one(wanted: Range) -> Part:
            answer = self._get_same([wanted], end)
            if answer.status != _PARTIAL or not answer.parts:
                raise TransientError(f"its server answers {answer.status} to a range")
            return answer.parts[0]

        if len(ranges) == 1:
            return [one(ranges[0])]
        with ThreadPoolExecutor(min(_AT_ONCE, len(ranges))) as pool:
            return list(pool.map(one, ranges))

    def _get_same(self, ranges: Sequence[Range], end: float) -> Answer:
        """Ask for ranges of the file that was opened: another one may have its name by now."""
        answer = self._get(ranges, end - time.monotonic())
        if answer.size not in {None, self.size}:
            raise ReplacedError(REPLACED)
        if not self._is_known(answer.stamp) and not self._is_mirrored(answer.stamp, end):
            raise ReplacedError(REPLACED)
        return answer

    def _is_known(self, stamp: str) -> bool:
        return stamp in self._stamps or any(part in self._trusted for part in stamp.split(STAMPS))

    def has(self, stamp: str, timeout: float) -> bool:
        """Return whether a mirror still has the version of that stamp."""
        end = time.monotonic() + timeout
        return any(is_one_version(again.stamp, stamp) for again in self._beginnings(_TRIES, end))

    def _is_mirrored(self, stamp: str, end: float) -> bool:
        """Return whether a stamp is that of the opened version on another mirror.

        Mirrors mostly have a tag or a time in common: then it is enough that some answers begin as
        what was opened. Else the version that was opened has to be there still, now and then, as
        well as one that has the stamp and begins so: a file that was replaced is gone.
        """
        others = frozenset(self._stamps)
        parts = {part for part in stamp.split(STAMPS) if part}
        shared = parts & {part for one in others for part in one.split(STAMPS)}
        if shared or not stamp:
            is_one = len(list(self._beginnings(_LOOKS, end))) == _LOOKS
            self._trusted |= shared if is_one else set()
            return is_one
        is_there = False
        for again in self._beginnings(_TRIES, end):
            is_there |= any(is_one_version(again.stamp, one) for one in others)
            if is_there and stamp in self._stamps:
                return True
        self._stamps = set(others)
        return False

    def _beginnings(self, n_most: int, end: float) -> Iterator[Answer]:
        """Answers that begin as the file that was opened, until one is of another file.

        Every other one comes over a connection of its own, that may lead to another mirror. Their
        stamps are known from then on.
        """
        for n in range(n_most):
            again = self._get([(0, N_BYTES)], end - time.monotonic(), is_anew=n % 2 == 1)
            if (again.begin, again.size) != (self.begin, self.size):
                return
            self._stamps.add(again.stamp)
            yield again

    def _get(self, ranges: Sequence[Range], timeout: float, *, is_anew: bool = False) -> Answer:
        """Ask for ranges; once more if the token was replaced since it was refused.

        ``is_anew``: over a connection of its own, that may lead to another mirror.
        """
        token = credentials.token(self._url)
        try:
            return _get(self._url, ranges, timeout, is_anew=is_anew)
        except PermanentError:
            if credentials.token(self._url) == token:
                raise
            return _get(self._url, ranges, timeout, is_anew=is_anew)

    def check_same(self, timeout: float) -> None:
        """Do nothing: each answer says which file it is of."""

    def close(self) -> None:
        """Nothing is held: connections belong to the process."""


def _get(url: str, ranges: Sequence[Range], timeout: float, *, is_anew: bool) -> Answer:
    """Ask for ranges, wherever the server sends us.

    Redirects are followed here: each host gets a token, or not, as it is listed.
    """
    import urllib3  # noqa: PLC0415 - on demand

    end = time.monotonic() + timeout
    try:
        pool = (_pool.__wrapped__ if is_anew else _pool)(*_identity())
        for _ in range(_MOST_REDIRECTS + 1):
            with _asked(pool, url, ranges, end - time.monotonic()) as response:
                place = response.get_redirect_location()
                if place:
                    response.read1(_PIECE)  # mostly all of it, so that the connection is kept
                    url = urljoin(url, place)
                    continue
                problem = _problem(response, url)
                if problem is not None:
                    raise problem
                parts, size = _parts(response, end) if response.status == _PARTIAL else ([], None)
                return Answer(response.status, response.headers, parts, size)
    except urllib3.exceptions.HTTPError as error:
        raise _sorted(error) from error
    except OSError as error:
        raise PermanentError(f"certificates can't be read: {error}") from error
    raise PermanentError(f"its server redirects more than {_MOST_REDIRECTS} times")


def _asked(pool: Any, url: str, ranges: Sequence[Range], timeout: float) -> Any:
    """The answer to one request, of which nothing but the head has been read."""
    import urllib3  # noqa: PLC0415 - on demand

    headers = {"Range": "bytes=" + ",".join(f"{start}-{stop - 1}" for start, stop in ranges)}
    token = credentials.token(url)
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
    """Content of an answer, as it comes, until ``end``."""

    def __init__(self, response: Any, end: float) -> None:
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


def _parts(response: Any, end: float) -> tuple[list[Part], int | None]:
    """Take an answer apart while it comes: one buffer for all of it would be new memory each time.

    Each part says where it is from, and so how long it is, and how long the whole file is.
    """
    body = io.BufferedReader(_Body(response, end), _PIECE)
    if not _is_multipart(response.headers):
        found = _RANGE.match(response.headers.get("Content-Range", ""))
        return ([(int(found[1]), body.read())], int(found[3])) if found else ([], None)
    parts: list[Part] = []
    place: tuple[int, int] | None = None
    size = None
    while line := body.readline(_LINE):
        if in_head := _RANGE_LINE.match(line):
            place = int(in_head[1]), int(in_head[2])
            size = int(in_head[3]) if in_head[3] else size
        elif place is not None and not line.strip():
            parts.append((place[0], body.read(place[1] + 1 - place[0])))
            place = None
    return parts, size


def _is_multipart(headers: Any) -> bool:
    return bool(headers.get("Content-Type", "").lower().startswith("multipart/byteranges"))


def _problem(response: Any, url: str) -> ReplicaError | None:
    status = response.status
    if status in {_WHOLE, _PARTIAL, _BEYOND}:
        return None
    if status in _PERMANENT:
        hint = credentials.withheld(url) if status in _UNKNOWN else ""
        return PermanentError(f"{_PERMANENT[status]} ({status} {response.reason}){hint}")
    text = f"its server answers {status} {response.reason}"
    is_fault_of_ours = 400 <= status < 500 and status not in {408, 425, 429}  # noqa: PLR2004
    return PermanentError(text) if is_fault_of_ours else TransientError(text)


def _sorted(error: Any) -> ReplicaError:
    import urllib3  # noqa: PLC0415 - on demand

    inner = getattr(error, "reason", None) or error
    text = credentials.redacted(" ".join(str(inner).split()))
    if isinstance(inner, urllib3.exceptions.NameResolutionError):
        return PermanentError(f"its server's name is not known ({text.rpartition('(')[2]}")
    if isinstance(inner, urllib3.exceptions.NewConnectionError):
        return TransientError(f"no connection to its server ({text.rpartition('] ')[2]}")
    if isinstance(inner, urllib3.exceptions.SSLError):
        return _sorted_tls(inner.args[0], text)
    if isinstance(inner, urllib3.exceptions.LocationParseError):
        return PermanentError(f"no URL: {text}")
    if isinstance(inner, urllib3.exceptions.TimeoutError):
        return TransientError("its server does not answer")
    return TransientError(f"the connection broke: {text.rpartition(': ')[2] or text}")


def _sorted_tls(error: object, text: str) -> ReplicaError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return PermanentError(f"its server is not trusted ({text}); X509_CERT_DIR or SSL_CERT_FILE")
    if any(words in (getattr(error, "reason", None) or "") for words in _REFUSED):
        return PermanentError(f"no permission: its server refuses our certificate ({text})")
    return TransientError(f"the connection broke: {text}")


def _identity() -> tuple[str | None, tuple[str, str] | None, float]:
    """Folder of the authorities we trust, files that say who we are, and when those changed."""
    proxy = credentials.proxy()
    changed = 0.0 if proxy is None else max(Path(file).stat().st_mtime for file in proxy)
    return os.environ.get("X509_CERT_DIR"), proxy, changed


@functools.lru_cache(maxsize=4)
def _pool(folder: str | None, proxy: tuple[str, str] | None, changed: float) -> Any:
    """Connections of this process, kept for the next file of the same server."""
    import urllib3  # noqa: PLC0415 - on demand

    for name in ("connectionpool", "poolmanager", "util.retry"):
        logging.getLogger(f"urllib3.{name}").addFilter(_without_secrets)
    return urllib3.PoolManager(maxsize=_AT_ONCE, ssl_context=_context(folder, proxy, changed))


@functools.lru_cache(maxsize=4)
def _context(folder: str | None, proxy: tuple[str, str] | None, _changed: float) -> ssl.SSLContext:
    """Authorities that we trust and our certificate: to read them takes 50 ms."""
    context = ssl.create_default_context()
    if folder:
        context.load_verify_locations(capath=folder)
    if proxy is not None:
        context.load_cert_chain(*proxy)
    return context


def _without_secrets(record: logging.LogRecord) -> bool:
    """Take tokens and signatures out of what urllib3 logs of each request."""
    record.msg, record.args = credentials.redacted(record.getMessage()), ()
    return True


def _joined(ranges: Sequence[Range]) -> list[Range]:
    """Sorted, and those that are close to each other as one."""
    joined: list[Range] = []
    for start, stop in sorted(ranges):
        if joined and start - joined[-1][1] <= GAP:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return joined


def _cut_out(ranges: Sequence[Range], parts: Sequence[Part]) -> list[Data]:
    starts = [start for start, _ in parts]
    found: list[Data] = []
    for start, stop in ranges:
        index = bisect_right(starts, start) - 1
        if index < 0:
            raise TransientError(f"its server left out the bytes at {start}")
        begin, data = parts[index]
        piece = memoryview(data)[start - begin : stop - begin]
        if len(piece) != stop - start:
            raise CorruptError(f"cut off: {len(piece)} of {stop - start} bytes at {start} came")
        found.append(piece)
    return found
