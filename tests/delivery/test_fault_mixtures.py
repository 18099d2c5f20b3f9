"""Random mixtures of faults: nothing is lost, doubled, waited for for ever, or falsely complete."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

SCRIPT = ROOT / "benchmarks" / "faults.py"
N = 5


@pytest.mark.slow
def test_mixtures_of_faults(tmp_path: Path) -> None:
    record = tmp_path / "faults.json"
    command = [sys.executable, SCRIPT, "20", str(N), "30", "-o", record]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(record.read_text())
    assert found["mixtures"] == N
    assert [found[what] for what in ("lost", "doubled", "hung", "falsely complete")] == [0] * 4
    assert found["problems"] == 0
    assert found["faults"] >= N
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (again.returncode, json.loads(record.read_text())) == (0, found)  # it had nothing to do
