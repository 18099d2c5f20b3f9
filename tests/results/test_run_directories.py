"""Run directories: from any moment of death there is a way on, and old results go last."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nanoaod
import numpy as np
import pytest
from commandline import agc
from services.dask import dask_cluster

import agc_ml
from agc_ml import files
from agc_ml.delivery import routing
from agc_ml.errors import AgcError, RunDirectoryError, StoreError, UsageError
from agc_ml.execution import rounds
from agc_ml.execution.cluster import clusters
from agc_ml.results import run_directories
from agc_ml.results.run_record import NEW, load_record
from agc_ml.results.run_result import RunResult

EVENTS = 300


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nanoaod.write(tmp_path_factory.mktemp("file") / "a.root", nanoaod.events(EVENTS, 1))


@dataclass(frozen=True)
class Count:
    """Counts events, each of them so often."""

    times: int = 1

    columns = ("event",)

    def process(self, events: Any) -> dict[str, Any]:
        """The number of events."""
        return {"n": self.times * len(np.asarray(events.event))}


@dataclass(frozen=True)
class Stops:
    """Counts; interrupted in the third chunk if a variable says so. ``own``: gives own objects."""

    own: bool = False

    columns = ("event",)

    def process(self, events: Any) -> dict[str, Any]:
        """The number of events."""
        if os.environ.get("STOPS") and events.metadata["entrystart"] == 200:
            raise KeyboardInterrupt
        extra = {"own": OwnDict(a=1)} if self.own else {}
        return {"n": len(np.asarray(events.event)), **extra}

    def postprocess(self, accumulator: Any) -> dict[str, Any]:
        """Plain numbers."""
        return {"n": accumulator["n"]}


class OwnDict(dict[str, int]):
    """A mapping of the user's own: no form without code gives that back."""


class Raises:
    """Raises."""

    columns = ("event",)

    def process(self, events: Any) -> dict[str, Any]:
        """Raise."""
        raise KeyError("no such number")


def run(path: Any, folder: Path, processor: Any = None, **how: Any) -> RunResult:
    options = {"site": "inline", "chunk_size": 100, "quiet": True, **how}
    return agc_ml.run(processor or Count(), path, output=folder, **options)


def is_whole(folder: Path, times: int) -> bool:
    """Whether a folder holds a complete run of so many times each event, and nothing else."""
    result = RunResult.load(folder)
    assert result.ledger.faults() == []
    left = {p.name for p in folder.iterdir() if p.name[0] == "." or p.name == "chunks"} - {".lock"}
    is_right = result.outputs["n"] == times * EVENTS == times * result.metrics.events
    return result.status == "complete" and is_right and not left


class DiedError(BaseException):
    """The process is gone."""


@contextmanager
def death(number: int) -> Iterator[list[int]]:
    """Have the process die at a change of the file system: nothing is changed after it.

    Gives how many changes there were.
    """
    count = [0]

    def dying(original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] > number:
                raise DiedError
            return original(*arguments, **options)

        return call

    def remove(folder: Path, *_: Any, **__: Any) -> None:
        for one in sorted(Path(folder).iterdir()):  # one at a time, as it is
            remove(one) if one.is_dir() else one.unlink()
        Path(folder).rmdir()

    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "replace", "rename", "unlink", "rmdir"):
            patch.setattr(Path, name, dying(getattr(Path, name)))
        patch.setattr(shutil, "rmtree", remove)
        with suppress(DiedError):
            yield count


def state_of(folder: Path) -> str:
    """What is said to be in a folder."""
    try:
        record = load_record(folder)
    except RunDirectoryError:
        return "none"
    result = RunResult.load(folder)
    if record.status != "complete":
        return record.status
    assert result.outputs["n"] in {EVENTS, 3 * EVENTS}
    return f"whole x{result.outputs['n'] // EVENTS}"


@pytest.mark.parametrize("begin", ["fresh", "overwrite", "overwrite partial", "resume"])
def test_from_any_moment_of_death_there_is_a_way_on(begin: str, path: Path, tmp_path: Path) -> None:
    """Old results are there until the new ones are, and never a mixture."""
    made = tmp_path / "made"
    if begin != "fresh":
        run(path, made)
    if begin in {"overwrite partial", "resume"}:
        record = json.loads((made / "run.json").read_text())
        (made / "run.json").write_text(json.dumps({**record, "status": "partial"}))
    how = {"overwrite": begin.startswith("overwrite"), "resume": begin == "resume"}
    states = set()
    for number in itertools.count():
        folder, again = tmp_path / f"{number}", tmp_path / f"{number} again"
        if made.exists():
            shutil.copytree(made, folder)
        with death(number) as count:
            run(path, folder, Count(3), **how)
        if count[0] == number:  # it came to its end
            assert is_whole(folder, 3)
            break
        states.add(state_of(folder))
        if folder.exists():
            shutil.copytree(folder, again)
        if states == {"whole x1"} and not (folder / NEW).exists():  # nothing was begun
            with pytest.raises(UsageError, match="replace it with --overwrite"):
                run(path, folder, Count(3), resume=True)
        else:
            run(path, folder, Count(3), resume=True)
            assert is_whole(folder, 3)
        run(path, again, Count(3), overwrite=True)
        assert is_whole(again, 3)
    assert number > 10
    assert (
        states
        == {
            "fresh": {"none", "partial", "whole x3"},
            "overwrite": {"whole x1", "none", "whole x3"},
            "overwrite partial": {"partial", "none", "whole x3"},
            "resume": {"partial", "whole x3"},
        }[begin]
    )


def test_results_before_a_run_that_replaces_them_are_said_to_be_that(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    run(path, folder)
    with pytest.raises(AgcError, match="no such number"):
        run(path, folder, Raises(), overwrite=True)
    assert RunResult.load(folder).outputs["n"] == EVENTS
    assert "a run that replaces this one is unfinished" in caplog.text
    with pytest.raises(UsageError, match="there is something in it"):
        run(path, folder)
    shown = agc("show", folder)
    assert (shown.code, "complete" in shown.out) == (0, True)
    caplog.clear()
    run(path, folder, Count(3), resume=True)
    assert "chunks can't be used" not in caplog.text  # none was finished
    assert is_whole(folder, 3)


@pytest.mark.parametrize("tiny_disk", ["8k"], indirect=True)
def test_a_disk_that_is_full_at_the_first_byte(tiny_disk: Path, path: Path) -> None:
    folder = tiny_disk / "run"
    (tiny_disk / "filler").write_bytes(bytes(4096))
    with pytest.raises(StoreError, match="No space left"):
        run(path, folder)
    subprocess.run(["mount", "-o", "remount,size=5m", tiny_disk], check=True)
    run(path, folder, resume=True)
    assert is_whole(folder, 1)
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    assert run(path, folder, resume=True).status == "complete"  # there is nothing to write
    with pytest.raises(StoreError, match="can't be written"):
        run(path, tiny_disk / "other")


def test_a_second_run_into_the_same_folder_is_told_before_its_cluster(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr(clusters, "connect", None)  # never called
    with files.owned(folder), pytest.raises(UsageError, match="another agc-ml is at work"):
        run(path, folder, site="local")
    assert not folder.exists()


def test_a_run_that_finished_meanwhile_is_never_cleared(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, deliver = tmp_path / "run", routing.deliver

    def slowly(*arguments: Any) -> Any:
        monkeypatch.undo()
        run(path, folder)
        return deliver(*arguments)

    monkeypatch.setattr(routing, "deliver", slowly)
    with pytest.raises(UsageError, match="there is something in it"):
        run(path, folder, Count(3))
    assert is_whole(folder, 1)


def test_runs_in_the_same_second_have_folders_of_their_own(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: run_directories.new_folder("a.py:Count"), range(24)))
    assert len(set(made)) == 24
    assert all(folder.is_dir() for folder in made)
    before = set(Path("runs").iterdir())
    with pytest.raises(AgcError):
        agc_ml.run(Count(), "no/such/file.root", site="inline", quiet=True)
    called = agc("run", "ttbar", "no/such/file.root", "--cluster", "inline")
    assert called.code == 2
    assert set(Path("runs").iterdir()) == before  # what came to nothing left nothing


def test_a_resume_says_what_differs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setenv("STOPS", "yes")
    with pytest.raises(KeyboardInterrupt):
        run(path, folder, Stops())
    assert len(list((folder / "chunks").iterdir())) == 2
    run(path, folder, Count(3), resume=True)
    assert (
        f"{folder}: 2 of its 2 finished chunks can't be used: processor "
        "Stops, now Count; own=false, now not set; times=not set, now 3"
    ) in caplog.text
    assert is_whole(folder, 3)
    with pytest.raises(UsageError, match=r"times=3, now 1\), so none of its 3 chunks can be used"):
        run(path, folder, Count(1), resume=True)
    other = nanoaod.fileset(tt=[path])
    with pytest.raises(UsageError, match=r"another fileset \(without a, with tt\)"):
        run(other, folder, Count(3), resume=True)


def test_pickles_of_others_need_trust(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where outputs have no form without code, and the run was moved to another machine."""
    folder = tmp_path / "run"
    monkeypatch.setenv("STOPS", "yes")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "here"))
    with pytest.raises(KeyboardInterrupt):
        run(path, folder, Stops(own=True))
    shutil.copytree(folder, tmp_path / "moved")
    monkeypatch.delenv("STOPS")
    assert run(path, folder, Stops(own=True), resume=True).status == "complete"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match="add --trust"):
        run(path, tmp_path / "moved", Stops(own=True), resume=True)
    found = run(path, tmp_path / "moved", Stops(own=True), resume=True, trust=True)
    assert found.outputs["n"] == EVENTS
    assert found.metrics.chunks == 3


def test_a_finished_run_stays_finished(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The scheduler dies after the last chunk, and the report of it can't be written anyway."""
    process = rounds.process
    with dask_cluster(tmp_path / "cluster", 1, "--no-nanny") as cluster:

        def last(account: Any, executor: Any) -> None:
            process(account, executor)
            cluster.scheduler.kill()
            cluster.scheduler.wait()

        monkeypatch.setattr(rounds, "process", last)
        (tmp_path / "run").mkdir()
        run(path, tmp_path / "run", site=cluster.address)
    assert is_whole(tmp_path / "run", 1)
    assert "performance.html can't be written" in caplog.text


def test_side_files_that_cannot_be_written_are_told(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process = rounds.process

    def in_the_way(account: Any, executor: Any) -> None:
        process(account, executor)
        (tmp_path / "run" / "performance.html").mkdir()

    monkeypatch.setattr(rounds, "process", in_the_way)
    run(path, tmp_path / "run", site="local", workers=1)
    assert is_whole(tmp_path / "run", 1)
    assert "performance.html can't be written (IsADirectoryError" in caplog.text


def test_errors_of_the_users_code_say_where(path: Path, tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(MINE)
    for case, line in {"process": 7, "init": 4, "postprocess": 11}.items():
        called = agc(
            *("run", f"{script}:Mine", path, "--cluster", "inline", "-o", tmp_path / case),
            *("--set", f"case={case}"),
        )
        assert called.code == 1
        assert f"at {script}, line {line}" in called.error, case
        assert "fault of agc-ml" not in called.error
    script.write_text(f"import numpy\n{MINE}\nnumpy.zeros(-1)\n")
    called = agc("run", f"{script}:Mine", path, "--cluster", "inline", "-o", tmp_path / "import")
    assert f"at {script}, line 14" in called.error


MINE = """\
class Mine:
    columns = ("event",)
    def __init__(self, case: str = ""):
        self.value = {"process": 1, "postprocess": 1, "": 1}[case]
        self.case = case
    def process(self, events):
        if self.case == "process": {}["no such key"]
        return {"n": 1}
    def postprocess(self, accumulator):
        if self.case == "postprocess":
            raise ValueError("wrong")
"""


def test_a_folder_of_other_things_called_chunks_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "chunks").mkdir()
    (tmp_path / "chunks" / ("0" * 40)).touch()
    assert run_directories.find(tmp_path, resume=False, overwrite=True).work == tmp_path
    (tmp_path / "chunks" / "data.txt").touch()
    with pytest.raises(UsageError, match="--overwrite leaves it alone"):
        run_directories.find(tmp_path, resume=False, overwrite=True)
