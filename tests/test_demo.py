"""The embedded demo set: whole, small, and made by the generator as it is now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
from commandline import agc

from agc_ml.execution.state.packing import unpack
from agc_ml.inputs import loading
from agc_ml.results.run_result import RunResult
from agc_ml.simulation import manifest as manifests
from agc_ml.simulation import samples
from agc_ml.simulation.events import Collection, Events, of_plain
from agc_ml.simulation.manifest import Manifest
from agc_ml.simulation.nanoaod import branches_of
from agc_ml.simulation.unit import Made, Unit, make, skim

FOLDER = loading.demo().parent
REGENERATED = 8  # events of each dataset


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return manifests.load(FOLDER)


def test_every_file_has_its_checksum(manifest: Manifest) -> None:
    manifests.verify(FOLDER, manifest)
    listed = {file.name for dataset in manifest.datasets.values() for file in dataset.files}
    there = {path.name for path in FOLDER.iterdir()}
    assert there == listed | {"manifest.json", "fileset.json"}


def test_it_is_small_and_has_all_datasets(manifest: Manifest) -> None:
    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    assert size <= 10_000_000
    assert list(manifest.datasets) == [sample.name for sample in samples.SAMPLES]
    assert 25_000 < sum(dataset.events for dataset in manifest.datasets.values()) < 50_000


@pytest.mark.parametrize("sample", samples.SAMPLES, ids=lambda sample: sample.name)
def test_the_generator_gives_the_same_events(manifest: Manifest, sample: samples.Sample) -> None:
    """The first few of each dataset, made anew."""
    request = manifest.request
    made = make(
        Unit(
            sample=sample,
            seed=request.seed,
            number=0,
            events=REGENERATED,
            slim=request.content == "slim",
            constituents=request.constituents,
            emulate_cms2015_muon_id=request.emulate_cms2015_muon_id,
        )
    )
    assert isinstance(made, Made)
    branches = branches_of(of_plain(unpack(made.blob)))
    with uproot.open(FOLDER / f"{sample.name}.root") as file:
        there = file["Events"].arrays(entry_stop=REGENERATED)
    for name, values in branches.items():
        if isinstance(values, np.ndarray):
            assert np.array_equal(values, there[name]), name
            continue
        for field in values.fields:
            assert ak.array_equal(values[field], there[f"{name}_{field}"]), f"{name}_{field}"


def test_the_manifest_says_what_the_samples_say(manifest: Manifest) -> None:
    for sample in samples.SAMPLES:
        record = manifest.datasets[sample.name]
        assert record.factor == sample.factor
        assert record.absorbs == sample.absorbs != ""
        assert 0 < record.veto_loss == sample.veto_loss < 0.03
        assert [(s.quantity, s.value, s.why) for s in record.shortfalls] == [
            tuple(shortfall) for shortfall in sample.shortfalls
        ]
        assert record.xsec == sample.xsec
        for setting in sample.settings:
            assert setting.line in record.settings
            assert setting.why


def test_it_is_listed_and_shown(tmp_path: Path) -> None:
    listed = agc("fileset", "list", tmp_path)
    assert listed.code == 0
    assert "demo" in listed.out
    shown = agc("fileset", "show")
    assert shown.code == 0
    assert "generated events, no data of CMS" in shown.out
    assert agc("fileset", "show", "demo").out == shown.out
    planned: Any = agc("plan", "ttbar", "--cluster", "inline")
    assert planned.code == 0
    assert "wjets__nominal" in planned.out


def test_it_is_what_runs_where_no_fileset_is_named(tmp_path: Path) -> None:
    called = agc(
        *("run", "ttbar", "--datasets", "wjets*,single_top*", "--cluster", "inline"),
        *("-o", tmp_path / "run", "--set", "muons=false"),
    )
    assert called.code == 0, called.err
    cutflow = RunResult.load(tmp_path / "run").cutflow
    for dataset, cuts in cutflow.items():
        found = cuts["4j1b"] + cuts["4j2b"]
        assert found > 100, dataset
        stated = samples.sample(dataset).selected * with_electrons(FOLDER / f"{dataset}.root")
        assert found == pytest.approx(stated, rel=0.1, abs=3 * found**0.5), dataset


def with_electrons(path: Path) -> int:
    """How many events of a file the skim would keep for their electrons alone."""
    with uproot.open(path) as file:
        events = file["Events"].arrays(filter_name=("event", "Electron_*", "Jet_*"))
    collections = {
        name: Collection(
            ak.to_numpy(ak.num(events[f"{name}_pt"])),
            {
                field.removeprefix(f"{name}_"): ak.to_numpy(ak.flatten(events[field]))
                for field in events.fields
                if field.startswith(f"{name}_")
            },
        )
        for name in ("Electron", "Jet")
    }
    return int(skim(Events({"event": ak.to_numpy(events.event)}, collections), muons=False).sum())
