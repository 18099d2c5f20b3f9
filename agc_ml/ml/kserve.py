"""Scoring on a server, by the KServe v2 protocol over gRPC: Triton, and others that speak it.

::

    endpoint = Endpoint.parse("grpc://one:8001,other:8001/top_tagger?version=3")
    scores = Remote(endpoint, n_features=20)(features)      # (n, 20) float32 -> (n,) float32
"""

from __future__ import annotations

import functools
import os
import re
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import ModelError, UsageError

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
_GRACE_S: Final = 1.0
_MOST_BYTES: Final = 4 * 1024**2 - 4096  # gRPC servers take messages of 4 MiB unless told otherwise

_EXAMPLE: Final = "grpc://host:port[,other:port]/model?version=1"
_SCHEMES: Final = {"grpc": False, "grpcs": True}
_ADDRESS: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_SCORE_SHAPES: Final = ([-1], [-1, 1])

_IN_SHORT: Final = {
    "Connection refused": "connection refused",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted",
    "WRONG_VERSION_NUMBER": "no TLS there",
    "DNS resolution failed": "no such host",
}

_CHANNEL: Final = (
    # Channels to one address share a connection unless told not to, and may wait two minutes until
    # they connect again. Where it went dead, a new channel must mean a new connection, at once.
    ("grpc.use_local_subchannel_pool", 1),
    # Proxies that batch nodes name for the web pass no gRPC.
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True)
class Endpoint:
    """A model on servers.

    Attributes
    ----------
    addresses
        ``host:port`` of the servers' gRPC ports, tried in this order.
    model
        Its name on the servers.
    version
        Always stated: what a server takes as its newest may change while a run goes on.
    tls
        Whether connections are encrypted, and servers known by their certificates.
    """

    addresses: tuple[str, ...]
    model: str
    version: str
    tls: bool = False

    def __str__(self) -> str:
        return f"model {self.model} (version {self.version})"

    @classmethod
    def parse(cls, uri: str) -> Endpoint:
        """Read ``grpc://host:port[,other:port]/model?version=1``, or ``grpcs://`` for TLS.

        Raises
        ------
        ModelError
            The URI says something else, or no version.
        """
        try:
            parts = urlsplit(uri)
            query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError as error:
            raise _unreadable(uri, str(error)) from None
        if parts.scheme not in _SCHEMES:
            raise _unreadable(uri, "it begins with neither grpc:// nor grpcs://")
        addresses = tuple(parts.netloc.split(","))
        for address in addresses:
            match = _ADDRESS.fullmatch(address)
            if match is None or not 0 < int(match[1]) < 2**16:
                raise _unreadable(uri, f"{address!r} is no host:port")
        if len(set(addresses)) != len(addresses):
            raise _unreadable(uri, "an address is named twice")
        model = unquote(parts.path.removeprefix("/"))
        if not re.fullmatch(r"[^\s/]+", model) or parts.fragment:
            raise _unreadable(uri, "the name of one model must follow the address")
        if [name for name, _ in query] != ["version"] or not re.fullmatch(r"\S+", query[0][1]):
            raise _unreadable(uri, "say which version of the model, and nothing else")
        return cls(addresses, model, query[0][1], _SCHEMES[parts.scheme])


def _unreadable(uri: str, reason: str) -> ModelError:
    return ModelError(f"model {uri}: {reason}; write {_EXAMPLE}")


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
        most = max(_MOST_BYTES // (4 * self.n_features), 1)
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


class _Library(NamedTuple):
    grpc: Any
    messages: Any
    services: Any


@functools.cache
def _library() -> _Library:
    # gRPC's own lines on the screen: errors say what matters of them. It reads this when it starts.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import grpc  # noqa: PLC0415 - heavy, and optional
        from tritonclient.grpc import service_pb2, service_pb2_grpc  # noqa: PLC0415 - likewise
    except ImportError as error:
        raise ModelError(
            f"models on servers need tritonclient ({error}): pip install 'agc-ml[triton]'"
        ) from None
    return _Library(grpc, service_pb2, service_pb2_grpc)


class _UnansweredError(Exception):
    """A server gave no answer; another one may."""


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
        self._servers: dict[str, _Server] = {}
        self._avoided_until: dict[str, float] = {}

    def first(self, tries: _Tries, ask: Callable[[_Server, float], _T]) -> _T:
        """What the first server gives that does not leave ``ask`` unanswered.

        ``ask`` is called with a server and the time, on the monotonic clock, until which it may
        take.
        """
        while True:
            address = self._next(tries)
            server = self._servers.get(address)
            if server is None:
                server = _Server(self._endpoint, address, self._n_features)
                self._servers[address] = server
            try:
                return ask(server, time.monotonic() + self._deadline_s)
            except _UnansweredError as error:
                self.failed(server, tries, error)

    def failed(self, server: _Server, tries: _Tries, error: _UnansweredError) -> None:
        """Take down that a server did not answer: it is tried last for a while, and anew."""
        reason = str(error) or f"no answer within {self._deadline_s:g} s"
        tries.number[server.address] += 1
        tries.reasons[server.address] = reason
        self._avoided_until[server.address] = time.monotonic() + _AVOID_S
        # Forgotten, not closed: requests of other threads may be under way on it.
        if self._servers.get(server.address) is server:
            self._servers.pop(server.address, None)

    def answered(self, server: _Server) -> None:
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


class _Interface(NamedTuple):
    """Names of the input and of the output, and the most rows a request (0: any number)."""

    features: str
    n_features: int
    scores: str
    max_rows: int


class _Server:
    """A connection to one server, and what it says of the model: it is asked once."""

    def __init__(self, endpoint: Endpoint, address: str, n_features: int | None) -> None:
        self.address = address
        self._endpoint = endpoint
        self._n_features = n_features
        self._grpc, self._messages, services = _library()
        self._stub = services.GRPCInferenceServiceStub(self._channel())
        self._interface: _Interface | None = None

    def _channel(self) -> Any:
        target = f"dns:///{self.address}"
        if not self._endpoint.tls:
            return self._grpc.insecure_channel(target, options=_CHANNEL)
        roots = ssl.get_default_verify_paths().cafile  # gRPC brings its own; the system's count
        credentials = self._grpc.ssl_channel_credentials(
            Path(roots).read_bytes() if roots else None
        )
        return self._grpc.secure_channel(target, credentials, options=_CHANNEL)

    def interface(self, until: float) -> _Interface:
        """What the model takes and gives, checked once a connection."""
        if self._interface is None:  # two threads may both ask: waiting for another one costs more
            self._interface = self._checked(until)
        return self._interface

    def score(self, rows: Array, until: float) -> Any:
        """Send a request; gives the future of its answer."""
        interface = self.interface(until)
        if interface.max_rows and len(rows) > interface.max_rows:
            raise _UnansweredError(f"takes only {interface.max_rows} rows a request")
        request = self._messages.ModelInferRequest(
            model_name=self._endpoint.model,
            model_version=self._endpoint.version,
            raw_input_contents=[rows.tobytes()],
        )
        request.inputs.add(name=interface.features, datatype="FP32", shape=rows.shape)
        request.outputs.add(name=interface.scores)
        return self._send("ModelInfer", request, until)

    def scores(self, future: Any, start: int, n: int, until: float) -> Array:
        """Scores out of the answer to a request of n rows, of which the first is row ``start``."""
        answer = self._answer(future, until)
        interface = self.interface(until)
        if (answer.model_name, answer.model_version) != (
            self._endpoint.model,
            self._endpoint.version,
        ):
            raise self._error(
                f"scored with model {answer.model_name} (version {answer.model_version!r}); serve "
                "the one that is asked for"
            )
        described = _described(answer.outputs)
        if described not in {f"{interface.scores} FP32 {shape}" for shape in ([n], [n, 1])}:
            raise self._error(
                f"gave {described} for {n} rows, {interface.scores} FP32 [{n}] is "
                "needed; mend the model there"
            )
        values = self._values(answer, n)
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise self._error(
                f"gave {values[wrong[0]]} as the score of row {start + wrong[0]}; mend the model "
                "there, or select events it can score"
            )
        return values

    def _values(self, answer: Any, n: int) -> Array:
        """Numbers of the only output, in whichever of the protocol's two places they are."""
        if answer.raw_output_contents:
            data = answer.raw_output_contents[0]
        else:
            data = np.array(answer.outputs[0].contents.fp32_contents, "<f4").tobytes()
        if len(data) != 4 * n:
            raise self._error(
                f"gave {len(data)} bytes of scores for {n} rows, {4 * n} needed; mend the server"
            )
        return np.frombuffer(data, "<f4")

    def _checked(self, until: float) -> _Interface:
        identity = {"name": self._endpoint.model, "version": self._endpoint.version}
        request = self._messages.ModelReadyRequest(**identity)
        if not self._ask("ModelReady", request, until).ready:
            raise _UnansweredError(self._instead(until))
        request = self._messages.ModelMetadataRequest(**identity)
        there = self._ask("ModelMetadata", request, until)
        outputs = [one for one in there.outputs if _is_float(one, *_SCORE_SHAPES)]
        k = there.inputs[0].shape[-1] if there.inputs and there.inputs[0].shape else 0
        wanted = k if self._n_features is None else self._n_features
        fits = len(there.inputs) == 1 and _is_float(there.inputs[0], [-1, wanted]) and wanted > 0
        if not fits or len(outputs) != 1:
            raise self._error(
                f"has it with {_described(there.inputs)} -> {_described(there.outputs)}, but one "
                f"input FP32 [-1, {self._n_features or 'k'}] and one output FP32 [-1] or [-1, 1] "
                "are needed; serve it so, or give it the features it was trained on"
            )
        return _Interface(there.inputs[0].name, k, outputs[0].name, self._max_rows(until))

    def _instead(self, until: float) -> str:
        """Why the model is not ready."""
        request = self._messages.ModelMetadataRequest(name=self._endpoint.model)
        statuses = self._grpc.StatusCode
        there = self._ask(
            "ModelMetadata", request, until, (statuses.NOT_FOUND, statuses.INVALID_ARGUMENT)
        )
        if there is None:
            return f"has no model {self._endpoint.model} ready"
        others = f", but {', '.join(there.versions)}" if there.versions else ""
        return f"has no version {self._endpoint.version} ready{others}"

    def _max_rows(self, until: float) -> int:
        """Most rows a request, which Triton tells beyond the protocol; 0 for any number."""
        request = self._messages.ModelConfigRequest(
            name=self._endpoint.model, version=self._endpoint.version
        )
        unknown = (self._grpc.StatusCode.UNIMPLEMENTED,)
        answer = self._ask("ModelConfig", request, until, unknown)
        return 0 if answer is None else max(int(answer.config.max_batch_size), 0)

    def _ask(self, method: str, request: Any, until: float, but: tuple[Any, ...] = ()) -> Any:
        """Send a request and wait for its answer; None where it has one of the statuses ``but``."""
        return self._answer(self._send(method, request, until), until, but)

    def _send(self, method: str, request: Any, until: float) -> Any:
        return getattr(self._stub, method).future(request, timeout=max(until - time.monotonic(), 0))

    def _answer(self, future: Any, until: float, but: tuple[Any, ...] = ()) -> Any:
        grpc = self._grpc
        try:
            # gRPC keeps the deadline itself, unless a fork took its threads away.
            return future.result(timeout=max(until - time.monotonic(), 0) + _GRACE_S)
        except grpc.FutureTimeoutError:
            raise _UnansweredError from None
        except grpc.RpcError as error:
            code, details = error.code(), _short(error.details() or "")
        if code in but:
            return None
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise _UnansweredError
        if code is grpc.StatusCode.UNAVAILABLE:
            raise _UnansweredError(details)
        raise self._error(f"says {code.name}: {details}; see its log")

    def _error(self, what: str) -> ModelError:
        return ModelError(f"{self._endpoint}: the server {self.address} {what}")


@dataclass
class _Request:
    """Rows under way to a server, of which the first is row ``start`` of the call's."""

    rows: Array
    start: int
    tries: _Tries
    sent: tuple[_Server, Any, float] | None = None

    def send(self, servers: _Servers) -> None:
        """Send them to the first server that takes them."""

        def ask(server: _Server, until: float) -> tuple[_Server, Any, float]:
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
            except _UnansweredError as error:
                servers.failed(server, self.tries, error)
                self.sent = None
            else:
                servers.answered(server)
                return scores

    def cancel(self) -> None:
        """Let the server drop them, where it has not begun."""
        if self.sent is not None:
            self.sent[1].cancel()


def _is_float(tensor: Any, *shapes: list[int]) -> bool:
    return tensor.datatype == "FP32" and list(tensor.shape) in shapes


def _described(tensors: Any) -> str:
    described = (f"{one.name} {one.datatype} {list(one.shape)}" for one in tensors)
    return ", ".join(described) or "nothing"


def _short(details: str) -> str:
    """What gRPC says of a failure, without the layers it went through."""
    for part, words in _IN_SHORT.items():
        if part in details:
            return words
    return " ".join(details.split())[-120:] or "no reason given"
