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
from numpy.typing import NDArray

from agc_ml.errors import ModelError, UsageError
from agc_ml.models.backends.kserve_endpoint import Endpoint
from agc_ml.models.backends.kserve_server import MOST_BYTES, Server, UnansweredError

Array = NDArray[Any]
_T = TypeVar("_T")

DEADLINE_S: Final = 30.0
BATCH_ROWS: Final = 32_768
IN_FLIGHT: Final = 4

ROUNDS: Final = 2
"""How often a request is sent to each of the servers, while none answers."""
PAUSE_S: Final = 1.0
"""Between two rounds: a server that is restarted refuses connections meanwhile."""

_AVOID_S: Final = 300.0  # so that a frozen server costs a deadline in five minutes, not each time


class Remote:
    """Scores rows on the servers of an endpoint: ``(n, k) float32 -> (n,) float32``.

    Rows are sent in requests of at most ``batch_rows``, or as many as the server takes,
    ``in_flight`` of them at a time; scores come back in the order of the rows. A request whose
    server can't be reached, or does not answer within ``deadline_s`` seconds, is sent to the next
    one: scoring twice does no harm. That server is tried last for the next five minutes. Any other
    failure is an error at once.

    A call fails at the latest `patience_s` seconds after its last answer from a server. Several
    threads may call it at once, each with requests of its own. Pickled, it leaves its connections
    behind; each process makes its own when it needs them.

    Parameters
    ----------
    endpoint
        The model and its servers.
    n_features
        Number of features k; another one at the server is an error.
    deadline_s
        Seconds that a server has for a request, with its time in the server's queue.
    batch_rows
        Rows of a request, at most.
    in_flight
        Requests of a call that are under way at a time, at most.
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
        """Seconds after which a call fails when no server answers."""
        return _patience_s(self.endpoint, self.deadline_s)

    def __call__(self, features: Any) -> Array:
        """Score rows.

        Raises
        ------
        ModelError
            No server answers, or has this model in this version with these features, or one gives
            something else than a finite score a row. The message names the servers, with a reason
            each.
        """
        rows = np.ascontiguousarray(features, dtype="<f4")
        if rows.ndim != 2 or rows.shape[1] != self.n_features:  # noqa: PLR2004 - rows and columns
            raise ModelError(
                f"{self.endpoint}: it takes rows of {self.n_features} features, not an array of "
                f"shape {rows.shape}; give it those it was trained on"
            )
        scores = np.empty(len(rows), np.float32)
        if len(rows):
            self._score(rows, scores)
        return scores

    def _score(self, rows: Array, scores: Array) -> None:
        """Keep requests under way, and take their answers in order."""
        servers, tries = self._here(), _Tries()
        size = self._rows_a_request(servers, tries)
        starts = deque(range(0, len(rows), size))
        under_way: deque[_Request] = deque()
        try:
            while starts or under_way:
                while starts and len(under_way) < self.in_flight:
                    start = starts.popleft()
                    request = _Request(rows[start : start + size], start, tries)
                    request.send(servers)
                    under_way.append(request)
                    tries = _Tries()  # what was asked in vain before counts for the first one
                request = under_way[0]
                scores[request.start : request.start + len(request.rows)] = request.answer(servers)
                under_way.popleft()
        finally:
            for request in under_way:
                request.cancel()

    def _here(self) -> _Servers:
        """The servers as this process knows them: no connection outlives a fork."""
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
        No server answers, or has such a model; after as much time as a call of `Remote`.
    """
    servers = _Servers(endpoint, None, deadline_s)
    return servers.first(_Tries(), lambda server, until: server.interface(until)).n_features


def _patience_s(endpoint: Endpoint, deadline_s: float) -> float:
    return ROUNDS * len(endpoint.addresses) * deadline_s + (ROUNDS - 1) * PAUSE_S


@dataclass
class _Tries:
    """How often each server was asked for something in vain, and why the last time."""

    number: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)


class _Servers:
    """The servers of a model, as one process knows them."""

    def __init__(self, endpoint: Endpoint, n_features: int | None, deadline_s: float) -> None:
        self._endpoint = endpoint
        self._n_features = n_features
        self._deadline_s = deadline_s
        self._servers: dict[str, Server] = {}
        self._avoided_until: dict[str, float] = {}

    def first(self, tries: _Tries, ask: Callable[[Server, float], _T]) -> _T:
        """What the first server gives that does not leave ``ask`` unanswered.

        ``ask`` is called with a server and the time, on the monotonic clock, until which it may
        take.
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
        """Take down that a server did not answer: it is tried last for a while, and anew."""
        reason = str(error) or f"no answer within {self._deadline_s:g} s"
        tries.number[server.address] += 1
        tries.reasons[server.address] = reason
        self._avoided_until[server.address] = time.monotonic() + _AVOID_S
        # Forgotten, not closed: requests of other threads may be under way on it.
        if self._servers.get(server.address) is server:
            self._servers.pop(server.address, None)

    def answered(self, server: Server) -> None:
        """Take down that a server answered."""
        self._avoided_until.pop(server.address, None)

    def _next(self, tries: _Tries) -> str:
        now = time.monotonic()
        addresses = self._endpoint.addresses
        address = min(  # the first of those that are alike
            addresses, key=lambda one: (tries.number[one], self._avoided_until.get(one, now) > now)
        )
        rounds = tries.number[address]
        if rounds >= ROUNDS:
            reasons = ", ".join(f"{one} ({tries.reasons[one]})" for one in addresses)
            raise ModelError(
                f"{self._endpoint}: no server scores: {reasons}; see that one runs, has the model, "
                "and that this is its gRPC port"
            )
        if rounds and all(tries.number[one] == rounds for one in addresses):
            time.sleep(PAUSE_S)
        return address


@dataclass
class _Request:
    """Rows under way to a server, of which the first is row ``start`` of the call's."""

    rows: Array
    start: int
    tries: _Tries
    sent: tuple[Server, Any, float] | None = None

    def send(self, servers: _Servers) -> None:
        """Send them to the first server that takes them."""

        def ask(server: Server, until: float) -> tuple[Server, Any, float]:
            return server, server.score(self.rows, until), until

        self.sent = servers.first(self.tries, ask)

    def answer(self, servers: _Servers) -> Array:
        """Wait for their scores; where their server fails, get them from the next one."""
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
        """Let the server drop them, where it has not begun."""
        if self.sent is not None:
            self.sent[1].cancel()
