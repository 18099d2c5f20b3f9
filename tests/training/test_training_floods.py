"""The real service under clients that mean harm: floods, bombs, pages of others, odd requests."""

from __future__ import annotations

import base64
import json
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import urllib3
from services.floods import answer, connected, half_requests, is_closed
from services.training import TrainingService

from agc_ml.results import tables as rows
from agc_ml.training.service import tokens
from agc_ml.training.service.database import Database
from agc_ml.training.service.job_manager import DATABASE

JSON = {"Content-Type": "application/json"}
DIGEST = "0" * 64
HALF = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nX-a: "


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingService]:
    folder = tmp_path_factory.mktemp("flooded") / "training"
    found = TrainingService(folder, "--max-upload", "200", "--host-name", "ml.example.org")
    found.start()
    yield found
    assert found.stop() == 130


@pytest.fixture(scope="module")
def trainer(service: TrainingService) -> str:
    table = Database(service.folder / DATABASE)
    found = tokens.issue(table, "a-trainer", "train", None)
    table.close()
    return found


def ask(
    service: TrainingService, method: str, path: str, token: str | None = None, **more: Any
) -> tuple[int, str, float]:
    """Status, detail and seconds."""
    headers = {"Authorization": f"Bearer {token or service.token}", **more.pop("headers", {})}
    start = time.monotonic()
    found = urllib3.request(
        method, service.url + path, headers=headers, retries=False, timeout=20, **more
    )
    seconds = time.monotonic() - start
    is_json = "json" in found.headers.get("Content-Type", "")
    said = json.loads(found.data) if is_json else {}
    return found.status, said.get("detail", "") if isinstance(said, dict) else "", seconds


def ask_promptly(
    service: TrainingService, method: str, path: str, token: str | None = None, **more: Any
) -> tuple[int, str]:
    """Status and detail of an answer within a second: in one of three, as machines are busy."""
    for _ in range(3):
        status, detail, seconds = ask(service, method, path, token, **more)
        if seconds < 1:
            return status, detail
    pytest.fail(f"{method} {path[:100]} takes {seconds:.1f} s")


def at_last(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_half_requests_stop_nobody(service: TrainingService) -> None:
    """More than a process has files for by default; the log says nothing of them."""
    before = service.log.stat().st_size
    with half_requests(service.url, 1500, HALF) as halves:
        for path in ("/healthz", "/v1/jobs", "/v1/jobs?limit=5"):
            status, _, seconds = ask(service, "GET", path)
            assert status == 200
            assert seconds < 3  # once only: who waits for the halves to end waits once, and longer
        at_last(lambda: sum(map(is_closed, halves)) >= 500)
    assert service.log.stat().st_size - before < 3000


def test_without_a_file_left(service: TrainingService) -> None:
    """It waits, says so in a line a second at most, and goes on."""
    assert service.process is not None
    process = psutil.Process(service.process.pid)
    at_last(lambda: json.loads(service.ask("GET", "/healthz").data)["registry"] == "open")
    at_last(lambda: process.num_fds() < 200)  # the test before has hung up
    used = process.num_fds()
    soft, hard = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
    before = len(service.log.read_text().splitlines())
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (used + 5, hard))
    try:
        with half_requests(service.url, 50, HALF):
            time.sleep(1.2)
    finally:
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert ask(service, "GET", "/healthz")[0] == 200
    lines = [json.loads(line) for line in service.log.read_text().splitlines()[before:]]
    said = [line for line in lines if "Too many open files" in line["message"]]
    assert 1 <= len(said) <= 4
    assert not any("traceback" in line for line in lines)


def test_a_flood_of_failures_leaves_few_lines(service: TrainingService) -> None:
    before = len(service.log.read_text().splitlines())
    pool = urllib3.PoolManager(retries=False)
    start = time.monotonic()
    for number in range(400):
        status = pool.request("GET", f"{service.url}/v1/jobs?{number}").status
        assert status == 401
    seconds = time.monotonic() - start
    time.sleep(1.3)
    lines = [json.loads(line) for line in service.log.read_text().splitlines()[before:]]
    assert len(lines) < 25 * (seconds + 3)
    counted = sum(line.get("left_out", 1) for line in lines if line.get("status") == 401)
    assert counted == 400


def test_a_token_is_asked_for_before_a_body_is_read(service: TrainingService, trainer: str) -> None:
    """An answer comes although the body never does."""
    at = service.url.removeprefix("http://")
    for head, token, status in (
        (f"PUT /v1/datasets/{DIGEST}", "wrong", 401),
        ("POST /v1/jobs", "wrong", 401),
        ("POST /v1/models/a/rollback", trainer, 403),
        ("POST /v1/jobs/0/cancel", "", 401),
    ):
        asked = (f"{head} HTTP/1.1\r\nHost: {at}\r\nAuthorization: Bearer {token}\r\n"
                 "Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n")  # fmt: skip
        with connected(service.url) as one:
            one.sendall(asked.encode())
            one.settimeout(5)
            assert f" {status} ".encode() in one.recv(1 << 16), head
    large = b"x" * 30_000_000  # sent whole, as most clients do, before they look for the answer
    assert ask(service, "PUT", f"/v1/datasets/{DIGEST}", "wrong", body=large)[0] == 401


NEST = b"[" * 100_000 + b"]" * 100_000
BASE = {"kind": "xgboost", "name": "abc", "dataset": DIGEST}


@pytest.mark.parametrize(
    "body",
    [
        NEST,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b"x" * (1 << 20),
        b" " * ((1 << 20) + 1),
        b" " * (1 << 20),
        b'{"kind":"xgboost","name":"a","dataset":"x","trials":' + b"9" * 5000 + b"}",
        b'{"kind":"xgboost","name":"a","dataset":"x","trials":' + b"9" * 500_000 + b"}",
        b"\xff\xfe",
        b'"\xed\xa0\x80"',
        b"",
        b"null",
    ],
    ids=repr,
)
def test_bodies_that_are_no_job(service: TrainingService, body: bytes) -> None:
    for token, statuses in (("wrong", {401}), (service.token, {400, 413, 422})):
        status, detail = ask_promptly(service, "POST", "/v1/jobs", token, body=body, headers=JSON)
        assert status in statuses
        assert 0 < len(detail) < 400


@pytest.mark.parametrize(
    "change",
    [
        {"trials": float("nan")},
        {"trials": 1e999},
        {"trials": 10**400},
        {"seed": -(10**400)},
        {"name": "a\n"},
        {"name": "\ud800"},
        {"idempotency_key": "\x00"},
        {"idempotency_key": "\ud800"},
        {"dataset": "\ud800@" + DIGEST},
        {"dataset": "x" * 100_000 + "@" + DIGEST},
        {"dataset": DIGEST + "\n"},
        {"space": "/etc/passwd"},
        {"space": {"max_depth": {"low": 1, "high": 10**400}}},
        {"space": {"max_depth": list(range(1, 101)) * 11}},
        {"space": {"max_depth": {"low": 1, "high": 3, "step": 10**400}}},
        {"space": {"learning_rate": {"low": 0.1, "high": 0.3, "step": 10**400}}},
        {"space": {"learning_rate": {"low": 0.1, "high": 0.3, "step": 5e-324}}},
        {"space": {"learning_rate": {"low": -(10**400), "high": 0.3}}},
        {"space": {"x\ud800": 1}},
        {"kind": "judge", "versions": {"even": 10**400, "odd": 2}},
        {
            "kind": "judge",
            "versions": {"even": 1, "odd": 2},
            "remote": {"even": "grpc://" + "a" * 5000},
        },
    ],
    ids=lambda change: repr(change)[:60],
)  # fmt: skip
def test_values_that_are_none(service: TrainingService, change: dict[str, Any]) -> None:
    body = json.dumps({**BASE, **change}).encode()
    status, detail = ask_promptly(service, "POST", "/v1/jobs", body=body, headers=JSON)
    assert status in {400, 422}
    assert detail


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/jobs/%00", 404),
        ("/v1/jobs/" + "a" * 60_000, 404),
        ("/v1/jobs/%F0%9F%98%80", 404),
        ("/v1/jobs/%ff%fe", 404),
        ("/v1/jobs/..%2f..%2fetc", 404),
        ("/jobs/%00", 404),
        ("/jobs/%3Cscript%3E", 404),
        ("/v1/jobs/", 404),
        ("/v1/models/a/versions/1/files/..%2f..%2f..%2fjobs.sqlite", 404),
        ("/v1/models/a/versions/1/files/%2fetc%2fpasswd", 404),
        ("/v1/models/a/versions/1/files/%00", 404),
        ("/v1/datasets/..%2f..%2fjobs", 404),
        ("/v1/datasets/%2e%2e", 404),
        ("/v1/datasets/" + "a" * 5000, 404),
        ("/v1/datasets/%00", 404),
        ("/v1/models/a/resolve?alias=%00", 422),
        ("/v1/models/a/resolve?alias=" + "x" * 50_000, 422),
        ("/v1/models/a/resolve?alias=%27%20or%201=1", 422),
        ("/v1/models/a/resolve?version=99999999999999999999999", 422),
        ("/v1/jobs?limit=NaN", 422),
        ("/v1/jobs?limit=1e2", 422),
        ("/v1/jobs?limt=5", 422),
        ("/v1/jobs/x/logs?tail=1e9", 422),
        ("/v1/jobs/x/logs?tail=0", 422),
    ],
    ids=lambda value: str(value)[:50],
)
def test_names_that_are_none(service: TrainingService, path: str, status: int) -> None:
    found, detail = ask_promptly(service, "GET", path)
    assert (found, bool(detail)) == (status, True)


@pytest.mark.parametrize("body", [b"x", b"", b"PAR1" + b"\0" * 100, b"PAR1" * 3, b"\0" * 1_000_000])
def test_files_that_are_no_parquet(service: TrainingService, trainer: str, body: bytes) -> None:
    path = f"/v1/datasets/{'a' * 64}"
    status, detail = ask_promptly(service, "PUT", path, trainer, body=body)
    assert status == 422
    assert "the training set: can't be read as Parquet" in detail


def said_of_itself(table: pa.Table) -> pa.Table:
    about = {"schema": 1, "digest": DIGEST, "about": {}, "provenance": {}}
    return table.replace_schema_metadata({b"agc_ml": json.dumps(about).encode()})


def bomb(kind: str) -> pa.Table:
    words = [f"w{i}" for i in range(20_000)]
    tables = {
        "many words, one of them long": {"variation": [*words, "a" * 50_000]},
        "a very long word": {"variation": ["a" * 280_000_000]},
        "a dictionary of long words": {
            "variation": pa.DictionaryArray.from_arrays([0, 1], ["a" * 50_000_000, "b"])
        },
        "the same number": {"weight": np.ones(10_000_000)},
        "a list": {"weight": pa.array([np.zeros(5_000_000)])},
        "no text": {"variation": pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())},
    }
    return said_of_itself(pa.table(tables[kind]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("many words, one of them long", "column variation: takes 1,000 MB of memory; at most 32"),
        ("a very long word", "column variation: takes 280 MB of memory; at most 256 MB"),
        ("a dictionary of long words", "column variation is of type dictionary"),
        ("the same number", "takes 80 MB of memory; at most 32 MB"),
        ("a list", "column weight is of type list"),
        ("no text", "can't be read as Parquet"),
    ],
)
def test_small_files_that_would_be_large(
    service: TrainingService, trainer: str, tmp_path: Path, kind: str, message: str
) -> None:
    assert service.process is not None
    path = tmp_path / "t.parquet"
    pq.write_table(bomb(kind), path, compression="zstd", write_statistics=False)
    process = psutil.Process(service.process.pid)
    before = process.memory_info().rss
    status, detail, seconds = ask(
        service, "PUT", f"/v1/datasets/{DIGEST}", trainer, body=path.read_bytes()
    )
    assert status == 422
    assert message in detail
    assert seconds < 10
    assert process.memory_info().rss - before < 100_000_000


def test_a_reader_that_dies(service: TrainingService, trainer: str, training_run: Path) -> None:
    """Whatever ends it: a fault of a library, a lack of memory."""
    assert service.process is not None
    process = psutil.Process(service.process.pid)
    content = (training_run / "training.parquet").read_bytes()

    def kill() -> None:
        while not (readers := [c for c in process.children() if "uploads" in str(c.cmdline())]):
            time.sleep(0.005)
        readers[0].kill()

    killing = threading.Thread(target=kill)
    killing.start()
    status, detail, _ = ask(service, "PUT", f"/v1/datasets/{DIGEST}", trainer, body=content)
    killing.join()
    assert status == 422
    assert "its reader ended: SIGKILL" in detail
    assert ask(service, "GET", "/healthz")[0] == 200


def basic(token: str) -> dict[str, str]:
    """What a browser sends by itself once it was told the password."""
    return {"Authorization": "Basic " + base64.b64encode(f"me:{token}".encode()).decode()}


EVIL = "http://evil.example"


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("POST", "/v1/jobs", {"Origin": EVIL, "Content-Type": "text/plain"}, "{}=", 403),
        ("POST", "/v1/jobs", {"Origin": EVIL, **JSON}, "{}", 403),
        ("POST", "/v1/jobs", {"Origin": "null", **JSON}, "{}", 403),
        ("POST", "/v1/jobs", {"Origin": "http://127.0.0.1:1", **JSON}, "{}", 403),
        ("POST", "/v1/jobs", {"Sec-Fetch-Site": "cross-site", **JSON}, "{}", 403),
        ("POST", "/v1/jobs", {"Sec-Fetch-Site": "same-site", **JSON}, "{}", 403),
        ("PUT", f"/v1/datasets/{DIGEST}", {"Origin": EVIL}, "x", 403),
        ("POST", "/v1/jobs/0/cancel", {"Origin": EVIL}, "", 403),
        ("POST", "/v1/jobs", {"Content-Type": "text/plain"}, "{}", 415),
        ("POST", "/v1/jobs", {}, "{}", 415),
        ("POST", "/v1/jobs", {"Content-Type": "application/jsonx"}, "{}", 415),
        (
            *("POST", "/v1/models/a/rollback"),
            *({"Content-Type": "application/x-www-form-urlencoded"}, "", 415),
        ),
        ("POST", "/v1/jobs/0/cancel", {"Content-Type": "multipart/form-data"}, "", 415),
        ("POST", "/v1/jobs/0/cancel", {}, "x", 415),
        ("PUT", f"/v1/datasets/{DIGEST}", {"Content-Type": "text/plain"}, "x", 415),
        ("GET", "/", {"Host": "rebind.evil.example:{port}"}, None, 421),
        ("GET", "/healthz", {"Host": "evil.example"}, None, 421),
        ("GET", "/v1/jobs/", {"Host": "evil.example"}, None, 421),
        ("GET", "/", {"Host": "127.0.0.1.evil.example"}, None, 421),
        ("GET", "/", {"Host": "10.1.2.3:{port}"}, None, 421),
        ("GET", "/", {"Host": "localhost@evil.example"}, None, 421),
        ("GET", "/", {"Host": ""}, None, 421),
        # and what is no harm
        ("POST", "/v1/jobs", {"Origin": "http://127.0.0.1:{port}", **JSON}, "{}", 422),
        ("POST", "/v1/jobs", {"Sec-Fetch-Site": "same-origin", **JSON}, "{}", 422),
        ("POST", "/v1/jobs", {"Content-Type": "Application/JSON; charset=utf-8"}, "{}", 422),
        ("POST", "/v1/jobs/0/cancel", {}, None, 404),
        ("POST", "/v1/jobs/0/cancel", JSON, None, 404),
        ("GET", "/", {"Host": "localhost:9000"}, None, 200),  # through a tunnel
        ("GET", "/", {"Host": "LOCALHOST."}, None, 200),
        ("GET", "/", {"Host": "[::1]:8500"}, None, 200),
        ("GET", "/", {"Host": "ml.example.org", "Sec-Fetch-Site": "cross-site"}, None, 200),
        (
            *("POST", "/v1/jobs"),
            {"Host": "127.0.0.1:8500", "Origin": "https://ml.example.org", **JSON},
            *("{}", 422),
        ),
        (
            *("POST", "/v1/jobs"),
            {"Host": "localhost:443", "Origin": "https://localhost", **JSON},
            *("{}", 422),
        ),
    ],
)
def test_pages_of_others(
    service: TrainingService,
    method: str,
    path: str,
    headers: dict[str, str],
    body: str | None,
    status: int,
) -> None:
    sent = {name: value.replace("{port}", str(service.port)) for name, value in headers.items()}
    found = urllib3.request(
        method,
        service.url + path,
        headers={**basic(service.token), **sent},
        body=body,
        retries=False,
        redirect=False,
    )
    assert found.status == status, found.data
    assert "location" not in found.headers
    if status >= 400:
        assert json.loads(found.data)["status"] == status


def test_old_clients_name_no_host(service: TrainingService) -> None:
    with connected(service.url) as one:
        assert b"200 OK" in answer(one, b"GET /healthz HTTP/1.0\r\n\r\n")


def test_pages_are_in_no_frame(service: TrainingService) -> None:
    for path in ("/", "/docs", "/healthz"):
        found = urllib3.request("GET", service.url + path, headers=basic(service.token))
        assert found.headers["X-Frame-Options"] == "DENY"
        assert found.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_no_secret_is_printed(service: TrainingService) -> None:
    """They are in files for their owner alone; the terminal says in which."""
    said = service.log.read_text()
    state = json.loads((service.folder / "mlflow.json").read_text())
    for secret in (*state["passwords"].values(), service.token):
        assert secret not in said
    assert f"password in {service.folder / 'client.yaml'}" in said
    for path in service.folder.iterdir():
        if path.is_file() and any(
            secret.encode() in path.read_bytes()
            for secret in (*state["passwords"].values(), service.token)
        ):
            assert path.stat().st_mode & 0o077 == 0, path


def test_sound_tables_are_read_to_the_bit(
    service: TrainingService, trainer: str, training_run: Path
) -> None:
    path = training_run / "training.parquet"
    digest = rows.digest_of(path)
    status, detail, _ = ask(
        service, "PUT", f"/v1/datasets/{digest}", trainer, body=path.read_bytes()
    )
    assert status == 201, detail
    kept = service.folder / "datasets" / f"{digest}.parquet"
    assert kept.read_bytes() == path.read_bytes()
    assert list((service.folder / "datasets").iterdir()) == [kept]
    assert not list(service.folder.glob(".upload*"))
