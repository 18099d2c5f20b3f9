"""Scoring on a server, by the KServe v2 protocol over gRPC: Triton, and others that speak it.

::

    endpoint = Endpoint.parse("grpc://one:8001,other:8001/top_tagger?version=3")
    scores = Remote(endpoint, n_features=20)(features)      # (n, 20) float32 -> (n,) float32
"""

from __future__ import annotations

import functools
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np

from agc_ml.errors import ModelError, UsageError
from agc_ml.models.backends.kserve_endpoint import Endpoint
from agc_ml.models.backends.kserve_server import MOST_BYTES, Server, UnansweredError
from agc_ml.models.content import BATCH_ROWS, Array

_T = TypeVar("_T")

DEADLINE_S: Final = 30.0
IN_FLIGHT: Final = 4

ROUNDS: Final = 2
"""Attempts to send a request to each server, while none answers."""
PAUSE_S: Final = 1.0
"""Seconds between two rounds: a restarting server refuses connections."""

_AVOID_S: Final = 300.0  # a frozen server costs one deadline in five minutes, not each time


class Remote:
    """Scorer of rows on the servers of an endpoint: ``(n, k) float32 -> (n,) float32``.

    Rows are sent in requests of at most ``batch_rows``, or as many as the server accepts,
    ``in_flight`` at a time; scores are in the order of the rows. A request whose server is down, or
    does not answer within ``deadline_s`` seconds, is sent to the next one, as scoring twice is
    harmless; the failed server is tried last for five minutes. Any other failure is an error.

    A call fails at the latest `patience_s` seconds after its last answer from a server. Threads may
    share it. A pickle leaves out the connections; each process opens its own.

    Parameters
    ----------
    endpoint
        The model and its servers.
    n_features
        Number of features k; a server with another number is an error.
    deadline_s
        Seconds for a request, including its time in the server's queue.
    batch_rows
        Most rows in a request.
    in_flight
        Most requests of a call in flight.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        n_features: int,
        *,
        deadline_s: float = DEADLINE_S,
        batch_rows: int = BATCH_ROWS,
        in_flight: int = IN_FLIGHT,
    ) -> None:
        if min(n_features, batch_rows, in_flight) < 1 or not 0 < deadline_s < float("inf"):
            raise UsageError(
                f"{endpoint}: at least one feature, row and request are needed, and a deadline in "
                f"seconds, not {n_features}, {batch_rows}, {in_flight} and {deadline_s}"
            )
        self.endpoint = endpoint
        self.n_features = n_features
        self.deadline_s = deadline_s
        self.batch_rows = batch_rows
        self.in_flight = in_flight
        self._by_process: dict[int, _Servers] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {name: getattr(self, name) for name in ("deadline_s", "batch_rows", "in_flight")}
        return functools.partial(Remote, self.endpoint, self.n_features, **settings), ()

    @property
    def patience_s(self) -> float:
        """Seconds after which a call fails if no server answers."""
        return _patience_s(self.endpoint, self.deadline_s)

    def __call__(self, features: Any) -> Array:
        """Score rows.

        Raises
        ------
        ModelError
            No server answers or has this version of the model with these features, or a score is
            missing or not finite. The message names the servers, with a reason each.
        """
        rows = np.ascontiguousarray(features, dtype="<f4")
        if rows.ndim != 2 or rows.shape[1] != self.n_features:  # noqa: PLR2004 - rows and columns
            raise ModelError(
                f"{self.endpoint}: it takes rows of {self.n_features} features, not an array of "
                f"shape {rows.shape}; give it the features it was trained on"
            )
        scores = np.empty(len(rows), np.float32)
        if len(rows):
            self._score(rows, scores)
        return scores

    def _score(self, rows: Array, scores: Array) -> None:
        """Keep ``in_flight`` requests in flight, and collect their answers in order."""
        servers, tries = self._here(), _Tries()
        size = self._rows_a_request(servers, tries)
        starts = deque(range(0, len(rows), size))
        requests: deque[_Request] = deque()
        try:
            while starts or requests:
                while starts and len(requests) < self.in_flight:
                    start = starts.popleft()
                    request = _Request(rows[start : start + size], start, tries)
                    request.send(servers)
                    requests.append(request)
                    tries = _Tries()  # failures so far count for the first request only
                request = requests[0]
                scores[request.start : request.start + len(request.rows)] = request.answer(servers)
                requests.popleft()
        finally:
            for request in requests:
                request.cancel()

    def _here(self) -> _Servers:
        """Servers of this process: no connection survives a fork."""
        process = os.getpid()
        servers = self._by_process.get(process)
        if servers is None:
            fresh = _Servers(self.endpoint, self.n_features, self.deadline_s)
            servers = self._by_process.setdefault(process, fresh)
        return servers

    def _rows_a_request(self, servers: _Servers, tries: _Tries) -> int:
        interface = servers.first(tries, lambda server, until: server.interface(until))
        most = max(MOST_BYTES // (4 * self.n_features), 1)
        return min(self.batch_rows, most, interface.max_rows or most)


def n_features_of(endpoint: Endpoint, *, deadline_s: float = DEADLINE_S) -> int:
    """Number of features that a model on a server takes.

    Raises
    ------
    ModelError
        No server answers or has such a model, within the time of a call of `Remote`.
    """
    servers = _Servers(endpoint, None, deadline_s)
    return servers.first(_Tries(), lambda server, until: server.interface(until)).n_features


def _patience_s(endpoint: Endpoint, deadline_s: float) -> float:
    return ROUNDS * len(endpoint.addresses) * deadline_s + (ROUNDS - 1) * PAUSE_S


@dataclass
class _Tries:
    """Failed attempts on each server, with the last reason."""

    number: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)


class _Servers:
    """Servers of a model, with the connections of one process."""

    def __init__(self, endpoint: Endpoint, n_features: int | None, deadline_s: float) -> None:
        self._endpoint = endpoint
        self._n_features = n_features
        self._deadline_s = deadline_s
        self._servers: dict[str, Server] = {}
        self._avoided_until: dict[str, float] = {}

    def first(self, tries: _Tries, ask: Callable[[Server, float], _T]) -> _T:
        """Result of ``ask`` from the first server that answers.

        ``ask`` is called with a server and its deadline on the monotonic clock.
        """
        while True:
            address = self._next(tries)
            server = self._servers.get(address)
            if server is None:
                server = Server(self._endpoint, address, self._n_features)
                self._servers[address] = server
            try:
                return ask(server, time.monotonic() + self._deadline_s)
            except UnansweredError as error:
                self.failed(server, tries, error)

    def failed(self, server: Server, tries: _Tries, error: UnansweredError) -> None:
        """Record a server's failure: it is tried last for a while, on a new connection."""
        reason = str(error) or f"no answer within {self._deadline_s:g} s"
        tries.number[server.address] += 1
        tries.reasons[server.address] = reason
        self._avoided_until[server.address] = time.monotonic() + _AVOID_S
        # Dropped, not closed: other threads may have requests in flight on it.
        if self._servers.get(server.address) is server:
            self._servers.pop(server.address, None)

    def answered(self, server: Server) -> None:
        """Record a server's answer."""
        self._avoided_until.pop(server.address, None)

    def _next(self, tries: _Tries) -> str:
        now = time.monotonic()
        addresses = self._endpoint.addresses
        # Fewest failures first, then servers that did not fail lately, then the given order.
        address = min(
            addresses, key=lambda a: (tries.number[a], self._avoided_until.get(a, now) > now)
        )
        rounds = tries.number[address]
        if rounds >= ROUNDS:
            reasons = ", ".join(f"{server} ({tries.reasons[server]})" for server in addresses)
            raise ModelError(
                f"{self._endpoint}: no server scores: {reasons}; check that one runs and has the "
                "model, and that this is its gRPC port"
            )
        if rounds and all(tries.number[server] == rounds for server in addresses):
            time.sleep(PAUSE_S)
        return address


@dataclass
class _Request:
    """Rows in flight to a server; the first one is row ``start`` of the call."""

    rows: Array
    start: int
    tries: _Tries
    sent: tuple[Server, Any, float] | None = None

    def send(self, servers: _Servers) -> None:
        """Send the rows to the first server that accepts them."""

        def ask(server: Server, until: float) -> tuple[Server, Any, float]:
            return server, server.score(self.rows, until), until

        self.sent = servers.first(self.tries, ask)

    def answer(self, servers: _Servers) -> Array:
        """Wait for the scores; if the server fails, get them from the next one."""
        while True:
            if self.sent is None:
                self.send(servers)
                continue
            server, future, until = self.sent
            try:
                scores = server.scores(future, self.start, len(self.rows), until)
            except UnansweredError as error:
                servers.failed(server, self.tries, error)
                self.sent = None
            else:
                servers.answered(server)
                return scores

    def cancel(self) -> None:
        """Cancel the request, if its server has not started it."""
        if self.sent is not None:
            self.sent[1].cancel()
