"""Files as large as the real ones."""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from commandline import agc

from agc_ml.inputs.fileset import Fileset
from agc_ml.simulation import lookalike

EVENTS = 700


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven hundred events, of three hundred generated ones."""
    folder = tmp_path_factory.mktemp("large") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookalike, "BASE_EVENTS", 300)
        called = agc(
            *("generate", "lookalike", "--events", EVENTS, "--seed", 4, "-o", folder),
            *("--cluster-size", 250),
        )
    assert called.code == 0, called.err
    assert "ttbar__nominal_0.root: 700 events" in called.out
    return folder


def test_all_branches_of_the_real_files(large: Path, real_data: Path) -> None:
    with (
        uproot.open(large / "ttbar__nominal_0.root") as ours,
        uproot.open(real_data / "nanoAOD_2015_CMS_Open_Data_ttbar.root") as real,
    ):
        mine, theirs = ours["Events"], real["Events"]
        assert len(mine.branches) == 947 == lookalike.real_branches().number
        assert {b.name: b.typename for b in mine.branches} == {
            b.name: b.typename for b in theirs.branches
        }
        counters = [
            {b.name: b.count_branch.name for b in tree.branches if b.count_branch is not None}
            for tree in (mine, theirs)
        ]
        assert counters[0] == counters[1]


def test_size_and_clusters(large: Path) -> None:
    with uproot.open(large / "ttbar__nominal_0.root") as file:
        tree = file["Events"]
        assert tree.num_entries == EVENTS
        assert tree["Jet_pt"].num_baskets == 3
        size = sum(branch.compressed_bytes for branch in tree.branches) / EVENTS
    assert 1500 < size < 2700  # 1.9 kB in large clusters; here each has few events


def test_events_repeat_with_new_noise_and_numbers(large: Path) -> None:
    with uproot.open(large / "ttbar__nominal_0.root") as file:
        events = file["Events"].arrays(["event", "luminosityBlock", "Jet_pt", "GenMET_pt"])
    assert len(np.unique(events.event)) == EVENTS
    assert ak.to_numpy(events.luminosityBlock).tolist() == [1] * 300 + [2] * 300 + [3] * 100
    first, second = events[:300], events[300:600]
    assert ak.array_equal(first.GenMET_pt, second.GenMET_pt)
    same = ak.num(first.Jet_pt) == ak.num(second.Jet_pt)
    assert not ak.any(first.Jet_pt[same] == second.Jet_pt[same])


def test_they_are_analysed_like_others(large: Path, tmp_path: Path) -> None:
    called = agc(
        *("run", "ttbar", large / "fileset.json", "--cluster", "inline"),
        *("-o", tmp_path / "run"),
    )
    assert called.code == 0, called.err
    assert "nothing can be measured with them" in called.err
    fileset = Fileset.load(str(large / "fileset.json"))
    assert fileset.datasets[0].n_events == EVENTS


def test_the_same_again(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookalike, "BASE_EVENTS", 300)
    monkeypatch.setattr(lookalike, "FILE_EVENTS", 500)
    made = lookalike.generate(tmp_path / "set", events=EVENTS, seed=4, cluster_size=250)
    assert [file.entries for file in made.datasets[0].files] == [350, 350]
    names = ["event", "Jet_pt", "Electron_sip3d", "MET_phi"]
    whole = uproot.open(large / "ttbar__nominal_0.root")["Events"].arrays(names)
    parts = [
        uproot.open(tmp_path / "set" / f"ttbar__nominal_{i}.root")["Events"].arrays(names)
        for i in range(2)
    ]
    assert all(ak.array_equal(whole[n], ak.concatenate([p[n] for p in parts])) for n in names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--events", "0"], "--events 0: a number of events is needed"),
        (["--events", "10", "--dataset", "nothing"], "no dataset matches 'nothing'"),
        (["--events", "10", "--cluster-size", "0"], "--cluster-size"),
        (["--events", "1e15"], "1 to 1,000,000,000 are allowed"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], message: str) -> None:
    called = agc("generate", "lookalike", *arguments, "--seed", "1", "-o", tmp_path / "set")
    assert called.code == 2
    assert message in called.error


def test_a_folder_in_use(large: Path) -> None:
    called = agc("generate", "lookalike", "--events", 10, "--seed", 1, "-o", large)
    assert called.code == 2
    assert "not an empty folder" in called.error


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    called = agc("generate", "lookalike", "--events", 10, "-o", tmp_path / "file")
    assert called.code == 2
    assert "not an empty folder" in called.error
