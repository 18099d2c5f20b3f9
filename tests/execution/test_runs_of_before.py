"""Run directories of the release before: read as they are, never mixed with new chunks."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from commandline import agc as command
from places import ROOT

import agc_ml as agc
from agc_ml.errors import UsageError

DATASETS = ["single_top_s_chan__nominal", "single_top_tW__nominal"]


@pytest.fixture
def before(tmp_path: Path) -> Path:
    with zipfile.ZipFile(ROOT / "tests" / "reference" / "runs_before.zip") as stored:
        stored.extractall(tmp_path)
    return tmp_path


def resumed(folder: Path, name: str) -> agc.RunResult:
    fileset = agc.Fileset.load("demo").select(DATASETS)
    return agc.run(
        f"{folder / 'mini.py'}:Mini",
        fileset,
        site="inline",
        output=folder / name,
        resume=True,
        quiet=True,
    )


def test_a_complete_run_is_refused_in_a_line(before: Path) -> None:
    with pytest.raises(UsageError) as refused:
        resumed(before, "complete")
    line = str(refused.value)
    assert "complete, but of another processor" in line
    assert "none of its 2 chunks can be used; replace it with --overwrite" in line
    assert "\n" not in line


def test_chunks_of_an_interrupted_run_are_processed_again(
    before: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = resumed(before, "partial")
    assert result.status == "complete"
    assert "2 of its 2 finished chunks can't be used" in caplog.text
    old = agc.RunResult.load(before / "complete").hists["met"]
    assert np.array_equal(result.hists["met"].values(flow=True), old.values(flow=True))


def test_a_complete_run_is_read(before: Path) -> None:
    folder = before / "complete"
    assert command("show", folder).code == 0
    assert "0 differences" in command("compare", folder, folder).out
