"""The same bits whatever happens, and an account of it."""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import awkward as ak
import faulty
import nanoaod
import numpy as np
import pytest
import uproot
from commandline import PROGRAM
from places import HELPERS
from services.dask import dask_cluster

import agc_ml as agc
from agc_ml.errors import IncompleteError, ProcessorError
from agc_ml.execution import rounds as execution
from agc_ml.execution.cluster import dask_executor, executors
from agc_ml.execution.worker.job import Failure, one_line
from agc_ml.inputs import loading
from agc_ml.inputs.fileset import Fileset
from agc_ml.results.ledger import Ledger
from agc_ml.results.run_record import load_record
from agc_ml.results.run_result import RunResult

CHUNK = 250


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    return [nanoaod.write(folder / f"{i:02}.root", nanoaod.events(1000, i)) for i in range(10)]


@pytest.fixture(scope="module")
def fileset(files: list[Path]) -> Fileset:
    return nanoaod.fileset(**{f"process{i}": [path] for i, path in enumerate(files)})


@pytest.fixture(scope="module")
def baseline(fileset: Fileset, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return agc.run(
        faulty.Spectrum(),
        fileset,
        site="inline",
        output=tmp_path_factory.mktemp("baseline"),
        chunk_size=CHUNK,
        quiet=True,
    )


@pytest.fixture
def client() -> Iterator[object]:
    """A cluster of its own for each test: some of them are not kind to it."""
    with agc.connect("local", workers=2) as client:
        yield client


def same_bits(a: RunResult, b: RunResult) -> None:
    assert a.templates.keys() == b.templates.keys()
    for name, template in a.templates.items():
        other = b.templates[name]
        np.testing.assert_array_equal(template.values(flow=True), other.values(flow=True))
        np.testing.assert_array_equal(template.variances(flow=True), other.variances(flow=True))
    assert a.cutflow == b.cutflow


def complete(result: RunResult) -> None:
    assert result.status == "complete"
    assert result.ledger.faults() == []
    assert result.ledger.events == result.metrics.events == 10_000
    assert not result.ledger.missing


def test_baseline_is_right(baseline: RunResult, files: list[Path]) -> None:
    complete(baseline)
    tree = uproot.open(files[0])["Events"]
    weight = tree["genWeight"].array(library="np").astype(float)
    pt, btag = tree["Jet_pt"].array(), tree["Jet_btagCSVV2"].array()
    per_jet = np.repeat(weight * 0.1234567, ak.num(pt)) * ak.to_numpy(ak.flatten(btag))
    total = per_jet.sum() * 100 * 1000 / weight.sum()
    assert baseline.templates["pt_process0"].sum(flow=True).value == pytest.approx(total, rel=1e-9)


def test_workers_give_the_same_bits(
    client: object, fileset: Fileset, baseline: RunResult, tmp_path: Path
) -> None:
    result = agc.run(
        faulty.Spectrum(), fileset, client=client, output=tmp_path, chunk_size=CHUNK, quiet=True
    )
    complete(result)
    same_bits(result, baseline)
    assert result.metrics.retries == 0
    assert len({entry.worker for entry in result.ledger.entries}) == 2
    assert (tmp_path / "performance.html").stat().st_size > 10_000
    same_bits(RunResult.load(tmp_path), baseline)


@pytest.mark.parametrize("chunk", [77, 1000, 100_000])
def test_chunk_size_changes_nothing_but_rounding(
    fileset: Fileset, baseline: RunResult, tmp_path: Path, chunk: int
) -> None:
    result = agc.run(
        faulty.Spectrum(), fileset, site="inline", output=tmp_path, chunk_size=chunk, quiet=True
    )
    complete(result)
    for name, template in result.templates.items():
        np.testing.assert_allclose(
            template.values(flow=True), baseline.templates[name].values(flow=True), rtol=1e-9
        )


def test_killed_worker(
    client: object, fileset: Fileset, baseline: RunResult, tmp_path: Path
) -> None:
    marker = tmp_path / "killed"
    result = agc.run(
        faulty.Spectrum(fault="kill once", marker=str(marker)),
        fileset,
        client=client,
        output=tmp_path / "run",
        chunk_size=CHUNK,
        quiet=True,
    )
    assert marker.exists()
    complete(result)
    same_bits(result, baseline)
    retried = [entry for entry in result.ledger.entries if entry.attempts > 1]
    assert ("process3", 500) in {(entry.dataset, entry.start) for entry in retried}
    assert all("worker died" in entry.errors[0] for entry in retried)
    assert result.metrics.retries == sum(entry.attempts - 1 for entry in retried)


def before_the_second_round(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do something while the run waits for its second round."""
    waits: list[float] = []

    def wait(seconds: float) -> None:
        if not waits:
            action()
        waits.append(seconds)

    monkeypatch.setattr("agc_ml.execution.rounds.time", SimpleNamespace(sleep=wait))


def test_file_that_can_be_read_only_later(
    files: list[Path], baseline: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "files"
    shutil.copytree(files[0].parent, folder)
    moved = [folder / path.name for path in files]
    late = nanoaod.fileset(**{f"process{i}": [path] for i, path in enumerate(moved)})
    hidden = moved[4].rename(folder / "elsewhere")
    before_the_second_round(monkeypatch, lambda: hidden.rename(moved[4]))
    result = agc.run(
        faulty.Spectrum(),
        late,
        site="inline",
        output=tmp_path / "run",
        chunk_size=CHUNK,
        quiet=True,
    )
    complete(result)
    same_bits(result, baseline)


def test_file_that_breaks_in_the_middle_and_heals(
    files: list[Path], baseline: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "files"
    shutil.copytree(files[0].parent, folder)
    copies = [folder / path.name for path in files]
    copied = nanoaod.fileset(**{f"process{i}": [path] for i, path in enumerate(copies)})
    whole = copies[4].read_bytes()
    middle = len(whole) // 2
    damaged = whole[: middle - 4000] + bytes(8000) + whole[middle + 4000 :]
    copies[4].write_bytes(damaged)
    before_the_second_round(monkeypatch, lambda: copies[4].write_bytes(whole))
    result = agc.run(
        *(faulty.Spectrum(), copied),
        site="inline",
        output=tmp_path / "run",
        chunk_size=CHUNK,
        quiet=True,
    )
    complete(result)
    same_bits(result, baseline)
    healed = [entry for entry in result.ledger.entries if entry.errors]
    assert {entry.dataset for entry in healed} == {"process4"}
    assert all(entry.attempts >= 2 for entry in healed)


def test_another_file_beside_a_dead_worker(
    fileset: Fileset, baseline: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was known of it is forgotten; the chunk whose worker died is then planned anew."""
    original, rounds = executors.InlineExecutor.outcomes, []

    def outcomes(self: Any, function: Any, jobs: Any, **_: Any) -> Any:
        if function is execution.process_packed and not rounds:
            rounds.append(jobs)
            first, *others = jobs
            yield first, executors.WorkerDied()
            for key in others:
                yield key, Failure("other", "its uuid is another")
        else:
            yield from original(self, function, jobs)

    monkeypatch.setattr(executors.InlineExecutor, "outcomes", outcomes)
    result = agc.run(
        faulty.Spectrum(), fileset, site="inline", output=tmp_path, chunk_size=CHUNK, quiet=True
    )
    assert len(rounds) == 1
    complete(result)
    same_bits(result, baseline)


def test_poison_chunk_is_named_and_all_else_kept(
    client: object, fileset: Fileset, tmp_path: Path
) -> None:
    arguments = {"client": client, "output": tmp_path / "run", "chunk_size": CHUNK, "quiet": True}
    with pytest.raises(IncompleteError) as caught:
        agc.run(faulty.Spectrum(fault="exit"), fileset, **arguments)
    assert "03.root [500, 750)" in str(caught.value)
    assert "worker died" in str(caught.value)
    ledger = Ledger.load(tmp_path / "run" / "ledger.jsonl")
    assert [(e.dataset, e.start) for e in ledger.missing] == [("process3", 500)]
    assert ledger.events == 9750
    assert load_record(tmp_path / "run").status == "partial"
    assert not (tmp_path / "run" / "histograms.root").exists()


def test_missing_chunk_within_what_is_allowed(fileset: Fileset, tmp_path: Path) -> None:
    with agc.connect("local", workers=1) as client:
        result = agc.run(
            faulty.Spectrum(fault="exit"),
            fileset,
            client=client,
            output=tmp_path / "run",
            chunk_size=CHUNK,
            allow_missing=0.25,
            quiet=True,
        )
    assert result.status == "partial"
    assert result.metrics.events == 9750
    assert any("03.root [500, 750)" in warning for warning in result.warnings)
    # the normalisation is that of the events that are there: the yield stays near the full one
    assert result.templates["pt_process3"].sum(flow=True).value == pytest.approx(
        result.templates["pt_process0"].sum(flow=True).value, rel=0.1
    )


def test_processor_that_raises_in_one_chunk(fileset: Fileset, tmp_path: Path) -> None:
    with pytest.raises(ProcessorError) as caught:
        agc.run(
            faulty.Spectrum(fault="raise"),
            fileset,
            site="inline",
            output=tmp_path / "run",
            chunk_size=CHUNK,
            quiet=True,
        )
    assert "process3" in str(caught.value)
    assert "[500, 750)" in str(caught.value)
    assert "no such working point" in str(caught.value)
    assert load_record(tmp_path / "run").status == "failed"


def test_resume_reuses_only_what_the_same_code_made(
    fileset: Fileset, baseline: RunResult, tmp_path: Path
) -> None:
    arguments = {"site": "inline", "chunk_size": CHUNK, "quiet": True, "output": tmp_path / "run"}
    with pytest.raises(ProcessorError):
        agc.run(faulty.Spectrum(fault="raise"), fileset, **arguments)
    kept = len(list((tmp_path / "run" / "chunks").iterdir()))
    assert kept == 14  # three files and half of the fourth
    again = agc.run(faulty.Spectrum(), fileset, resume=True, **arguments)  # other parameters
    complete(again)
    same_bits(again, baseline)
    assert sum(entry.attempts for entry in again.ledger.entries) >= 40 + 14


# -- whole processes: the command line, killed ----------------------------------------------------


def start(folder: Path, fileset_path: Path, cluster: str, *more: str) -> subprocess.Popen[str]:
    command = [
        *(PROGRAM, "run", "faulty:Spectrum", str(fileset_path)),
        *("--set", "sleep=0.3", "--chunk-size", str(CHUNK), "--cluster", cluster),
        *("-o", str(folder), *more),
    ]
    environment = {**os.environ, "PYTHONPATH": str(HELPERS)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def on_disk(fileset: Fileset, tmp_path: Path) -> Path:
    path = tmp_path / "fileset.json"
    loading.save(fileset, path)
    return path


def wait_for_chunks(folder: Path, n: int) -> None:
    deadline = time.monotonic() + 90
    while len([p for p in folder.glob("chunks/*") if not p.name.startswith(".")]) < n:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_driver_resumes(
    on_disk: Path, baseline: RunResult, tmp_path: Path, how: signal.Signals
) -> None:
    folder = tmp_path / "run"
    first = start(folder, on_disk, "local", "--workers", "2")
    wait_for_chunks(folder, 5)
    first.send_signal(how)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130, errors
    assert "Traceback" not in errors
    assert "resume with: agc-ml run faulty:Spectrum" in errors
    assert errors.strip().endswith("--resume")
    assert load_record(folder).status == "partial"
    second = start(folder, on_disk, "inline", "--resume")
    _, errors = second.communicate(timeout=90)
    assert second.returncode == 0, errors
    result = RunResult.load(folder)
    complete(result)
    same_bits(result, baseline)


def test_killed_scheduler_then_resumed_on_another(
    on_disk: Path, baseline: RunResult, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with dask_cluster(tmp_path / "one") as cluster:
        first = start(folder, on_disk, cluster.address)
        wait_for_chunks(folder, 5)
        cluster.scheduler.kill()
        _, errors = first.communicate(timeout=90)
    assert first.returncode == 1, errors
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith("agc-ml: the connection to the Dask")
    assert "--resume" in errors
    with dask_cluster(tmp_path / "two") as cluster:
        second = start(folder, on_disk, cluster.address, "--resume")
        _, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    result = RunResult.load(folder)
    complete(result)
    same_bits(result, baseline)


class Dies:
    """Kills the worker that calls it, the first time."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __call__(self) -> None:
        with contextlib.suppress(FileExistsError):
            self._mark.mkdir()
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_dies_while_plugins_come_and_go(tmp_path: Path) -> None:
    """Dask tells it to who asked as a lost connection: what was done is not lost by it."""
    with agc.connect("local", workers=2) as client:
        executor = dask_executor.DaskExecutor(client)
        executor._register(dask_executor._plugin(Dies(tmp_path / "start")))
        executor._register(dask_executor._plugin(lambda: None, Dies(tmp_path / "end")))
        assert dict(executor.outcomes(abs, {"a": (-1,), "b": (2,)})) == {"a": 1, "b": 2}
        executor.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["end", "start"]


def test_no_interrupt_is_lost_in_a_callback(client: object) -> None:
    """Python drops what is raised in a callback of the garbage collector, Ctrl-C too."""
    modules = {inspect.getmodule(callback) for callback in gc.callbacks}
    assert not [m for m in modules if m is not None and m.__name__.startswith("distributed")]


def test_machinery_is_cheap(tmp_path: Path) -> None:
    """State, jobs, checkpoints and reduction: under 5 ms a chunk beside reading."""
    path = nanoaod.write(tmp_path / "many.root", nanoaod.events(4000, 99))
    fileset = nanoaod.fileset(many=[path])
    costs = []
    for attempt in range(3):
        start = time.process_time()
        result = agc.run(
            faulty.Spectrum(),
            fileset,
            site="inline",
            output=tmp_path / f"run{attempt}",
            chunk_size=20,
            quiet=True,
        )
        assert result.metrics.chunks == 200
        costs.append((time.process_time() - start - result.metrics.cpu_s) / 200)
    assert min(costs) < 0.005


def test_results_that_count_as_nothing_are_results(client: Any) -> None:
    """Not the death of a worker."""
    executor = dask_executor.DaskExecutor(client)
    jobs = {str(value): (value,) for value in (0, "", None, [])}
    found = dict(executor.outcomes(identity_of, jobs))
    assert found == {"0": 0, "": "", "None": None, "[]": []}
    executor.close()


def identity_of(value: Any) -> Any:
    return value


class Talks(Exception):  # noqa: N818 - as of a library
    """Its message is a method, as with some libraries."""

    def message(self) -> str:
        return "never asked"


def test_messages_of_errors_that_are_methods() -> None:
    assert one_line(Talks("no such working point")) == "Talks: no such working point"
