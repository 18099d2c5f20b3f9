"""The detector: the same for each event whatever is beside it, and of the size it should be."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pythia8mc import Pythia

from agc_ml.simulation import kernel_cache, nanoaod, unit
from agc_ml.simulation.detector import jets, leptons
from agc_ml.simulation.detector import response as detector
from agc_ml.simulation.detector.parameters import DETECTOR
from agc_ml.simulation.events import Collection, Events, collect, concatenate
from agc_ml.simulation.samples import sample
from agc_ml.simulation.truth import genjets, record
from agc_ml.simulation.truth.pythia import Batch, Source
from agc_ml.simulation.truth.randomness import PYTHIA_SEEDS, event_seeds, pythia_seed, stream_key
from processors.ttbar import selection

SEED = 5


@pytest.fixture(scope="module")
def batch() -> Batch:
    return Source(sample("ttbar__nominal"), SEED, 0, enforced=None).batch(60)


@pytest.fixture(scope="module")
def truth(batch: Batch) -> detector.Truth:
    return detector.understand(record.flatten(batch.particles), batch.info)


@pytest.fixture(scope="module")
def numbers(batch: Batch) -> np.ndarray:
    return batch.attempts.astype(np.uint64) + np.uint64(1)


@pytest.fixture(scope="module")
def events(truth: detector.Truth, numbers: np.ndarray) -> Events:
    return detector.Response(SEED, "ttbar__nominal").measure(truth, numbers, 1)


def equal(one: Events, other: Events) -> bool:
    return all(np.array_equal(one.values[name], other.values[name]) for name in one.values) and all(
        np.array_equal(c.counts, other.collections[name].counts)
        and all(np.array_equal(c.fields[f], other.collections[name].fields[f]) for f in c.fields)
        for name, c in one.collections.items()
    )


def test_an_event_does_not_depend_on_its_neighbours(
    batch: Batch, numbers: np.ndarray, events: Events
) -> None:
    response = detector.Response(SEED, "ttbar__nominal")
    parts = []
    for where in (slice(0, 1), slice(1, 20), slice(20, 60)):
        alone = detector.understand(record.flatten(batch.particles[where]), batch.info[where])
        parts.append(response.measure(alone, numbers[where], 1))
    assert equal(concatenate(parts), events)
    mask = np.arange(60) % 3 == 1
    picked = detector.understand(record.flatten(batch.particles[mask]), batch.info[mask])
    assert equal(response.measure(picked, numbers[mask], 1), events.select(mask))


@pytest.mark.parametrize(
    "other", [detector.Response(SEED + 1, "ttbar__nominal"), detector.Response(SEED, "another")]
)
def test_other_seeds_and_datasets_have_other_noise(
    truth: detector.Truth, numbers: np.ndarray, events: Events, other: detector.Response
) -> None:
    found = other.measure(truth, numbers, 1)
    assert not np.isin(found.values["MET_pt"], events.values["MET_pt"]).any()
    true = [e.collections["GenJet"].fields["pt"] for e in (found, events)]
    assert np.array_equal(*true)


def test_a_change_in_one_collection_leaves_the_others(
    truth: detector.Truth, numbers: np.ndarray, events: Events
) -> None:
    changed = DETECTOR._replace(electrons=DETECTOR.electrons._replace(efficiency=0.1))
    found = detector.Response(SEED, "ttbar__nominal", changed).measure(truth, numbers, 1)
    electrons = [e.collections["Electron"].counts.sum() for e in (found, events)]
    assert electrons[0] < electrons[1]
    for name in ("Jet", "Muon"):
        fields = [e.collections[name].fields["pt"] for e in (found, events)]
        assert np.array_equal(*fields)


def many_jets(n: int, pt: float, eta: float = 0.3, flavour: int = 0, muon: float = 0.0):
    """One event of equal jets, mostly charged hadrons."""
    zeros = np.zeros(n)
    energy = np.full(n, pt * np.cosh(eta))
    return genjets.GenJets(
        offsets=np.array([0, n]),
        pt=np.full(n, pt),
        eta=np.full(n, eta),
        phi=zeros,
        mass=np.full(n, 5.0),
        hadron_flavour=np.full(n, flavour, np.int32),
        parton_flavour=np.full(n, flavour or 1, np.int32),
        charged_hadron=0.6 * energy,
        neutral_hadron=0.1 * energy,
        photon=0.3 * energy,
        electron=zeros,
        muon=muon * energy,
        n_members=np.full(n, 20),
        members=np.arange(0),
        member_offsets=np.zeros(n + 1, np.int64),
    )


def measured(true: genjets.GenJets) -> jets.Jets:
    return jets.measure(true, np.array([1], np.uint32), DETECTOR.jets, DETECTOR.tags)


@pytest.mark.parametrize("pt", [30.0, 100.0, 300.0])
def test_jet_energies(pt: float) -> None:
    p = DETECTOR.jets
    found = measured(many_jets(20_000, pt)).pt / pt
    noise, stochastic = p.noise / pt, p.stochastic / np.sqrt(pt)
    assert found.mean() == pytest.approx(p.scale * (1 + p.offset / pt), rel=0.01)
    resolution = np.sqrt(noise**2 + stochastic**2 + p.constant**2)
    assert found.std() / found.mean() == pytest.approx(resolution, rel=0.12)


@pytest.mark.parametrize(
    ("flavour", "knots"),
    [(5, DETECTOR.tags.bottom), (4, DETECTOR.tags.charm), (0, DETECTOR.tags.light)],
)
def test_b_tags_have_the_efficiencies_that_are_stated(flavour: int, knots) -> None:
    found = measured(many_jets(50_000, 80.0, flavour=flavour)).btag
    lost = DETECTOR.tags.no_vertex_heavy if flavour else DETECTOR.tags.no_vertex_light
    for value, fraction in zip(*knots, strict=True):
        if 0 < value < 1:
            expected = fraction * (1 - lost)
            assert np.mean(found > value) == pytest.approx(expected, abs=0.008)
    assert np.mean(found == jets.NO_TAG) == pytest.approx(lost, abs=0.005)


def test_no_b_tag_outside_the_tracker() -> None:
    assert np.all(measured(many_jets(100, 80.0, eta=2.8, flavour=5)).btag == jets.NO_TAG)


def test_a_muon_is_no_jet() -> None:
    assert np.all(measured(many_jets(100, 80.0)).jet_id == jets.TIGHT_LEPTON_VETO)
    assert np.all(measured(many_jets(100, 80.0, muon=9.0)).jet_id == jets.TIGHT)


def test_leptons_of_top_pairs(events: Events) -> None:
    for name, mass in (("Electron", 0.000511), ("Muon", 0.10566)):
        found = events.collections[name].fields
        assert np.all(found["mass"] == mass)
        assert set(found["charge"].tolist()) == {-1, 1}
        prompt = found["genPartFlav"] == leptons.FROM_PROMPT
        assert found["sip3d"][prompt].max() < 6
        parts = events.collections["GenPart"]
        start = np.repeat(np.cumsum(parts.counts) - parts.counts, events.collections[name].counts)
        place = start + found["genPartIdx"]
        assert np.array_equal(parts.fields["pdgId"][place], found["pdgId"])


def test_references_between_collections(events: Events) -> None:
    found, true = events.collections["Jet"], events.collections["GenJet"]
    start = np.repeat(np.cumsum(true.counts) - true.counts, found.counts)
    index = found.fields["genJetIdx"]
    matched = index >= 0
    place = (start + index)[matched]
    near = np.abs(true.fields["eta"][place] - found.fields["eta"][matched])
    assert near.max() < 0.15
    assert np.array_equal(
        true.fields["hadronFlavour"][place], found.fields["hadronFlavour"][matched]
    )
    assert np.all(index < np.repeat(true.counts, found.counts))


def test_flavour_of_leptons(truth: detector.Truth) -> None:
    found = leptons.find(truth.record, truth.lineage.flags, leptons.MUON, 1.0, 3.0, 0.4, 0.0)
    made, origin = truth.record, found.origin
    assert set(origin.tolist()) <= {1, 15, 5, 4, 3}
    for index, flavour in zip(found.particle, origin, strict=True):
        chain, at = [], int(made.mother[index])
        while at >= 0:
            chain.append(record.heaviest_quark(made.pdg[at]))
            at = int(made.mother[at])
        if flavour in {1, 15}:
            assert not any(chain)
        else:
            assert flavour == max(3, min(5, max(chain)))


def test_kernels_are_compiled_anew_when_any_of_their_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "some_kernel.py"
    source.write_text(
        "from agc_ml.simulation.kernel_cache import kernel\n"
        "@kernel\ndef twice(x):\n    return 2 * x\n"
    )

    def hits(digest: str) -> int:
        monkeypatch.setattr(kernel_cache, "code_digest", lambda: digest)
        spec = importlib.util.spec_from_file_location("some_kernel", source)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.twice(3) == 6
        return sum(module.twice.stats.cache_hits.values())

    assert [hits(digest) for digest in ("one", "one", "other", "other")] == [0, 1, 0, 1]


def test_skim_is_looser_than_the_selection(batch: Batch, truth: detector.Truth) -> None:
    """For any variation of the jets' pt: up by 3 %, or smeared by three standard deviations."""
    response = detector.Response(SEED, "ttbar__nominal")
    n_selected = 0
    for repeat in range(1, 15):
        numbers = np.uint64(repeat << 32) + batch.attempts.astype(np.uint64)
        found = nanoaod.stored(response.measure(truth, numbers, 1))
        arrays = nanoaod.branches_of(found)
        n_leptons = ak.sum(selection.electrons(arrays["Electron"]), axis=1)
        n_leptons = n_leptons + ak.sum(selection.muons(arrays["Muon"]), axis=1)
        jets = arrays["Jet"]
        passed = selection.jets(jets) & (1.15 * jets.pt > selection.JET_PT)
        selected = ak.to_numpy((n_leptons == 1) & (ak.sum(passed, axis=1) >= selection.N_JETS))
        n_selected += selected.sum()
        assert not np.any(selected & ~unit.skim(found, muons=True))
    assert n_selected > 40


def test_skim(events: Events) -> None:
    kept, electrons = unit.skim(events, muons=True), unit.skim(events, muons=False)
    assert 0 < electrons.sum() < kept.sum() < len(events)
    assert not np.any(electrons & ~kept)


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5)), max_size=40), st.data())
def test_collections(objects: list[tuple[int, float]], data: st.DataObject) -> None:
    objects.sort(key=lambda pair: pair[0])
    event = np.array([e for e, _ in objects], np.int64)
    value = np.array([v for _, v in objects], np.float64)
    keep = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(event), max_size=len(event))), bool
    )
    found = collect({"v": value}, event, 5, keep, order="v")
    expected = [sorted(value[keep & (event == e)], reverse=True) for e in range(5)]
    assert found.counts.tolist() == [len(values) for values in expected]
    assert found.fields["v"].tolist() == [v for values in expected for v in values]
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=5, max_size=5)))
    some = found.select(mask)
    assert some.fields["v"].tolist() == [v for e in np.flatnonzero(mask) for v in expected[e]]
    whole = Events({"event": np.arange(5)}, {"c": found})
    split = concatenate([whole.select(np.arange(5) < 2), whole.select(np.arange(5) >= 2)])
    assert split.collections["c"].fields["v"].tolist() == found.fields["v"].tolist()
    assert split.collections["c"].counts.tolist() == found.counts.tolist()


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30))
def test_stored_precision(values: list[float]) -> None:
    exact = np.array(values)
    kept = nanoaod.stored(
        Events({"event": np.arange(1), "MET_pt": exact}, {"Jet": Collection(exact, {"qgl": exact})})
    )
    for found, bits in ((kept.values["MET_pt"], 12), (kept.collections["Jet"].fields["qgl"], 10)):
        assert found.dtype == np.float32
        assert np.allclose(found, exact, rtol=2.0**-bits, atol=1e-37)
        assert not np.any(found.view(np.uint32) & ((1 << (23 - bits)) - 1))


def test_charges() -> None:
    """As Pythia's particle data has them."""
    data = Pythia("", False).particleData
    seen = set()
    for code in (11, 13, 22, 130, 211, 321, 2112, 2212, 3112, 3122, 3222, 3312, 3322, 3334):
        for sign in (1, -1):
            expected = data.charge(sign * code)
            assert record.charge(sign * code) == expected, sign * code
            assert record.is_charged(sign * code) == (expected != 0)
            seen.add(expected)
    assert seen == {-1, 0, 1}


def test_seeds_differ() -> None:
    keys = {stream_key(1, a, b) for a in ("x", "y") for b in ("jets", "muons")}
    assert len(keys | {stream_key(1, "xj", "ets")}) == 5
    drawn = event_seeds(np.uint64(stream_key(1)), np.arange(100_000, dtype=np.uint64))
    # 32 bits: among so many, one or two of the same are to be expected
    assert len(np.unique(drawn)) > 99_990
    units = {pythia_seed(stream_key(3), number) for number in range(1000)}
    assert len(units) == 1000
    assert all(1 <= seed <= PYTHIA_SEEDS for seed in units)
