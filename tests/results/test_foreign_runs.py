"""Run directories that somebody else made: nothing of theirs runs, and nothing of ours is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

import hist
import nanoaod
import numpy as np
import pytest
from commandline import PROGRAM, agc

import agc_ml
from agc_ml.errors import AgcError, RunDirectoryError, UsageError
from agc_ml.results import histogram_files
from agc_ml.results.run_record import MOVING, NEW
from agc_ml.results.run_result import RunResult
from agc_ml.results.tables import ColumnTable
from agc_ml.statistics.workspace.fit_config import shipped_file

EVENTS = 300


@dataclass(frozen=True)
class Keeps:
    """A histogram, an array and, of that name, a table."""

    table: str = "training"

    columns = ("event",)

    def process(self, events: Any) -> dict[str, Any]:
        """Of numbers of events."""
        numbers = np.asarray(events.event)
        drawn = hist.Hist.new.Reg(3, 0, 300, name="number").Weight().fill(numbers)
        rows = ColumnTable({"number": numbers}, {"task": "t"})
        return {"n": len(numbers), "numbers": numbers, "h": drawn, self.table: rows}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nanoaod.write(tmp_path_factory.mktemp("file") / "a.root", nanoaod.events(EVENTS, 1))


def run(path: Path, folder: Path, processor: Any = None, **how: Any) -> RunResult:
    options = {"site": "inline", "chunk_size": 100, "quiet": True, **how}
    return agc_ml.run(processor or Keeps(), path, output=folder, **options)


@pytest.fixture(scope="module")
def whole(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(path, folder)
    return folder


@pytest.fixture
def foreign(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder of ours, to which links lead."""
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.tex").write_text("long")
    return folder


@pytest.mark.parametrize("name", [NEW, MOVING, "chunks"])
@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_links_in_place_of_folders(
    name: str, how: str, foreign: Path, precious: Path, path: Path
) -> None:
    (foreign / name).symlink_to(precious)
    with pytest.raises(UsageError, match=f"{name}: a file or a link is in the way; remove it"):
        run(path, foreign, **{how: True})
    assert [file.read_text() for file in precious.iterdir()] == ["long"]


def test_links_inside_of_a_run_that_replaces_another(
    foreign: Path, precious: Path, path: Path
) -> None:
    (foreign / NEW).mkdir()
    (foreign / NEW / "chunks").symlink_to(precious)
    with pytest.raises(UsageError, match=f"{NEW}/chunks: a file or a link is in the way"):
        run(path, foreign, resume=True)
    assert [file.read_text() for file in precious.iterdir()] == ["long"]


@pytest.mark.parametrize("command", ["plot", "report"])
def test_figures_are_drawn_through_no_link(command: str, foreign: Path, precious: Path) -> None:
    (foreign / "figures").symlink_to(precious)
    called = agc(command, foreign)
    assert called.code == 2
    assert "figures: a link is in the way; take it away, or name a folder" in called.error
    assert len(list(precious.iterdir())) == 1


def test_locks_are_no_links_and_no_pipes(foreign: Path, precious: Path, path: Path) -> None:
    (foreign / ".lock").symlink_to(precious / "thesis.tex")
    with pytest.raises(UsageError, match=r"\.lock: a link is in the way; remove it"):
        run(path, foreign, overwrite=True)
    assert (precious / "thesis.tex").read_text() == "long"
    (foreign / ".lock").unlink()
    os.mkfifo(foreign / ".lock")
    run(path, foreign, overwrite=True)


def test_a_run_that_replaces_another_leaves_what_others_hide(foreign: Path, path: Path) -> None:
    (foreign / ".git").mkdir()
    (foreign / ".git" / "HEAD").write_text("ref")
    (foreign / ".notes").write_text("mine")
    (foreign / "report.html").write_text("old")
    run(path, foreign, overwrite=True)
    assert (foreign / ".git" / "HEAD").read_text() == "ref"
    assert (foreign / ".notes").read_text() == "mine"
    assert not (foreign / "report.html").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", "/tmp/x", ".hidden", "", "a\0b"])
def test_tables_are_files_of_the_run(name: str, path: Path, foreign: Path) -> None:
    with pytest.raises(AgcError, match="a table can't be called"):
        run(path, foreign.parent / "other", Keeps(name))
    changed(foreign, lambda record: record["tables"].update({name: record["tables"]["training"]}))
    with pytest.raises(RunDirectoryError, match="is not a valid name of a table"):
        RunResult.load(foreign)


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what ``run.json`` says."""
    record = json.loads((folder / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))


def test_a_complete_run_with_missing_chunks_is_none(foreign: Path) -> None:
    ledger = foreign / "ledger.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    lines[1]["status"] = "missing"
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RunDirectoryError, match="says that it is complete, and ledger"):
        RunResult.load(foreign)


@pytest.mark.parametrize(
    "name",
    [
        *("run.json", "ledger.jsonl", "outputs.npz", "outputs.zip", "histograms.zip"),
        *("training.parquet", "measurement.json"),
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
@pytest.mark.timeout(60)
def test_files_that_never_end(name: str, kind: str, foreign: Path) -> None:
    (foreign / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(foreign / name)
    elif kind == "device":
        (foreign / name).symlink_to("/dev/zero")
    else:
        with (foreign / name).open("wb") as file:
            file.truncate(1 << 40)
    called = agc("plot", foreign)
    assert called.code == 1
    assert f"{name}" in called.error or "outputs of the processor" in called.error
    if kind != "large":
        assert "it is a pipe or a device, not a file" in called.error
    elif name not in {"outputs.zip", "histograms.zip", "training.parquet"}:  # read from their end
        assert "it has more than" in called.error


@pytest.mark.timeout(60)
def test_figures_that_never_end(foreign: Path) -> None:
    assert agc("plot", foreign).code == 0
    figure = next((foreign / "figures").glob("*.png"))
    figure.unlink()
    os.mkfifo(figure)
    called = agc("report", foreign)
    assert called.code == 1
    assert f"{figure.name}: can't be read (it is a pipe or a device, not a file)" in called.error


def test_outputs_that_would_fill_the_memory(foreign: Path) -> None:
    """A thousand times as much as is on disk."""
    with zipfile.ZipFile(foreign / "outputs.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(foreign / "outputs.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(RunDirectoryError, match="is compressed, which ours never is"):
        RunResult.load(foreign)


@pytest.mark.timeout(60)
def test_histograms_that_would_fill_the_memory(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = foreign / "histograms.zip"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in members if name.endswith(".json"))
    described = json.loads(members[name])
    for axes in (
        [described["axes"][0] | {"bins": 2_000_000_000}],
        [described["axes"][0] | {"bins": 60_000}, described["axes"][0] | {"bins": 60_000}],
    ):
        crafted = json.dumps(described | {"axes": axes}).encode()
        with zipfile.ZipFile(file, "w") as archive:
            for other, content in {**members, name: crafted}.items():
                archive.writestr(other, content)
        with pytest.raises(AgcError, match="axes with more bins than contents"):
            RunResult.load(foreign)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for other, content in {**members, "more.npy": bytes(3 << 20)}.items():
            archive.writestr(other, content)
    monkeypatch.setattr(histogram_files, "MAX_UNPACKED", 1 << 21)
    with pytest.raises(AgcError, match="it would take 0 GB of memory"):
        RunResult.load(foreign)


def test_records_that_are_nested_too_deep(foreign: Path) -> None:
    text = (foreign / "run.json").read_text()
    for levels in (300, 100_000):
        brackets = "[" * levels + "]" * levels
        (foreign / "run.json").write_text(text.replace("{", f'{{"deep": {brackets}, ', 1))
        called = agc("show", foreign)
        assert (called.code, "fault of agc-ml" in called.err) == (1, False)


def test_nothing_is_imported_from_where_one_stands(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever name a run's processor goes: to look at a run must not run anything."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("evil", "evil_parent/__init__", "evil_parent/inner", "scipy_extra"):
        module = here / f"{name}.py"
        module.parent.mkdir(exist_ok=True)
        module.write_text("from pathlib import Path\nPath('imported').touch()\n")
    native = here / "evil_native" / f"__init__{sysconfig.get_config_var('EXT_SUFFIX')}"
    native.parent.mkdir()
    native.write_bytes(b"to load this is an error, and code of it would run")
    (here / "evil_folder" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert shipped_file("evil_native:P", "fit.yml") is None  # where it is looked for is not kept
    monkeypatch.chdir(here)
    for processor in ("evil:P", "evil_parent.inner:P", "evil_folder.inner:P", "scipy_extra:P"):
        changed(foreign, lambda r, p=processor: r["provenance"]["processor"].update({"name": p}))
        for command in ("show", "fit", "plot", "report"):
            agc(command, foreign)
            assert not Path("imported").exists(), (processor, command)
        assert "evil_folder" not in processor or "no processor" in agc("fit", foreign).error
    assert str(here) not in sys.path
    changed(foreign, lambda r: r["provenance"]["processor"].update({"name": "evil_native:P"}))
    assert "the processor 'evil_native:P' ships no fit configuration" in agc("fit", foreign).error


def test_names_are_no_commands_of_a_terminal(foreign: Path) -> None:
    changed(
        foreign, lambda record: record["provenance"].update({"label": "\x1b]0;owned\x07\x1b[2J"})
    )
    changed(foreign, lambda r: r["tables"].update({"a\x1b[31mb": r["tables"]["training"]}))
    called = agc("show", foreign)
    assert "\x1b" not in called.out + called.err
    assert "\x07" not in called.out + called.err


def test_nothing_in_the_working_directory_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that are started look there first; numba and matplotlib for what sets them up."""
    monkeypatch.chdir(tmp_path)
    told = tmp_path.parent / f"{tmp_path.name}-ran"
    code = f"open({str(told)!r}, 'a').write(__name__); raise ImportError(__name__)"
    for name in ("multiprocessing", "socket", "signal", "numpy", "json", "cupy", "evil"):
        (tmp_path / f"{name}.py").write_text(code)
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: module://evil\n")
    config = {"cache_dir": str(tmp_path / ".cache"), "cache_locator_classes": "evil.Locator"}
    (tmp_path / ".numba_config.yaml").write_text(json.dumps(config))
    made = "run ttbar --datasets ttbar__nominal --workers 1 -o run"
    for command in (made, "plot run", "show run"):
        words = [PROGRAM, *command.split()]
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert not told.exists()
    assert not (tmp_path / ".cache").exists()


def test_what_a_processor_ships_is_found_where_only_a_finder_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As setuptools installs packages as editable; and still nothing is imported."""
    (tmp_path / "__init__.py").write_text("raise SystemExit")
    (tmp_path / "fit.yml").touch()

    class Finder:
        """Of a package that is called otherwise than its folder."""

        @staticmethod
        def find_spec(name: str, *_: Any) -> ModuleSpec | None:
            places = [str(tmp_path)]
            return spec_from_file_location(
                name, tmp_path / "__init__.py", submodule_search_locations=places
            ) if name == "mine" else None  # fmt: skip

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert shipped_file("mine:Processor", "fit.yml") is not None
    assert shipped_file("mine.lacking:Processor", "fit.yml") is None
    assert shipped_file("__main__:Processor", "fit.yml") is None
