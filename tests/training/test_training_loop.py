"""The loop on the embedded events, as people type it; and what they type wrongly."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from commandline import agc

from agc_ml.training.service import job_manager
from agc_ml.training.service.database import Database

NAME = "jet_assignment"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGC_ML_TRAINING", str(tmp_path / "training"))
    return tmp_path


@pytest.mark.slow
def test_the_loop(folder: Path, training_run: Path) -> None:
    """Features, search, gates, promotion, run, fit, drift, rollback; without a service."""
    local = ("--local",)
    train = ("train", str(training_run), *local, "--workers", "2")
    found = agc(*train, "--trials", "4")
    assert "running" in found.err
    assert f"{NAME}@1: AUC 0.9" in found.out
    assert "passes all gates" in found.out
    again = agc(*train, "--trials", "1", "--seed", "5", "--json", "-q")
    job = json.loads(again.out)
    assert job["state"] == "succeeded"
    assert json.loads(agc("models", "show", f"{NAME}@1", *local, "--json").out)["judged"][
        "quality"
    ]["auc"] > 0.95  # fmt: skip
    assert f"{NAME}@1 is the champion" in agc("models", "promote", f"{NAME}@1", *local).out
    run = agc(
        *("run", "ttbar", "--model", f"{NAME}@champion", "--cluster", "inline", "-q"),
        *("-o", str(folder / "run")),
    )
    assert run.code == 0
    record = json.loads((folder / "run" / "run.json").read_text())
    assert record["provenance"]["model"] == {"asked": f"{NAME}@champion", "found": f"{NAME}@1"}
    fit = agc("fit", str(folder / "run"), "--pseudodata", "complete")
    assert "sigma(tt) = " in fit.out
    drift = agc("models", "drift", str(folder / "run"), *local)
    assert (drift.code, "0 of 20 features drifted" in drift.out) == (0, True)
    listed = agc("models", "list", *local)
    assert "champion" in listed.out
    assert "quality" in agc("models", "diff", f"{NAME}@1", f"{NAME}@2", *local).out
    forced = ("--force", "--reason", "to go back from it")
    assert agc("models", "promote", f"{NAME}@2", *forced, *local).code == 0
    assert f"{NAME}@1 is the champion" in agc("models", "rollback", NAME, *local).out
    page = folder / "page.html"
    agc("models", "report", f"{NAME}@1", "-o", str(page), *local)
    assert "It tells right from wrong" in page.read_text()
    agc("models", "pull", f"{NAME}@champion", "-o", str(folder / "bundle"), *local)
    assert "two models of 20 features" in agc("validate", str(folder / "bundle")).out
    assert len(json.loads(agc("jobs", "list", *local, "--json").out)) == 2
    assert "judging the bundle" in agc("jobs", "log", job["id"], *local).out


def test_drift_files_a_challenger(
    own_champions: Path, training_run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run whose inputs are others; once, however often it is looked at, and no promotion."""
    monkeypatch.setenv("AGC_ML_TRAINING", str(own_champions))
    run = folder / "run"
    agc(
        *("run", "ttbar", "--datasets", "ttbar__nominal", "--model", f"{NAME}@champion"),
        *("--cluster", "inline", "-q", "-o", str(run)),
    )
    record = json.loads((run / "run.json").read_text())
    counts = record["outputs"]["inputs"]["ttbar"]["pt_w1"]
    record["outputs"]["inputs"]["ttbar"]["pt_w1"] = counts[::-1]
    (run / "run.json").write_text(json.dumps(record))
    drift = ("models", "drift", str(run), "--local", "--json")
    alone = agc(*drift)
    assert alone.code == 1
    assert json.loads(alone.out)["challenger"] is None
    filed = [agc(*drift, "--train", str(training_run)) for _ in range(2)]
    found = [json.loads(one.out) for one in filed]
    assert [one["drifted"] for one in found] == [1, 1]
    assert found[0]["challenger"] == found[1]["challenger"] is not None
    jobs = json.loads(agc("jobs", "list", "--local", "--json").out)
    assert [job["state"] for job in jobs][-1] == "queued"
    assert "champion" in agc("models", "list", "--local").out.splitlines()[4]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("train", "nowhere"), 2, "nowhere: there is no such file or run"),
        (("train", "RUN", "--space", "spaceship"), 2, "space 'spaceship': for xgboost there are"),
        (("train", "RUN", "--kind", "torch"), 2, "torch"),
        (("train", "RUN", "--detach", "--local"), 2, "there is nobody to run the job"),
        (("train", "RUN", "--name", "Jet Assignment", "--local"), 2, "name:"),
        (("train", "RUN"), 2, "training: no training service;"),
        (("train", "RUN", "--service", "http://127.0.0.1:9"), 1, "127.0.0.1:9 can't be reached"),
        (("train", "RUN", "--service", "here.yaml"), 2, "no training service and no folder of one"),
        (("train", "RUN", "--variation", "JER", "--local"), 1, "no events of the variation 'JER'"),
        (("models", "promote", "jet_assignment"), 2, "a version number"),
        (("models", "show", "jet_assignment@", "--local"), 2, "NAME@VERSION or NAME@champion"),
        (("models", "promote", "jet_assignment@champion"), 2, "a version number"),
        (("models", "promote", "jet_assignment@1", "--force"), 2, "--force and --reason belong"),
        (("models", "promote", "jet_assignment@1", "--local"), 1, "no registry in"),
        (("models", "rollback", "jet_assignment", "--local"), 1, "no champion before"),
        (("jobs", "show", "abc", "--local"), 1, "there is no job abc"),
        (("jobs", "follow", "../x", "--service", "http://127.0.0.1:9"), 2, "a name of letters"),
        (("models", "drift", "RUN", "--local"), 1, "used no bundle of a registry"),
        (("models", "drift", "here.txt", "--local"), 1, "here.txt: not a run directory"),
        (("models", "drift", "RUN", "--local", "--max-psi", "nan"), 2, "--max-psi: a number"),
        (("models", "promote", "jet_assignment@²"), 2, "NAME@VERSION or NAME@champion"),
        (("models", "promote", "jet_assignment-even@1", "--local"), 2, "NAME@VERSION or"),
        (("models", "list", "a'b", "--local"), 2, "the name of a model is needed"),
        (("models", "rollback", "jet_assignment@1", "--local"), 2, "the name of a model is needed"),
        (("jobs", "list", "--local", "--service", "here.txt"), 2, "here.txt: is not a folder"),
        (("train", "RUN", "--local", "--cluster", "foo"), 2, "no site 'foo'"),
        (("train", "RUN", "--workers", "3"), 2, "--cluster and --workers are for --local"),
        (("service", "training", "--cluster", "foo"), 2, "no site 'foo'"),
        (
            ("service", "training", "--certificate", "here.txt", "--key", "here.txt"),
            *(2, "not a certificate with its key"),
        ),
        (("service", "token", "add", "me"), 2, "no training service was started there"),
    ],
)
def test_wrong_words(
    folder: Path,
    training_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    Path("here.txt").write_text("")
    found = agc(*(word.replace("RUN", str(training_run)) for word in words))
    assert found.code == code, found
    assert message in " ".join(found.err.split())
    assert "Traceback" not in found.err


def test_tokens(own_champions: Path) -> None:
    where = ("-o", str(own_champions))
    made = agc("service", "token", "add", "alice", "--role", "train", "--days", "2", *where)
    assert made.out.startswith("agcml_")
    assert agc("service", "token", "add", "alice", *where).code == 1
    assert agc("service", "token", "add", "a b", *where).code == 2
    listed: Any = json.loads(agc("service", "token", "list", "--json", *where).out)
    assert [(one["name"], one["role"]) for one in listed] == [("alice", "train")]
    assert made.out.strip() not in (own_champions / "jobs.sqlite").read_bytes().decode("latin-1")
    assert agc("service", "token", "revoke", "alice", *where).code == 0
    assert "there is no token 'alice'" in agc("service", "token", "revoke", "alice", *where).err


def test_a_training_set_is_recognised(training_run: Path) -> None:
    found = agc("validate", str(training_run / "training.parquet"))
    assert "training set" in found.out
    assert "even and" in found.out


@pytest.mark.parametrize("days", ["nan", "inf", "0", "-1", "1e300"])
def test_tokens_end_some_day(folder: Path, days: str) -> None:
    Database(folder / job_manager.DATABASE).close()
    found = agc("service", "token", "add", "me", "--days", days, "-o", str(folder))
    assert (found.code, "--days: must be more than 0" in found.err) == (2, True)
    assert "no token" not in agc("service", "token", "list", "-o", str(folder)).err


@pytest.mark.parametrize(
    "words",
    [
        ("jobs", "list"),
        ("models", "list"),
        ("models", "promote", f"{NAME}@1"),
        ("run", "ttbar", "--model", f"{NAME}@champion"),
    ],
)
def test_something_else_answers(folder: Path, monkeypatch: pytest.MonkeyPatch, words: Any) -> None:
    """A login page, or another server: with 200 or without."""

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("AGC_ML_TRAINING", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.chdir(folder)
        found = agc(*words)
        server.shutdown()
        thread.join()
    assert found.code == 1
    assert "a server answers (HTTP status" in found.err
    assert "but not a training service" in found.err


def test_a_damaged_token_is_not_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGC_ML_TRAINING_TOKEN", "secr\net")
    found = agc("jobs", "list", "--service", "http://127.0.0.1:9")
    assert (found.code, "AGC_ML_TRAINING_TOKEN: the token is damaged" in found.err) == (2, True)
    assert "secr" not in found.err
