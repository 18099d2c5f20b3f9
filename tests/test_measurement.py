"""The measurement from files to the report, on real workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commandline import agc

from agc_ml import stats
from agc_ml.results import RunResult

STANDIN = Path(__file__).parent / "standin.yaml"


@pytest.fixture(scope="module")
def measured(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, float]:
    """Run directory, standard output and wall seconds of ``agc-ml measure``."""
    folder = tmp_path_factory.mktemp("measure") / "run"
    environment = {**os.environ, "AGC_ML_REAL_DATA": str(real_data)}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "agc_ml", "measure", STANDIN, "--workers", "2", "-o", folder],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return folder, done.stdout, time.monotonic() - start


def test_run_directory_has_everything(measured: tuple[Path, str, float]) -> None:
    folder, output, _ = measured
    files = {str(path.relative_to(folder)) for path in folder.glob("**/*") if path.is_file()}
    assert files >= {
        "run.json",
        "histograms.root",
        "histograms.zip",
        "ledger.jsonl",
        "performance.html",
        "report.html",
        "fit/fit.json",
        "fit/workspace.json",
        "figures/4j1b_stack.png",
        "figures/4j2b_stack.pdf",
        "fit/figures/pulls.png",
    }
    assert not (folder / "chunks").exists()
    lines = output.splitlines()
    assert lines[0].startswith("complete: 9,000 events in 9 chunks")
    assert lines[2].startswith("ttbar_norm = ")
    assert lines[3] == f"report: {folder / 'report.html'}"


def test_templates_are_those_of_the_measurement(measured: tuple[Path, str, float]) -> None:
    result = RunResult.load(measured[0])
    assert len(result.templates) == 2 * (11 * 4 + 13 + 4)
    assert result.metrics.events == 9000
    assert result.ledger.faults() == []


def test_fit_is_written_down(measured: tuple[Path, str, float]) -> None:
    folder, output, _ = measured
    written = json.loads((folder / "fit" / "fit.json").read_text())
    assert f"ttbar_norm = {written['poi']['value']:.4f}" in output
    assert stats.load(folder / "fit").poi.value == written["poi"]["value"]


def test_it_does_not_take_long(measured: tuple[Path, str, float]) -> None:
    assert measured[2] < 150  # a busy machine's limit; docs/performance.md has the quiet figure


def test_steps_can_be_taken_one_by_one(measured: tuple[Path, str, float], tmp_path: Path) -> None:
    folder, _, _ = measured
    histograms = folder / "histograms.root"
    assert agc("plot", histograms, "-o", tmp_path / "plots", "-q").code == 0
    assert (tmp_path / "plots" / "figures" / "4j2b_stack.png").exists()
    again = agc("report", folder, "-o", tmp_path)
    assert again.code == 0
    assert (tmp_path / "report.html").stat().st_size > 100_000


def test_measurement_without_what_the_fit_needs_still_reports(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGC_ML_REAL_DATA", str(real_data))
    called = agc(
        *("measure", STANDIN, "--datasets", "ttbar__nominal", "--cluster", "inline"),
        *("-o", tmp_path / "run"),
    )
    assert called.code == 1
    assert "_ME_var" in called.error or "wjets" in called.error
    assert "reported in" in called.error
    assert (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "fit").exists()
