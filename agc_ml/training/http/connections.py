"""Deadlines and limits for the connections of a server.

uvicorn has no deadline for the head or the body of a request, and accepts connections until file
descriptors run out. `Guarded` is its HTTP/1.1 protocol with deadlines and limits, also for MLflow's
server.
"""

from __future__ import annotations

import asyncio
import enum
import fcntl
import json
import resource
import sys
import termios
import time
from collections import Counter
from http import HTTPStatus
from typing import Any, ClassVar, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from agc_ml.training.http import problems

# Deadline for the head of a request
HEAD_S: Final = 10.0

WINDOW_S: Final = 30.0
# Least bytes of a body or an answer in each `WINDOW_S`: 1 kB a second
LEAST_BYTES: Final = 32 * 1024

# Deadline for the rest of a body whose request is answered already: it is read and discarded, as
# many clients read the answer only when they have sent all, and a closed connection hides it.
DISCARD_S: Final = 5.0

# Idle connections are closed after this time
KEEP_ALIVE_S: Final = 75

MOST: Final = 2000
_DESCRIPTORS: Final = 2 * MOST + 96
_SWEEP_S: Final = 1.0
# Age from which a connection can count as slow
_YOUNG_S: Final = 5.0

# Fraction (1/n) that is closed when there are too many: to look through all takes time
_CLOSED_AT_ONCE: Final = 16


class Phase(enum.IntEnum):
    """Phase of a connection; lower phases are closed first, the oldest before others."""

    HEAD = 0  # no request yet
    DISCARD = 1  # answered, while the rest of the body arrives
    IDLE = 2  # between two requests
    SLOW = 3  # below the least rate
    BUSY = 4  # a request arrives or is answered: never closed


class Pace:
    """Rate of a connection in the current window."""

    def __init__(self, now: float) -> None:
        self._begun = self._since = now
        self._bytes = 0

    def add(self, n_bytes: int) -> None:
        """Count bytes."""
        self._bytes += n_bytes

    def is_slow(self, now: float) -> bool:
        """Return whether the rate is too low now."""
        seconds = now - self._since
        is_young = now - self._begun < _YOUNG_S or seconds < _YOUNG_S
        return not is_young and self._bytes / seconds < LEAST_BYTES / WINDOW_S

    def is_late(self, now: float) -> bool:
        """Return whether a window ended with too few bytes; begin the next one."""
        if now - self._since < WINDOW_S:
            return False
        is_late = self._bytes < LEAST_BYTES
        self._since, self._bytes = now, 0
        return is_late


class Connections:
    """The open connections of a server."""

    def __init__(self, most: int, most_each: int) -> None:
        self._most, self._most_each = most, most_each
        self._open: dict[Guarded, None] = {}  # the oldest first
        self._of: Counter[str] = Counter()
        self._sweeping = False

    def admit(self, new: Guarded) -> bool:
        """Add a connection, closing others if need be; return whether there is room for it."""
        self._open[new] = None
        self._of[new.address] += 1
        if not self._sweeping:
            self._sweeping = True
            new.loop.call_later(_SWEEP_S, self._sweep, new.loop)
        # make room among the connections of the address, or among all
        if self._of[new.address] > self._most_each:
            return self._make_room([one for one in self._open if one.address == new.address])
        return len(self._open) <= self._most or self._make_room(list(self._open))

    def _make_room(self, among: list[Guarded]) -> bool:
        """Close some of these connections, but not the last one, which is new."""
        now = time.monotonic()
        phases: dict[Phase, list[Guarded]] = {}
        for one in among[:-1]:
            phases.setdefault(one.phase(now), []).append(one)
        for phase in sorted(phases):
            if phase is not Phase.BUSY:
                for one in phases[phase][: max(len(among) // _CLOSED_AT_ONCE, 1)]:
                    self.forget(one)
                    one.transport.abort()
                return True
        return False

    def forget(self, one: Guarded) -> None:
        """Remove a closed connection."""
        if one in self._open:
            del self._open[one]
            self._of[one.address] -= 1
            if not self._of[one.address]:
                del self._of[one.address]

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close connections past their deadlines, every second."""
        now = time.monotonic()
        for one in list(self._open):
            one.check_deadlines(now)
        self._sweeping = bool(self._open)
        if self._sweeping:
            loop.call_later(_SWEEP_S, self._sweep, loop)


def capacity() -> int:
    """Return the limit of connections: half of the file descriptors of this process.

    Their limit is raised as far as needed and allowed. The other half is for uploads, databases and
    child processes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return MOST if soft == resource.RLIM_INFINITY else min(MOST, soft // 2)


def _queued(connection: Any) -> int:
    """Return the bytes in the kernel's send queue, 0 if unknown."""
    try:
        n_bytes = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    return int.from_bytes(n_bytes, sys.byteorder)


class Guarded(H11Protocol):
    """HTTP/1.1 connection with deadlines, one of a limited number."""

    everyone: ClassVar[Connections | None] = None
    # Largest body, for applications without a limit of their own
    most_body: ClassVar[int | None] = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if Guarded.everyone is None:
            most = capacity()
            Guarded.everyone = Connections(most, most // 2)
        self._all = Guarded.everyone
        self.address = ""
        self._since = time.monotonic()  # begin of the phase, for HEAD and DISCARD
        self._body = Pace(self._since)
        self._arrived = 0
        self._answer: Pace | None = None
        self._unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn
        """Register the connection; refuse it if there are too many."""
        super().connection_made(transport)
        self._since = time.monotonic()
        self.address = self.client[0] if self.client else ""
        if not self._all.admit(self):
            self._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE, "too many requests are being answered; try later"
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the limits."""
        self._all.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Measure the rate, and note when a request begins."""
        now = time.monotonic()
        if self.timeout_keep_alive_task is not None and not self._is_discarding():
            self._since = now  # a new request begins
        self._body.add(len(data))
        before, was_discarding = self._request, self._is_discarding()
        super().data_received(data)
        self._arrived += len(data)
        # a new request, a body that is too large, or the end of a discarded body
        if self._request is not before:
            self._body, self._arrived = Pace(now), 0
        elif self.most_body is not None and self._arrived > self.most_body:
            what = f"a body of more than {self.most_body / 1e6:,.0f} MB is not accepted here"
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, what)
        elif was_discarding and not self._is_discarding():
            self._rest(now)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._since = time.monotonic()
        super().on_response_complete()
        if self.conn.trailing_data[0]:  # the next request has begun
            self._unset_keepalive_if_required()

    def _rest(self, now: float) -> None:
        """Wait for the next request, as uvicorn does after an answer."""
        self._since = now
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def resume_writing(self) -> None:
        """Measure the rate of the answer."""
        if self._answer is not None:
            self._answer.add(LEAST_BYTES)  # asyncio's two water marks are further apart
        super().resume_writing()

    @property
    def _request(self) -> RequestResponseCycle | None:
        """Last request, None if there was none yet."""
        return self.cycle

    def _is_discarding(self) -> bool:
        return (
            (request := self._request) is not None
            and request.response_complete
            and self.conn.their_state is h11.SEND_BODY
        )

    def phase(self, now: float) -> Phase:
        """Return the current phase."""
        if self._is_discarding():
            return Phase.DISCARD
        if self._unsent and self._answer is not None and self._answer.is_slow(now):
            return Phase.SLOW
        if (request := self._request) is not None and not request.response_complete:
            is_body = request.more_body and not self.flow.read_paused
            return Phase.SLOW if is_body and self._body.is_slow(now) else Phase.BUSY
        return Phase.HEAD if self.timeout_keep_alive_task is None else Phase.IDLE

    def check_deadlines(self, now: float) -> None:
        """Close the connection if it is past a deadline."""
        if self._sends_too_slowly(now):
            self.transport.abort()
        elif self.transport.is_closing():
            return
        elif (phase := self.phase(now)) is Phase.HEAD and now - self._since > HEAD_S:
            self.transport.close()  # no request, so no answer
        elif phase is Phase.DISCARD and now - self._since > DISCARD_S:
            self.transport.close()
        elif phase >= Phase.SLOW and self._body_is_late(now):
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT,
                f"less than {LEAST_BYTES // 1024} kB of a body arrived in {WINDOW_S:g} s",
            )

    def _body_is_late(self, now: float) -> bool:
        # while reading is paused, nothing arrives
        return self.cycle.more_body and self._body.is_late(now) and not self.flow.read_paused

    def _sends_too_slowly(self, now: float) -> bool:
        unsent = self.transport.get_write_buffer_size()
        if unsent:  # the kernel may hold megabytes that the client does not read
            unsent += _queued(self.transport.get_extra_info("socket"))
        if not unsent:
            self._answer = None
        elif self._answer is None:
            self._answer = Pace(now)
        else:
            self._answer.add(max(self._unsent - unsent, 0))
        self._unsent = unsent
        return self._answer is not None and self._answer.is_late(now)

    def send_400_response(self, msg: str) -> None:
        """Answer input that is not HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answer with a problem, unless an answer has begun, and close."""
        if (request := self._request) is not None and not request.response_complete:
            request.disconnected = True  # tell the application
            request.message_event.set()
        # no answer has begun
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            body = json.dumps(problems.content(status, detail)).encode()
            headers = {
                **problems.headers(status),
                "Content-Type": problems.MEDIA_TYPE,
                "Content-Length": str(len(body)),
                "Connection": "close",
            }
            answer = h11.Response(
                status_code=status.value,
                headers=list(headers.items()),
                reason=status.phrase.encode(),
            )
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Reading(Guarded):
    """Connection of MLflow's server, which reads whole bodies before it authenticates."""

    most_body = 1 << 20
