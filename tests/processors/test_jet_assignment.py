"""Training sets: truth labels against the reference, features against those that models score."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot
from conftest import absent
from sets import columns_of, labels_of_all_jets, matched

import agc_ml
from agc_ml.columnar.jagged import Collection
from agc_ml.errors import ProcessorError, UsageError
from agc_ml.inputs import loading
from agc_ml.models import content, model
from agc_ml.models.model import Bundle, Model
from agc_ml.results import tables
from agc_ml.simulation import production
from processors import jet_assignment
from processors.ttbar import TtbarProcessor, truth
from processors.ttbar.features import FEATURES

REFERENCE = "unroot_NanoAODv5_sample"
# The reference was made with AVX-512, without which numpy's functions in single precision differ
# in their last bit, and masses with them.
SIMD = np.show_config(mode="dicts")["SIMD Extensions"]["found"]  # type: ignore[call-overload]
ULPS = 0 if {"X86_V4", "AVX512_SKX"} & {*SIMD} else 4


def extract(source: Path, output: Path, **settings: str) -> Path:
    fileset = agc_ml.Fileset.load(source, dataset="ttbar")
    agc_ml.run(
        "jet_assignment", fileset, settings=settings, site="inline", output=output, quiet=True
    )
    return output / "training.parquet"


def test_the_training_set_of_the_reference(real_data: Path, tmp_path: Path) -> None:
    """All numbers of it, with its flaws: to the last bit, where numpy's functions are the same."""
    reference = json.loads((real_data / "reference" / f"training_set_{REFERENCE}.json").read_text())
    path = extract(real_data / f"{REFERENCE}.root", tmp_path / "run", compat="true")
    found = columns_of(path, "nominal")
    features = np.stack([found[name] for name in FEATURES], axis=1).reshape(-1, 12, 20)
    expected = np.array(reference["features"], np.float32).reshape(-1, 12, 20)
    assert len(features) == len(expected) == 9
    for row, own in enumerate(expected):
        place = int(np.abs(features - own).sum(axis=(1, 2)).argmin())
        np.testing.assert_array_max_ulp(features[place], own, maxulp=ULPS)
        of_event = slice(12 * place, 12 * place + 12)
        labels = np.array(reference["labels"]).reshape(-1, 12)[row]
        assert found["label"][of_event].tolist() == labels.tolist()
        assert {-1, 0, 1} == set(labels)
        mass = np.float32(reference["observable"][row])
        np.testing.assert_array_max_ulp(found["observable"][12 * place], mass, maxulp=ULPS)
        assert found["trijet_label"][12 * place] == reference["trijet_label"][row]
        assert (found["event"][12 * place] % 2 == 0) == reference["even"][row]


def test_without_the_flaws(real_data: Path, tmp_path: Path) -> None:
    path = extract(real_data / f"{REFERENCE}.root", tmp_path / "run")
    found = columns_of(path, "nominal")
    assert set(found["label"]) == {0, 1}
    assert found["label"].reshape(-1, 12).sum(axis=1).tolist() == [1] * 9
    raw = columns_of(
        extract(real_data / f"{REFERENCE}.root", tmp_path / "raw", compat="true"), "nominal"
    )
    wrapped, unwrapped = found["deltar_w1w2"], raw["deltar_w1w2"]
    assert (wrapped <= unwrapped + 1e-5).all()
    assert (wrapped < unwrapped - 0.1).any()
    assert tables.read(path).about["delta_phi"] == "wrapped"


def test_chunks_change_nothing(training_run: Path, tmp_path: Path) -> None:
    agc_ml.run(
        "jet_assignment", site="inline", output=tmp_path / "run", chunk_size=1_100, quiet=True
    )
    whole, parts = (
        tables.read(folder / "training.parquet") for folder in (training_run, tmp_path / "run")
    )
    assert whole.digest == parts.digest
    assert whole.about == parts.about


def test_features_are_those_that_models_score(
    training_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very numbers, for each event with four jets and each variation."""
    seen: list[Any] = []

    def listen(features: Any) -> Any:
        seen.append(features.copy())
        return np.zeros(len(features), np.float32)

    members: dict[Any, Model] = {}
    for parity in model.PARITIES:
        sha256 = parity.ljust(64, "0")
        members[parity] = Model("spy", "1", sha256, "onnx", 20, trained_on=parity)
        monkeypatch.setitem(model._backends, sha256, listen)
        monkeypatch.setitem(content._contents, sha256, content.Content(b""))
    bundle = Bundle("spy", "1", **members)
    fileset = agc_ml.Fileset.load(loading.DEMO).select(["ttbar__nominal"])
    processor = TtbarProcessor(model=bundle)
    output = tmp_path / "run"
    result = agc_ml.run(processor, fileset, site="inline", output=output, quiet=True)
    scored = {row.tobytes() for part in seen for row in part}
    table = tables.read(training_run / "training.parquet")
    features = np.stack([table.columns[name] for name in FEATURES], axis=1)
    four_jets = table.columns["njet"] == 4
    assert four_jets.sum() > 10_000
    assert {row.tobytes() for row in features[four_jets]} <= scored
    # and what is kept for drift: the same events, so the same spectra
    assert result.outputs["inputs"] == table.about["inputs"]


def test_other_datasets_are_left_out(tmp_path: Path) -> None:
    fileset = agc_ml.Fileset.load(loading.DEMO)
    planned = agc_ml.plan("jet_assignment", fileset, site="inline")
    assert [one.name for one in planned.datasets] == ["ttbar__nominal"]
    with pytest.raises(UsageError, match="takes datasets with process ttbar, variation nominal"):
        agc_ml.run(
            "jet_assignment", fileset.select(["wjets*"]), site="inline", output=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_what_a_processor_takes_must_be_text(tmp_path: Path) -> None:
    path = tmp_path / "odd.py"
    path.write_text(
        "class Odd:\n    takes = {'process': 3}\n    def process(self, events): return {}\n"
    )
    with pytest.raises(ProcessorError, match="takes"):
        agc_ml.run(f"{path}:Odd", site="inline", output=tmp_path / "run")


def test_one_permutation_is_right() -> None:
    assert len(truth.PERMUTATIONS) == 12
    for labels in permutations(truth.CORRECT):
        found = truth.targets(np.array([labels]))[0]
        assert found.sum() == 1
        w1, w2, top, other = truth.PERMUTATIONS[int(found.argmax())]
        assert (labels[w1], labels[w2], labels[top], labels[other]) == truth.CORRECT
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


def collection(n_events: int, **fields: Any) -> Collection:
    n = len(next(iter(fields.values()))) // n_events
    arrays = {name: np.asarray(values) for name, values in fields.items()}
    return Collection(np.arange(n_events + 1) * n, arrays.__getitem__)


def labels_of(jets: list[tuple[float, float]], parts: list[Part], copies: int = 2) -> list[int]:
    """Labels of jets, given by eta and phi, in an event with these generated particles.

    The event is there twice: what is in one may not be taken for a part of the other.
    """
    pdg, mother, last, eta, phi = (np.array(c) for c in zip(*(parts * copies), strict=True))
    particles = collection(
        copies,
        pdgId=pdg.astype(np.int32),
        genPartIdxMother=mother.astype(np.int32),
        statusFlags=(last << 13).astype(np.int32),
        eta=eta.astype(np.float32),
        phi=phi.astype(np.float32),
    )
    jet_eta, jet_phi = (np.array(c, np.float32) for c in zip(*(jets * copies), strict=True))
    found = truth.jet_labels(collection(copies, eta=jet_eta, phi=jet_phi), particles)
    assert (found == found[0]).all()
    return [int(label) for label in found[0]]


def test_labels_of_a_top_pair() -> None:
    jets = [(1.1, 0.1), (-1.0, 0.0), (0.0, 1.4), (0.1, -3.1), (3.0, 0.0)]
    assert labels_of(jets, TOPS) == [-6, 6, 24, 24, 100]


@pytest.mark.parametrize(("distance", "label"), [(0.39, -6), (0.41, 100)])
def test_matching_radius(distance: float, label: int) -> None:
    assert labels_of([(1.0 + distance, 0.0)], TOPS) == [label]


def test_a_quark_before_radiation_does_not_count() -> None:
    assert labels_of([(-2.0, 0.0)], TOPS) == [100]


def test_the_nearest_quark_counts_not_the_first() -> None:
    near = [*TOPS[:9], (1, 8, 1, 1.1, 0.0), TOPS[10]]
    assert labels_of([(1.12, 0.0), (0.98, 0.0)], near) == [24, -6]


def test_taus_are_leptons() -> None:
    tau = [*TOPS[:3], (-15, 2, 1, 2.0, 2.0), (16, 2, 1, 2.0, -2.0), *TOPS[5:]]
    assert labels_of([(1.0, 0.0)], tau) == [-6]


def test_a_lepton_alone_makes_no_leptonic_top() -> None:
    no_neutrino = [*TOPS[:4], (1, 2, 1, 2.0, -2.0), *TOPS[5:]]
    assert labels_of([(1.0, 0.0)], no_neutrino) == [6]


def test_other_quarks_do_not_count() -> None:
    gluon = [*TOPS, (21, -1, 1, 0.0, 0.0), (1, 11, 1, 2.5, 0.0), (5, -1, 1, 0.0, -1.0)]
    assert labels_of([(2.5, 0.0), (0.0, -1.0)], gluon) == [100, 100]


def test_an_event_without_quarks() -> None:
    assert labels_of([(1.0, 0.0), (0.0, 0.0)], [(21, -1, 1, 0.0, 0.0)]) == [100, 100]


def test_trijet_of_four_jets() -> None:
    """The one with a b-tag and the highest pt, by hand."""
    jets = collection(
        1,
        pt=np.array([100.0, 80, 60, 40]),
        eta=np.zeros(4),
        phi=np.array([0.0, 0.1, 0.2, 0.3]),
        mass=np.zeros(4),
        btagCSVV2=np.array([0.0, 0, 0, 0.9]),
    )
    mass, label = jet_assignment.trijet(jets, np.array([[24, 24, 6, -6]]))
    assert label.tolist() == [24 + 24 - 6]  # the hard three have no b-tag
    momenta = np.array([[100, 80, 40], [0, 0.1, 0.3]])
    x, y = momenta[0] * np.cos(momenta[1]), momenta[0] * np.sin(momenta[1])
    assert mass[0] == pytest.approx(np.sqrt(220**2 - x.sum() ** 2 - y.sum() ** 2))


def test_published_model_finds_the_jets_of_generated_top_pairs(
    real_data: Path, tmp_path: Path
) -> None:
    """As often as in CMS's events: 76 to 83 % of the fully matched ones."""
    try:
        import xgboost  # noqa: F401, PLC0415 - heavy
    except ImportError:
        absent("xgboost is not installed")
    demo = loading.demo().parent / "ttbar__nominal.root"
    found = columns_of(extract(demo, tmp_path / "run", compat="true"), "nominal")
    features = np.stack([found[name] for name in FEATURES], axis=1)
    bundle = agc_ml.load_model(real_data)
    scores = bundle(features, found["event"]).reshape(-1, 12)
    assert len(scores) > 300
    right = found["label"].reshape(-1, 12)[np.arange(len(scores)), scores.argmax(axis=1)] == 1
    assert 0.76 <= right.mean() <= 0.83, right.mean()


def test_labels_of_generated_top_pairs_are_as_in_real_ones(real_data: Path) -> None:
    """Kinds of labels, and fully matched events, within three standard errors of CMS's few."""
    real = matched(real_data / f"{REFERENCE}.root")
    ours = matched(loading.demo().parent / "ttbar__nominal.root")
    uncertainty = real.std(axis=1) / np.sqrt(real.shape[1])
    difference = ours.mean(axis=1) - real.mean(axis=1)
    assert np.all(np.abs(difference) < 3 * uncertainty), (difference, uncertainty)


def test_slim_truth_gives_the_same_labels(generated_set: Path, tmp_path: Path) -> None:
    events = {"ttbar__nominal": 25}
    production.generate(
        tmp_path / "set", events=events, seed=7, content="slim", site="inline", quiet=True
    )
    found = [
        labels_of_all_jets(folder / "ttbar__nominal.root", 25)
        for folder in (generated_set, tmp_path / "set")
    ]
    assert found[0].tolist() == found[1].tolist()
    assert {-6, 6, 24} < set(found[0].tolist())


def test_truth_of_the_demo_set() -> None:
    """Only the nominal top pairs are trained on; only they carry truth."""
    folder = loading.demo().parent
    for path in folder.glob("*.root"):
        with uproot.open(path) as file:
            has_truth = "GenPart_pdgId" in file["Events"]
        assert has_truth == (path.name == "ttbar__nominal.root")
