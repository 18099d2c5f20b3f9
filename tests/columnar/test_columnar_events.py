from __future__ import annotations

from pathlib import Path
from typing import Any

import awkward as ak
import nanoaod
import numpy as np
import pytest
import uproot
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory

from agc_ml.columnar.events import FlatEvents, blocks

NanoAODSchema.warn_missing_crossrefs = False


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = nanoaod.write(tmp_path_factory.mktemp("flat") / "x.root", nanoaod.events(300, 1))
    return NanoEventsFactory.from_root(
        {str(path): "Events"}, mode="virtual", metadata={"dataset": "d"}
    ).events()


def test_records_as_flat_columns(records: Any) -> None:
    (events,) = blocks(records)
    assert len(events) == 300
    assert events.metadata["dataset"] == "d"
    assert events.event.tolist() == records.event.tolist()
    assert events.Jet.counts.tolist() == ak.num(records.Jet).tolist()
    assert events.Jet.pt.tolist() == ak.flatten(records.Jet.pt).tolist()
    assert events.Jet.pt.dtype == np.float32
    assert events.Muon.tightId.dtype == bool


def test_records_of_one_object_an_event(tmp_path: Path) -> None:
    content = {**nanoaod.events(20, 1), "Pileup_nTrueInt": np.arange(20, dtype=np.float32)}
    path = nanoaod.write(tmp_path / "x.root", content)
    (events,) = blocks(NanoEventsFactory.from_root({str(path): "Events"}, mode="virtual").events())
    assert events.Pileup_nTrueInt.tolist() == list(range(20))
    assert events.Pileup.nTrueInt.tolist() == list(range(20))
    assert events.Pileup.fields == ["nTrueInt"]
    for owner, name in ((events, "Pileup_nPU"), (events.Pileup, "nPU")):
        with pytest.raises(AttributeError, match="Pileup_nPU"):
            getattr(owner, name)


def test_lists_and_arrays_that_are_no_collections(tmp_path: Path) -> None:
    counts = np.array([2, 0, 1, 1] * 5)
    weights = ak.unflatten(np.arange(20, dtype=np.float32), counts)
    content = {
        **nanoaod.events(20, 1),
        "PSWeight": weights,
        "x": np.ones((20, 3), np.float32),
        "Vtx_cov": np.ones((20, 2), np.float32),
    }
    types = {
        name: ak.type(ak.Array(values)).content if name != "x" else np.dtype(("f4", (3,)))
        for name, values in content.items()
    }
    types["Vtx_cov"] = np.dtype(("f4", (2,)))
    path = tmp_path / "x.root"
    with uproot.recreate(path) as file:
        tree = file.mktree(
            "Events",
            types,
            counter_name=lambda name: f"n{name}",
            field_name=lambda outer, inner: inner if outer == "" else f"{outer}_{inner}",
        )
        tree.extend(content)
    (events,) = blocks(NanoEventsFactory.from_root({str(path): "Events"}, mode="virtual").events())
    assert events.x.shape == (20, 3)
    assert events.Vtx.cov.shape == (20, 2)
    assert events.nPSWeight.tolist() == counts.tolist()
    with pytest.raises(AttributeError, match="PSWeight has lists, so it is not a flat column"):
        _ = events.PSWeight


def test_a_number_beside_another_one() -> None:
    columns = {"x": np.arange(3), "nx": np.ones(3), "nJet": np.array([1, 0, 2])}
    events = FlatEvents(3, columns.__getitem__, lambda _: np.array([0, 1, 1, 3]), columns, {})
    assert events.x.tolist() == [0, 1, 2]
    assert events.nx.tolist() == [1, 1, 1]
    assert events.Jet.counts.tolist() == [1, 0, 2]


def test_fields_are_those_of_records(records: Any) -> None:
    (events,) = blocks(records)
    assert set(events.fields) == set(records.fields)
    assert set(events.Jet.fields) == set(records.Jet.fields)
    assert all(len(getattr(events, name)) == 300 for name in events.fields)
    jets = events.Jet.take(np.arange(3), np.ones(len(events.Jet.pt), bool)).part(0, 2)
    assert jets.fields == events.Jet.fields
    assert jets.replaced(pt=jets.pt, area=jets.pt).fields == [*events.Jet.fields, "area"]


def test_what_is_not_there_is_said(records: Any) -> None:
    (events,) = blocks(records)
    for owner, name in ((events, "Photon_pt"), (events.Jet, "nonsense")):
        with pytest.raises(AttributeError, match=name):
            getattr(owner, name)


def test_parts_of_a_stream_are_handed_on() -> None:
    parts = [FlatEvents(n, dict.__getitem__, dict.__getitem__, [], {}) for n in (3, 4)]

    class Stream:
        def blocks(self) -> list[FlatEvents]:
            return parts

    assert list(blocks(Stream())) == parts
