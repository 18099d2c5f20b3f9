"""Run directories of the release before: read as they are, never mixed with new chunks."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

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


@pytest.mark.parametrize("name", ["complete", "partial"])
def test_a_resume_is_refused_in_a_line(name: str, before: Path) -> None:
    with pytest.raises(UsageError) as refused:
        resumed(before, name)
    assert str(refused.value) == (
        f"{before / name}: a run of agc-ml 0.1.0, whose chunks agc-ml {agc.__version__} can't use; "
        "replace it with --overwrite, or resume it with agc-ml 0.1.0"
    )


def test_a_complete_run_is_read(before: Path) -> None:
    folder = before / "complete"
    assert command("show", folder).code == 0
    assert "0 differences" in command("compare", folder, folder).out


def test_a_measurement_is_shown_plotted_fitted_compared_and_reported(
    before: Path, tmp_path: Path
) -> None:
    """And its fit gives the same numbers to the last digit."""
    run = before / "ttbar"
    earlier = json.loads((run / "fit" / "fit.json").read_text())
    for words in (("show", run), ("compare", run, run), ("plot", run), ("fit", run, "-q")):
        assert command(*words).code == 0
    again = json.loads((run / "fit" / "fit.json").read_text())
    for part in ("poi", "parameters", "correlation", "goodness_of_fit", "pseudodata"):
        assert again[part] == earlier[part]
    assert command("report", run).code == 0
    assert "agc-ml 0.1.0" in (run / "report.html").read_text()
