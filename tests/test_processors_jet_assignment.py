"""Truth labels of jets against the reference, and the published model on events of our own."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import awkward as ak
import nanoaod
import numpy as np
import pytest
import uproot
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory
from conftest import absent

from agc_ml import catalogue
from agc_ml.generate import production
from processors import jet_assignment
from processors.ttbar import assignment, selection

NanoAODSchema.warn_missing_crossrefs = False


def signal_region(path: Path) -> tuple[Any, Any, Any]:
    """Events of the region 4j2b, their lepton, and all their selected jets."""
    events = NanoEventsFactory.from_root(
        {str(path): "Events"},
        mode="virtual",
        iteritems_options={
            "filter_name": [
                *selection.COLUMNS, *assignment.COLUMNS, "GenPart_*", "*_charge",
                *("nElectron", "nMuon", "nJet", "nGenPart"),
            ]
        },
    ).events()  # fmt: skip
    electrons = events.Electron[selection.electrons(events.Electron)]
    muons = events.Muon[selection.muons(events.Muon)]
    jets = events.Jet[selection.jets(events.Jet) & selection.hard(events.Jet)]
    n_btags = ak.sum(selection.b_tagged(jets), axis=1)
    one_lepton = ak.num(electrons) + ak.num(muons) == 1
    passed = one_lepton & selection.regions(ak.num(jets), n_btags)["4j2b"]
    fields = ("pt", "eta", "phi", "mass")
    leptons = [ak.zip({f: part[f] for f in fields}) for part in (electrons, muons)]
    lepton = ak.firsts(ak.concatenate(leptons, axis=1))
    return events[passed], lepton[passed], jets[passed]


@pytest.mark.filterwarnings("ignore:Branch Photon_.* already exists:RuntimeWarning")
def test_labels_are_those_of_the_reference(real_data: Path) -> None:
    name = "unroot_NanoAODv5_sample"
    reference = json.loads((real_data / "reference" / f"training_set_{name}.json").read_text())
    events, _, jets = signal_region(real_data / f"{name}.root")
    leading = jets[:, : jet_assignment.N_JETS]
    labels = ak.to_numpy(jet_assignment.jet_labels(leading, events.GenPart))
    kept = labels.sum(axis=1) == jet_assignment.FULLY_MATCHED
    pt = ak.to_numpy(leading.pt)[kept]
    assert kept.sum() == len(reference["jet_labels"]) == 9
    targets = np.maximum(np.array(reference["labels"]).reshape(9, 12), 0)  # -1 and 0 are the same
    for row, expected in enumerate(reference["jet_labels"]):
        nearest = np.argmin(np.abs(pt - reference["jet_pt"][row]).sum(axis=1))
        assert np.allclose(pt[nearest], reference["jet_pt"][row], rtol=1e-6)
        found = labels[kept][nearest]
        assert found.tolist() == expected
        assert jet_assignment.targets(found[None])[0].tolist() == targets[row].tolist()


def test_one_permutation_is_right() -> None:
    assert len(jet_assignment.PERMUTATIONS) == 12
    for labels in permutations(jet_assignment.CORRECT):
        found = jet_assignment.targets(np.array([labels]))[0]
        assert found.sum() == 1
        w1, w2, top, other = jet_assignment.PERMUTATIONS[int(found.argmax())]
        assert (labels[w1], labels[w2], labels[top], labels[other]) == jet_assignment.CORRECT
        assert w1 > w2


# A leptonic and a hadronic top: PDG id, mother, last copy, eta, phi.
TOPS = [
    (6, -1, 1, 0.0, 0.0),
    (5, 0, 1, 1.0, 0.0),  # b of the leptonic top
    (24, 0, 1, 0.0, 0.0),
    (-13, 2, 1, 2.0, 2.0),
    (14, 2, 1, 2.0, -2.0),
    (-6, -1, 1, 0.0, 0.0),
    (-5, 5, 0, -2.0, 0.0),  # b of the hadronic top, before it radiates ...
    (-5, 6, 1, -1.0, 0.0),  # ... and after
    (-24, 5, 1, 0.0, 0.0),
    (1, 8, 1, 0.0, 1.5),
    (-2, 8, 1, 0.0, 3.1),
]
Part = tuple[int, int, int, float, float]


def labels_of(path: Path, jets: list[tuple[float, float]], parts: list[Part]) -> list[int]:
    """Labels of jets, given by eta and phi, in an event with these generated particles."""
    columns = zip(*parts, strict=True)
    pdg, mother, last, eta, phi = (np.array(column) for column in columns)
    gen_part = {
        "pdgId": pdg.astype(np.int32),
        "genPartIdxMother": mother.astype(np.int32),
        "statusFlags": (last << 13).astype(np.int32),
        "eta": eta.astype(np.float32),
        "phi": phi.astype(np.float32),
        "pt": np.full(len(parts), 50, np.float32),
        "mass": np.zeros(len(parts), np.float32),
    }
    branches = nanoaod.events(1, seed=1)
    branches["GenPart"] = ak.unflatten(ak.zip(gen_part), [len(parts)])
    nanoaod.write(path / "one.root", branches)
    events = NanoEventsFactory.from_root({str(path / "one.root"): "Events"}, mode="eager").events()
    jet = ak.zip({"eta": [[eta for eta, _ in jets]], "phi": [[phi for _, phi in jets]]})
    found: list[int] = jet_assignment.jet_labels(jet, events.GenPart)[0].tolist()
    return found


def test_labels_of_a_top_pair(tmp_path: Path) -> None:
    jets = [(1.1, 0.1), (-1.0, 0.0), (0.0, 1.4), (0.1, -3.1), (3.0, 0.0)]
    assert labels_of(tmp_path, jets, TOPS) == [-6, 6, 24, 24, 100]


@pytest.mark.parametrize(("distance", "label"), [(0.39, -6), (0.41, 100)])
def test_matching_radius(tmp_path: Path, distance: float, label: int) -> None:
    assert labels_of(tmp_path, [(1.0 + distance, 0.0)], TOPS) == [label]


def test_a_quark_before_radiation_does_not_count(tmp_path: Path) -> None:
    assert labels_of(tmp_path, [(-2.0, 0.0)], TOPS) == [100]


def test_the_nearest_quark_counts_not_the_first(tmp_path: Path) -> None:
    near = [*TOPS[:9], (1, 8, 1, 1.1, 0.0), TOPS[10]]
    assert labels_of(tmp_path, [(1.12, 0.0), (0.98, 0.0)], near) == [24, -6]


def test_taus_are_leptons(tmp_path: Path) -> None:
    tau = [*TOPS[:3], (-15, 2, 1, 2.0, 2.0), (16, 2, 1, 2.0, -2.0), *TOPS[5:]]
    assert labels_of(tmp_path, [(1.0, 0.0)], tau) == [-6]


def test_a_lepton_alone_makes_no_leptonic_top(tmp_path: Path) -> None:
    no_neutrino = [*TOPS[:4], (1, 2, 1, 2.0, -2.0), *TOPS[5:]]
    assert labels_of(tmp_path, [(1.0, 0.0)], no_neutrino) == [6]


def test_other_quarks_do_not_count(tmp_path: Path) -> None:
    gluon = [*TOPS, (21, -1, 1, 0.0, 0.0), (1, 11, 1, 2.5, 0.0), (5, -1, 1, 0.0, -1.0)]
    assert labels_of(tmp_path, [(2.5, 0.0), (0.0, -1.0)], gluon) == [100, 100]


def test_an_event_without_quarks(tmp_path: Path) -> None:
    assert labels_of(tmp_path, [(1.0, 0.0), (0.0, 0.0)], [(21, -1, 1, 0.0, 0.0)]) == [100, 100]


def features(lepton: Any, jets: Any) -> np.ndarray:
    """The twenty features of the reference, (n_events, 12, 20), without wrapping phi, as there."""
    order = np.array(jet_assignment.PERMUTATIONS)
    column = {f: ak.to_numpy(jets[f])[:, order].astype(float) for f in (*P4, "btagCSVV2", "qgl")}
    w1, w2, top, other = ({f: values[:, :, k] for f, values in column.items()} for k in range(4))
    one = {f: ak.to_numpy(lepton[f]).astype(float)[:, None] for f in P4}

    def delta_r(a: dict[str, Any], b: dict[str, Any]) -> np.ndarray:
        return np.hypot(a["eta"] - b["eta"], a["phi"] - b["phi"])

    def total(*parts: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        px, py, pz, energy = (
            sum(component) for component in zip(*(cartesian(part) for part in parts), strict=True)
        )
        return np.sqrt(np.maximum(energy**2 - px**2 - py**2 - pz**2, 0)), np.hypot(px, py)

    quarks = (w1, w2, top, other)
    return np.stack(
        [
            delta_r(one, other), delta_r(w1, w2), delta_r(w1, top), delta_r(w2, top),
            total(one, other)[0], total(w1, w2)[0], *total(w1, w2, top),
            *(quark[f] for f in ("pt", "btagCSVV2", "qgl") for quark in quarks),
        ],
        axis=2,
    )  # fmt: skip


P4 = ("pt", "eta", "phi", "mass")


def cartesian(part: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    px, py = part["pt"] * np.cos(part["phi"]), part["pt"] * np.sin(part["phi"])
    pz = part["pt"] * np.sinh(part["eta"])
    return px, py, pz, np.sqrt(px**2 + py**2 + pz**2 + part["mass"] ** 2)


def test_published_model_finds_the_jets_of_generated_top_pairs(real_data: Path) -> None:
    """As often as in CMS's events: 76 to 83 % of the fully matched ones."""
    try:
        import xgboost  # noqa: PLC0415 - heavy
    except ImportError:
        absent("xgboost is not installed")
    events, lepton, jets = signal_region(catalogue.demo().parent / "ttbar__nominal.root")
    jets = jets[:, : jet_assignment.N_JETS]
    labels = ak.to_numpy(jet_assignment.jet_labels(jets, events.GenPart))
    kept = labels.sum(axis=1) == jet_assignment.FULLY_MATCHED
    assert kept.sum() > 300
    rows = features(lepton[kept], jets[kept])
    targets = jet_assignment.targets(labels[kept])
    is_even = ak.to_numpy(events.event)[kept] % 2 == 0
    scores = np.empty(targets.shape)
    for name, parity in (("odd", True), ("even", False)):  # each scores what it did not learn
        model = xgboost.Booster(params={"nthread": 1})
        model.load_model(real_data / f"model_{name}.json")
        model.set_param({"nthread": 1})
        chosen = rows[is_even == parity]
        flat = model.inplace_predict(chosen.reshape(-1, 20).astype(np.float32))
        scores[is_even == parity] = flat.reshape(-1, 12)
    right = targets[np.arange(len(scores)), scores.argmax(axis=1)]
    assert 0.76 <= right.mean() <= 0.83, right.mean()


def test_labels_of_generated_top_pairs_are_as_in_real_ones(real_data: Path) -> None:
    """Kinds of labels, and fully matched events, within three standard errors of CMS's few."""
    found, uncertainty = [], None
    for path in (
        real_data / "unroot_NanoAODv5_sample.root",
        catalogue.demo().parent / "ttbar__nominal.root",
    ):
        events, _, jets = signal_region(path)
        labels = jet_assignment.jet_labels(jets[:, : jet_assignment.N_JETS], events.GenPart)
        labels = ak.to_numpy(labels)
        kinds = [(labels == kind).mean(axis=1) for kind in (24, 6, -6, 100)]
        of_event = np.array([*kinds, labels.sum(axis=1) == jet_assignment.FULLY_MATCHED])
        assert np.allclose(of_event[:4].sum(axis=0), 1)
        found.append(of_event.mean(axis=1))
        if uncertainty is None:  # of the real ones; the others are many
            uncertainty = of_event.std(axis=1) / np.sqrt(of_event.shape[1])
    assert np.all(np.abs(found[1] - found[0]) < 3 * uncertainty), (*found, uncertainty)


def test_slim_truth_gives_the_same_labels(generated_set: Path, tmp_path: Path) -> None:
    events = {"ttbar__nominal": 25}
    production.generate(
        tmp_path / "set", events=events, seed=7, content="slim", site="inline", quiet=True
    )
    found = []
    for folder in (generated_set, tmp_path / "set"):
        made = NanoEventsFactory.from_root(
            {str(folder / "ttbar__nominal.root"): "Events"}, mode="eager", entry_stop=25
        ).events()
        found.append(jet_assignment.jet_labels(made.Jet, made.GenPart))
    assert found[0].tolist() == found[1].tolist()
    assert {-6, 6, 24} < set(ak.flatten(found[0]).tolist())


def test_truth_of_the_demo_set() -> None:
    """Only the nominal top pairs are trained on; only they carry truth."""
    folder = catalogue.demo().parent
    for path in folder.glob("*.root"):
        with uproot.open(path) as file:
            has_truth = "GenPart_pdgId" in file["Events"]
        assert has_truth == (path.name == "ttbar__nominal.root")
