"""The comparison with the published histograms."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import agc
from hypothesis import given
from hypothesis import strategies as st

from agc_ml import files
from agc_ml.errors import GenerateError, UsageError
from agc_ml.inputs import agc_published as published_analysis
from agc_ml.simulation import samples, validation
from agc_ml.simulation.samples import SAMPLES, Shortfall
from agc_ml.simulation.validation import Checked, Comparison, Line

NAME = "single_top_s_chan__nominal"


def comparison(
    factor: float = 1.0, tilt: float = 0.0, more_tags: float = 0.0, thousands: int = 50
) -> Comparison:
    """The published shapes as if they had been generated, and what is wrong with them."""
    reference = validation.published()[NAME]
    total = sum(counts.sum() for counts in reference.values())
    generated = {}
    for region, counts in reference.items():
        changed = counts * (1 + tilt * np.linspace(-1, 1, len(counts)))
        if region == "4j2b":
            changed = changed * (1 + more_tags)
        generated[region] = changed * thousands * 1000 / total
    n = sum(counts.sum() for counts in generated.values())
    stated = samples.sample(NAME).factor
    return Comparison(NAME, generated, reference, factor * stated * total / n)


def verdicts(found: list[Line]) -> dict[str, str]:
    return {line.quantity: line.verdict for line in found}


def test_published_counts_are_the_published_histograms(real_data: Path) -> None:
    path = real_data / "reference" / "histos_all_file_per_process.json"
    histograms = json.loads(path.read_text())
    assert validation.published().keys() == {s.name for s in SAMPLES}
    for sample in SAMPLES:
        weight = published_analysis.event_weight(sample.process, sample.variation, 1000)
        suffix = "" if sample.variation == "nominal" else f"_{sample.variation}"
        for region in validation.REGIONS:
            contents = histograms[f"{region}_{sample.process}{suffix}"]["contents"]
            counts = validation.published()[sample.name][region]
            assert np.allclose(counts * weight, contents, rtol=1e-6)


def test_events_like_the_published_ones_are_good() -> None:
    assert set(verdicts(validation.compare(comparison())).values()) == {"good"}


@pytest.mark.parametrize(
    ("changes", "quantities"),
    [
        ({"factor": 1.2}, {"factor"}),
        ({"factor": 0.85}, {"factor"}),
        ({"more_tags": 0.12}, {"ratio"}),
        ({"more_tags": -0.12}, {"ratio"}),
        ({"tilt": 0.6}, {"ks_4j1b", "ks_4j2b", "ratio"}),
    ],
)
def test_others_are_not(changes: dict[str, float], quantities: set[str]) -> None:
    found = verdicts(validation.compare(comparison(**changes)))
    bad = {quantity for quantity, verdict in found.items() if verdict == "worse than stated"}
    assert bad == quantities


@pytest.mark.parametrize(
    ("less", "verdict"), [(-0.001, "stated shortfall"), (0.001, "worse than stated")]
)
def test_stated_shortfalls(monkeypatch: pytest.MonkeyPatch, less: float, verdict: str) -> None:
    """What is found may be two standard errors more than what is stated."""
    ratio = next(c for c in validation.compare(comparison(more_tags=0.12)) if c.quantity == "ratio")
    stated = ratio.found - 2 * ratio.uncertainty - less
    short = replace(
        samples.sample(NAME), shortfalls=(Shortfall("ratio", stated, "because it is so"),)
    )
    monkeypatch.setattr(samples, "SAMPLES", (short,))
    lines = validation.compare(comparison(more_tags=0.12))
    line = next(line for line in lines if line.quantity == "ratio")
    assert abs(line.found) > line.allowed
    assert line.verdict == verdict
    assert line.why == f"{stated:g} is stated: because it is so"
    assert verdicts(validation.compare(comparison()))["ratio"] == "good"


def test_too_few_events() -> None:
    (line,) = validation.compare(comparison(thousands=1))
    assert line.verdict == "too few events"
    with pytest.raises(GenerateError, match="too few selected events to judge: single_top_s_chan"):
        validation.raise_if_bad(Checked(1, (), (line,)))


def test_the_worst_is_told() -> None:
    lines = validation.compare(comparison(more_tags=0.12, factor=1.5))
    with pytest.raises(GenerateError, match=r"stated: 2 of 4, the worst single_top_s_chan__nomi"):
        validation.raise_if_bad(Checked(1, (), tuple(lines)))
    with pytest.raises(GenerateError, match=r"factor is \+0\.5"):
        validation.raise_if_bad(Checked(1, (), tuple(lines)))
    validation.raise_if_bad(Checked(1, (), tuple(validation.compare(comparison()))))


counts = st.lists(st.integers(0, 1000), min_size=27, max_size=27).filter(any)


@given(counts, counts, st.floats(0.1, 10))
def test_ks_distance(one: list[int], other: list[int], scale: float) -> None:
    a, b = np.array(one, float), np.array(other, float)
    distance = validation.ks_distance(a, b)
    assert 0 <= distance <= 1
    assert distance == pytest.approx(validation.ks_distance(b, a))
    assert validation.ks_distance(a, scale * a) == pytest.approx(0, abs=1e-12)
    assert validation.ks_distance(scale * a, b) == pytest.approx(distance)


def test_ks_distance_of_separate_histograms() -> None:
    assert validation.ks_distance(np.array([5.0, 0, 0]), np.array([0, 0, 3.0])) == 1


def test_a_set_that_is_too_small(generated_set: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(generated_set, folder)
    called = agc("generate", "check", folder, "--cluster", "inline", "-q")
    assert called.code == 1
    assert "too few selected events to judge: ttbar__nominal" in called.error
    assert "ttbar__scaleup" in called.out
    assert f"figures: {folder / 'check'}" in called.out
    pictures = sorted(path.name for path in (folder / "check").glob("*.png"))
    assert pictures == [
        "single_top_tW__nominal.png",
        "ttbar__nominal.png",
        "ttbar__scaleup.png",
    ]
    facts: dict[str, Any] = json.loads((folder / "check" / "check.json").read_text())
    assert facts["good"] is False
    assert facts["seed"] == 7
    assert 0 < facts["selected"]["ttbar__nominal"] < 70


def test_no_set(tmp_path: Path) -> None:
    called = agc("generate", "check", tmp_path)
    assert called.code == 1
    assert "no generated set" in called.error
    (tmp_path / "manifest.json").write_text('{"schema": 1}')
    called = agc("generate", "check", tmp_path)
    assert called.code == 1
    assert "manifest.json: field status" in called.error
    (tmp_path / "manifest.json").write_text('{"schema": ')
    called = agc("generate", "check", tmp_path)
    assert "truncated or not JSON" in called.error


def test_a_set_of_another_dataset(generated_set: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(generated_set, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["datasets"]["wjets__foo"] = manifest["datasets"].pop("ttbar__nominal")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    fileset = json.loads((folder / "fileset.json").read_text())
    fileset["datasets"]["wjets__foo"] = fileset["datasets"].pop("ttbar__nominal")
    (folder / "fileset.json").write_text(json.dumps(fileset))
    called = agc("generate", "check", folder)
    assert called.code == 1
    assert "dataset wjets__foo is unknown" in called.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--seed", "7", "check"], "--seed belongs after check"),
        (["generate", "check", "SET", "--seed", "7"], "--seed is for events that the check gen"),
    ],
)
def test_options_that_would_have_no_effect(
    generated_set: Path, arguments: list[str], message: str
) -> None:
    called = agc(*(generated_set if word == "SET" else word for word in arguments))
    assert called.code == 2
    assert message in called.error


def test_events_of_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check goes on with its events, and refuses those of a generator that was another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(validation, "needed", lambda _: {"ttbar__nominal": 3})
    how: Any = {"site": "inline", "workers": None, "quiet": True}
    validation.make_set(Path("check-7"), 7, **how)
    before = (tmp_path / "check-7" / "ttbar__nominal.root").stat().st_mtime_ns
    validation.make_set(Path("check-7"), 7, **how)
    assert (tmp_path / "check-7" / "ttbar__nominal.root").stat().st_mtime_ns == before
    told = "check-7: begun with other settings, code or versions; remove it"
    with pytest.raises(UsageError, match=told):
        validation.make_set(Path("check-7"), 8, **how)
    changed = replace(samples.sample("ttbar__nominal"), unit=999)
    monkeypatch.setattr(samples, "SAMPLES", (changed,))
    with pytest.raises(UsageError, match=told):
        validation.make_set(Path("check-7"), 7, **how)


def test_a_check_that_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with files.owned(tmp_path / "check-7"):
        (tmp_path / "check-7" / "manifest.json").touch()
        called = agc("generate", "check", "--seed", 7, "--cluster", "inline")
    assert called.code == 2
    assert "another agc-ml is at work in it" in called.error
