"""A user's folder that is called as the installed package: ``processors/``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nanoaod
import pytest
from commandline import PROGRAM

from agc_ml.analysis import shipped_file
from agc_ml.results.run_result import RunResult

EVENTS = 300
MINE = """
from agc_ml import NOMINAL
from processors import helper
from processors.ttbar import selection

class Mine:
    columns = ("event",)

    def process(self, events):
        return {"n": len(events) * helper.FACTOR, "cut": selection.JET_PT}
"""


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nanoaod.write(tmp_path_factory.mktemp("file") / "a.root", nanoaod.events(EVENTS, 1))


@pytest.fixture(params=[False, True], ids=["plain folder", "with __init__.py"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The working directory of a user who has a folder of processors."""
    mine = tmp_path / "processors"
    mine.mkdir()
    if request.param:
        (mine / "__init__.py").write_text("raise SystemExit('it does not run')\n")
    (mine / "mine.py").write_text(MINE)
    (mine / "helper.py").write_text("FACTOR = 2\n")
    return tmp_path


def run(folder: Path, *words: object, code: int = 0) -> str:
    """Run a command in the folder; returns what it says on standard error."""
    command = [PROGRAM, "run", *map(str, words), "-o", "run"]
    done = subprocess.run(
        command, check=False, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def outputs(folder: Path) -> dict[str, object]:
    return RunResult.load(folder / "run").outputs


@pytest.mark.parametrize("where", [("--cluster", "inline"), ("--workers", 1)])
def test_a_file_in_it_is_found(where: tuple[object, ...], folder: Path, events: Path) -> None:
    """In this process and on workers, beside our own modules, which it may import."""
    run(folder, "processors.mine:Mine", events, *where)
    assert outputs(folder) == {"n": 2 * EVENTS, "cut": 30}


def test_an_edit_of_what_it_imports_counts(folder: Path, events: Path) -> None:
    inline = ("--cluster", "inline")
    run(folder, "processors.mine:Mine", events, *inline)
    first = RunResult.load(folder / "run").provenance.processor.code
    (folder / "processors" / "helper.py").write_text("FACTOR = 31\n")
    refused = run(folder, "processors.mine:Mine", events, *inline, "--resume", code=2)
    assert "of another processor, parameters or fileset (the code of the processor" in refused
    run(folder, "processors.mine:Mine", events, *inline, "--overwrite")
    assert outputs(folder)["n"] == 31 * EVENTS
    assert RunResult.load(folder / "run").provenance.processor.code != first


@pytest.mark.parametrize("ours", ["dimuon", "processors.dimuon:DimuonProcessor"])
def test_ours_still_run_there(ours: str, folder: Path, real_data: Path) -> None:
    run(folder, ours, real_data / "coffea_nano_dimuon.root", "--cluster", "inline")
    assert RunResult.load(folder / "run").hists["dimuon_mass"].sum().value > 0


def test_two_modules_of_one_name_are_refused(folder: Path, events: Path) -> None:
    (folder / "processors" / "dimuon.py").write_text(MINE)
    said = run(folder, "processors.dimuon:Mine", events, "--cluster", "inline", code=2)
    mine = folder / "processors" / "dimuon.py"
    assert f"{mine}: processors.dimuon is also an installed module (" in said
    assert f"rename yours, or name its file: {mine}:Class" in said
    # by its registered name ours is meant
    run(folder, "dimuon", events, "--cluster", "inline")


def test_from_python_with_the_folder_first(folder: Path, events: Path) -> None:
    """As in a notebook, where the working directory is the first place for modules."""
    if (folder / "processors" / "__init__.py").exists():
        (folder / "processors" / "__init__.py").write_text("")
    script = (
        "import agc_ml as agc\n"
        "for name in ('processors.mine:Mine', 'dimuon'):\n"
        f"    agc.run(name, {str(events)!r}, site='inline', output=name[:6], quiet=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": ""},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_what_lies_beside_it_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert shipped_file("processors.mine:Mine", "fit.yml") is None
    (folder / "processors" / "fit.yml").touch()
    found = shipped_file("processors.mine:Mine", "fit.yml")
    assert found == folder / "processors" / "fit.yml"
    assert shipped_file("dimuon", "fit.yml") is None
    assert shipped_file("ttbar", "fit.yml") != found
