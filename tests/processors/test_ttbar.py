"""The ttbar processor against the reference implementation, and on made-up events."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import awkward as ak
import nanoaod
import numpy as np
import pytest
import uproot
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import agc_ml as agc
from agc_ml.columnar import columns as reading
from agc_ml.columnar.events import FlatEvents, blocks
from agc_ml.columnar.jagged import count, offsets_of
from agc_ml.errors import InputFileError
from agc_ml.inputs import agc_published as published
from agc_ml.inputs.columns import EVENT_ID, with_counters
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset
from agc_ml.models import model
from agc_ml.results.histograms import materialised
from processors.ttbar import TtbarProcessor, assignment, selection, systematics
from processors.ttbar.observables import OBSERVABLES, h_t, m_bjj

NanoAODSchema.warn_missing_crossrefs = False

SEEDS = {"ttbar": 42, "wjets": 7}
SAMPLE = "unroot_NanoAODv5_sample.root"


def one_file(path: Path, process: str, variation: str = "nominal") -> Fileset:
    dataset = Dataset(
        name=f"{process}__{variation}",
        process=process,
        variation=variation,
        xsec=published.CROSS_SECTIONS[process],
        files=(File(lfn=path.name, replicas=(str(path),)),),
    )
    return Fileset((dataset,), published.LUMINOSITY, published.SOURCE)


def nanoevents(path: Path, **metadata: Any) -> Any:
    """Events as coffea gives them."""
    of_events = (*EVENT_ID, *TtbarProcessor.simulation_columns)
    objects = [name for kind in nanoaod.COLLECTIONS for name in (f"n{kind}", f"{kind}_*")]
    return NanoEventsFactory.from_root(
        uproot.open(path),
        treepath="Events",
        mode="virtual",
        metadata={**METADATA, "filename": path.name, **metadata},
        iteritems_options={"filter_name": [*of_events, *objects]},
    ).events()


METADATA = {"dataset": "d", "process": "ttbar", "variation": "nominal"}


def flat(path: Path) -> Any:
    """Events as flat columns."""
    (events,) = blocks(nanoevents(path))
    return events


def selected(events: Any, vary: Any) -> dict[str, tuple[Any, Any]]:
    """Rows and jets of the events of each region, for one kinematic variation."""
    leptons = selection.leptons(events, with_muons=True)
    rows = np.flatnonzero(selection.one_lepton(leptons))
    jets = events.Jet.take(rows, selection.jets(events.Jet))
    jets = vary(events, rows, jets.converted(np.float64, "pt", "eta", "phi", "mass"))
    passed = selection.hard(jets)
    n_btags = count(jets.offsets, passed & selection.b_tagged(jets))
    masks = selection.regions(count(jets.offsets, passed), n_btags)
    return {region: (rows[mask], jets.take(mask, passed)) for region, mask in masks.items()}


def compare(result: agc.RunResult, reference: dict[str, Any], skip: set[str] = frozenset()) -> int:
    """Compare every bin with the reference; return how many templates were compared."""
    process = reference["meta"]["process"]
    weight = reference["meta"]["xsec"] * reference["meta"]["lumi"] / reference["meta"]["nevts"]
    names = set()
    for region, content in reference["hist"].items():
        for variation, expected in content["variations"].items():
            suffix = "" if variation == "nominal" else f"_{variation}"
            names.add(f"{region}_{process}{suffix}")
            if variation in skip:
                continue
            found = result.templates[f"{region}_{process}{suffix}"]
            values, variances = found.values(flow=True), found.variances(flow=True)
            np.testing.assert_allclose(values, expected["values"], rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(variances, expected["variances"], rtol=1e-6, atol=1e-9)
            if "btag" not in variation and "scale_var" not in variation:  # unweighted: counts
                np.testing.assert_array_equal(
                    np.rint(values / weight), np.rint(np.asarray(expected["values"]) / weight)
                )
            np.testing.assert_array_equal(found.axes[0].edges, content["edges"])
    assert set(result.templates) == names
    return len(names)


@pytest.fixture(scope="module", params=["ttbar", "wjets"])
def reference(request: pytest.FixtureRequest, real_data: Path) -> dict[str, Any]:
    path = real_data / "reference" / f"{request.param}_nominal_{Path(SAMPLE).stem}.json"
    return json.loads(path.read_text())


def test_histograms_equal_the_reference(
    reference: dict[str, Any], real_data: Path, tmp_path: Path
) -> None:
    process = reference["meta"]["process"]
    result = agc.run(
        TtbarProcessor(compat=True, seed=SEEDS[process]),
        one_file(real_data / SAMPLE, process),
        site="inline",
        output=tmp_path,
        quiet=True,
    )
    assert compare(result, reference) == {"ttbar": 22, "wjets": 26}[process]


@pytest.mark.parametrize("chunk_size", [90, 333])
def test_chunk_size_does_not_matter(
    chunk_size: int, reference: dict[str, Any], real_data: Path, tmp_path: Path
) -> None:
    process = reference["meta"]["process"]
    fileset = one_file(real_data / SAMPLE, process)
    result = agc.run(
        TtbarProcessor(compat=True, seed=SEEDS[process]),
        fileset,
        site="inline",
        output=tmp_path,
        chunk_size=chunk_size,
        quiet=True,
    )
    compare(result, reference, skip={"pt_res_up"})


def test_number_of_workers_does_not_matter(real_data: Path, tmp_path: Path) -> None:
    fileset = one_file(real_data / SAMPLE, "ttbar")
    results = []
    for workers in (1, 2):
        with agc.connect("local", workers=workers) as client:
            folder = tmp_path / str(workers)
            results.append(
                agc.run("ttbar", fileset, client=client, output=folder, chunk_size=250, quiet=True)
            )
    assert agc.compare(results[0].templates, results[1].templates, rtol=0) == []


@pytest.mark.parametrize("compat", [False, True])
def test_blocks_do_not_matter(
    compat: bool, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the events are cut into blocks, and permutations into batches: the same bits."""
    branches = nanoaod.events(3000, 1)
    branches["Jet"] = ak.with_field(branches["Jet"], branches["Jet"].btagCSVV2, "qgl")
    path = nanoaod.write(tmp_path / "x.root", branches, cluster=100)
    results = []
    for block, rows, events, batch in ((3000, 1 << 20, 500, 1 << 20), (300, 500, 3, 2000)):
        monkeypatch.setattr(reading, "BLOCK", block)
        monkeypatch.setattr(assignment, "ROWS_AT_ONCE", rows)
        monkeypatch.setattr(assignment, "EVENTS_AT_ONCE", events)
        monkeypatch.setattr(model.Batches.__init__, "__defaults__", (batch,))
        result = agc.run(
            TtbarProcessor(compat=compat, model=agc.load_model(real_data)),
            nanoaod.fileset(ttbar=[path]),
            site="inline",
            output=tmp_path / str(block),
            quiet=True,
        )
        results.append(result)
    assert results[0].cutflow["ttbar"]["4j2b"] > 50
    assert agc.compare(results[0].templates, results[1].templates, rtol=1e-12) == []


def test_reproducible_smearing_is_the_same_in_any_chunk(real_data: Path, tmp_path: Path) -> None:
    fileset = one_file(real_data / SAMPLE, "ttbar")
    results = [
        agc.run(
            *("ttbar", fileset),
            site="inline",
            output=tmp_path / str(size),
            chunk_size=size,
            quiet=True,
        )
        for size in (1000, 90)
    ]
    assert agc.compare(results[0].templates, results[1].templates, rtol=1e-12) == []


def test_observables_of_every_event(reference: dict[str, Any], real_data: Path) -> None:
    """Observables, jets and regions of each selected event, for each kinematic variation."""
    events = flat(real_data / SAMPLE)
    seed = SEEDS[reference["meta"]["process"]]
    for name, vary in systematics.kinematic("nominal", seed).items():
        for region, (rows_in, jets) in selected(events, vary).items():
            rows = [e for e in reference["events"] if e["region"] == region and e["syst"] == name]
            assert events.event[rows_in].tolist() == [row["event"] for row in rows]
            assert jets.counts.tolist() == [row["n_jets"] for row in rows]
            np.testing.assert_allclose(
                OBSERVABLES[region].values(jets), [row["observable"] for row in rows], rtol=1e-5
            )
            expected = [pt for row in rows for pt in row["jet_pt"]]
            np.testing.assert_allclose(jets.pt, expected, rtol=1e-6)


def test_file_in_which_nothing_passes(real_data: Path, tmp_path: Path) -> None:
    name = "nanoAOD_2015_CMS_Open_Data_ttbar"
    content = json.loads((real_data / "reference" / f"ttbar_nominal_{name}.json").read_text())
    assert content["hist"] == {}
    result = agc.run(
        TtbarProcessor(compat=True),
        one_file(real_data / f"{name}.root", "ttbar"),
        site="inline",
        output=tmp_path,
        quiet=True,
    )
    assert len(result.templates) == 22
    assert all(not template.values(flow=True).any() for template in result.templates.values())
    assert result.cutflow["ttbar__nominal"]["all events"] == 200
    of_normalisation, scaled, warning = result.warnings
    assert "no number of generated events in the fileset (nevts)" in of_normalisation
    assert "ttbar__nominal by 12327" in scaled
    assert "Muon_tightId is false for all 41 muons" in warning


def test_rntuple_gives_what_its_events_hold(real_data: Path, tmp_path: Path) -> None:
    (path,) = real_data.glob("*rntuple*.root")
    result = agc.run("ttbar", one_file(path, "ttbar"), site="inline", output=tmp_path, quiet=True)
    cutflow = result.cutflow["ttbar__nominal"]
    events = uproot.open(path)["Events"]
    pt, eta, cut, sip = (
        events[f"Electron_{field}"].array() for field in ("pt", "eta", "cutBased", "sip3d")
    )
    good = (pt > 30) & (abs(eta) < 2.1) & (cut == 4) & (sip < 4)  # all muon IDs are zero
    assert cutflow["all events"] == 10
    assert cutflow["one lepton"] == ak.sum(ak.sum(good, axis=1) == 1)
    assert cutflow["4j1b"] == cutflow["4j2b"] == 0
    assert result.metrics.events == 10
    assert any("Muon_tightId is false" in warning for warning in result.warnings)


def test_other_campaign_is_told_what_it_lacks(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "coffea_nano_tt_v12.root"
    with pytest.raises(InputFileError, match=r"coffea_nano_tt_v12\.root.*Jet_btagCSVV2"):
        agc.run("ttbar", one_file(path, "ttbar"), site="inline", output=tmp_path / "r", quiet=True)


def test_only_the_declared_columns_are_read(real_data: Path, tmp_path: Path) -> None:
    path = real_data / SAMPLE
    result = agc.run("ttbar", one_file(path, "ttbar"), site="inline", output=tmp_path, quiet=True)
    columns = {*with_counters((*TtbarProcessor().columns, "genWeight"))}
    with uproot.open(path) as file:
        tree = file["Events"]
        metadata = file.file.source.num_requested_bytes
        sizes = {branch.name: branch.compressed_bytes for branch in tree.branches}
    needed = sum(sizes[name] for name in columns)
    assert needed < 0.1 * sum(sizes.values())
    assert 0 < result.ledger.entries[0].bytes <= needed + metadata


def test_other_datasets_fill_once_under_their_own_name(real_data: Path, tmp_path: Path) -> None:
    result = agc.run(
        TtbarProcessor(compat=True),
        one_file(real_data / SAMPLE, "ttbar", "ME_var"),
        site="inline",
        output=tmp_path,
        quiet=True,
    )
    assert set(result.templates) == {"4j1b_ttbar_ME_var", "4j2b_ttbar_ME_var"}
    weight = published.CROSS_SECTIONS["ttbar"] * published.LUMINOSITY / 1000
    counts = [result.templates[f"{r}_ttbar_ME_var"].sum(flow=True).value for r in ("4j1b", "4j2b")]
    assert np.asarray(counts) / weight == pytest.approx([35, 73])


def test_generator_weights_are_used_and_normalised_to(real_data: Path, tmp_path: Path) -> None:
    result = agc.run(
        "ttbar", one_file(real_data / SAMPLE, "ttbar"), site="inline", output=tmp_path, quiet=True
    )
    events = flat(real_data / SAMPLE)
    weights = events.genWeight.astype(float)
    chosen = selected(events, lambda events, rows, jets: jets)
    for region, (rows, _) in chosen.items():
        fraction = weights[rows].sum() / weights.sum()
        expected = fraction * published.CROSS_SECTIONS["ttbar"] * published.LUMINOSITY
        assert result.yields()[region]["ttbar"].value == pytest.approx(expected, rel=1e-12)


def test_data_have_no_weights(tmp_path: Path) -> None:
    branches = nanoaod.events(500, 1)
    del branches["genWeight"]
    path = nanoaod.write(tmp_path / "data.root", branches)
    fileset = Fileset((nanoaod.dataset("data", [path], xsec=None, is_data=True),))
    result = agc.run("ttbar", fileset, site="inline", output=tmp_path / "run", quiet=True)
    for region, histogram in result.hists.items():
        assert (
            histogram[:, "data", "nominal"].sum(flow=True).value == result.cutflow["data"][region]
        )


# -- made-up events: what the real files can't tell apart -----------------------------------------


def event(**changes: Any) -> dict[str, Any]:
    """One event that passes: an electron and four jets, the first of them b-tagged."""
    electron = {"pt": 50.0, "eta": 0.5, "phi": 0.1, "mass": 0.0, "sip3d": 1.0, "charge": 1}
    jets = {
        "pt": [100.0, 80.0, 60.0, 40.0],
        "eta": [0.1, -0.4, 1.0, 2.0],
        "phi": [0.0, 1.5, -2.0, 3.0],
        "mass": [10.0, 8.0, 6.0, 5.0],
        "btagCSVV2": [0.9, 0.1, 0.2, 0.3],
        "jetId": [6, 6, 6, 6],
    }
    made = {"Electron": {**{k: [v] for k, v in electron.items()}, "cutBased": [4]}, "Jet": jets}
    for name, values in changes.items():
        collection, field = name.split("_", 1)
        made.setdefault(collection, {})[field] = values
    return made


def processed(tmp_path: Path, *made: dict[str, Any]) -> dict[str, Any]:
    output = TtbarProcessor(compat=True).process(nanoevents(written(tmp_path, *made)))
    return materialised(output)


def written(tmp_path: Path, *made: dict[str, Any]) -> Path:
    kinds = {"charge": np.int32, "cutBased": np.int32, "jetId": np.int32, "tightId": bool}
    n = len(made)
    branches: dict[str, Any] = {
        "run": np.ones(n, np.uint32),
        "luminosityBlock": np.ones(n, np.uint32),
        "event": np.arange(n, dtype=np.uint64),
        "genWeight": np.ones(n, np.float32),
    }
    for name, fields in nanoaod.COLLECTIONS.items():
        content = {}
        for field in fields:
            values = [e.get(name, {}).get(field, []) for e in made]
            flat = np.array([x for row in values for x in row], kinds.get(field, np.float32))
            content[field] = ak.unflatten(flat, [len(row) for row in values])
        branches[name] = ak.zip(content)
    return nanoaod.write(tmp_path / "made.root", branches)


def regions_of(output: dict[str, Any]) -> tuple[int, int]:
    (cuts,) = output["cutflow"].values()
    return cuts["4j1b"], cuts["4j2b"]


MUON = {
    "pt": [40.0],
    "eta": [1.0],
    "phi": [0.0],
    "mass": [0.1],
    "sip3d": [1.0],
    "charge": [1],
    "tightId": [True],
    "pfRelIso04_all": [0.1],
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (1, 0)),
        ({"Jet_pt": [100, 80, 60, 30]}, (0, 0)),  # strictly above 30 GeV
        ({"Jet_pt": [100, 80, 60, np.nextafter(np.float32(30), np.float32(31))]}, (1, 0)),
        ({"Jet_eta": [0.1, -0.4, 1.0, -2.4]}, (0, 0)),
        ({"Jet_jetId": [6, 6, 6, 2]}, (0, 0)),
        ({"Jet_jetId": [4, 4, 4, 4]}, (1, 0)),
        ({"Jet_btagCSVV2": [0.5, 0.1, 0.2, 0.3]}, (0, 0)),  # strictly above 0.5
        ({"Jet_btagCSVV2": [0.9, 0.1, 0.51, 0.3]}, (0, 1)),
        ({"Jet_btagCSVV2": [0.9, 0.8, 0.7, 0.6]}, (0, 1)),
        ({"Electron_pt": [30.0]}, (0, 0)),
        ({"Electron_eta": [-2.1]}, (0, 0)),
        ({"Electron_cutBased": [3]}, (0, 0)),
        ({"Electron_sip3d": [4.0]}, (0, 0)),
        ({f"Muon_{k}": v for k, v in MUON.items()}, (0, 0)),  # two leptons
    ],
)
def test_cuts_are_strict(
    changes: dict[str, Any], expected: tuple[int, int], tmp_path: Path
) -> None:
    assert regions_of(processed(tmp_path, event(**changes))) == expected


@pytest.mark.parametrize(
    ("field", "value", "passes"),
    [
        ("pt", 30.0, False),
        ("eta", 2.1, False),
        ("tightId", False, False),
        ("sip3d", 4.0, False),
        ("pfRelIso04_all", 0.15, False),
        ("pfRelIso04_all", 0.149, True),
    ],
)
def test_muon_cuts(field: str, value: Any, passes: bool, tmp_path: Path) -> None:
    made = event()
    del made["Electron"]
    made["Muon"] = {**MUON, field: [value]}
    assert regions_of(processed(tmp_path, made)) == (int(passes), 0)


def test_b_tags_are_counted_over_all_jets(tmp_path: Path) -> None:
    jets = {
        "Jet_pt": [100.0, 80.0, 60.0, 40.0, 35.0],
        "Jet_eta": [0.1, -0.4, 1.0, 2.0, 0.0],
        "Jet_phi": [0.0, 1.5, -2.0, 3.0, 2.0],
        "Jet_mass": [10.0, 8.0, 6.0, 5.0, 4.0],
        "Jet_btagCSVV2": [0.9, 0.1, 0.2, 0.3, 0.8],
        "Jet_jetId": [6] * 5,
    }
    assert regions_of(processed(tmp_path, event(**jets))) == (0, 1)


def test_b_tag_weight_may_turn_negative(tmp_path: Path) -> None:
    output = processed(tmp_path, event(Jet_pt=[800.0, 80.0, 60.0, 40.0]))
    down = output["4j1b"][:, "ttbar", "btag_var_0_down"].sum(flow=True).value
    up = output["4j1b"][:, "ttbar", "btag_var_0_up"].sum(flow=True).value
    assert down == pytest.approx(1 - 0.075 * 800 / 50)
    assert up == pytest.approx(1 + 0.075 * 800 / 50)
    third = output["4j1b"][:, "ttbar", "btag_var_3_up"].sum(flow=True).value
    assert third == pytest.approx(1 + 0.075 * 40 / 50)


def test_energy_scale_acts_before_the_selection_and_is_not_rounded(tmp_path: Path) -> None:
    pt = np.float32(29.2)
    output = processed(tmp_path, event(Jet_pt=[100, 80, 60, pt]))
    assert output["4j1b"][:, "ttbar", "nominal"].sum(flow=True).value == 0
    assert output["4j1b"][:, "ttbar", "pt_scale_up"].sum(flow=True).value == 1
    jets = flat(tmp_path / "made.root").Jet
    scaled = systematics.scaled(jets, systematics.JET_ENERGY_SCALE)
    assert scaled.pt[3] == np.float64(pt) * 1.03


def test_m_bjj_is_the_mass_of_the_hardest_b_tagged_trijet(tmp_path: Path) -> None:
    made = event(
        Jet_pt=[200, 150, 100, 90],
        Jet_phi=[0.0, 0.2, -0.2, 3.1],
        Jet_btagCSVV2=[0.1, 0.2, 0.3, 0.9],
    )
    fields = ("pt", "eta", "phi", "mass")
    jets = flat(written(tmp_path, made)).Jet.converted(np.float64, *fields)
    pt, eta, phi, mass = (getattr(jets, field) for field in fields)
    p = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)])
    energy = np.sqrt((p**2).sum(axis=0) + mass**2)
    best = max(((0, 1, 3), (0, 2, 3), (1, 2, 3)), key=lambda c: np.hypot(*p[:2, list(c)].sum(1)))
    total = p[:, list(best)].sum(axis=1)
    expected = np.sqrt(energy[list(best)].sum() ** 2 - (total**2).sum())
    assert m_bjj(jets)[0] == pytest.approx(expected, rel=1e-9)
    assert h_t(jets)[0] == pytest.approx(540)


def test_cutflow_counts_each_step(tmp_path: Path) -> None:
    output = processed(
        tmp_path,
        event(),
        event(Electron_pt=[10.0]),
        event(Jet_pt=[100, 80, 60, 10]),
        event(Jet_btagCSVV2=[0.9, 0.9, 0.1, 0.1]),
    )
    assert output["cutflow"] == {
        "d": {"all events": 4, "one lepton": 3, "four jets": 2, "4j1b": 1, "4j2b": 1}
    }


# -- smearing --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_events(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("smearing") / "random.root"
    return flat(nanoaod.write(path, nanoaod.events(4000, 3)))


def smearing(events: Any, rows: Any) -> tuple[Any, Any]:
    """Factors of all jets of some events, and the offsets of these."""
    jets = events.Jet.take(np.asarray(rows), np.ones(len(events.Jet.pt), bool))
    return systematics.resolution_smearing(events, np.asarray(rows), jets), jets.offsets


@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, 3999), length=st.integers(1, 300))
def test_smearing_depends_on_the_jet_alone(random_events: Any, start: int, length: int) -> None:
    whole, offsets = smearing(random_events, range(4000))
    stop = min(start + length, 4000)
    part, _ = smearing(random_events, range(start, stop))
    np.testing.assert_array_equal(part, whole[offsets[start] : offsets[stop]])


def test_smearing_is_normal_with_five_percent(random_events: Any) -> None:
    factors, _ = smearing(random_events, range(4000))
    assert len(np.unique(factors)) == len(factors)
    assert stats.kstest((factors - 1) / 0.05, "norm").pvalue > 1e-3


def test_smearing_tells_large_event_numbers_apart() -> None:
    columns = {
        "run": np.ones(4, np.uint32),
        "luminosityBlock": np.ones(4, np.uint32),
        "event": np.array([1, 1 + 2**32, 2**53 + 1, 2**53 + 2], dtype=np.uint64),
        "nJet": np.ones(4, np.uint32),
        "Jet_pt": np.full(4, 50, np.float32),
    }

    def offsets(name: str) -> Any:
        return offsets_of(columns[f"n{name}"])

    events = FlatEvents(4, columns.__getitem__, offsets, columns, {})
    assert len(set(smearing(events, range(4))[0].tolist())) == 4


# -- as any coffea processor ----------------------------------------------------------------------


def test_it_runs_under_coffeas_own_runner(real_data: Path, tmp_path: Path) -> None:
    """On records, by coffea alone: the same bins but for the normalisation, which is ours."""
    from coffea.processor import IterativeExecutor, Runner  # noqa: PLC0415 - heavy

    runner = Runner(
        IterativeExecutor(status=False), schema=NanoAODSchema, chunksize=400, metadata_cache={}
    )
    metadata = {"process": "ttbar", "variation": "nominal"}
    fileset = {"ttbar": {"files": {str(real_data / SAMPLE): "Events"}, "metadata": metadata}}
    processor = TtbarProcessor(compat=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what coffea's schema leaves out
        output = runner(fileset, processor)
    result = agc.run(
        processor,
        one_file(real_data / SAMPLE, "ttbar"),
        site="inline",
        output=tmp_path,
        chunk_size=400,
        quiet=True,
    )
    weight = published.CROSS_SECTIONS["ttbar"] * published.LUMINOSITY / 1000
    for region in OBSERVABLES:
        for variation in ("nominal", "pt_scale_up", "btag_var_1_down"):
            suffix = "" if variation == "nominal" else f"_{variation}"
            found = output[region][:, "ttbar", variation].values(flow=True)
            expected = result.templates[f"{region}_ttbar{suffix}"].values(flow=True)
            np.testing.assert_allclose(found * weight, expected, rtol=1e-9)
    assert output["cutflow"]["ttbar"]["4j2b"] == 73


def test_the_cuts_on_leptons_imply_the_preselection() -> None:
    """Services may drop what it drops: no event with a selected lepton is among that."""
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 3, 3000)
    n = int(counts.sum())
    near = {
        "pt": rng.choice([29.9, 30.0, 30.1, 45.0], n),
        "eta": rng.choice([-2.2, 0.5, 2.05], n),
        "cutBased": rng.integers(2, 5, n),
        "sip3d": rng.choice([1.0, 4.5], n),
        "tightId": rng.random(n) < 0.5,
        "pfRelIso04_all": rng.choice([0.1, 0.2], n),
    }
    columns = {
        f"{kind}_{field}": ak.unflatten(rng.permutation(values), counts)
        for kind in ("Electron", "Muon")
        for field, values in near.items()
    }
    electron, muon = (
        ak.zip({field: columns[f"{kind}_{field}"] for field in near})
        for kind in ("Electron", "Muon")
    )
    selected = ak.any(selection.electrons(electron), axis=1)
    selected = selected | ak.any(selection.muons(muon), axis=1)
    kept = eval(selection.PRESELECTION, {"any": ak.any, **columns})
    assert ak.any(selected)
    assert not ak.all(kept)
    assert not ak.any(selected & ~kept)
