"""The source that uproot reads from: a file with replicas, any of which may fail at any time."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NoReturn, Self, TypeVar

from uproot.source.chunk import Chunk, Source
from uproot.source.futures import TrivialFuture

from agc_ml.errors import DeliveryError
from agc_ml.inputs.datasets import ExpectedFile, File
from agc_ml.transports import credentials, file_header, server_health
from agc_ml.transports.base import (
    Data,
    LocalFile,
    Range,
    Transport,
    connect,
    is_one_version,
    scheme,
)
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

DEADLINE_S: Final = 25.0
"""A read that no replica answers fails after so long."""
OPERATION_S: Final = 8.0
SLOWEST: Final = 1e6
"""One request to one replica may take ``OPERATION_S`` and, a second, so many bytes more."""
CHECK_S: Final = 1.0
"""So long a server may take to say whether a file is still what it was."""
PAUSE_S: Final = 1.0
MOST_RANGES: Final = 1000  # a vector read of a multiple of 1024 ranges is refused
MOST_BYTES: Final = 2_097_136  # of one range in a vector read: XRootD's limit
REQUEST_BYTES: Final = 4 * MOST_BYTES

Answer = TypeVar("Answer")


class ReplicaSource(Source):  # type: ignore[misc]
    """The bytes of a file, from whichever replica gives them.

    What was read stays read: when a replica fails, the next one is asked for the rest. It has to be
    the same file, by size and by the UUID in its header: the one that the fileset describes, and
    the one that is ``known`` from looking into it. ``failures`` tells what failed so far, by
    replica.

    Raises
    ------
    DeliveryError
        No replica can be read; the message names each with its reason.
    """

    def __init__(
        self,
        path: str,
        *,
        wanted: File,
        known: ExpectedFile | None = None,
        made: Callable[[ReplicaSource], None],
        failures: dict[str, str] | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self._file_path = path
        self._wanted = wanted
        self._known = known
        self._header: file_header.Header | None = None
        self._begin = b""
        self._size: int | None = None
        self._transport: Transport | None = None
        self._url = ""
        self._stamps = {} if known is None else {known.url: known.stamp}
        self._distrusted: set[str] = set()
        self._lock = threading.RLock()
        self._ahead: ThreadPoolExecutor | None = None
        self._closed = False
        self.failures = {} if failures is None else failures
        self._from_any(lambda _transport, _timeout: None, 0)
        made(self)

    @property
    def url(self) -> str:
        """The replica that is read from."""
        return self._url

    @property
    def stamp(self) -> str:
        """What changes when the replica does: its time of modification, or the server's tag."""
        return "" if self._transport is None else self._transport.stamp

    @property
    def is_local(self) -> bool:
        """Whether it is read from a disk of this machine."""
        return scheme(self._url) == "file"

    @property
    def num_bytes(self) -> int:
        """Length of the file."""
        return self._size or 0

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def chunk(self, start: int, stop: int) -> Any:
        """Read one part; less of it where the file ends."""
        return self.chunks([(start, stop)], None)[0]

    def chunks(self, ranges: Sequence[Range], notifications: Any) -> list[Any]:
        """Read parts, in as few requests as may be."""
        within = [
            (int(start), max(int(start), min(int(stop), self.num_bytes))) for start, stop in ranges
        ]
        self._num_requests += 1
        self._num_requested_chunks += len(within)
        self._num_requested_bytes += sum(stop - start for start, stop in within)
        chunks = [
            Chunk(self, start, stop, TrivialFuture(data))
            for (start, stop), data in zip(ranges, self.read(within), strict=True)
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
                with contextlib.suppress(ReplicaError):  # else as it is done for all
                    return self._transport.read(ranges, OPERATION_S)
            found = [data for some in _requests(ranges) for data in self._request(some)]
        return _together(ranges, iter(found))

    def _request(self, ranges: Sequence[Range]) -> list[Data]:
        n_bytes = sum(stop - start for start, stop in ranges)

        def read(transport: Transport, timeout: float) -> list[Data]:
            return transport.read(ranges, timeout)

        return self._from_any(read, n_bytes)

    def begin(self, ranges: Sequence[Range]) -> Future[list[Data]]:
        """Read parts in the background, while the caller does something else."""
        if self._ahead is None:
            # glibc keeps blocks for use again up to the size of one that it has seen freed. Without
            # this, all that comes is new memory: a tenth of the time of reading.
            bytes(REQUEST_BYTES)
            self._ahead = ThreadPoolExecutor(1, "read-ahead")
        return self._ahead.submit(self.read, ranges)

    def distrust(self, reason: str, url: str = "") -> bool:
        """Take it that a replica (the open one) is damaged; whether there is another one."""
        with self._lock:
            url = url or self._url
            if not url or self._is_doubtful:
                return False
            self._blame(url, CorruptError(reason))
            self._distrusted.add(url)
            if url == self._url:
                self._drop()
            return not self._distrusted.issuperset(self._wanted.replicas)

    @property
    def _is_doubtful(self) -> bool:
        """Whether what is known of the file is to blame before a replica is."""
        return self._known is not None and self._known.is_remembered

    def check_same(self) -> None:
        """See that what was read is what is there.

        Raises
        ------
        DeliveryError
            The file was replaced or changed while it was read.
        """
        with self._lock:
            if self._transport is None:
                return
            try:
                self._transport.check_same(CHECK_S)
            except ReplacedError as error:
                self._drop()
                raise DeliveryError(str(error), may_be_replaced=True) from error
            except ReplicaError as error:  # its server went; what it gave before is whole
                logger.debug("%s: can't be compared: %s", self._wanted.lfn, error)
                self._drop()

    def _from_any(self, action: Callable[[Transport, float], Answer], n_bytes: int) -> Answer:
        """Do something with a replica, with another one if it fails, until the deadline."""
        begun, longest = time.monotonic(), OPERATION_S + n_bytes / SLOWEST
        errors: dict[str, ReplicaError] = {}
        if self._transport is not None and not self._closed:  # nearly always no more is needed
            with contextlib.suppress(ReplicaError):
                return self._attempt(self._url, action, min(longest, DEADLINE_S), errors)
        patience = DEADLINE_S
        if all(map(server_health.is_on_probation, self._wanted.replicas)):
            patience = OPERATION_S
        end = begun + patience
        while not self._closed:
            for url in self._candidates(errors):
                left = end - time.monotonic()
                if left <= 0:
                    break
                with contextlib.suppress(ReplicaError):
                    return self._attempt(url, action, min(longest, left), errors)
            left = end - time.monotonic()
            if not self._candidates(errors) or left <= PAUSE_S:
                self._refuse(errors, patience if left <= PAUSE_S else None)
            time.sleep(PAUSE_S)
        raise DeliveryError("it was closed while it was read")

    def _attempt(
        self,
        url: str,
        action: Callable[[Transport, float], Answer],
        timeout: float,
        errors: dict[str, ReplicaError],
    ) -> Answer:
        """Do something with one replica; what it fails with is noted, and let go."""
        try:
            answer = action(self._connected(url, timeout), timeout)
        except ReplicaError as error:
            errors[url] = error
            self._drop()
            if isinstance(error, ChangedError) and self._is_doubtful:
                self._refuse(errors, None)
            self._blame(url, error)
            raise
        server_health.answered(url)
        return answer

    def _candidates(self, errors: dict[str, ReplicaError]) -> list[str]:
        """Replicas that may still answer, the most promising one first."""
        lasting = {url for url, e in errors.items() if not isinstance(e, TransientError)}
        urls = [url for url in server_health.in_order(self._wanted.replicas) if url not in lasting]
        trusted = [url for url in urls if url not in self._distrusted] or urls
        for url in [url for url in trusted if url not in errors]:
            reason = server_health.why_given_up(url)
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
            self._compare(url, transport, max(1.0, timeout - (time.monotonic() - begun)))
        except ReplicaError:
            transport.close()
            raise
        self._transport, self._url = transport, url
        return transport

    def _compare(self, url: str, transport: Transport, timeout: float) -> None:
        """See that it is the file that is wanted, whole, and the same as the replica before."""
        begin = bytes(getattr(transport, "begin", b"")) or bytes(
            transport.read([(0, min(file_header.N_BYTES, transport.size))], timeout)[0]
            if transport.size
            else b""
        )
        found = file_header.parse(begin)
        if transport.size < found.end:
            raise CorruptError(f"it is cut off: {transport.size} of {found.end} bytes are there")
        wanted = self._wanted
        _refuse_other("the fileset says", found, transport, wanted.uuid, wanted.size)
        if self._header is not None:
            _refuse_other("another replica says", found, transport, self._header.uuid, self._size)
        if self._known is not None:
            try:
                _refuse_other("it had", found, transport, self._known.uuid, self._known.size)
            except MismatchError as error:
                raise ChangedError(str(error)) from error
        before = self._stamps.setdefault(credentials.redacted(url), transport.stamp)
        is_one = is_one_version(before, transport.stamp)
        if not is_one and (self._is_doubtful or not transport.has(before, timeout)):
            raise ChangedError(
                "it was changed since it was opened first: its time or tag is another"
            )
        self._header, self._size, self._begin = found, transport.size, begin

    def _blame(self, url: str, error: ReplicaError) -> None:
        reason = credentials.redacted(str(error))
        if url not in self.failures:
            logger.debug("%s: %s: %s", self._wanted.lfn, credentials.redacted(url), reason)
        self.failures[url] = reason
        server_health.failed(url, error)

    def _drop(self) -> None:
        if self._transport is not None:
            self._transport.close()
        self._transport = None

    def _refuse(self, errors: dict[str, ReplicaError], waited: float | None) -> NoReturn:
        """Say what is wrong with each replica; ``waited`` s for some, None if there is no use."""
        if waited is not None:
            for url, error in errors.items():
                if isinstance(error, TransientError):
                    server_health.give_up(url, str(error))
        reasons = [
            (credentials.redacted(url), str(errors.get(url) or self.failures.get(url, "not tried")))
            for url in self._wanted.replicas
        ]
        listed = "; ".join(f"{url}: {reason}" for url, reason in reasons)
        text = reasons[0][1] if len(reasons) == 1 else f"no replica can be read: {listed}"
        if waited is not None:
            text += f" (tried for {waited:.0f} s)"
        others = [isinstance(error, MismatchError) for error in errors.values()] or [False]
        replaced = any(isinstance(error, ReplacedError) for error in errors.values())
        raise DeliveryError(
            credentials.redacted(text),
            is_other_file=all(others),
            may_be_replaced=any(others) or replaced,
        )

    def close(self) -> None:
        """Let go of the file, and of what is still read ahead."""
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
    says: str, found: file_header.Header, transport: Transport, uuid: str | None, size: int | None
) -> None:
    for what, is_, said in (("uuid", found.uuid, uuid), ("size", transport.size, size)):
        if said is not None and is_ != said:
            raise MismatchError(f"its {what} is {is_}, but {says} {said}; is it another file?")


def _requests(ranges: Iterable[Range]) -> Iterator[list[Range]]:
    """Cut ranges into what one request may ask for."""
    some: list[Range] = []
    n_bytes = 0
    for start, stop in ranges:
        for begin in range(start, stop, MOST_BYTES):
            end = min(begin + MOST_BYTES, stop)
            if some and (len(some) == MOST_RANGES or n_bytes + end - begin > REQUEST_BYTES):
                yield some
                some, n_bytes = [], 0
            some.append((begin, end))
            n_bytes += end - begin
    if some:
        yield some


def _together(ranges: Iterable[Range], pieces: Iterator[Data]) -> list[Data]:
    """Join what was cut."""
    found: list[Data] = []
    for start, stop in ranges:
        n = -(-(stop - start) // MOST_BYTES)
        found.append(next(pieces) if n == 1 else b"".join(next(pieces) for _ in range(n)))
    return found
