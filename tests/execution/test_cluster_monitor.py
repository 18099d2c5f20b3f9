"""Nothing is waited for in silence, nor for ever: workers that freeze, hang, or are not there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nanoaod
import numpy as np
import psutil
import pytest
import uproot
from commandline import agc
from distributed import Client
from places import ROOT
from services.dask import dask_cluster
from stalling import Count

import agc_ml
from agc_ml.errors import ClusterError, WaitError
from agc_ml.execution.cluster import dask_executor, monitor
from agc_ml.inputs import loading
from agc_ml.inputs.fileset import Fileset
from agc_ml.results.run_record import load_record
from agc_ml.results.run_result import RunResult

CHUNK = 100


@pytest.fixture(scope="module")
def fileset(tmp_path_factory: pytest.TempPathFactory) -> Fileset:
    folder = tmp_path_factory.mktemp("files")
    files = [nanoaod.write(folder / f"{i:02}.root", nanoaod.events(200, i)) for i in range(4)]
    return nanoaod.fileset(**{f"process{i}": [path] for i, path in enumerate(files)})


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds in place of minutes."""
    for name, value in {"CHECK_S": 0.3, "REPORT_S": 1.5, "SILENT_S": 3.0, "ANSWER_S": 5.0}.items():
        monkeypatch.setattr(monitor, name, value)
    monkeypatch.setattr(dask_executor, "_REGISTER_S", 4.0)


def run(fileset: Fileset, output: Path, processor: Any, **how: Any) -> RunResult:
    return agc_ml.run(processor, fileset, output=output, chunk_size=CHUNK, quiet=True, **how)


def complete(result: RunResult, fileset: Fileset) -> None:
    """Each event once."""
    assert result.status == "complete"
    assert result.ledger.faults() == []
    files = [file.url for dataset in fileset.datasets for file in dataset.files]
    numbers = np.concatenate([uproot.open(f)["Events"]["event"].array(library="np") for f in files])
    assert result.outputs["n"] == len(numbers) == 800
    assert result.outputs["sum"] == numbers.sum()


def once_there_are_chunks(folder: Path, action: Callable[[], object]) -> threading.Thread:
    def wait() -> None:
        while len(list(folder.glob("chunks/[!.]*"))) < 2:
            time.sleep(0.05)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_the_limits_are_those_that_are_documented() -> None:
    """A frozen worker's chunk goes elsewhere within two minutes."""
    text = (ROOT / "docs" / "security.md").read_text()
    assert "ten minutes" in text
    assert (monitor.PATIENCE_S, monitor.NO_WORKERS_S) == (600, 300)


def test_a_frozen_worker_on_this_machine(
    fileset: Fileset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its chunk goes on, also if it was the only one, and has something else, too."""
    processor = Count(fault="freeze", marker=str(tmp_path / "m"))
    with agc_ml.connect(workers=1) as client:
        kept = client.scatter("mine")
        complete(run(fileset, tmp_path / "run", processor, client=client), fileset)
    assert kept.key
    assert "has not answered for" in caplog.text
    assert "03.root [100, 200)" in caplog.text
    for child in psutil.Process().children(recursive=True):
        assert child.status() != psutil.STATUS_STOPPED, "left behind"


def test_frozen_workers_elsewhere(
    fileset: Fileset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without nannies, as batch systems and containers start them; also one that is idle."""
    processor = Count(fault="freeze", marker=str(tmp_path / "m"))
    with dask_cluster(tmp_path / "cluster", 2, "--no-nanny") as cluster:
        complete(run(fileset, tmp_path / "run", processor, site=cluster.address), fileset)
        assert "its jobs go to another one" in caplog.text
        assert sum(psutil.Process(w.pid).status() == "stopped" for w in cluster.workers) == 1

        idle = cluster.add_worker("--no-nanny")
        with agc_ml.connect(cluster.address) as client:
            deadline = time.monotonic() + 30
            while idle.pid not in client.run(os.getpid).values():
                assert time.monotonic() < deadline
        idle.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        complete(run(fileset, tmp_path / "again", Count(), site=cluster.address), fileset)
        assert time.monotonic() - begun < 60
        assert "a worker does not answer" in caplog.text


def test_workers_that_others_use_are_left_to_the_scheduler(
    fileset: Fileset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What somebody else has there would be lost; the scheduler waits for as long as it is told."""
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "8s")
    processor = Count(fault="freeze", marker=str(tmp_path / "m"))
    with (
        dask_cluster(tmp_path / "cluster", 2, "--no-nanny") as cluster,
        agc_ml.connect(cluster.address) as other,
    ):
        other.wait_for_workers(2)
        workers = other.scheduler_info(n_workers=-1)["workers"]
        kept = [other.scatter(worker, workers=[worker]) for worker in workers]
        begun = time.monotonic()
        complete(run(fileset, tmp_path / "run", processor, site=cluster.address), fileset)
        assert time.monotonic() - begun > 8
        assert caplog.text.count("has other work, too: the scheduler") == 1
        assert "go to another one" not in caplog.text
        assert len(kept) == 2


def test_what_was_taken_away_twice_stays_where_it_is(
    fileset: Fileset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A processor that holds the interpreter for long looks frozen, and is not."""
    marker = tmp_path / "m"
    processor = Count(fault="hold 10", marker=str(marker))
    with dask_cluster(tmp_path / "cluster", 1) as cluster:
        complete(run(fileset, tmp_path / "run", processor, site=cluster.address), fileset)
    takings = caplog.text.count("has not answered for")
    assert takings >= monitor.TAKINGS
    # on a busy machine others are taken, too, and this one before it is known to have begun
    assert 1 <= len(marker.read_text()) <= takings + 1


def test_what_was_given_up_stays_where_it_is() -> None:
    """Lost results that are made anew can't be given up again: nothing is asked of the cluster."""
    nobody: Any = None
    watch = monitor.ClusterMonitor(nobody, {"key": "a chunk"}, taken=Counter(key=monitor.TAKINGS))
    watch._workers["tcp://a"] = monitor._Worker(heartbeat=0, changed=0)
    watch._at_work_since["tcp://a", "key"] = 0
    assert watch._take_from("tcp://a", ["key"]) == set()


def test_without_workers_it_ends(
    fileset: Fileset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a cluster that never had any less is expected, unless one has told how long."""
    loading.save(fileset, tmp_path / "f.json")
    monkeypatch.setattr(monitor, "NO_WORKERS_S", 6.0)
    with dask_cluster(tmp_path / "none", 0) as nobody:
        called = agc(
            *("run", "stalling:Count", tmp_path / "f.json", "--cluster", nobody.address),
            *("-o", tmp_path / "run"),
        )
        assert called.code == 1
        assert re.search(
            r"nothing has finished for \d s: the cluster has no workers yet; it ends in", called.err
        )
        assert re.search(r"no responding worker has had a job for \d s", called.error)
        assert "--patience waits longer" in called.error
        late = threading.Timer(5, nobody.add_worker, ["--no-nanny"])
        late.start()
        found = run(fileset, tmp_path / "late", Count(), site=nobody.address, patience=60)
        complete(found, fileset)


def test_a_cluster_that_is_lost_keeps_what_is_finished(fileset: Fileset, tmp_path: Path) -> None:
    """All workers die; then the scheduler freezes; then it goes on with others."""
    folder = tmp_path / "run"
    with dask_cluster(tmp_path / "cluster", 1, "--no-nanny") as cluster:
        death = once_there_are_chunks(folder, cluster.workers[0].kill)
        with pytest.raises(WaitError, match="the cluster has no workers"):
            run(fileset, folder, Count(sleep=0.3), site=cluster.address, patience=5)
        death.join()
        kept = len(list(folder.glob("chunks/[!.]*")))
        assert load_record(folder).status == "partial"
        assert 2 <= kept < 8
        cluster.add_worker("--no-nanny")

        def freeze() -> None:
            while len(list(folder.glob("chunks/[!.]*"))) == kept:
                time.sleep(0.05)
            cluster.scheduler.send_signal(signal.SIGSTOP)

        frozen = threading.Thread(target=freeze)
        frozen.start()
        with pytest.raises(WaitError, match=r"the scheduler tcp://\S+ has not answered for"):
            run(fileset, folder, Count(sleep=0.3), site=cluster.address, patience=5, resume=True)
        frozen.join()
    complete(run(fileset, folder, Count(sleep=0.3), site="inline", resume=True), fileset)


def test_a_worker_that_answers_may_take_its_time(
    fileset: Fileset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A line says on what it is at work, and no patience is lost."""
    processor = Count(fault="wait 8")
    complete(run(fileset, tmp_path / "run", processor, workers=1, patience=3), fileset)
    lines = [line for line in caplog.messages if line.startswith("nothing has finished")]
    assert any("03.root [100, 200) for " in line and " on tls://" in line for line in lines)
    assert not any("it ends in" in line for line in lines)
    assert "has not answered" not in caplog.text


def test_a_clock_that_is_set_back_is_named(
    fileset: Fileset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Dask's scheduler, here in the driver, sends nothing more until it is what it was."""
    real, backwards = time.time, [0]
    monkeypatch.setattr(time, "time", lambda: real() - backwards[0])
    folder = tmp_path / "run"
    setter = once_there_are_chunks(folder, lambda: backwards.append(backwards.pop() + 3600))
    with pytest.raises(WaitError, match="nothing has finished"):
        run(fileset, folder, Count(sleep=0.4), workers=1, patience=4)
    setter.join()
    assert caplog.text.count("the clock of this machine was set back by 3600 s") == 1
    complete(run(fileset, folder, Count(sleep=0.4), site="inline", resume=True), fileset)


@pytest.mark.parametrize("case", ["another version", "none", "none, and it is there already"])
def test_workers_without_this_version_are_named(
    case: str, fileset: Fileset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "other" / "agc_ml"
    if case.startswith("none"):
        changed.mkdir(parents=True)
        (changed / "__init__.py").write_text("raise ImportError('there is no agc_ml here')\n")
    else:
        without = shutil.ignore_patterns("__pycache__", "demo", "training", "generate")
        shutil.copytree(Path(agc_ml.__file__).parent, changed, ignore=without)
        (changed / "_version.py").write_text('__version__ = "0.1"\n')
    monkeypatch.setenv("PYTHONPATH", str(changed.parent))
    with dask_cluster(tmp_path / "cluster", 1, "--no-nanny") as cluster:
        if "already" in case:
            with Client(cluster.address) as client:
                client.wait_for_workers(1, timeout=60)
        with pytest.raises(ClusterError, match="install that version") as raised:
            run(fileset, tmp_path / "run", Count(), site=cluster.address)
    what = (
        "can't import what agc-ml" if case.startswith("none") else "has agc-ml 0.1, and the driver"
    )
    assert what in str(raised.value)
