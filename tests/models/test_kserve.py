"""Scoring on servers: a real Triton one, one that lies, and none."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import psutil
import pytest
from conftest import absent
from places import TESTS
from services.triton import SHARED_MEMORY, SLOW_S, Server, Triton, free_port, weighted
from tritonclient.grpc import service_pb2, service_pb2_grpc

from agc_ml.errors import ModelError, UsageError
from agc_ml.models.backends import kserve_server as server
from agc_ml.models.backends.kserve import Remote, n_features_of
from agc_ml.models.backends.kserve_endpoint import Endpoint
from agc_ml.models.loading import load_model

SLACK_S = 3.0  # for a busy machine, on top of what is promised
K = 4


def rows(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, K)).astype(np.float32)


def remote(model: str, *addresses: str, version: int = 1, **settings: Any) -> Remote:
    return Remote(Endpoint(addresses, model, str(version)), K, **settings)


def error_of(call: Callable[[], Any]) -> str:
    """The one line of a call's error."""
    with pytest.raises(ModelError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300  # what a report of a failed chunk keeps
    return text


class Timer:
    def __enter__(self) -> Self:
        self._start = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._start


# --- addresses


def test_a_uri_says_where_what_and_which_version() -> None:
    uri = "grpc://one:8001,[::1]:8002,10.0.0.1:1/top%20tagger.v2?version=3"
    with pytest.raises(ModelError, match="one model must follow"):
        Endpoint.parse(uri)
    endpoint = Endpoint.parse(uri.replace("%20", "_"))
    assert endpoint == Endpoint(("one:8001", "[::1]:8002", "10.0.0.1:1"), "top_tagger.v2", "3")
    assert str(endpoint) == "model top_tagger.v2 (version 3)"
    assert Endpoint.parse("grpcs://one:8001/m?version=1").tls


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("grpc://h:1/m", "give the version of the model"),
        ("grpc://h:1/m?version=", "give the version of the model"),
        ("grpc://h:1/m?version=1&version=2", "give the version of the model"),
        ("grpc://h:1/m?version=1&deadline=2", "give the version of the model"),
        ("grpc://h:1/m?version=1 2", "give the version of the model"),
        ("grpc://h:1/m?v", "bad query field"),
        ("grpc://h:1/m#version=1", "one model must follow"),
        ("grpc://[::1/m?version=1", "Invalid IPv6 URL"),
        ("grpc://h:1/?version=1", "one model must follow"),
        ("grpc://h:1/a/b?version=1", "one model must follow"),
        ("grpc:///m?version=1", "'' is not host:port"),
        ("grpc://h/m?version=1", "'h' is not host:port"),
        ("grpc://h:0/m?version=1", "'h:0' is not host:port"),
        ("grpc://h:65536/m?version=1", "'h:65536' is not host:port"),
        ("grpc://h:1,/m?version=1", "'' is not host:port"),
        ("grpc://user:secret@h:1/m?version=1", "is not host:port"),
        ("grpc://h:1,h:1/m?version=1", "named twice"),
        ("http://h:1/m?version=1", "neither grpc:// nor grpcs://"),
        ("", "neither grpc:// nor grpcs://"),
    ],
)
def test_a_uri_that_says_something_else_is_refused(uri: str, reason: str) -> None:
    text = error_of(lambda: Endpoint.parse(uri))
    assert text.startswith(f"model {uri}: ")
    assert reason in text
    assert "grpc://host:port[,other:port]/model?version=1" in text
    if uri.startswith("grpc"):
        assert reason in error_of(lambda: load_model(uri))


@pytest.mark.parametrize(
    "settings",
    [{"deadline_s": 0}, {"deadline_s": float("inf")}, {"batch_rows": 0}, {"in_flight": 0}],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="at least one"):
        remote("weighted", "h:1", **settings)


def test_only_what_was_said_is_pickled() -> None:
    one = remote("weighted", "h:1", "h:2", deadline_s=5.0, batch_rows=7, in_flight=2)
    with pytest.raises(ModelError):
        Remote(one.endpoint, K, deadline_s=0.1)(rows(1))
    other = pickle.loads(pickle.dumps(one))
    names = ("endpoint", "n_features", "deadline_s", "batch_rows", "in_flight")
    assert [getattr(other, name) for name in names] == [getattr(one, name) for name in names]


# --- no server


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    server.library.cache_clear()
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    text = error_of(lambda: remote("weighted", "127.0.0.1:1")(rows(1)))
    assert "pip install 'agc-ml[triton]'" in text
    server.library.cache_clear()


def test_no_rows_need_no_server() -> None:
    scores = remote("weighted", "127.0.0.1:1")(np.empty((0, K)))
    assert scores.shape == (0,)
    assert scores.dtype == np.float32


@pytest.mark.parametrize("shape", [(3, K + 1), (3,), (0, K - 1), (3, K, 1)])
def test_rows_of_other_features_are_refused(shape: tuple[int, ...]) -> None:
    text = error_of(lambda: remote("weighted", "127.0.0.1:1")(np.zeros(shape)))
    assert f"takes rows of {K} features, not an array of shape {shape}" in text


def test_absent_servers_are_named_with_a_reason_each() -> None:
    refused, unknown = f"127.0.0.1:{free_port()}", "no-such-host.invalid:8001"
    one = remote("weighted", refused, unknown, version=7, deadline_s=2.0)
    with Timer() as timer:
        text = error_of(lambda: one(rows(10)))
    assert "model weighted (version 7)" in text
    assert f"{refused} (connection refused)" in text
    assert f"{unknown} (no such host)" in text or f"{unknown} (no answer within 2 s)" in text
    assert "check that one runs" in text
    assert timer.seconds < one.patience_s + SLACK_S
    with Timer() as timer:
        error_of(lambda: n_features_of(one.endpoint, deadline_s=2.0))
    assert timer.seconds < one.patience_s + SLACK_S


# --- a server that lies, or is not Triton


class Liar:
    """What the protocol asks of a server, for a model that gives the first feature."""

    def __init__(self) -> None:
        self.messages = service_pb2
        self.model = "weighted"
        self.version = "1"
        self.inputs = [("features", "FP32", [-1, K])]
        self.outputs = [("score", "FP32", [-1])]
        self.raw = True
        self.cut = 0
        self.status: Any = None
        self.max_rows: int | None = None
        self.asked: list[str] = []
        self.sizes: list[int] = []
        self.first_s, self.other_s = 0.1, 0.02  # the first request takes longer than those after it
        self.busy = self.most_busy = self.dropped = 0
        self._lock = threading.Lock()

    def ModelReady(self, request: Any, _: Any) -> Any:  # noqa: N802 - the protocol's names
        self.asked.append(f"ready {request.name} {request.version}")
        return self.messages.ModelReadyResponse(ready=True)

    def ModelMetadata(self, request: Any, _: Any) -> Any:  # noqa: N802
        self.asked.append(f"metadata {request.name} {request.version}")
        tensor = self.messages.ModelMetadataResponse.TensorMetadata
        there = self.messages.ModelMetadataResponse(name=request.name)
        for of, tensors in ((there.inputs, self.inputs), (there.outputs, self.outputs)):
            of.extend(
                tensor(name=name, datatype=kind, shape=shape) for name, kind, shape in tensors
            )
        return there

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.max_rows is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "what is a config?")
        answer = self.messages.ModelConfigResponse()
        answer.config.max_batch_size = self.max_rows
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(f"infer {request.model_name} {request.model_version}")
        n, k = request.inputs[0].shape
        with self._lock:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
            self.sizes.append(n)
        values = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(n, k)[:, 0]
        time.sleep(self.first_s if values[0] == 0 else self.other_s)
        with self._lock:
            self.busy -= 1
            self.dropped += not context.is_active()
        if self.status is not None:
            context.abort(self.status, "not today")
        answer = self.messages.ModelInferResponse(model_name=self.model, model_version=self.version)
        output = answer.outputs.add(name="score", datatype="FP32", shape=[n])
        if self.raw:
            answer.raw_output_contents.append(values.tobytes()[: 4 * n - self.cut])
        else:
            output.contents.fp32_contents.extend(values)
        return answer


Serve = Callable[..., tuple[Liar, str]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers that lie."""
    servers = []

    def start(credentials: Any = None) -> tuple[Liar, str]:
        liar = Liar()
        server = grpc.server(ThreadPoolExecutor(8))
        servers.append(server)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_complete(liar), server)
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        return liar, f"127.0.0.1:{port}"

    yield start
    for one in servers:
        one.stop(None).wait()


def _complete(liar: Liar) -> Any:
    names = ("ModelReady", "ModelMetadata", "ModelConfig", "ModelInfer")
    methods = {name: staticmethod(getattr(liar, name)) for name in names}
    return type("Servicer", (service_pb2_grpc.GRPCInferenceServiceServicer,), methods)()


def numbered(n: int) -> np.ndarray:
    return np.repeat(np.arange(n, dtype=np.float32)[:, None], K, axis=1)


def test_requests_are_cut_and_few_at_a_time_and_name_the_version(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar, address = serve()
    one = remote("weighted", address, batch_rows=100, in_flight=3)
    features = numbered(1050)
    assert np.array_equal(one(features), features[:, 0])
    assert sorted(liar.sizes) == [50, *[100] * 10]
    assert liar.most_busy == 3
    assert np.array_equal(one(features.astype(np.float64)[:7]), features[:7, 0])
    assert liar.asked[:2] == ["ready weighted 1", "metadata weighted 1"]
    assert set(liar.asked[2:]) == {"infer weighted 1"}  # the rest is asked once a connection
    liar.asked.clear()
    monkeypatch.setattr("os.getpid", lambda: -1)
    one(numbered(7))
    assert liar.asked[0] == "ready weighted 1"  # and once a process


def test_a_server_without_a_config_takes_any_number_of_rows_another_one_as_many_as_it_says(
    serve: Serve,
) -> None:
    liar, address = serve()
    remote("weighted", address)(numbered(10))
    liar.max_rows = 4
    remote("weighted", address)(numbered(10))
    assert sorted(liar.sizes) == [2, 4, 4, 10]


def test_no_request_is_larger_than_servers_take(serve: Serve) -> None:
    liar, address = serve()
    remote("weighted", address, batch_rows=10**6)(numbered(300_000))
    assert 4 * K * max(liar.sizes) < 4 * 1024**2


def test_numbers_may_be_in_either_of_their_places(serve: Serve) -> None:
    liar, address = serve()
    liar.raw = False
    assert np.array_equal(remote("weighted", address)(numbered(10)), np.arange(10))


def test_of_several_outputs_the_score_is_taken(serve: Serve) -> None:
    liar, address = serve()
    liar.outputs = [("label", "INT64", [-1]), ("score", "FP32", [-1, 1]), ("all", "FP32", [-1, 2])]
    assert n_features_of(Endpoint((address,), "weighted", "1")) == K
    assert np.array_equal(remote("weighted", address)(numbered(10)), np.arange(10))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "other"}, "scored with model other (version '1')"),
        ({"version": "2"}, "scored with model weighted (version '2')"),
        ({"version": ""}, "scored with model weighted (version '')"),
        ({"cut": 4}, "gave 36 bytes of scores for 10 rows, 40 needed"),
        ({"cut": 1}, "gave 39 bytes of scores for 10 rows"),
        ({"inputs": []}, "has it with nothing -> score FP32 [-1]"),
        ({"inputs": [("a", "FP32", [-1, K]), ("b", "FP32", [-1, K])]}, "a FP32 [-1, 4], b FP32"),
        ({"inputs": [("a", "FP32", [-1, -1])]}, "has it with a FP32 [-1, -1]"),
        ({"inputs": [("a", "FP32", [100, K])]}, "has it with a FP32 [100, 4]"),
        ({"inputs": [("a", "FP32", [])]}, "has it with a FP32 []"),
        ({"outputs": [("score", "FP32", [-1, 2])]}, "-> score FP32 [-1, 2]"),
        ({"outputs": [("a", "FP32", [-1]), ("b", "FP32", [-1])]}, "-> a FP32 [-1], b FP32 [-1]"),
        ({"outputs": []}, "-> nothing"),
        ({"outputs": [("other", "FP32", [-1])]}, "gave score FP32 [10] for 10 rows, other FP32"),
    ],
)
def test_a_server_with_another_model_is_an_error(
    serve: Serve, change: dict[str, Any], reason: str
) -> None:
    liar, address = serve()
    vars(liar).update(change)
    text = error_of(lambda: remote("weighted", address)(numbered(10)))
    assert text.startswith(f"model weighted (version 1): the server {address} ")
    assert reason in text


@pytest.mark.parametrize(
    ("status", "times"),
    [("UNAVAILABLE", 2), ("DEADLINE_EXCEEDED", 2), ("INVALID_ARGUMENT", 1), ("INTERNAL", 1),
     ("RESOURCE_EXHAUSTED", 1), ("UNAUTHENTICATED", 1)],
)  # fmt: skip
def test_only_what_may_be_asked_again_is(serve: Serve, status: str, times: int) -> None:
    liar, address = serve()
    liar.status = grpc.StatusCode[status]
    text = error_of(lambda: remote("weighted", address)(numbered(10)))
    assert address in text
    assert len(liar.sizes) == times
    if times == 1:
        assert f"says {status}: not today" in text


def test_after_an_error_the_other_requests_are_dropped(serve: Serve) -> None:
    liar, address = serve()
    liar.status = grpc.StatusCode.INTERNAL
    liar.first_s, liar.other_s = 0.3, 0.6
    error_of(lambda: remote("weighted", address, batch_rows=10)(numbered(1000)))
    while liar.busy:
        time.sleep(0.05)
    assert (len(liar.sizes), liar.dropped) == (4, 3)


def test_the_row_of_a_bad_score_is_that_of_the_call(serve: Serve) -> None:
    _, address = serve()
    features = numbered(50)
    features[37] = np.inf
    one = remote("weighted", address, batch_rows=10)
    assert "gave inf as the score of row 37;" in error_of(lambda: one(features))


def certificate(folder: Path) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        absent("no certificate: install openssl")
    key, file = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-keyout", str(key)]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    return key, file


def test_with_tls_a_server_needs_a_certificate_that_the_system_trusts(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, file = certificate(tmp_path)
    pair = (key.read_bytes(), file.read_bytes())
    _, address = serve(grpc.ssl_server_credentials([pair]))
    endpoint = Endpoint.parse(f"grpcs://{address}/weighted?version=1")
    text = error_of(lambda: Remote(endpoint, K, deadline_s=2.0)(numbered(10)))
    assert f"{address} (its certificate is not trusted)" in text
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    assert np.array_equal(Remote(endpoint, K)(numbered(10)), np.arange(10))
    _, plain = serve()
    endpoint = Endpoint.parse(f"grpcs://{plain}/weighted?version=1")
    text = error_of(lambda: Remote(endpoint, K, deadline_s=2.0)(numbered(10)))
    assert f"{plain} (no TLS there)" in text


FAILS = """
import sys
from agc_ml.errors import ModelError
from agc_ml.models.backends.kserve_endpoint import Endpoint
from agc_ml.models.backends.kserve import n_features_of

try:
    n_features_of(Endpoint.parse(sys.argv[1]), deadline_s=2.0)
except ModelError as error:
    print(error)
"""


def test_a_failure_leaves_nothing_else_on_the_screen(serve: Serve) -> None:
    _, address = serve()
    uri = f"grpcs://{address}/weighted?version=1"
    command = [sys.executable, "-c", FAILS, uri]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert f"{address} (no TLS there)" in done.stdout
    assert not done.stderr


# --- Triton


@pytest.fixture
def spare(triton: Triton) -> Iterator[Server]:
    """A server that may be broken."""
    server = triton.start("weighted", "slow")
    yield server
    server.stop()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("n", [1, 1000, 100_000])
def test_scores_are_those_of_the_model(triton: Triton, n: int, version: int) -> None:
    features = rows(n)
    scores = remote("weighted", triton.main.address, version=version, batch_rows=9000)(features)
    assert scores.dtype == np.float32
    assert np.array_equal(scores, weighted(features, version))
    assert not np.array_equal(scores, weighted(features, 3 - version))


def test_a_model_with_a_batch_dimension_takes_no_more_than_it_says(triton: Triton) -> None:
    features = rows(2500)
    assert np.array_equal(remote("column", triton.main.address)(features), weighted(features, 1))


def test_the_number_of_features_is_the_servers(triton: Triton) -> None:
    for name in ("weighted", "column"):
        assert n_features_of(Endpoint((triton.main.address,), name, "1")) == K


@pytest.mark.parametrize(
    ("model", "version", "reason"),
    [
        ("weighted", 3, "has no version 3 ready, but 1, 2"),
        ("absent", 1, "has no model absent ready"),
        ("weighted", "new", "says INVALID_ARGUMENT: "),
        ("short", 1, "gave score FP32 [99] for 100 rows, score FP32 [100] is needed"),
        ("nan", 1, "gave nan as the score of row 99"),
        ("integer", 1, "has it with features INT32 [-1, 4] -> score FP32 [-1]"),
        ("double", 1, "has it with features FP32 [-1, 4] -> score FP64 [-1]"),
    ],
)
def test_what_is_wrong_at_the_server_is_told(
    triton: Triton, model: str, version: int, reason: str
) -> None:
    address = triton.main.address
    text = error_of(lambda: remote(model, address, version=version)(rows(100)))
    assert f"model {model} (version {version}): " in text
    assert address in text
    assert reason in text


def test_another_number_of_features_is_told(triton: Triton) -> None:
    endpoint = Endpoint((triton.main.address,), "weighted", "1")
    text = error_of(lambda: Remote(endpoint, K + 1)(np.zeros((3, K + 1))))
    assert "has it with features FP32 [-1, 4]" in text
    assert "one input FP32 [-1, 5]" in text


def test_a_server_without_the_version_is_passed_over(triton: Triton, spare: Server) -> None:
    one = remote("column", spare.address, triton.main.address)
    assert np.array_equal(one(rows(10)), weighted(rows(10), 1))


def test_threads_may_share_it(triton: Triton) -> None:
    one = remote("weighted", triton.main.address, batch_rows=1000)
    with ThreadPoolExecutor(8) as pool:
        inputs = [rows(20_000, seed) for seed in range(16)]
        for features, scores in zip(inputs, pool.map(one, inputs), strict=True):
            assert np.array_equal(scores, weighted(features, 1))


def test_refused_connections_go_to_the_next_server(triton: Triton) -> None:
    one = remote("weighted", f"127.0.0.1:{free_port()}", triton.main.address)
    assert np.array_equal(one(rows(10)), weighted(rows(10), 1))


def test_a_frozen_server_is_an_error_in_time(spare: Server) -> None:
    known, fresh = (remote("weighted", spare.address, deadline_s=1.0) for _ in range(2))
    known(rows(10))
    with spare.frozen():
        for one in (known, fresh):
            with Timer() as timer:
                text = error_of(lambda one=one: one(rows(10)))
            assert f"{spare.address} (no answer within 1 s)" in text
            assert timer.seconds < one.patience_s + SLACK_S
            with ThreadPoolExecutor(8) as pool, Timer() as timer:
                list(pool.map(lambda _, one=one: error_of(lambda: one(rows(10))), range(8)))
            assert timer.seconds < one.patience_s + SLACK_S


def test_a_frozen_server_costs_one_deadline_where_there_is_another(
    triton: Triton, spare: Server
) -> None:
    one = remote("weighted", spare.address, triton.main.address, deadline_s=2.0, batch_rows=1000)
    features = rows(10_000)
    assert np.array_equal(one(features), weighted(features, 1))
    with spare.frozen():
        with Timer() as timer:
            assert np.array_equal(one(features), weighted(features, 1))
        assert 2.0 <= timer.seconds < 2.0 + SLACK_S
        with Timer() as timer:
            assert np.array_equal(one(features), weighted(features, 1))
        assert timer.seconds < 2.0


def killed_while_it_scores(server: Server, call: Callable[[], Any]) -> Any:
    killer = threading.Timer(SLOW_S / 2, server.signal, [signal.SIGKILL])
    killer.start()
    try:
        return call()
    finally:
        killer.join()
        assert server.has_ended()


def test_requests_of_a_server_that_is_killed_go_to_the_next(triton: Triton, spare: Server) -> None:
    features = rows(3000)
    one = remote("slow", spare.address, triton.main.address, batch_rows=1500)
    scores = killed_while_it_scores(spare, lambda: one(features))
    assert np.array_equal(scores, weighted(features, 1))


def test_a_server_that_is_killed_is_an_error_and_works_again_when_it_is_back(
    triton: Triton, spare: Server
) -> None:
    one = remote("slow", spare.address)
    text = killed_while_it_scores(spare, lambda: error_of(lambda: one(rows(10))))
    assert f"model slow (version 1): no server scores: {spare.address} (" in text
    spare.stop()
    again = triton.start("slow", port=int(spare.address.rpartition(":")[2]))
    assert np.array_equal(one(rows(10)), weighted(rows(10), 1))
    again.stop()


IN_ANOTHER_PROCESS = """
import multiprocessing, sys
import numpy as np
from agc_ml.models.backends.kserve_endpoint import Endpoint
from agc_ml.models.backends.kserve import Remote

features = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
remote = Remote(Endpoint((sys.argv[1],), "weighted", "1"), 4, deadline_s=5.0)

def score(features):
    return remote(features)  # where processes are forked, the one with the parent's connections

if __name__ == "__main__":
    here = remote(features)
    with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
        there = pool.map(score, [features] * 4) + pool.map(remote, [features] * 4)
    assert all(np.array_equal(here, scores) for scores in there)
    assert np.array_equal(here, remote(features))
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_other_processes_connect_again(triton: Triton, tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(IN_ANOTHER_PROCESS)
    command = [sys.executable, str(script), triton.main.address, method]
    subprocess.run(command, check=True, timeout=60)


DIES = """
import os, signal, sys
from pathlib import Path
from services.triton import Triton

print(Triton(Path(sys.argv[1])).main.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_server_ends_with_the_tests_that_started_it(triton: Triton, tmp_path: Path) -> None:
    dying = subprocess.Popen(
        [sys.executable, "-c", DIES, str(tmp_path)],
        cwd=TESTS,
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = dying.communicate(timeout=120)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(int(out)) or _left_behind(dying.pid):
        assert time.monotonic() < deadline, "the server or its shared memory is still there"
        time.sleep(0.05)


def _left_behind(process: int) -> list[Path]:
    return list(SHARED_MEMORY.glob(f"agc-ml-tests-{process}-*"))
