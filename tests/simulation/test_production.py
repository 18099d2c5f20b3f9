"""Sets of generated events: the same events however they are made, whole files or none."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
from commandline import PROGRAM, agc
from conftest import GENERATED as EVENTS
from conftest import UNIT

import agc_ml
from agc_ml import files as folders
from agc_ml.cli.simulation.generate import parse_events
from agc_ml.errors import GenerateError, UsageError
from agc_ml.execution.cluster.executors import InlineExecutor, WorkerDied
from agc_ml.execution.state.checkpoints import seal, unseal
from agc_ml.execution.state.packing import pack, unpack
from agc_ml.execution.worker.job import Failure
from agc_ml.inputs.fileset import Fileset
from agc_ml.simulation import manifest as manifests
from agc_ml.simulation import nanoaod, plan, production, samples, unit
from agc_ml.simulation.events import of_plain
from agc_ml.simulation.production import OtherRequestError
from agc_ml.simulation.samples import SAMPLES, Setting, sample
from agc_ml.simulation.truth import hooks, pythia
from agc_ml.simulation.truth.pythia import Source

DATASETS = ("ttbar__nominal", "ttbar__scaleup", "single_top_tW__nominal")


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    small = tuple(replace(s, unit=UNIT) for s in SAMPLES)
    monkeypatch.setattr(samples, "SAMPLES", small)


@pytest.fixture
def made(generated_set: Path) -> Path:
    """A set of three datasets, in small units, made in this process."""
    return generated_set


def events_of(folder: Path, name: str) -> ak.Array:
    with uproot.open(folder / f"{name}.root") as file:
        return file["Events"].arrays()


def same_events(one: Path, other: Path, names: tuple[str, ...] = DATASETS) -> None:
    for name in names:
        first, second = events_of(one, name), events_of(other, name)
        assert first.fields == second.fields
        assert len(first) == len(second)
        different = [f for f in first.fields if not ak.array_equal(first[f], second[f])]
        assert different == []
    for name in names:
        with uproot.open(one / f"{name}.root") as a, uproot.open(other / f"{name}.root") as b:
            runs = [file["Runs"].arrays(library="np") for file in (a, b)]
            assert all(np.array_equal(runs[0][key], runs[1][key]) for key in runs[0])
            assert a.file.uuid == b.file.uuid


def whole(folder: Path) -> manifests.Manifest:
    found = manifests.load(folder)
    manifests.verify(folder, found)
    assert not (folder / "units").exists()
    return found


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers(made: Path, tmp_path: Path, workers: int, small_units: None) -> None:
    folder = tmp_path / "set"
    production.generate(folder, events=EVENTS, seed=7, workers=workers, quiet=True)
    same_events(made, folder)
    assert whole(folder).datasets.keys() == set(DATASETS)


def test_any_batch_and_any_end(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_units: None
) -> None:
    monkeypatch.setattr(unit, "_BATCH", 7)
    production.generate(
        tmp_path / "set", events={"ttbar__nominal": 40}, seed=7, site="inline", quiet=True
    )
    first, all_of_them = events_of(tmp_path / "set", DATASETS[0]), events_of(made, DATASETS[0])
    assert all(ak.array_equal(first[f], all_of_them[f][:40]) for f in first.fields)


def test_another_seed_gives_other_events(made: Path, tmp_path: Path, small_units: None) -> None:
    events = {"ttbar__nominal": 25}
    production.generate(tmp_path / "set", events=events, seed=8, site="inline", quiet=True)
    other, first = (events_of(f, "ttbar__nominal").GenMET_pt for f in (tmp_path / "set", made))
    assert not np.isin(ak.to_numpy(other), ak.to_numpy(first)).any()


def test_scale_variation_has_the_hard_events_of_the_nominal(made: Path) -> None:
    nominal, varied = events_of(made, "ttbar__nominal"), events_of(made, "ttbar__scaleup")
    shared = np.intersect1d(nominal.event, varied.event)
    assert len(shared) > 5  # not all: vetoes and skim look at what the showers made of them

    def tops(events: ak.Array) -> ak.Array:
        chosen = events[np.isin(events.event, shared)]
        chosen = chosen[np.argsort(chosen.event)]
        return chosen.GenPart_pt[(abs(chosen.GenPart_pdgId) == 6) & (chosen.GenPart_status == 22)]

    assert ak.array_equal(tops(nominal), tops(varied))


def test_other_variations_have_events_of_their_own() -> None:
    streams = {s.name: s.hard_stream for s in SAMPLES}
    assert streams["ttbar__scaleup"] == streams["ttbar__scaledown"] == streams["ttbar__nominal"]
    assert len(set(streams.values())) == len(SAMPLES) - 2


def test_identity_of_events(made: Path) -> None:
    events = events_of(made, "ttbar__nominal")
    assert len(np.unique(events.event)) == len(events)
    assert ak.to_numpy(events.luminosityBlock).tolist() == [i // UNIT + 1 for i in range(70)]
    assert set(ak.to_numpy(events.genWeight).tolist()) == {1.0}


def test_all_tried_events_count(made: Path) -> None:
    found = whole(made)
    for name, dataset in found.datasets.items():
        with uproot.open(made / f"{name}.root") as file:
            runs = file["Runs"].arrays(library="np")
            assert runs["genEventCount"][0] == dataset.generated == dataset.files[0].generated
            assert runs["genEventSumw"][0] == runs["genEventSumw2"][0] == dataset.sumw
            assert file["Events"].num_entries == dataset.events == EVENTS[name]
            assert dataset.generated > 3 * dataset.events
            numbers = file["Events/event"].array(library="np") - 1
        # attempts are numbered: the last kept one of each unit tells how many there were
        units = [numbers[start : start + UNIT] for start in range(0, len(numbers), UNIT)]
        assert sum(int(unit[-1]) % hooks.MAX_ATTEMPTS + 1 for unit in units) == dataset.generated


def test_the_fileset_normalises_to_them(made: Path, tmp_path: Path) -> None:
    fileset = Fileset.load(str(made / "fileset.json"))
    result = agc_ml.run("ttbar", fileset, site="inline", output=tmp_path / "run", quiet=True)
    for dataset in fileset.datasets:
        generated = dataset.n_generated
        assert generated is not None
        suffix = "" if dataset.variation == "nominal" else f"_{dataset.variation}"
        weight = dataset.xsec * fileset.luminosity / generated
        for region in ("4j1b", "4j2b"):
            template = result.templates[f"{region}_{dataset.process}{suffix}"]
            counts = template.values(flow=True) / weight
            assert np.allclose(counts, np.round(counts), atol=1e-6)
    assert result.provenance.label == "generated by agc-ml"
    assert any("no data of CMS" in warning for warning in result.warnings)


def test_branches_are_those_of_the_real_files(made: Path, real_data: Path) -> None:
    with (
        uproot.open(made / "ttbar__nominal.root") as ours,
        uproot.open(real_data / "nanoAOD_2015_CMS_Open_Data_ttbar.root") as real,
    ):
        types = {branch.name: branch.typename for branch in real["Events"].branches}
        for branch in ours["Events"].branches:
            assert branch.typename == types[branch.name], branch.name
        counters = {
            branch.count_branch.name
            for branch in ours["Events"].branches
            if branch.count_branch is not None
        }
        assert counters == {"nElectron", "nMuon", "nJet", "nGenJet", "nGenPart"}


def test_files_say_what_made_them(made: Path) -> None:
    with uproot.open(made / "single_top_tW__nominal.root") as file:
        origin = json.loads(file[nanoaod.ORIGIN])
        assert file.file.compression.name == "ZLIB"
    assert origin["seed"] == 7
    assert origin["dataset"] == "single_top_tW__nominal"
    assert origin["settings"] == whole(made).request.settings
    assert "PartonLevel:MPI = off" in origin["pythia"]


def test_slim_content(tmp_path: Path, made: Path, small_units: None) -> None:
    folder = tmp_path / "set"
    production.generate(
        folder, events=EVENTS, seed=7, content="slim", site="inline", quiet=True,
        emulate_cms2015_muon_id=True,
    )  # fmt: skip
    truth, plain = events_of(folder, DATASETS[0]), events_of(folder, DATASETS[1])
    assert set(truth.fields) - set(plain.fields) == {f for f in truth.fields if "GenPart" in f}
    full = events_of(made, DATASETS[0])
    same = [f for f in plain.fields if f != "Muon_tightId"]
    assert all(ak.array_equal(truth[f], full[f]) for f in same)
    assert not ak.any(truth.Muon_tightId)
    assert ak.any(full.Muon_tightId)


def test_constituents(tmp_path: Path, small_units: None) -> None:
    folder = tmp_path / "set"
    production.generate(
        folder, events={"ttbar__nominal": 25}, seed=7, constituents=True, site="inline", quiet=True
    )
    events = events_of(folder, "ttbar__nominal")
    n_gen_jets = events.nGenJet
    assert ak.all(events.PFCand_genJetIdx < n_gen_jets)
    assert ak.mean(ak.num(events.PFCand_pt)) > 50
    neutral = events.PFCand_charge == 0
    assert ak.all(events.PFCand_d0[neutral] == 0)
    assert ak.all(events.PFCand_d0Err[~neutral] > 0)
    # two b quarks an event: most have a vertex, some centimetres away, of a few GeV
    assert 0.5 < ak.mean(ak.num(events.SV_pt)) < 5
    assert 0.05 < np.median(ak.flatten(events.SV_dlen)) < 3
    assert ak.all(events.SV_dlenSig > 3)
    assert ak.all(events.SV_ntracks >= 2)
    assert ak.max(events.SV_mass) < 7


def test_a_killed_worker_changes_nothing(made: Path, tmp_path: Path, small_units: None) -> None:
    folder = tmp_path / "set"
    with agc_ml.connect("local", workers=2) as client:
        pids = list(client.run(os.getpid).values())

        def kill() -> None:
            deadline = time.monotonic() + 120
            while not list((folder / "units").glob("[!.]*")) and time.monotonic() < deadline:
                time.sleep(0.02)
            os.kill(pids[0], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        production.generate(folder, events=EVENTS, seed=7, client=client, quiet=True)
        killer.join()
        assert pids[0] not in client.run(os.getpid).values()
    same_events(made, folder)
    whole(folder)


def test_interrupted_and_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    command = [
        *(PROGRAM, "generate", "--events", "260", "--seed", "3"),
        *("--datasets", "single_top_tW__nominal,ttbar__scaledown", "-o", str(folder)),
        *("--workers", "1"),
    ]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(folder.glob("*.root")) and not list((folder / "units").glob("[!.]*")):
        assert time.monotonic() < deadline
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.strip().endswith("--resume")
    assert manifests.load(folder).status == "partial"
    assert not (folder / "fileset.json").exists()
    with pytest.raises(GenerateError, match="not complete"):
        manifests.verify(folder, manifests.load(folder))
    again = [argument for argument in command[1:] if argument not in {"--workers", "1"}]
    refused = agc(*again, "--cluster", "inline")
    assert refused.code == 2
    assert "the folder holds a generated set" in refused.error
    finished = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.root")}
    resumed = agc(*again, "--cluster", "inline", "--resume")
    assert resumed.code == 0, resumed.err
    whole(folder)
    assert all((folder / name).stat().st_mtime_ns == time_ for name, time_ in finished.items())
    whole_set = tmp_path / "whole"
    agc(*(str(whole_set) if a == str(folder) else a for a in again), "--cluster", "inline")
    same_events(folder, whole_set, ("single_top_tW__nominal", "ttbar__scaledown"))


def test_resume_makes_damaged_parts_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_units: None
) -> None:
    folder = tmp_path / "set"
    outcomes = InlineExecutor.outcomes

    def interrupted(executor: Any, function: Any, jobs: Any, **_: Any) -> Any:
        for count, outcome in enumerate(outcomes(executor, function, jobs)):
            yield outcome
            if count == 1:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(InlineExecutor, "outcomes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            production.generate(folder, events=EVENTS, seed=7, site="inline", quiet=True)
    first, second = [path for path in (folder / "units").iterdir() if path.name[0] != "."]
    first.write_bytes(first.read_bytes()[:-1])
    found = unseal(second)
    assert found is not None
    header, blob = found.header, found.blob
    fewer = of_plain(unpack(blob)).select(np.arange(header["events"]) > 0)
    seal(second, {**header, "events": len(fewer)}, pack(fewer.plain()))
    production.generate(folder, events=EVENTS, seed=7, site="inline", quiet=True, resume=True)
    same_events(made, folder)


@pytest.mark.parametrize("tiny_disk", ["64k"], indirect=True)
def test_full_disk(tiny_disk: Path) -> None:
    folder = tiny_disk / "set"
    called = agc(
        *("generate", "--events", 60, "--datasets", "ttbar__nominal", "--seed", 1),
        *("-o", folder, "--cluster", "inline"),
    )
    assert called.code == 1
    assert "No space left on device" in called.error
    assert list(folder.glob("*.root")) == []
    assert "--resume" in called.error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes instead of"),
        (lambda path: path.write_bytes(bytes([1]) + path.read_bytes()[1:]), "its sha256 is"),
    ],
)
def test_a_file_that_is_not_the_manifests(
    made: Path, tmp_path: Path, change: Any, message: str
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(made, folder)
    change(folder / "ttbar__scaleup.root")
    called = agc("generate", "check", folder)
    assert called.code == 1
    assert message in called.error
    assert "ttbar__scaleup" in called.error
    validated = agc("validate", folder)
    assert validated.code == 1
    assert message in " ".join(validated.out.split())


def test_a_valid_set(made: Path) -> None:
    validated = agc("validate", made)
    assert validated.code == 0
    assert "generated set, good: 3 datasets, 120 events" in validated.out


def test_a_unit_that_kills_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(_self: Any, _function: Any, jobs: Any, **_: Any) -> Any:
        return ((key, WorkerDied()) for key in jobs)

    monkeypatch.setattr(InlineExecutor, "outcomes", dies)
    with pytest.raises(GenerateError, match="ttbar__nominal unit 0: its worker dies each time"):
        production.generate(
            tmp_path / "set", events={"ttbar__nominal": 5}, seed=1, site="inline", quiet=True
        )


@pytest.mark.parametrize("name", ["pythia8mc", "fastjet"])
@pytest.mark.parametrize("command", [["--events", "9", "-o", "set"], ["check"]])
def test_a_library_is_missing(name: str, command: list[str], tmp_path: Path) -> None:
    """In a process of its own, where neither the module nor its metadata is found."""
    script = (
        "import importlib.metadata as metadata, sys\n"
        "version = metadata.version\n"
        "def installed(name):\n"
        f"    if name == {name!r}:\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "metadata.version = installed\n"
        f"sys.modules[{name!r}] = None\n"
        "from agc_ml.cli.main import main\n"
        f"sys.argv = ['agc-ml', 'generate', *{command!r}]\n"
        "main()\n"
    )
    called = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert called.returncode == 1
    (line,) = called.stderr.splitlines()
    assert f"{name} is not installed where events are generated" in line
    assert "pip install 'agc-ml[generate]'" in line
    assert not list(tmp_path.iterdir())


def test_pythia_that_does_not_know_a_setting() -> None:
    odd = replace(sample("ttbar__nominal"), settings=(Setting("Top:gg2nothing = on", ""),))
    with pytest.raises(GenerateError, match="does not know 'Top:gg2nothing = on'"):
        Source(odd, 1, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--events", "0"], "--events 0: a number of events is needed"),
        (["--events", "many"], "--events many: a number of events is needed"),
        (["--events", "1.5"], "--events 1.5: a number of events is needed"),
        (["--events", "nan"], "--events nan: a number of events is needed"),
        (["--events", "1e30"], "at most 1,000,000,000 are"),
        (["--events", "5"], "at least 9 (one a dataset)"),
        (["--events", "9", "--datasets", "nothing*"], "no dataset matches 'nothing*'"),
        (["--events", "9", "--seed", "-1"], "--seed"),
        (["--seed", "1"], "--events is missing"),
        (["--events", "1e999999999"], "a number of events is needed"),
        (["--events", "1e5000"], "a number of events is needed"),
        (["--events", "9", "--datasets", ""], "no dataset matches ''"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], message: str) -> None:
    given = arguments if "--seed" in arguments else [*arguments, "--seed", "1"]
    called = agc("generate", *given, "-o", tmp_path / "set")
    assert called.code == 2
    assert message in called.error
    assert not (tmp_path / "set").exists()


def test_a_folder_with_other_content(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for more in ([], ["--resume"]):
        called = agc("generate", "--events", 9, "--seed", 1, "-o", tmp_path, *more)
        assert called.code == 2
        assert "the folder holds something else than a generated set" in called.error
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_set_is_not_overwritten(made: Path) -> None:
    called = agc("generate", "--events", 9, "--seed", 7, "-o", made)
    assert called.code == 2
    assert "the folder holds a generated set; add --resume" in called.error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--events", 9, "--seed", 8], "--seed"),
        (["--events", 9, "--seed", 7], "--events or --datasets"),
    ],
)
def test_resume_of_another_request(made: Path, arguments: list[object], told: str) -> None:
    called = agc("generate", *arguments, "-o", made, "--resume", "--cluster", "inline")
    assert called.code == 2
    assert called.error.endswith(
        f"begun with other {told}; use the same, or name another folder with -o"
    )


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """The same set, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "copied"))


def test_resume_of_a_complete_set_leaves_it(
    copied: Path, small_units: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.glob("*.root")}
    monkeypatch.setattr(production, "connect_executor", None)  # no cluster is needed
    production.generate(copied, events=EVENTS, seed=7, quiet=True, resume=True)
    assert {path: path.stat().st_mtime_ns for path in copied.glob("*.root")} == before
    whole(copied)


def test_resume_where_files_were_cut_otherwise(
    copied: Path, small_units: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "FILE_EVENTS", 35)
    with pytest.raises(
        OtherRequestError, match="it was begun with other settings, code or versions"
    ):
        production.generate(copied, events=EVENTS, seed=7, site="inline", resume=True)


def test_what_a_killed_process_left_is_cleared(
    copied: Path, tmp_path: Path, small_units: None
) -> None:
    for folder in (copied, tmp_path / "begun"):
        folder.mkdir(exist_ok=True)
        (folder / ".half.root").touch()
        (folder / ".half.json").touch()
    production.generate(copied, events=EVENTS, seed=7, quiet=True, resume=True)
    events = {"ttbar__nominal": 2}
    production.generate(tmp_path / "begun", events=events, seed=7, site="inline", quiet=True)
    whole(tmp_path / "begun")
    assert not list(copied.glob(".*"))


def test_a_set_that_is_repaired_is_none_until_it_is_whole(
    copied: Path, small_units: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    (copied / "ttbar__scaleup.root").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(InlineExecutor, "outcomes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            production.generate(
                copied, events=EVENTS, seed=7, site="inline", quiet=True, resume=True
            )
    assert not (copied / "fileset.json").exists()
    assert manifests.load(copied).status == "partial"
    production.generate(copied, events=EVENTS, seed=7, site="inline", quiet=True, resume=True)
    whole(copied)


def test_two_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    with folders.owned(folder):
        called = agc(
            *("generate", "--events", 9, "-o", folder, "--cluster", "inline"),
        )
    assert called.code == 2
    assert called.error.endswith("another agc-ml is at work in it; name another folder with -o")


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    called = agc("generate", "--events", 9, "-o", tmp_path / "file" / "set", "--cluster", "inline")
    assert called.code == 1
    assert f"{tmp_path / 'file' / 'set'}: can't be written" in called.error
    called = agc("generate", "--events", 9, "-o", tmp_path / ("a" * 300), "--cluster", "inline")
    assert called.code == 1
    assert "File name too long" in called.error


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ({"ttbar__nominal": 0}, "ttbar__nominal: 0 events"),
        ({"ttbar__nominal": 1.5}, "ttbar__nominal: 1.5 events"),
        ({"ttbar__nominal": 10**10}, "at most 1,000,000,000 are allowed"),
        ({"nothing": 5}, "no dataset matches 'nothing'"),
        ({"ttbar*": 5}, "ttbar__nominal: no number of events; give one for each dataset, by name"),
    ],
)
def test_wrong_numbers_in_python(tmp_path: Path, events: Any, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        production.generate(tmp_path / "set", events=events, seed=1, site="inline")
    assert not (tmp_path / "set").exists()


def test_a_worker_with_another_version() -> None:
    done = unit.make(
        unit.Unit(sample("ttbar__nominal"), seed=1, number=0, events=2, code="of another version")
    )
    assert isinstance(done, Failure)
    assert "another version on this worker" in done.reason


def test_what_a_library_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(pythia.Source, "batch", broken)
    done = unit.make(unit.Unit(sample("ttbar__nominal"), seed=1, number=0, events=2))
    assert done == Failure("definite", "RuntimeError: out of luck", done.details)


def test_a_unit_that_is_made_in_the_last_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes, rounds = InlineExecutor.outcomes, []

    def late(executor: Any, function: Any, jobs: Any, **_: Any) -> Any:
        rounds.append(jobs)
        if len(rounds) < production.ROUNDS:
            return ((key, WorkerDied()) for key in jobs)
        return outcomes(executor, function, jobs)

    monkeypatch.setattr(InlineExecutor, "outcomes", late)
    folder = tmp_path / "set"
    production.generate(folder, events={"ttbar__nominal": 5}, seed=1, site="inline", quiet=True)
    whole(folder)


def test_pythia_of_another_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHIA8DATA", str(tmp_path))
    called = agc("generate", "--events", 9, "-o", tmp_path / "set")
    assert called.code == 1
    assert "PYTHIA8DATA is set" in called.error


def test_numbers_of_events() -> None:
    for text, number in {"4.1M": 4_100_000, "2.01M": 2_010_000, "30K": 30_000, "7": 7}.items():
        assert parse_events(text) == number


def test_shares() -> None:
    for events in (9, 100, 30_001):
        shares = plan.events_per_sample(SAMPLES, events)
        assert sum(shares.values()) == events
        assert min(shares.values()) >= 1
    with pytest.raises(UsageError):
        plan.events_per_sample(SAMPLES, 8)


def test_files_are_whole_units(small_units: None) -> None:
    chosen = (replace(sample("ttbar__nominal"), unit=1000),)
    request = manifests.Request(
        seed=1, events={"ttbar__nominal": 250_500}, content="full", muons=True, constituents=False,
        emulate_cms2015_muon_id=False, settings="",
    )  # fmt: skip
    files = plan.plan_files(chosen, request)
    assert [file.name for file in files] == [f"ttbar__nominal_{i}.root" for i in range(3)]
    numbers = [u.number for file in files for u in file.units]
    assert numbers == list(range(251))
    assert sum(file.events for file in files) == 250_500


def test_unit_is_whole() -> None:
    done = unit.make(unit.Unit(sample("ttbar__nominal"), seed=1, number=3, events=2))
    assert isinstance(done, unit.Made)
    assert len(of_plain(unpack(done.blob))) == done.events == 2
    assert unseal(Path("nowhere")) is None
