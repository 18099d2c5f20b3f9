"""SIGKILL of the service, of jobs and of their trainers: nothing is lost, nothing done twice."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from services.kills import kill_rounds
from services.training import TrainingService, processes_of
from trained import SPEC

from agc_ml.training.client import TrainingClient


def followed_through_a_restart(
    service: TrainingService, remote: TrainingClient, spec: dict[str, Any]
) -> str:
    """How a job ends for someone who follows it while the service dies and comes back."""
    job = remote.submit(**spec, seed=99)
    states = []
    for now in remote.follow(job.id):
        if "killed" not in states and now.progress.done >= 2:
            service.kill()
            threading.Timer(3, service.start).start()
            states.append("killed")
        states.append(now.state)
    assert "killed" in states
    return states[-1]


@pytest.mark.slow
def test_kills_at_random_points(training_run: Path, tmp_path: Path) -> None:
    """A few rounds; benchmarks/loop.py does fifty."""
    service = TrainingService(tmp_path / "training", workers=2)
    service.start()
    try:
        remote = service.client()
        spec = {**SPEC, "dataset": remote.upload(training_run), "trials": 4}
        report = kill_rounds(service, spec, rounds=2, seed=20261126)
        followed = followed_through_a_restart(service, remote, spec)
    finally:
        service.stop()
    assert followed == "succeeded"
    assert report.rounds == 2
    assert report.lost == report.twice == report.halves == report.other_bytes == []
    assert report.resolved == 3
    time.sleep(1)
    assert processes_of(tmp_path / "training") == []
