"""One server of a model, by the KServe v2 protocol over gRPC: Triton, and others that speak it."""

from __future__ import annotations

import functools
import os
import ssl
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from agc_ml.errors import ModelError
from agc_ml.models.backends.kserve_endpoint import Endpoint
from agc_ml.models.content import Array

MOST_BYTES: Final = 4 * 1024**2 - 4096
"""Largest message: gRPC servers accept 4 MiB by default."""

_GRACE_S: Final = 1.0
_SCORE_SHAPES: Final = ([-1], [-1, 1])

_IN_SHORT: Final = {
    "Connection refused": "connection refused",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted",
    "WRONG_VERSION_NUMBER": "no TLS there",
    "DNS resolution failed": "no such host",
}

_CHANNEL: Final = (
    # By default, channels to one address share a connection, and may wait two minutes to reconnect.
    # After a failure, a new channel must open a new connection at once.
    ("grpc.use_local_subchannel_pool", 1),
    # Web proxies of batch nodes do not pass gRPC.
    ("grpc.enable_http_proxy", 0),
)


class Library(NamedTuple):
    """gRPC, with the protocol's messages and services."""

    grpc: Any
    messages: Any
    services: Any


@functools.cache
def library() -> Library:
    """Import gRPC and the protocol's messages.

    Raises
    ------
    ModelError
        A library is not installed.
    """
    # Silence gRPC's own log lines: errors carry their content. It reads this at start.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import grpc  # noqa: PLC0415 - heavy, and optional
        from tritonclient.grpc import service_pb2, service_pb2_grpc  # noqa: PLC0415 - likewise
    except ImportError as error:
        raise ModelError(
            f"models on servers need tritonclient ({error}): pip install 'agc-ml[triton]'"
        ) from None
    return Library(grpc, service_pb2, service_pb2_grpc)


class UnansweredError(Exception):
    """A server did not answer; another one may."""


class Interface(NamedTuple):
    """Names of input and output, number of features, most rows a request (0 for any)."""

    features: str
    n_features: int
    scores: str
    max_rows: int


class Server:
    """Connection to one server, with the model's interface, which is requested once."""

    def __init__(self, endpoint: Endpoint, address: str, n_features: int | None) -> None:
        self.address = address
        self._endpoint = endpoint
        self._n_features = n_features
        self._grpc, self._messages, services = library()
        self._stub = services.GRPCInferenceServiceStub(self._channel())
        self._interface: Interface | None = None

    def _channel(self) -> Any:
        target = f"dns:///{self.address}"
        if not self._endpoint.tls:
            return self._grpc.insecure_channel(target, options=_CHANNEL)
        roots = ssl.get_default_verify_paths().cafile  # the system's, not gRPC's own
        credentials = self._grpc.ssl_channel_credentials(
            Path(roots).read_bytes() if roots else None
        )
        return self._grpc.secure_channel(target, credentials, options=_CHANNEL)

    def interface(self, until: float) -> Interface:
        """Input and output of the model, checked once a connection."""
        if self._interface is None:  # two threads may both ask: a lock would cost more
            self._interface = self._checked(until)
        return self._interface

    def score(self, rows: Array, until: float) -> Any:
        """Send a request; returns the future of its answer."""
        interface = self.interface(until)
        if interface.max_rows and len(rows) > interface.max_rows:
            raise UnansweredError(f"takes only {interface.max_rows} rows a request")
        request = self._messages.ModelInferRequest(
            model_name=self._endpoint.model,
            model_version=self._endpoint.version,
            raw_input_contents=[rows.tobytes()],
        )
        request.inputs.add(name=interface.features, datatype="FP32", shape=rows.shape)
        request.outputs.add(name=interface.scores)
        return self._send("ModelInfer", request, until)

    def scores(self, future: Any, start: int, n: int, until: float) -> Array:
        """Scores from the answer to a request of n rows, the first being row ``start``."""
        answer = self._answer(future, until)
        interface = self.interface(until)
        if (answer.model_name, answer.model_version) != (
            self._endpoint.model,
            self._endpoint.version,
        ):
            raise self._error(
                f"scored with model {answer.model_name} (version {answer.model_version!r}); serve "
                "the requested one"
            )
        described = _described(answer.outputs)
        if described not in {f"{interface.scores} FP32 {shape}" for shape in ([n], [n, 1])}:
            raise self._error(
                f"gave {described} for {n} rows, {interface.scores} FP32 [{n}] is "
                "needed; correct the model there"
            )
        values = self._values(answer, n)
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise self._error(
                f"gave {values[wrong[0]]} as the score of row {start + wrong[0]}; correct the "
                "model there, or select events it can score"
            )
        return values

    def _values(self, answer: Any, n: int) -> Array:
        """Numbers of the only output, from either of the protocol's two places."""
        if answer.raw_output_contents:
            data = answer.raw_output_contents[0]
        else:
            data = np.array(answer.outputs[0].contents.fp32_contents, "<f4").tobytes()
        if len(data) != 4 * n:
            raise self._error(
                f"gave {len(data)} bytes of scores for {n} rows, {4 * n} needed; correct the server"
            )
        return np.frombuffer(data, "<f4")

    def _checked(self, until: float) -> Interface:
        identity = {"name": self._endpoint.model, "version": self._endpoint.version}
        request = self._messages.ModelReadyRequest(**identity)
        if not self._ask("ModelReady", request, until).ready:
            raise UnansweredError(self._instead(until))
        request = self._messages.ModelMetadataRequest(**identity)
        there = self._ask("ModelMetadata", request, until)
        outputs = [output for output in there.outputs if _is_float(output, *_SCORE_SHAPES)]
        k = there.inputs[0].shape[-1] if there.inputs and there.inputs[0].shape else 0
        wanted = k if self._n_features is None else self._n_features
        fits = len(there.inputs) == 1 and _is_float(there.inputs[0], [-1, wanted]) and wanted > 0
        if not fits or len(outputs) != 1:
            raise self._error(
                f"has it with {_described(there.inputs)} -> {_described(there.outputs)}, but one "
                f"input FP32 [-1, {self._n_features or 'k'}] and one output FP32 [-1] or [-1, 1] "
                "are needed; serve it so, or give it the features it was trained on"
            )
        return Interface(there.inputs[0].name, k, outputs[0].name, self._max_rows(until))

    def _instead(self, until: float) -> str:
        """Reason why the model is not ready."""
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
        """Most rows a request, from Triton's extension of the protocol; 0 for any number."""
        request = self._messages.ModelConfigRequest(
            name=self._endpoint.model, version=self._endpoint.version
        )
        unknown = (self._grpc.StatusCode.UNIMPLEMENTED,)
        answer = self._ask("ModelConfig", request, until, unknown)
        return 0 if answer is None else max(int(answer.config.max_batch_size), 0)

    def _ask(self, method: str, request: Any, until: float, but: tuple[Any, ...] = ()) -> Any:
        """Send a request and wait for its answer; None for the statuses ``but``."""
        return self._answer(self._send(method, request, until), until, but)

    def _send(self, method: str, request: Any, until: float) -> Any:
        return getattr(self._stub, method).future(request, timeout=max(until - time.monotonic(), 0))

    def _answer(self, future: Any, until: float, but: tuple[Any, ...] = ()) -> Any:
        grpc = self._grpc
        try:
            # gRPC enforces the deadline itself, unless a fork removed its threads.
            return future.result(timeout=max(until - time.monotonic(), 0) + _GRACE_S)
        except grpc.FutureTimeoutError:
            raise UnansweredError from None
        except grpc.RpcError as error:
            code, details = error.code(), _short(error.details() or "")
        if code in but:
            return None
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise UnansweredError
        if code is grpc.StatusCode.UNAVAILABLE:
            raise UnansweredError(details)
        raise self._error(f"says {code.name}: {details}; see its log")

    def _error(self, problem: str) -> ModelError:
        return ModelError(f"{self._endpoint}: the server {self.address} {problem}")


def _is_float(tensor: Any, *shapes: list[int]) -> bool:
    return tensor.datatype == "FP32" and list(tensor.shape) in shapes


def _described(tensors: Any) -> str:
    described = (f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in tensors)
    return ", ".join(described) or "nothing"


def _short(details: str) -> str:
    """Cause of a failure in gRPC's message, without its inner layers."""
    for part, words in _IN_SHORT.items():
        if part in details:
            return words
    return " ".join(details.split())[-120:] or "no reason given"
