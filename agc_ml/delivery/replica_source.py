"""The source that uproot reads from: a file with replicas, any of which may fail at any time."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NoReturn, Self

from uproot.source.chunk import Chunk, Source
from uproot.source.futures import TrivialFuture

from agc_ml.errors import DeliveryError
from agc_ml.inputs.datasets import ExpectedFile, File
from agc_ml.transports import server_health
from agc_ml.transports.base import Data, Range, Transport, is_same_version, scheme
from agc_ml.transports.connect import connect
from agc_ml.transports.credentials import redacted
from agc_ml.transports.file_header import N_BYTES, FileHeader, parse_header
from agc_ml.transports.local_file import LocalFile
from agc_ml.transports.replica_errors import (
    ChangedError,
    CorruptError,
    MismatchError,
    PermanentError,
    ReplacedError,
    ReplicaError,
    TransientError,
)

logger = logging.getLogger(__name__)

# Seconds after which a read fails that no replica answers.
DEADLINE_S: Final = 25.0
# One request to one replica may take OPERATION_S, and a second more for so many bytes.
OPERATION_S: Final = 8.0
SLOWEST: Final = 1e6
# Seconds that a server has to say whether a file has changed.
CHECK_S: Final = 1.0
PAUSE_S: Final = 1.0
MAX_RANGES: Final = 1000  # a vector read of a multiple of 1024 ranges is refused
MAX_RANGE_BYTES: Final = 2_097_136  # of a vector read: XRootD's limit
MAX_REQUEST_BYTES: Final = 4 * MAX_RANGE_BYTES


class ReplicaSource(Source):  # type: ignore[misc]
    """The bytes of a file, from whichever replica answers.

    Data that were read are kept: when a replica fails, the next one is asked for the rest. It has
    to be the same file, by size and by the UUID in its header: the ``listed`` one of the fileset,
    and the ``expected`` one of the inspection. ``failures`` has the reason of each failed replica.

    Raises
    ------
    DeliveryError
        No replica can be read; the message names each with its reason.
    """

    def __init__(
        self,
        path: str,
        *,
        listed: File,
        expected: ExpectedFile | None = None,
        on_open: Callable[[ReplicaSource], object] = lambda _: None,
        failures: dict[str, str] | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self._file_path = path
        self._listed = listed
        self._expected = expected
        self._header: FileHeader | None = None
        self._begin = b""
        self._size: int | None = None
        self._transport: Transport | None = None
        self._url = ""
        self._stamps = {} if expected is None else {expected.url: expected.stamp}
        self._distrusted: set[str] = set()
        self._lock = threading.RLock()
        self._ahead: ThreadPoolExecutor | None = None
        self._closed = False
        self.failures = {} if failures is None else failures
        self._read_from_any([])  # opens a replica
        on_open(self)

    @property
    def url(self) -> str:
        """URL of the replica that is read."""
        return self._url

    @property
    def stamp(self) -> str:
        """Stamp of the replica that is read, which changes when the file does."""
        return "" if self._transport is None else self._transport.stamp

    @property
    def is_local(self) -> bool:
        """True for a file on a disk of this machine."""
        return scheme(self._url) == "file"

    @property
    def num_bytes(self) -> int:
        """Length of the file."""
        return self._size or 0

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed

    def chunk(self, start: int, stop: int) -> Any:
        """Read one part; less of it where the file ends."""
        return self.chunks([(start, stop)], None)[0]

    def chunks(self, ranges: Sequence[Range], notifications: Any) -> list[Any]:
        """Read parts, in as few requests as possible."""
        inside = [
            (int(start), max(int(start), min(int(stop), self.num_bytes))) for start, stop in ranges
        ]
        # uproot's performance counters
        self._num_requests += 1
        self._num_requested_chunks += len(inside)
        self._num_requested_bytes += sum(stop - start for start, stop in inside)
        chunks = [
            Chunk(self, start, stop, TrivialFuture(data))
            for (start, stop), data in zip(ranges, self.read(inside), strict=True)
        ]
        for chunk in chunks if notifications is not None else ():
            notifications.put(chunk)
        return chunks

    def read(self, ranges: Sequence[Range]) -> list[Data]:
        """Read parts that are inside the file."""
        if all(stop <= len(self._begin) for _, stop in ranges):
            return [self._begin[start:stop] for start, stop in ranges]
        with self._lock:
            if isinstance(self._transport, LocalFile):  # no limits, no waiting
                with contextlib.suppress(ReplicaError):  # then retry below, as for servers
                    return self._transport.read(ranges, OPERATION_S)
            pieces = [data for batch in _batches(ranges) for data in self._read_from_any(batch)]
        return _join(ranges, iter(pieces))

    def read_ahead(self, ranges: Sequence[Range]) -> Future[list[Data]]:
        """Read parts in the background, while the caller does something else."""
        if self._ahead is None:
            # glibc reuses blocks up to the size of the largest that was freed. Without this,
            # each answer is new memory: a tenth of the time of reading.
            bytes(MAX_REQUEST_BYTES)
            self._ahead = ThreadPoolExecutor(1, "read-ahead")
        return self._ahead.submit(self.read, ranges)

    def distrust(self, reason: str, url: str = "") -> bool:
        """Mark a replica (the open one) as damaged; return whether there is another one."""
        with self._lock:
            url = url or self._url
            if not url or self._is_doubtful:
                return False
            self._record_failure(url, CorruptError(reason))
            self._distrusted.add(url)
            if url == self._url:
                self._drop()
            return not self._distrusted.issuperset(self._listed.replicas)

    @property
    def _is_doubtful(self) -> bool:
        """True if what is remembered of the file is to blame before a replica is."""
        return self._expected is not None and self._expected.is_remembered

    def check_same(self) -> None:
        """Reject a file that was replaced or changed while it was read.

        Raises
        ------
        DeliveryError
            It was.
        """
        with self._lock:
            if self._transport is None:
                return
            try:
                self._transport.check_same(CHECK_S)
            except ReplacedError as error:
                self._drop()
                raise DeliveryError(str(error), may_be_replaced=True) from error
            except ReplicaError as error:  # its server is gone; what it gave before is whole
                logger.debug("%s: can't be compared: %s", self._listed.lfn, error)
                self._drop()

    def _read_from_any(self, ranges: Sequence[Range]) -> list[Data]:
        """Read parts from a replica, from another one if it fails."""
        n_bytes = sum(stop - start for start, stop in ranges)
        begun, longest = time.monotonic(), OPERATION_S + n_bytes / SLOWEST
        errors: dict[str, ReplicaError] = {}
        if self._transport is not None and not self._closed:  # nearly always no more is needed
            with contextlib.suppress(ReplicaError):
                return self._attempt(self._url, ranges, min(longest, DEADLINE_S), errors)
        # Servers that were given up get one short try, so that a run without servers ends.
        is_hopeless = all(map(server_health.is_on_probation, self._listed.replicas))
        patience = OPERATION_S if is_hopeless else DEADLINE_S
        end = begun + patience
        while not self._closed:
            for url in self._candidates(errors):
                left = end - time.monotonic()
                if left <= 0:
                    break
                with contextlib.suppress(ReplicaError):
                    return self._attempt(url, ranges, min(longest, left), errors)
            left = end - time.monotonic()
            if not self._candidates(errors) or left <= PAUSE_S:
                self._fail(errors, patience if left <= PAUSE_S else None)
            time.sleep(PAUSE_S)
        raise DeliveryError("it was closed while it was read")

    def _attempt(
        self,
        url: str,
        ranges: Sequence[Range],
        timeout: float,
        errors: dict[str, ReplicaError],
    ) -> list[Data]:
        """Read parts from one replica; its failure is recorded and raised."""
        try:
            transport = self._connected(url, timeout)
            parts = transport.read(ranges, timeout) if ranges else []
        except ReplicaError as error:
            errors[url] = error
            self._drop()
            if isinstance(error, ChangedError) and self._is_doubtful:
                self._fail(errors, None)
            self._record_failure(url, error)
            raise
        server_health.record_success(url)
        return parts

    def _candidates(self, errors: dict[str, ReplicaError]) -> list[str]:
        """Return replicas that may still answer, the most promising one first."""
        lasting = {url for url, e in errors.items() if not isinstance(e, TransientError)}
        ordered = server_health.by_reliability(self._listed.replicas)
        urls = [url for url in ordered if url not in lasting]
        trusted = [url for url in urls if url not in self._distrusted] or urls
        for url in [url for url in trusted if url not in errors]:
            reason = server_health.given_up_reason(url)
            if reason is not None:
                errors[url] = PermanentError(f"{reason} (a moment ago)")
                trusted.remove(url)
        return trusted

    def _connected(self, url: str, timeout: float) -> Transport:
        if self._transport is not None and self._url == url:
            return self._transport
        begun = time.monotonic()
        transport = connect(url, timeout)
        try:
            self._verify(url, transport, max(1.0, timeout - (time.monotonic() - begun)))
        except ReplicaError:
            transport.close()
            raise
        self._transport, self._url = transport, url
        return transport

    def _verify(self, url: str, transport: Transport, timeout: float) -> None:
        """Reject a replica that is cut off, or not the listed file."""
        begin = bytes(getattr(transport, "begin", b""))
        if not begin and transport.size:
            begin = bytes(transport.read([(0, min(N_BYTES, transport.size))], timeout)[0])
        header, size = parse_header(begin), transport.size
        if size < header.end:
            raise CorruptError(f"it is cut off: {size} of {header.end} bytes are there")
        listed = self._listed
        _refuse_other("the fileset says", header, size, listed.uuid, listed.size)
        if self._header is not None:
            _refuse_other("another replica says", header, size, self._header.uuid, self._size)
        if self._expected is not None:
            try:
                _refuse_other("it had", header, size, self._expected.uuid, self._expected.size)
            except MismatchError as error:
                raise ChangedError(str(error)) from error
        # The stamp tells versions of equal size and UUID apart.
        earlier = self._stamps.setdefault(redacted(url), transport.stamp)
        is_same = is_same_version(earlier, transport.stamp)
        if not is_same and (self._is_doubtful or not transport.has(earlier, timeout)):
            raise ChangedError("it was changed since it was first opened: its time or tag differs")
        self._header, self._size, self._begin = header, size, begin

    def _record_failure(self, url: str, error: ReplicaError) -> None:
        reason = redacted(str(error))
        if url not in self.failures:
            logger.debug("%s: %s: %s", self._listed.lfn, redacted(url), reason)
        self.failures[url] = reason
        server_health.record_failure(url, error)

    def _drop(self) -> None:
        if self._transport is not None:
            self._transport.close()
        self._transport = None

    def _fail(self, errors: dict[str, ReplicaError], waited: float | None) -> NoReturn:
        """Raise with the reason of each replica; ``waited`` s, or None if waiting is of no use."""
        if waited is not None:
            for url, error in errors.items():
                if isinstance(error, TransientError):
                    server_health.give_up(url, str(error))
        reasons = [
            (redacted(url), str(errors.get(url) or self.failures.get(url, "not tried")))
            for url in self._listed.replicas
        ]
        listed = "; ".join(f"{url}: {reason}" for url, reason in reasons)
        text = reasons[0][1] if len(reasons) == 1 else f"no replica can be read: {listed}"
        if waited is not None:
            text += f" (tried for {waited:.0f} s)"
        mismatches = [isinstance(error, MismatchError) for error in errors.values()] or [False]
        is_replaced = any(isinstance(error, ReplacedError) for error in errors.values())
        raise DeliveryError(
            redacted(text),
            is_other_file=all(mismatches),
            may_be_replaced=any(mismatches) or is_replaced,
        )

    def close(self) -> None:
        """Close the file, and stop reading ahead."""
        self._closed = True
        if self._ahead is not None:
            self._ahead.shutdown(wait=False, cancel_futures=True)
            self._ahead = None
        with self._lock:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refuse_other(
    source: str, header: FileHeader, size: int, uuid: str | None, expected_size: int | None
) -> None:
    for name, actual, expected in (("uuid", header.uuid, uuid), ("size", size, expected_size)):
        if expected is not None and actual != expected:
            raise MismatchError(
                f"its {name} is {actual}, but {source} {expected}; is it another file?"
            )


def _batches(ranges: Iterable[Range]) -> Iterator[list[Range]]:
    """Cut ranges into batches that one request may ask for."""
    batch: list[Range] = []
    n_bytes = 0
    for start, stop in ranges:
        for begin in range(start, stop, MAX_RANGE_BYTES):
            end = min(begin + MAX_RANGE_BYTES, stop)
            if batch and (len(batch) == MAX_RANGES or n_bytes + end - begin > MAX_REQUEST_BYTES):
                yield batch
                batch, n_bytes = [], 0
            batch.append((begin, end))
            n_bytes += end - begin
    if batch:
        yield batch


def _join(ranges: Iterable[Range], pieces: Iterator[Data]) -> list[Data]:
    """Join the pieces of ranges that `_batches` cut."""
    parts: list[Data] = []
    for start, stop in ranges:
        n = -(-(stop - start) // MAX_RANGE_BYTES)
        parts.append(next(pieces) if n == 1 else b"".join(next(pieces) for _ in range(n)))
    return parts
