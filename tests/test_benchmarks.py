"""The benchmark of speed, in small: it runs to its end, and its record holds what it says."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agc_ml.inputs import loading
from benchmarks import speed

EVENTS = 600


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of what coffea's schema leaves out
def test_the_benchmark_of_speed_runs(
    real_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    events = loading.demo().parent / "ttbar__nominal.root"
    for name in ("3", "11", "W"):
        folder = tmp_path / f"speed-{name}-{EVENTS}-5"
        folder.mkdir()
        (folder / "fileset.json").write_text(json.dumps({"ttbar": [str(events)]}))

    def in_this_process(task: str, *arguments: str, **_: Any) -> dict[str, float]:
        return speed.TASKS[task](*arguments)

    def once(ways: dict[str, Callable[[], Any]], _: int) -> dict[str, list[float]]:
        return {name: [speed.seconds(work)] for name, work in ways.items()}

    results: dict[tuple[bool, bool], dict[str, Any]] = {}
    call = speed.Theirs.__call__

    def kept(theirs: speed.Theirs, _: int, __: int) -> dict[str, Any]:
        scores = bool(theirs.processor.models)
        key = theirs.whole or scores, scores  # inference is the same in both forms
        if key not in results:
            results[key] = call(theirs, 0, EVENTS)
        return results[key]

    # A process of its own costs ten seconds, a call of the baseline two; the files are the same.
    samples = tuple(replace(sample, process="ttbar") for sample in speed.SAMPLES)
    monkeypatch.setattr(speed, "SAMPLES", samples)
    monkeypatch.setattr(speed.Theirs, "__call__", kept)
    monkeypatch.setattr(speed, "fresh", in_this_process)
    monkeypatch.setattr(speed, "alternated", once)
    record = tmp_path / "record.json"
    options = {"models": real_data, "events": EVENTS, "rounds": 1, "data": tmp_path}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["speed.py", *words, "--output", str(record)])
    before = speed.EVENTS, speed.DATA
    gc.freeze()  # it collects before each measurement, and there is much here that stays
    try:
        speed.main()
    finally:
        gc.unfreeze()
        speed.EVENTS, speed.DATA = before
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["differing_bins"] == 0
    assert summary["no_ml"] > 1
    assert 0 < summary["read_fraction"] < 2
    content = json.loads(record.read_text())
    assert set(content["pairs"]) == {
        *("3%", "3%, quarters", "3% ml", "3% ml, quarters"),
        *("11%", "11% ml", "W", "W ml"),
    }
