"""coffea's records, of columns that are compared when they are read."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import awkward as ak
import damage
import nanoaod
import numpy as np
import pytest
import uproot
from coffea.nanoevents import BaseSchema, NanoAODSchema, NanoEventsFactory, PHYSLITESchema
from coffea.processor import ProcessorABC
from hypothesis import given, settings
from hypothesis import strategies as st

import agc_ml as agc
from agc_ml.columnar import records
from agc_ml.delivery.opening import open_file
from agc_ml.errors import IncompleteError, InputFileError, ProcessorError
from agc_ml.inputs.columns import ColumnRequest
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset

FORMS = {"TTree": damage.own_counters, "RNTuple": damage.vectors}


@contextmanager
def read(
    path: Path, start: int = 0, stop: int = 80, columns: tuple[str, ...] = (), **options: Any
) -> Iterator[Any]:
    with open_file(File("x.root", (str(path),))) as file:
        names = ColumnRequest(columns).names()
        yield records.events(
            file, "Events", (start, stop), names=names, metadata={}, clock=None, **options
        )


@pytest.mark.parametrize("columns", [(), ("Hit_pt",)])
@pytest.mark.parametrize("form", FORMS)
def test_lists_that_are_as_long_as_their_counter_says(
    tmp_path: Path, form: str, columns: tuple[str, ...]
) -> None:
    counts = np.array([1, 2, 3, 0] * 20)
    path = FORMS[form](tmp_path / "x.root", counts, counts)
    with read(path, 10, 70, columns) as events:
        assert ak.num(events.Hit).tolist() == counts[10:70].tolist()
        assert ak.flatten(events.Hit.pt).tolist() == list(range(counts[:10].sum(), 105))


LENGTHS: dict[str, Callable[[Any], Any]] = {
    "fewer": lambda counts: np.maximum(counts - 1, 0),
    "more": lambda counts: counts + 1,
    "of other events": lambda counts: np.roll(counts, 1),
}


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("form", FORMS)
def test_other_lists_are_refused_when_they_are_read(tmp_path: Path, form: str, kind: str) -> None:
    counts = np.array([1, 2, 3, 0] * 20)
    path = FORMS[form](tmp_path / "x.root", counts, LENGTHS[kind](counts))
    with read(path, 8, 72) as events:  # of the same total, in both
        assert events.event.tolist() == list(range(8, 72))
        assert ak.num(events.Hit).tolist() == counts[8:72].tolist()
        with pytest.raises(InputFileError, match="branch Hit_pt: its lists are not as long as nH"):
            ak.sum(events.Hit.pt)


@settings(max_examples=12)
@given(
    n_jets=st.lists(st.integers(0, 3), min_size=4, max_size=8),
    start=st.integers(0, 3),
    data=st.data(),
)
def test_what_is_read_is_what_the_counter_says(
    tmp_path_factory: pytest.TempPathFactory, n_jets: list[int], start: int, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(0, 3), min_size=len(n_jets), max_size=len(n_jets)))
    path = damage.own_counters(tmp_path_factory.mktemp("any") / "x.root", n_jets, lengths)
    with read(path, start, len(n_jets)) as events:
        if n_jets[start:] == lengths[start:]:
            assert ak.num(events.Hit.pt).tolist() == lengths[start:]
        else:
            with pytest.raises(InputFileError):
                ak.num(events.Hit.pt + 0)


@pytest.mark.parametrize("entries", [(0, 80), (0, 20), (20, 60)])
@pytest.mark.parametrize("name", ["run", "nHit", "Hit_pt"])
def test_branches_shorter_than_the_tree(
    tmp_path: Path, name: str, entries: tuple[int, int]
) -> None:
    """In any range: what a branch has of an entry may be of another one, that lies further on."""
    counts = np.array([1, 2, 3, 0] * 20)
    path = damage.shorten(damage.own_counters(tmp_path / "x.root", counts, counts), name)
    with read(path, *entries) as events:
        message = f"branch {name} has 40 entries, but the tree has 80; "
        with pytest.raises((InputFileError, AttributeError), match=message):  # awkward's
            ak.sum(events.Hit.pt) + ak.sum(events.run)
        with pytest.raises(InputFileError, match=message):
            records.see_whole(events)
        assert len(events.event) == entries[1] - entries[0]


def test_branches_longer_than_the_tree(tmp_path: Path) -> None:
    path = nanoaod.write(tmp_path / "x.root", nanoaod.events(80, 1), cluster=40)
    content = bytearray(path.read_bytes())
    with uproot.open(path) as file:
        known = (file["Events"].member(name) for name in ("fEntries", "fTotBytes", "fZipBytes"))
        numbers = struct.pack(">qqq", *known)
    place = content.index(numbers)
    content[place : place + 8] = struct.pack(">q", 60)
    path.write_bytes(content)
    with read(path, 0, 20) as events, pytest.raises(InputFileError, match="has 80 entries, but"):
        ak.sum(events.event)


def test_a_counter_that_counts_less_than_nothing(tmp_path: Path) -> None:
    counts = np.array([1, 2, -1, 0] * 20)
    path = damage.own_counters(tmp_path / "x.root", counts, np.abs(counts))
    with (
        read(path) as events,
        pytest.raises(InputFileError, match="branch nHit has negative counts"),
    ):
        ak.num(events.Hit)


def test_real_files_are_read_as_by_coffea_alone(real_data: Path) -> None:
    names = ["coffea_nano_dimuon.root", "nanoAOD_2015_CMS_Open_Data_ttbar.root"]
    paths = [real_data / name for name in names] + list(real_data.glob("*rntuple*.root"))
    NanoAODSchema.warn_missing_crossrefs = False
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of what the schema replaces
            right = NanoEventsFactory.from_root(
                {str(path): "Events"}, entry_start=2, entry_stop=9
            ).events()
        with read(path, 2, 9) as events:
            assert events.fields == right.fields
            for collection in ("Jet", "Muon"):
                for field in ("pt", "jetIdxG" if collection == "Muon" else "muonIdxG"):
                    found, expected = events[collection][field], right[collection][field]
                    assert found.tolist() == expected.tolist()
            assert events.event.tolist() == right.event.tolist()


def test_other_schemas(tmp_path: Path) -> None:
    """Without counters, columns are put together by the first of them; or are by themselves."""
    jets = ak.Array([[1.0, 2.0], [], [3.0]] * 4)
    others = ak.Array([[1.0], [5.0], [3.0]] * 4)
    names = "AnalysisHitsAuxDyn.pt", "AnalysisHitsAuxDyn.eta", "AnalysisHitsAuxDyn.phi"
    path = tmp_path / "x.root"
    with uproot.recreate(path) as file:
        tree = file.mktree("Events", dict.fromkeys(names, jets.type.content))
        tree.extend(dict(zip(names, (jets, jets, others), strict=True)))
    with read(path, 1, 9, schema=PHYSLITESchema) as events:
        assert events.Hits.eta.tolist() == jets[1:9].tolist()
        with pytest.raises(InputFileError, match=r"branch .*\.phi: its lists are not as long as"):
            ak.sum(events.Hits.phi)
    with read(path, 1, 9, schema=BaseSchema) as events:
        assert events[names[2]].tolist() == others[1:9].tolist()


def test_what_uproot_can_not_read_is_told_in_one_line(tmp_path: Path) -> None:
    path = nanoaod.write(tmp_path / "x.root", nanoaod.events(100, 1))
    with uproot.open(path) as file:
        seek = int(file["Events"]["Jet_pt"].member("fBasketSeek")[0])
    content = bytearray(path.read_bytes())
    content[seek + 100] ^= 1
    path.write_bytes(content)
    with (
        read(path, 0, 100) as events,
        pytest.raises(InputFileError, match=r"^branch Jet_pt: error: "),
    ):
        ak.sum(events.Jet.pt)


class Sums(ProcessorABC):
    columns: ClassVar = ("Hit_pt",)

    def process(self, events: Any) -> dict[str, Any]:
        return {"pt": float(ak.sum(ak.flatten(events.Hit.pt)))}

    def postprocess(self, accumulator: Any) -> None:
        pass


class Careless(Sums):
    """It does without what it can't get."""

    def process(self, events: Any) -> dict[str, Any]:
        return super().process(events) if hasattr(events.Hit, "pt") else {"pt": 0.0}


class FlatSums(Sums):
    flat: ClassVar = True

    def process(self, events: Any) -> dict[str, Any]:
        return {"pt": float(sum(block.Hit.pt.sum() for block in events.blocks()))}


class CarelessFlatSums(FlatSums):
    def process(self, events: Any) -> dict[str, Any]:
        try:
            return super().process(events)
        except Exception:  # noqa: BLE001 - as users do
            return {"pt": 0.0}


class BlamingFlatSums(FlatSums):
    """It makes an error of its own of any other."""

    def process(self, events: Any) -> dict[str, Any]:
        try:
            return super().process(events)
        except Exception:  # noqa: BLE001 - as users do
            raise ValueError("no pt") from None


@pytest.mark.parametrize(
    ("kind", "branch"),
    [
        *((Sums, "nHit"), (Careless, "Hit_pt"), (FlatSums, "nHit"), (FlatSums, "Hit_pt")),
        *((CarelessFlatSums, "Hit_pt"), (BlamingFlatSums, "nHit")),
    ],
)
def test_the_next_replica_is_asked(tmp_path: Path, kind: type[Sums], branch: str) -> None:
    """The first has a counter, or lists, of which a bit is flipped where there is no checksum."""
    counts = np.array([1, 2, 3, 0] * 20)
    good = damage.own_counters(tmp_path / "good.root", counts, counts)
    content = bytearray(good.read_bytes())
    with uproot.open(good) as file:
        seek, size = (
            int(file["Events"][branch].member(of)[1]) for of in ("fBasketSeek", "fBasketBytes")
        )
    content[seek + size - 4 - 1] ^= 1
    bad = tmp_path / "bad.root"
    bad.write_bytes(content)

    def run(*paths: Path, name: str) -> Any:
        file = File("x.root", tuple(map(str, paths)))
        fileset = Fileset((Dataset("d", "d", (file,)),))
        return agc.run(
            kind(), fileset, site="inline", output=tmp_path / name, chunk_size=80, quiet=True
        )

    result = run(bad, good, name="both")
    assert result.outputs["pt"] == sum(range(120))
    assert any("failed while it was read" in line for line in result.warnings)
    with pytest.raises(IncompleteError, match=r"x\.root.*branch Hit_pt: its lists are not as long"):
        run(bad, name="one")


class Everything(Sums):
    columns: ClassVar = ()


class Count(Sums):
    columns: ClassVar = ()

    def process(self, events: Any) -> dict[str, Any]:
        return {"n": len(events)}


def test_failures_of_an_earlier_run_are_not_told(tmp_path: Path) -> None:
    counts = np.array([1, 2, 3, 0] * 20)
    path = damage.shorten(damage.own_counters(tmp_path / "x.root", counts, counts), "Hit_pt")
    fileset = Fileset((Dataset("d", "d", (File("x.root", (str(path),)),)),))
    options = {"site": "inline", "quiet": True}
    with pytest.raises(IncompleteError, match="Hit_pt has 40 entries"):
        agc.run(Everything(), fileset, output=tmp_path / "a", **options)
    result = agc.run(Count(), fileset, output=tmp_path / "b", **options)
    assert result.outputs == {"n": 80}
    assert not any("failed while it was read" in line for line in result.warnings)


@pytest.mark.parametrize("name", ["a[0]", "a*", "a?", "[ab]", "Jet.pt"])
def test_columns_are_names_and_no_patterns(tmp_path: Path, name: str) -> None:
    names = (name, "ab", "a")
    path = tmp_path / "x.root"
    with uproot.recreate(path) as file:
        tree = file.mktree("Events", dict.fromkeys(names, np.dtype("f4")))
        tree.extend({one: np.full(10, i, "f4") for i, one in enumerate(names)})
    with read(path, 2, 9, (name,), schema=BaseSchema) as events:
        assert events.fields == [name]
        assert events[name].tolist() == [0.0] * 7


class Faulty(NanoAODSchema):
    def __init__(self, form: Any) -> None:
        super().__init__(form)
        raise KeyError("a bug of its own")


class ByAFaultySchema(Count):
    schema: ClassVar = Faulty


class DeclaresToo(ByAFaultySchema):
    columns: ClassVar = ("Jet_pt", "Jet_eta", "Jet_phi", "Jet_mass")


@pytest.mark.parametrize("options", [{}, {"schema": "Delphes"}])
@pytest.mark.parametrize("kind", [ByAFaultySchema, DeclaresToo])
def test_a_schema_that_makes_no_events_is_to_blame_not_the_file(
    tmp_path: Path, kind: type[Count], options: dict[str, str]
) -> None:
    path = nanoaod.write(tmp_path / "x.root", nanoaod.events(80, 1))
    fileset = Fileset((Dataset("d", "d", (File("x.root", (str(path),)),)),))
    name = "DelphesSchema" if options else "Faulty"
    with pytest.raises(
        (ProcessorError, InputFileError),
        match=rf"schema {name} can.t build events from the branches",
    ) as caught:
        agc.run(kind(), fileset, site="inline", quiet=True, output=tmp_path / "a", **options)
    assert "damaged" not in str(caught.value)
    result = agc.run(Count(), fileset, site="inline", quiet=True, output=tmp_path / "b")
    assert result.outputs == {"n": 80}
    assert not any("failed while it was read" in line for line in result.warnings)
