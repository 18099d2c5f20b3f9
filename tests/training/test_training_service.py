"""The real service: who may do what, limits, what it says of bad requests, and its pages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import urllib3
from services.floods import connected, half_requests, is_closed
from services.training import TrainingService, free_port, polled
from trained import SPEC

from agc_ml.errors import TrainingError
from agc_ml.models import loading, registry
from agc_ml.results import tables
from agc_ml.training.service import tokens as access
from agc_ml.training.service.database import Database
from agc_ml.training.service.job_manager import DATABASE

PUBLIC = {("GET", "/healthz")}
NEEDS = {
    ("GET", "/"): "read",
    ("GET", "/jobs/{job_id}"): "read",
    ("GET", "/metrics"): "read",
    ("PUT", "/v1/datasets/{digest}"): "train",
    ("GET", "/v1/datasets/{digest}"): "read",
    ("POST", "/v1/jobs"): "train",
    ("GET", "/v1/jobs"): "read",
    ("GET", "/v1/jobs/{job_id}"): "read",
    ("GET", "/v1/jobs/{job_id}/logs"): "read",
    ("GET", "/v1/jobs/{job_id}/events"): "read",
    ("POST", "/v1/jobs/{job_id}/cancel"): "train",
    ("GET", "/v1/models"): "read",
    ("GET", "/v1/models/{name}"): "read",
    ("GET", "/v1/models/{name}/promotions"): "read",
    ("GET", "/v1/models/{name}/resolve"): "read",
    ("GET", "/v1/models/{name}/versions/{version}/files/{file}"): "read",
    ("GET", "/v1/models/{name}/versions/{version}/report"): "read",
    ("POST", "/v1/models/{name}/promote"): "promote",
    ("POST", "/v1/models/{name}/rollback"): "promote",
}


@pytest.fixture(scope="module")
def tokens(training_service: TrainingService) -> dict[str, str]:
    """A token of each role, and one that has expired."""
    table = Database(training_service.folder / DATABASE)
    found = {
        role: access.issue(table, f"a-{role}", role, time.time() + 999) for role in access.ROLES
    }
    found["expired"] = access.issue(table, "late", "promote", time.time() - 1)
    found["revoked"] = access.issue(table, "gone", "promote", None)
    table.revoke_token("gone")
    table.close()
    return found


def routes(service: TrainingService) -> set[tuple[str, str]]:
    described = json.loads(service.ask("GET", "/openapi.json").data)
    found = {
        (method.upper(), path) for path, methods in described["paths"].items() for method in methods
    }
    return found | {("GET", "/"), ("GET", "/jobs/{job_id}")}  # pages, no parts of the interface


def filled(path: str) -> str:
    values = {
        "digest": "0" * 64,
        "job_id": "0" * 12,
        "name": "nothing",
        "version": "1",
        "file": "x",
    }
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", value)
    return path


def test_every_route_has_its_role(training_service: TrainingService) -> None:
    assert routes(training_service) == PUBLIC | set(NEEDS)


def test_the_api_document_says_where_a_token_is_needed(training_service: TrainingService) -> None:
    described = json.loads(training_service.ask("GET", "/openapi.json").data)
    (scheme,) = described["components"]["securitySchemes"].items()
    assert (scheme[1]["type"], scheme[1]["scheme"]) == ("http", "bearer")
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            is_public = (method.upper(), path) in PUBLIC
            assert route.get("security") == (None if is_public else [{scheme[0]: []}])


@pytest.mark.parametrize("kind", ["none", "wrong", "expired", "revoked"])
def test_nothing_without_a_token(
    training_service: TrainingService, tokens: dict[str, str], kind: str
) -> None:
    given = {"none": "", "wrong": "agcml_wrong"}.get(kind) or tokens.get(kind, "")
    for method, path in sorted(routes(training_service) - PUBLIC):
        answer = training_service.ask(method, filled(path), token=given, json={})
        assert answer.status == 401, (method, path)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert "a valid token is needed" in json.loads(answer.data)["detail"]


@pytest.mark.parametrize("role", access.ROLES)
def test_each_role_may_do_its_part(
    training_service: TrainingService, tokens: dict[str, str], role: Any
) -> None:
    for (method, path), needed in NEEDS.items():
        answer = training_service.ask(method, filled(path), token=tokens[role], json={})
        allowed = access.ROLES.index(role) >= access.ROLES.index(needed)  # type: ignore[arg-type]
        assert (answer.status != 403) == allowed, (role, method, path, answer.data)
        assert answer.status != 401


def test_what_is_public_says_little(training_service: TrainingService) -> None:
    answer = urllib3.request("GET", f"{training_service.url}/healthz")
    assert set(json.loads(answer.data)) == {"status", "registry", "mlflow"}
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_browser_may_use_the_token_as_password(training_service: TrainingService) -> None:
    deadline = time.monotonic() + 60
    while json.loads(training_service.ask("GET", "/healthz").data)["registry"] != "open":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    headers = urllib3.make_headers(basic_auth=f"anyone:{training_service.token}")
    answer = urllib3.request("GET", f"{training_service.url}/", headers=headers)
    assert answer.status == 200
    assert b"jet_assignment@1" in answer.data
    assert b"champion" in answer.data
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    bare = urllib3.request("GET", f"{training_service.url}/")
    assert bare.headers["WWW-Authenticate"].startswith("Basic")


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def job_of(service: TrainingService, run: Path, **change: Any) -> dict[str, Any]:
    return {**SPEC, "dataset": tables.digest_of(run / "training.parquet"), **change}


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"kind": "torch"}, 422, "kind: Input should be 'xgboost', 'keras' or 'judge'"),
        ({"trials": 0}, 422, "trials"),
        ({"name": "../etc"}, 422, "name"),
        ({"space": {"max_dept": 3}}, 422, "'max_dept' is no parameter of xgboost"),
        ({"dataset": "abc"}, 422, "the digest of a training set is needed"),
        ({"dataset": "0" * 64}, 422, "no training set 000000000000 here; upload it first"),
        ({"versions": {"even": 1, "odd": 1}}, 422, "versions belong to the kind judge"),
        ({"kind": "judge"}, 422, "versions belong to the kind judge"),
        ({"kind": "judge", "versions": {"even": 10**30, "odd": 1}}, 422, "versions.even"),
        ({"kind": "judge", "versions": {"even": 1, "odd": 1}}, 422, "space belongs to the kinds"),
        ({"space": {"gamma": nested(150)}}, 422, "gamma"),
        ({"space": {"gamma": "\ud800"}}, 400, "the body is not JSON"),
        ({"space": {"\ud800": 1}}, 400, "the body is not JSON"),
        (
            {
                "kind": "judge",
                "space": None,
                "versions": {"even": 1, "odd": 1},
                "remote": {"even": "/etc/passwd"},
            },
            *(422, "/etc/passwd: it begins with neither grpc:// nor grpcs://"),
        ),
        ({"remote": {"even": "grpc://127.0.0.1:1/x?version=1"}}, 422, "remote belongs to the kind"),
        ({"surprise": 1}, 422, "surprise: Extra inputs are not permitted"),
    ],
)
def test_jobs_that_make_no_sense(
    training_service: TrainingService,
    training_run: Path,
    change: dict[str, Any],
    status: int,
    message: str,
) -> None:
    body = json.dumps(job_of(training_service, training_run, **change))
    headers = {
        "Authorization": f"Bearer {training_service.token}",
        "Content-Type": "application/json",
    }
    answer = urllib3.request(
        "POST", f"{training_service.url}/v1/jobs", body=body, headers=headers, retries=False
    )
    problem = json.loads(answer.data)
    assert (answer.status, problem["status"]) == (status, status)
    assert message in problem["detail"]


def test_bodies_that_are_none(training_service: TrainingService) -> None:
    headers = {
        "Authorization": f"Bearer {training_service.token}",
        "Content-Type": "application/json",
    }
    for body in (b"", b"{", b"[]", b"\xff\xfe", b'{"a": ' * 5000):
        answer = urllib3.request(
            "POST", f"{training_service.url}/v1/jobs", body=body, headers=headers, retries=False
        )
        assert answer.status in {400, 422}, body[:20]
        assert json.loads(answer.data)["detail"]


def test_a_body_of_a_hundred_megabytes(training_service: TrainingService) -> None:
    """Refused by its announced length, or after a megabyte: not read to its end."""
    headers = {
        "Authorization": f"Bearer {training_service.token}",
        "Content-Type": "application/json",
    }

    def parts() -> Any:
        for _ in range(100):
            yield b" " * 1_000_000

    for body in (b" " * 100_000_000, parts()):
        start = time.monotonic()
        try:
            answer = urllib3.request(
                "POST", f"{training_service.url}/v1/jobs", body=body, headers=headers, retries=False
            )
        except urllib3.exceptions.ProtocolError:
            continue  # it hung up on us
        assert answer.status == 413
        assert "application/problem+json" in answer.headers["Content-Type"]
        assert time.monotonic() - start < 10


def test_a_client_that_hangs_up_is_no_fault_of_the_service(
    training_service: TrainingService,
) -> None:
    path = f"/v1/datasets/{'7' * 64}"
    head = (f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n"
            f"Authorization: Bearer {training_service.token}\r\n\r\n")  # fmt: skip
    at = training_service.url.removeprefix("http://").split(":")
    with socket.create_connection((at[0], int(at[1]))) as connection:
        connection.sendall(head.encode() + b"x" * 100_000)
    deadline = time.monotonic() + 20
    while path not in training_service.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    lines = training_service.log.read_text().splitlines()
    found = [json.loads(line) for line in lines if path in line]
    assert [line["status"] for line in found] == [400]
    assert "a fault of the service" not in training_service.log.read_text()
    assert 'status="500"' not in training_service.ask("GET", "/metrics").data.decode()
    assert not [p for p in (training_service.folder / "datasets").iterdir() if "7" * 64 in p.name]


def test_training_sets_that_are_refused(
    training_service: TrainingService, training_run: Path, tmp_path: Path
) -> None:
    good = (training_run / "training.parquet").read_bytes()
    few = tables.read(training_run / "training.parquet")
    path = tmp_path / "few.parquet"
    part = {name: values[:120] for name, values in few.columns.items()}
    tables.write(path, tables.ColumnTable(part, few.about), {})
    few_digest = tables.digest_of(path)
    large = tmp_path / "large.parquet"
    tables.write(large, tables.ColumnTable({"run": np.ones(10_000_000)}, {}), {})
    for digest, body, status, message in (
        ("1" * 64, good, 422, "the training set has the digest"),
        ("2" * 64, b"no parquet at all", 422, "the training set: can't be read as Parquet"),
        ("3" * 64, b"x" * 21_000_000, 413, "at most 20 MB"),
        ("xyz", good, 422, "64 hexadecimal digits"),
        (few_digest, path.read_bytes(), 422, "at least 50 are needed"),
        (tables.digest_of(large), large.read_bytes(), 422, "takes 80 MB of memory; at most 20 MB"),
    ):
        answer = training_service.ask("PUT", f"/v1/datasets/{digest}", body=body)
        assert answer.status == status, answer.data
        assert message in json.loads(answer.data)["detail"]
        assert str(training_service.folder) not in answer.data.decode()
    assert not list(training_service.folder.glob(".upload*"))


def test_what_is_uploaded_is_what_it_says(
    training_service: TrainingService, training_run: Path, tmp_path: Path
) -> None:
    """Also where the service has one of that digest already: that would be trained on."""
    service = training_service.client()
    digest = service.upload(training_run)
    changed = tmp_path / "t.parquet"
    table = pq.read_table(training_run / "training.parquet")
    pq.write_table(table.slice(12), changed)
    assert tables.digest_of(changed) == digest
    with pytest.raises(TrainingError, match="it was changed or is damaged"):
        service.upload(changed)
    answer = training_service.ask("PUT", f"/v1/datasets/{digest}", body=b"whatever")
    assert answer.status == 200


def test_what_is_not_there(training_service: TrainingService) -> None:
    for path, status in (
        ("/v1/jobs/abc", 404),
        ("/v1/jobs/abc/events", 404),
        ("/v1/models/jet_assignment/resolve?version=99999999999999999999", 422),
        ("/v1/models/muons/resolve", 404),
        ("/v1/models/jet_assignment/resolve?version=77", 404),
        ("/v1/models/jet_assignment/resolve?version=x", 422),
        ("/v1/models/a'b/resolve", 404),
        ("/v1/models/jet_assignment/versions/1/files/..%2Fmlflow.db", 404),
        ("/v1/models/jet_assignment/versions/1/files/../../../../jobs.sqlite", 404),
        ("/v1/nothing", 404),
    ):
        answer = training_service.ask("GET", path)
        assert answer.status == status, (path, answer.data)
        assert json.loads(answer.data)["status"] == status


def test_promotions_over_http(training_service: TrainingService) -> None:
    path = "/v1/models/jet_assignment"
    for body, status, message in (
        ({"version": 2}, 409, "judged against none"),
        ({"version": 2, "expect_current": 7}, 409, "the champion is version 1, not version 7"),
        ({"version": 2, "force": True}, 422, "force needs a reason"),
        ({"version": 2, "reason": "nice"}, 422, "a reason is for force only"),
        ({"version": 2, "versions": {"even": 1, "odd": 1}}, 422, "either version"),
        ({}, 422, "either version"),
        ({"version": 77, "force": True, "reason": "x"}, 404, "no such model"),
        ({"versions": {"even": 1, "odd": 9}}, 404, "never judged as a bundle"),
        ({"versions": {"even": 1}}, 422, "versions of the even and of the odd model are needed"),
        ({"version": 10**19}, 422, "version"),
    ):
        answer = training_service.ask("POST", f"{path}/promote", json=body)
        assert answer.status == status, answer.data
        assert message in json.loads(answer.data)["detail"]
    answer = training_service.ask("POST", f"{path}/rollback", json={})
    assert (answer.status, "no champion before" in answer.data.decode()) == (409, True)


def test_a_job_is_a_page(training_service: TrainingService, training_run: Path) -> None:
    """The board leads to it; nothing that was submitted or logged is markup."""
    board = training_service.ask("GET", "/").data.decode()
    job = json.loads(training_service.ask("GET", "/v1/jobs").data)[0]
    assert f'<a href="jobs/{job["id"]}">' in board
    answer = training_service.ask("GET", f"/jobs/{job['id']}")
    assert answer.status == 200
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    page = answer.data.decode()
    for expected in ("succeeded", job["spec"]["dataset"], "n_estimators",
                     "../v1/models/jet_assignment/versions/1/report", "auc 0."):  # fmt: skip
        assert expected in page
    assert "http-equiv" not in page  # it is over
    log = training_service.folder / "jobs" / job["id"] / "log.txt"
    with log.open("a") as file:
        file.write("<script>alert(1)</script>\n")
    spec = job_of(training_service, training_run, idempotency_key="<img src=x onerror=alert(1)>")
    made = json.loads(training_service.ask("POST", "/v1/jobs", json=spec).data)["id"]
    for one in (job["id"], made):
        page = training_service.ask("GET", f"/jobs/{one}").data.decode()
        assert "&lt;" in page
        assert "<script" not in page
        assert "<img" not in page
    training_service.ask("POST", f"/v1/jobs/{made}/cancel")
    assert training_service.ask("GET", "/jobs/nothing").status == 404


def test_a_report_is_a_page(training_service: TrainingService) -> None:
    answer = training_service.ask("GET", "/v1/models/jet_assignment/versions/1/report")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert b"It tells right from wrong" in answer.data


def test_numbers_for_prometheus(training_service: TrainingService) -> None:
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    for method in ("BREW", "X" * 5000):
        urllib3.request(method, f"{training_service.url}/v1/jobs", retries=False)
    text = training_service.ask("GET", "/metrics").data.decode()
    found = {
        sample.name: sample for f in text_string_to_metric_families(text) for sample in f.samples
    }
    assert {"agc_ml_jobs", "agc_ml_requests", "agc_ml_mlflow_up", "agc_ml_slots"} <= set(found)
    assert 'method="other"' in text
    assert "BREW" not in text
    assert len(text) < 20_000


def test_the_log_is_structured(training_service: TrainingService) -> None:
    training_service.ask("GET", "/v1/jobs")
    lines = [
        json.loads(line)
        for line in training_service.log.read_text().splitlines()
        if line.startswith("{")
    ]
    request = next(line for line in reversed(lines) if line.get("path") == "/v1/jobs")
    assert {"time", "level", "method", "status", "ms", "who"} <= set(request)
    assert training_service.token not in training_service.log.read_text()


def test_jobs_from_submission_to_registry(
    training_service: TrainingService, training_run: Path, tmp_path: Path
) -> None:
    """With the client: upload, submit, follow, cancel, log; full queue; the same key."""
    service = training_service.client()
    digest = service.upload(training_run)
    spec = {**SPEC, "dataset": digest}
    # while this one runs, none of those that wait is taken
    long = service.submit(**{**spec, "trials": 500}, seed=77)
    while service.job(long.id).progress.done < 2:
        time.sleep(0.1)
    first = service.submit(**spec, idempotency_key="one")
    assert service.submit(**spec, idempotency_key="one").id == first.id
    with pytest.raises(TrainingError, match="belongs to job"):
        service.submit(**{**spec, "trials": 3}, idempotency_key="one")
    waiting = [service.submit(**spec, seed=number) for number in range(5, 10)]
    with pytest.raises(TrainingError, match="6 jobs are waiting already"):
        service.submit(**spec, seed=20)
    for job in waiting:
        assert service.cancel(job.id).state == "cancelled"
    service.cancel(long.id)
    assert [job.state for job in service.follow(long.id)][-1] == "cancelled"
    with pytest.raises(TrainingError, match="is cancelled: it can't be cancelled any more"):
        service.cancel(long.id)
    seen = list(service.follow(first.id))
    assert [job.state for job in seen][-1] == "succeeded"
    done = [job.progress.done for job in seen]
    assert done == sorted(done)
    versions = seen[-1].result["versions"]  # type: ignore[index]
    found = service.resolve("jet_assignment", versions["bundle"])
    assert found.against == "1"
    assert found.passed
    assert any("judging the bundle" in line for line in service.log(first.id))
    # in time: another one may become the champion only where this one is
    done_promotion = service.promote("jet_assignment", versions["bundle"], expected="1")
    assert done_promotion.previous == "1"
    with pytest.raises(TrainingError, match=f"the champion is version {versions['bundle']}"):
        service.promote("jet_assignment", "2", expected="1", reason="race")
    assert service.rollback("jet_assignment").version == "1"


def test_many_who_poll_while_a_job_trains(
    training_service: TrainingService, training_run: Path
) -> None:
    """200 clients, each asking once a second, while trials take all cores."""
    service = training_service.client()
    spec = {**SPEC, "dataset": service.upload(training_run), "trials": 500}
    job = service.submit(**spec, seed=99)
    while service.job(job.id).progress.done < 1:
        time.sleep(0.1)
    latencies = asyncio.run(polled(training_service, f"/v1/jobs/{job.id}", clients=200, times=4))
    still = service.job(job.id)
    service.cancel(job.id)
    assert still.state == "running"
    assert len(latencies) == 800
    p99 = sorted(latencies)[int(0.99 * len(latencies))]
    assert p99 < 0.2, p99  # benchmarks/loop.py measures it


def test_answers_do_not_wait_to_be_acknowledged(training_service: TrainingService) -> None:
    """Headers and body are two segments; kernels hold an acknowledgement back for 40 ms."""
    pool = urllib3.PoolManager(headers={"Authorization": f"Bearer {training_service.token}"})
    latencies = []
    for _ in range(30):  # one after another over one connection: where it shows
        start = time.perf_counter()
        assert pool.request("GET", f"{training_service.url}/v1/jobs").status == 200
        latencies.append(time.perf_counter() - start)
    assert statistics.median(latencies) < 0.03


def test_a_fault_is_told_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    from agc_ml.training.http.guard import host_names  # noqa: PLC0415 - the service's own parts
    from agc_ml.training.service.app import served_application  # noqa: PLC0415
    from agc_ml.training.service.context import ServiceContext  # noqa: PLC0415

    with ThreadPoolExecutor(1) as pool:
        nothing: Any = None  # of which nothing can be read: a fault of ours
        context = ServiceContext(nothing, pool, pool, "", 1, user="anyone")
        answers: list[Any] = []

        async def ask() -> None:
            async def send(message: Any) -> None:
                answers.append(message)

            scope = {"type": "http", "method": "GET", "path": "/v1/jobs", "headers": [],
                     "query_string": b"", "raw_path": b"/v1/jobs", "root_path": ""}  # fmt: skip
            await served_application(context, host_names("127.0.0.1"))(scope, send, send)

        asyncio.run(ask())
    start, body = answers[:2]
    assert start["status"] == 500
    assert (b"cache-control", b"no-store") in start["headers"]
    assert "a fault of the service" in json.loads(body["body"])["detail"]
    assert context.requests == {("GET", 500): 1}
    assert any(record.exc_info for record in caplog.records)


def test_pages_in_a_browser(
    training_service: TrainingService, chromium: Path, tmp_path: Path
) -> None:
    """The service's own page, its documentation without any network, and MLflow's."""
    wait_for_mlflow(training_service)
    token = training_service.token
    base = training_service.url.replace("http://", f"http://anyone:{token}@")
    viewer = json.loads(json.dumps(viewer_of(training_service)))
    job = json.loads(training_service.ask("GET", "/v1/jobs").data)[0]
    mlflow = (
        f"http://{viewer['user']}:{viewer['password']}@127.0.0.1:{training_service.mlflow_port}"
    )
    for url, expected in (
        (f"{base}/", "jet_assignment@1"),
        (f"{base}/jobs/{job['id']}", "End of the log"),
        (f"{training_service.url}/docs", "/v1/models/{name}/promote"),
        (f"{mlflow}/", "MLflow"),
    ):
        command = [
            *(str(chromium), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", url),
        ]
        page = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert expected in page.stdout, (url, page.stdout[-1500:])


def viewer_of(service: TrainingService) -> dict[str, str]:
    import yaml  # noqa: PLC0415 - only here

    found: dict[str, str] = yaml.safe_load((service.folder / "client.yaml").read_text())["mlflow"]
    return found


def wait_for_mlflow(service: TrainingService) -> None:
    deadline = time.monotonic() + 90
    while json.loads(service.ask("GET", "/healthz").data)["mlflow"] != "up":
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_whoever_may_only_look_at_mlflow_changes_nothing(training_service: TrainingService) -> None:
    wait_for_mlflow(training_service)
    viewer = viewer_of(training_service)
    headers = urllib3.make_headers(basic_auth=f"{viewer['user']}:{viewer['password']}")
    url = f"http://127.0.0.1:{training_service.mlflow_port}/api/2.0/mlflow/registered-models"
    body = {"name": "jet_assignment", "alias": "champion", "version": "2"}
    for path, content in (("alias", body), ("create", {"name": "other"})):
        answer = urllib3.request("POST", f"{url}/{path}", json=content, headers=headers)
        assert answer.status == 403
    experiments = url.replace("registered-models", "experiments")
    answer = urllib3.request(
        "POST", f"{experiments}/search", json={"max_results": 9}, headers=headers
    )
    assert answer.status == 200
    assert urllib3.request("GET", f"{url}/search", retries=False).status == 401
    found = loading.load_registered("jet_assignment@champion", str(training_service.folder))
    assert found.version == "1"


def test_mlflow_stands_a_flood_too(training_service: TrainingService) -> None:
    url = f"http://127.0.0.1:{training_service.mlflow_port}"
    wait_for_mlflow(training_service)
    log = training_service.folder / "mlflow.log"
    before = log.stat().st_size
    with half_requests(url, 1500, b"GET /api/2.0/mlflow HTTP/1.1\r\nX-a: ") as halves:
        found = urllib3.request("GET", f"{url}/health", timeout=10, retries=False)
        assert found.status == 200
        assert sum(map(is_closed, halves)) >= 400
    assert log.stat().st_size - before < 10_000
    sent = 0
    with connected(url) as one, contextlib.suppress(OSError):
        one.sendall(b"POST /api/2.0/mlflow/experiments/search HTTP/1.1\r\nHost: localhost\r\n"
                    b"Content-Length: 500000000\r\n\r\n")  # fmt: skip
        while sent < 100_000_000:
            sent += one.send(b"x" * 1_000_000)
    assert sent < 50_000_000
    for host, status in (("10.evil.example", 403), ("evil.example", 403), ("localhost:1", 401)):
        headers = {"Host": host}
        found = urllib3.request("GET", f"{url}/", headers=headers, timeout=10, retries=False)
        assert found.status == status, host


def test_mlflow_may_die(training_service: TrainingService, training_run: Path) -> None:
    """Jobs go on, and it comes back."""
    wait_for_mlflow(training_service)
    state = json.loads((training_service.folder / "mlflow.json").read_text())
    import os  # noqa: PLC0415 - only here

    os.killpg(state["pid"], signal.SIGKILL)
    service = training_service.client()
    spec = {**SPEC, "dataset": service.upload(training_run), "trials": 1}
    job = list(service.follow(service.submit(**spec, seed=123).id))[-1]
    assert job.state == "succeeded"
    version = job.result["versions"]["bundle"]  # type: ignore[index]
    assert service.resolve("jet_assignment", version).job == job.id
    wait_for_mlflow(training_service)


def refused(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "agc_ml", "service", "training", "-o", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_it_refuses_to_start(training_service: TrainingService, tmp_path: Path) -> None:
    free = ("--port", "0", "--mlflow-port", "0")
    assert "anyone who reaches it could replace models" in refused(
        tmp_path / "a", *free, "--host", "0.0.0.0", "--no-auth"
    )
    busy = ("--port", str(training_service.port), "--mlflow-port", "0")
    assert f"port {training_service.port}: in use" in refused(tmp_path / "a", *busy)
    busy = ("--port", "0", "--mlflow-port", str(training_service.port))
    assert "name another one with --mlflow-port" in refused(tmp_path / "a", *busy)
    assert "is at work in it" in refused(training_service.folder, *free)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("")
    assert "holds other files" in refused(tmp_path / "b", *free)
    (tmp_path / "gates.yaml").write_text("max_los: 0.1\n")
    assert "max_los" in refused(tmp_path / "a", *free, "--gates", str(tmp_path / "gates.yaml"))
    certificate = tmp_path / "c.pem"
    certificate.write_text("")
    assert "belong together" in refused(tmp_path / "a", *free, "--certificate", str(certificate))


def test_over_tls_and_without_tokens(champions: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    command = [
        *(sys.executable, "-m", "agc_ml", "service", "training", "-o", str(tmp_path / "training")),
        *("--port", str(port), "--mlflow-port", "0", "--no-auth"),
        *("--certificate", str(certificate), "--key", str(key)),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert f"https://127.0.0.1:{port}" in process.stdout.readline().decode()
        context = ssl.create_default_context(cafile=str(certificate))
        pool = urllib3.PoolManager(ssl_context=context)
        answer = pool.request("GET", f"https://127.0.0.1:{port}/v1/jobs")
        assert (answer.status, json.loads(answer.data)) == (200, [])
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
    assert (tmp_path / "training" / "client.yaml").stat().st_mode & 0o077 == 0


def test_a_damaged_registry(tmp_path: Path) -> None:
    """Is said, again and again, until it is restored: nothing is lost, and nobody has to restart.

    Ctrl-C then ends it with one line.
    """
    service = TrainingService(tmp_path / "training")
    service.folder.mkdir()
    Database(service.folder / DATABASE).close()
    (service.folder / registry.DATABASE).write_bytes(b"no database" * 999)
    service.start()
    deadline = time.monotonic() + 60
    while "mlflow.db: can't be used now" not in service.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert json.loads(service.ask("GET", "/healthz").data)["registry"] == "closed"
    assert service.ask("GET", "/v1/models").status == 503
    assert b"can't be read now" in service.ask("GET", "/").data
    (service.folder / registry.DATABASE).write_bytes(b"")  # as cp of a backup does
    while json.loads(service.ask("GET", "/healthz").data)["registry"] != "open":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert service.ask("GET", "/v1/models").status == 200
    assert service.stop() == 130
    log = service.log.read_text()
    assert "stopped; the same command resumes" in log.splitlines()[-1]
    assert "Traceback" not in log
    assert "never retrieved" not in log
