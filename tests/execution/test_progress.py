"""Showing how far something is, whatever names are in it."""

from __future__ import annotations

import time

import pytest

from agc_ml.cli.training.connecting import progress_line
from agc_ml.execution import progress
from agc_ml.training.service.database import Job, Progress

NAME = "mu[/x]\x1b]0;owned\x07"
SHOWN = "mu[/x]\\x1b]0;owned\\x07"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_names_are_no_commands_of_a_terminal_or_of_rich(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if is_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "120")
    with progress.show_steps(quiet=False) as tell:
        tell(f"looking for other minima: {NAME}")
        time.sleep(0.3)  # a terminal is drawn some times a second
    job = Job.model_construct(state="running", note=NAME, progress=Progress(done=1, total=2))
    with progress.show_steps(quiet=False) as tell:
        tell(progress_line(job))
        time.sleep(0.3)
    told = capsys.readouterr().err
    assert told.count(SHOWN) >= 2
    assert NAME not in told
    assert "]0;owned\x07" not in told
