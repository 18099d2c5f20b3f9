"""What a processor returns is added as coffea adds it, and kept."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import awkward as ak
import boost_histogram as bh
import hist
import nanoaod
import numpy as np
import pytest
from coffea.nanoevents import NanoAODSchema
from coffea.processor import (
    IterativeExecutor,
    ProcessorABC,
    Runner,
    column_accumulator,
    defaultdict_accumulator,
    dict_accumulator,
    list_accumulator,
    set_accumulator,
    value_accumulator,
)
from commandline import agc as command
from hypothesis import given
from hypothesis import strategies as st

import agc_ml as agc
from agc_ml.errors import ProcessorError
from agc_ml.execution.processor import outputs
from agc_ml.results import saved_outputs, templates, variances
from agc_ml.results.tables import ColumnTable

N, CHUNK = 100, 25


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("data")
    found = []
    for i in range(2):
        met = np.random.default_rng(i).exponential(30, N).astype(np.float32)
        branches = {**nanoaod.events(N, i + 1), "MET_pt": met, "MET_phi": np.zeros(N, np.float32)}
        found.append(nanoaod.write(folder / f"{i}.root", branches))
    return found


class Of(ProcessorABC):
    """A processor whose ``process`` is a function."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def process(self, events: Any) -> Any:
        return self.make(events)

    def postprocess(self, accumulator: Any) -> Any:
        return accumulator


def run(make: Any, paths: list[Path], folder: Path, **options: Any) -> agc.RunResult:
    fileset = nanoaod.fileset(a=paths[:1], b=paths[1:])
    options = {"site": "inline", "quiet": True, "chunk_size": CHUNK, **options}
    return agc.run(Of(make), fileset, output=folder / "run", **options)


def of_coffea(make: Any, paths: list[Path]) -> Any:
    NanoAODSchema.warn_missing_crossrefs = False
    runner = Runner(executor=IterativeExecutor(status=False), chunksize=CHUNK, metadata_cache={})
    fileset = {"a": {"files": {str(paths[0]): "Events"}}, "b": {"files": {str(paths[1]): "Events"}}}
    return runner(fileset, processor_instance=Of(make))


def lazily(events: Any) -> Any:
    found: Any = defaultdict(lambda: defaultdict(int))
    found[events.metadata["dataset"]]["n"] += len(events)
    return {"nested": found}


ADDED = {
    "sum of awkward": lambda ev: {"n": ak.sum(ev.Jet.pt > 30), "w": ak.sum(ev.genWeight)},
    "nested in a dictionary": lambda ev: {
        ev.metadata["dataset"]: {"n": ak.sum(ev.Jet.pt > 30), "five": 5}
    },
    "scalars": lambda _: {"f": np.float32(2), "i": np.int16(3), "b": np.bool_(1), "z": 1 + 2j},
    "array without dimension": lambda _: {"x": np.asarray(3.0)},
    "array": lambda ev: {"counts": np.histogram(np.asarray(ev.MET.pt), 10, (0, 200))[0]},
    "array of pairs": lambda _: {"x": np.zeros(3, "f4, i8")["f1"]},
    "column": lambda ev: {"met": column_accumulator(np.asarray(ev.MET.pt))},
    "column of lists": lambda ev: {"pt": column_accumulator(ak.materialize(ev.Jet.pt))},
    "set": lambda ev: {"runs": set(np.unique(ev.luminosityBlock).tolist())},
    "set of coffea": lambda ev: {"events": set_accumulator({int(ev.event[0])})},
    "set of tuples": lambda ev: {"events": {(1, int(ev.event[0]), "x")}},
    "list": lambda ev: {"first": np.asarray(ev.MET.pt[:2]).tolist()},
    "tuple": lambda ev: {"t": (1, len(ev), None)},
    "value": lambda _: {"v": value_accumulator(float, 1.5), "l": value_accumulator(list, [1])},
    "dictionary of coffea": lambda ev: dict_accumulator(
        {"c": defaultdict_accumulator(int, {"a": len(ev)}), "s": set_accumulator({1})}
    ),
    "default that is a lambda": lazily,
    "default of numbers": lambda ev: {"c": defaultdict(float, {"a": len(ev) * 0.5})},
    "counter": lambda ev: {"c": Counter(a=len(ev), b=1)},
    "order": lambda ev: OrderedDict([("b", len(ev)), ("a", 1)]),
    "keys that are numbers": lambda ev: {1: len(ev), "1": 2, (3, "x"): {None: 1, True: 2}},
    "keys with a dollar": lambda ev: {"$array": len(ev), "x": {"$set": 1}},
    "not finite": lambda _: {"x": float("nan"), "y": {"z": -np.inf}},
    "text": lambda _: {"t": "x", "b": b"\x00\xff"},
    "large": lambda _: {"n": 2**70},
    "empty": lambda _: {},
    "empty inside": lambda ev: {"a": {}, "b": [], "c": np.zeros(0), "n": len(ev)},
}


def plain(value: Any) -> Any:  # noqa: PLR0911 - a line for each kind
    """The same in a form that Python can compare."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, column_accumulator | value_accumulator):
        return plain(value.value)
    if isinstance(value, ak.Array):
        return value.to_list()
    if isinstance(value, np.ndarray) and value.ndim:
        return (value.dtype.str, value.tolist())
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.item())
    for kind in (list, tuple):
        if isinstance(value, kind):
            return kind(plain(inner) for inner in value)
    if isinstance(value, set):
        return set(value)
    return str(value) if isinstance(value, float) else value  # nan is nan


def every(events: Any) -> Any:
    """All of them at once."""
    return {name: make(events) for name, make in ADDED.items()}


@pytest.fixture(scope="module")
def both(paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    folder = tmp_path_factory.mktemp("both")
    return run(every, paths, folder), of_coffea(every, paths), folder / "run"


@pytest.mark.parametrize("name", ADDED)
def test_outputs_are_those_of_coffea_and_are_kept(name: str, both: tuple[Any, Any, Path]) -> None:
    result, theirs, folder = both
    loaded = agc.RunResult.load(folder)
    ours = plain(result.outputs.get(name, {}))
    assert ours == plain(loaded.outputs.get(name, {})) == plain(theirs[name])


def test_outputs_are_shown(both: tuple[Any, Any, Path]) -> None:
    shown = command("show", both[2])
    assert (shown.code, shown.err) == (0, "")
    assert "sum of awkward/n" in shown.out
    report = command("report", both[2])
    assert (report.code, report.err) == (0, "")


def test_columns_that_were_not_read_yet(paths: list[Path], tmp_path: Path) -> None:
    result = run(lambda events: {"pt": column_accumulator(events.Jet.pt)}, paths, tmp_path)
    assert len(result.outputs["pt"].value) == 2 * N
    assert plain(agc.RunResult.load(tmp_path / "run").outputs) == plain(result.outputs)


def test_sums_of_small_integers_do_not_overflow(paths: list[Path], tmp_path: Path) -> None:
    def make(_: Any) -> Any:
        numbers = {"n": np.int32(2_000_000_000), "u": np.uint8(200), "z": np.array(200, np.uint8)}
        many = {"many": np.array([200, 1], np.uint8), "signed": np.array([2_000_000_000], "i4")}
        return numbers | many

    result = run(make, paths, tmp_path)
    found = {name: np.asarray(value).tolist() for name, value in result.outputs.items()}
    assert found["n"] == 8 * 2_000_000_000
    assert found["u"] == found["z"] == 8 * 200
    assert found["many"] == [8 * 200, 8]
    assert found["signed"] == [8 * 2_000_000_000]


def test_sums_of_weights_and_dates(paths: list[Path], tmp_path: Path) -> None:
    def make(events: Any) -> Any:
        h = hist.Hist.new.Reg(2, 0, 1, name="x").Weight().fill([0.5] * len(events), weight=2)
        days = {np.datetime64("2026-01-01"), np.datetime64("2026-01-02")}
        return {"yield": h.sum(), "days": days, "time": np.timedelta64(2, "s")}

    result = run(make, paths, tmp_path)
    for found in (result.outputs, agc.RunResult.load(tmp_path / "run").outputs):
        assert (found["yield"].value, found["yield"].variance) == (4 * N, 8 * N)
        assert found["days"] == {np.datetime64("2026-01-01"), np.datetime64("2026-01-02")}
        assert found["time"] == np.timedelta64(16, "s")


def test_lists_of_coffea(paths: list[Path], tmp_path: Path) -> None:
    """Which coffea itself can't add."""
    result = run(lambda ev: {"n": list_accumulator([len(ev)])}, paths, tmp_path)
    assert result.outputs == {"n": [CHUNK] * 8}


def test_one_thing_in_two_places_counts_once_in_each(paths: list[Path], tmp_path: Path) -> None:
    def make(events: Any) -> Any:
        h = hist.Hist.new.Reg(2, 0, 1, name="x").Weight().fill(np.full(len(events), 0.7))
        counts, array = {"n": len(events)}, np.array([len(events)])
        return {
            "a": h,
            "b": {"h": h},
            "c": bh.Histogram(h),
            "d": counts,
            "e": {"f": counts},
            "g": array,
            "i": array,
        }

    result = run(make, paths, tmp_path)
    assert {h.sum().value for h in result.hists.values()} == {2 * N}
    assert result.outputs["d"] == result.outputs["e"]["f"] == {"n": 2 * N}
    assert result.outputs["g"] == result.outputs["i"] == 2 * N


def test_counts_that_are_not_positive_stay(paths: list[Path], tmp_path: Path) -> None:
    result = run(lambda _: {"c": Counter(a=-2, b=0, c=1)}, paths, tmp_path)
    assert result.outputs["c"] == {"a": -16, "b": 0, "c": 8}


def test_a_bare_histogram_has_the_processors_name(paths: list[Path], tmp_path: Path) -> None:
    def make(events: Any) -> Any:
        return hist.Hist.new.Reg(3, 0, 100, name="pt").Weight().fill(ak.flatten(events.Jet.pt))

    result = run(make, paths, tmp_path)
    assert result.hists["Of"] == of_coffea(make, paths)
    assert list(agc.RunResult.load(tmp_path / "run").templates) == ["Of"]


@pytest.mark.parametrize("bare", [5, [1], np.arange(3), {1}])
def test_other_bare_outputs(bare: Any, paths: list[Path], tmp_path: Path) -> None:
    result = run(lambda _: bare, paths, tmp_path)
    assert plain(result.outputs["Of"]) == plain(of_coffea(lambda _: bare, paths))


def test_histograms_everywhere(paths: list[Path], tmp_path: Path) -> None:
    def make(events: Any) -> Any:
        pt = ak.to_numpy(ak.flatten(events.Jet.pt))
        made = bh.Histogram(bh.axis.Regular(5, 0, 100), storage=bh.storage.Weight()).fill(pt)
        one, other = hist.Hist(made.copy()), hist.Hist(made.copy())
        return {"plain": made, "list": [one], ("tt", 1): {"h": other}}

    result = run(make, paths, tmp_path)
    loaded = agc.RunResult.load(tmp_path / "run")
    assert set(result.hists) == set(loaded.hists) == {"plain", "('tt', 1)/h"}
    assert loaded.hists["plain"] == result.hists["plain"]
    assert len(loaded.outputs["list"]) == 8
    assert sum(h.sum().value for h in loaded.outputs["list"]) == result.hists["plain"].sum().value


def test_mappings_that_can_not_be_changed(paths: list[Path], tmp_path: Path) -> None:
    def make(events: Any) -> Any:
        h = hist.Hist.new.Reg(2, 0, 1, name="x").Weight().fill([0.5] * len(events))
        return {"h": MappingProxyType({"x": h}), "sumw": len(events)}

    listed = nanoaod.fileset(a=paths[:1])
    fileset = replace(listed, datasets=(replace(listed.datasets[0], xsec=0.01),))
    options = {"site": "inline", "quiet": True, "output": tmp_path / "run"}
    result = agc.run(Of(make), fileset, **options)
    assert result.hists["h/x"].sum().value == pytest.approx(10)


def test_a_result_that_holds_itself(paths: list[Path], tmp_path: Path) -> None:
    class Endless(Of):
        def postprocess(self, accumulator: Any) -> Any:
            accumulator["all"] = accumulator

    fileset = nanoaod.fileset(a=paths[:1])
    options = {"site": "inline", "quiet": True, "output": tmp_path / "run"}
    processor = Endless(lambda events: {"n": len(events)})
    with pytest.raises(ProcessorError, match="the result of all chunks: it contains itself"):
        agc.run(processor, fileset, **options)


def test_tables_everywhere(paths: list[Path], tmp_path: Path) -> None:
    def make(events: Any) -> Any:
        rows = ColumnTable({"event": np.asarray(events.event)})
        return {"a": {"b": rows}, "n": len(events)}

    run(make, paths, tmp_path)
    loaded = agc.RunResult.load(tmp_path / "run")
    assert len(loaded.tables["a.b"]) == 2 * N
    assert loaded.outputs == {"n": 2 * N}


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ({"a": {"f": lambda: 1}}, "output['a']['f'] is a function, which can't be stored"),
        ({"a": [1, object()]}, "output['a'][1] is a object"),
        ({"x": np.array([None])}, "output['x'] is a ndarray of object"),
        ({"x": np.ma.masked_array([1.0])}, "of masked values"),
        ({"x": "caf\udce9"}, "output['x'] is 'caf\\udce9', which is not valid text"),
        ({"x": {"caf\udce9": 1}}, "which is not valid text"),
        ({"x": None}, "output['x'] can't be added: it is a NoneType"),
        ({"x": {"d": np.datetime64("2020-01-01")}}, "output['x']['d'] can't be added"),
        ({"cutflow": {"a": {"b": object()}}}, "output['cutflow']['a']['b'] is a object"),
        ({"h": hist.Hist(hist.axis.Regular(2, 0, 1), metadata=np.zeros(2))}, "its histogram h: it"),
        ({"h": hist.Hist(hist.axis.Regular(2, 0, 1, metadata={1}))}, "histogram h: its axis 0 has"),
        ({"l": [hist.Hist(hist.axis.Regular(2, 0, 1), metadata={1})]}, "output['l'][0] is a hist"),
        ({"h": hist.Hist(storage=hist.storage.Weight())}, "histogram h: it has no axes"),
    ],
)
def test_what_can_not_be_kept_is_refused_at_once(
    output: Any, says: str, paths: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ProcessorError) as caught:
        run(lambda _: output, paths, tmp_path)
    assert says in str(caught.value)
    assert "[0, 25)" in str(caught.value)


def booked(*labels: str, storage: Any = None) -> hist.Hist[Any]:
    axes = [
        hist.axis.StrCategory([], growth=True, name=name)
        for name, _ in zip(("process", "variation"), labels, strict=False)
    ]
    made = hist.Hist(*axes, hist.axis.Regular(2, 0, 1, name="x"), storage=storage or "Weight")
    return made.fill(*labels, [0.2, 0.7, 0.7])


class Mirrored(ProcessorABC):
    """Fills a variation in postprocess that one of the datasets has not."""

    def process(self, events: Any) -> Any:
        name = events.metadata["dataset"]
        both = [booked(name, "nominal"), booked(name, "down" if name == "a" else "up")]
        return {"h": both[0] + both[1], "other": booked(name, "up" if name == "a" else "nominal")}

    def postprocess(self, accumulator: Any) -> Any:
        h = accumulator["h"]
        h["b", "down", :] = h["b", "up", :].view(flow=True)
        return {"h": h, "other": accumulator["other"]}


def test_what_postprocess_fills_in_is_in_the_templates(paths: list[Path], tmp_path: Path) -> None:
    fileset = nanoaod.fileset(a=paths[:1], b=paths[1:])
    result = agc.run(Mirrored(), fileset, output=tmp_path / "run", site="inline", quiet=True)
    wanted = {"h_a", "h_a_down", "h_b", "h_b_up", "h_b_down", "other_a_up", "other_b"}
    assert result.templates.keys() == wanted
    assert result.templates["h_b_down"] == result.templates["h_b_up"]
    for form in ("root", "zip"):
        assert templates.load(tmp_path / "run" / f"histograms.{form}").keys() == wanted


class Renamed(Mirrored):
    """Moves histograms, and makes one of two."""

    def postprocess(self, accumulator: Any) -> Any:
        h = accumulator["h"]
        return {"moved": h, "deep": {"h": h.copy()}, "x": h + h, "other": accumulator["other"]}


def test_combinations_that_no_dataset_has_are_no_templates_by_any_name(
    paths: list[Path], tmp_path: Path
) -> None:
    fileset = nanoaod.fileset(a=paths[:1], b=paths[1:])
    result = agc.run(Renamed(), fileset, output=tmp_path / "run", site="inline", quiet=True)
    there = {"a", "a_down", "b", "b_up"}
    wanted = {f"{name}_{labels}" for name in ("moved", "deep/h", "x") for labels in there}
    assert result.templates.keys() == wanted | {"other_a_up", "other_b"}


class Booked(ProcessorABC):
    """One histogram grows, of the other all labels are booked; postprocess copies both."""

    def process(self, events: Any) -> Any:
        name = events.metadata["dataset"]
        b = hist.Hist(
            hist.axis.StrCategory(["a", "b"], name="process"),
            hist.axis.StrCategory(["nominal", "up"], name="variation"),
            hist.axis.Regular(2, 0, 1, name="x"),
        )
        grown = booked(name, "nominal") if name == "a" else booked(name, "up")
        return {"a": grown, "b": b.fill("a", "nominal", [0.5])}

    def postprocess(self, accumulator: Any) -> Any:
        return accumulator | {"b2": accumulator["b"] * 2}


def test_templates_that_are_booked_stay_by_any_name(paths: list[Path], tmp_path: Path) -> None:
    fileset = nanoaod.fileset(a=paths[:1], b=paths[1:])
    result = agc.run(Booked(), fileset, output=tmp_path / "run", site="inline", quiet=True)
    wanted = {f"{name}_{labels}" for name in ("b", "b2") for labels in ("a", "a_up", "b", "b_up")}
    assert result.templates.keys() == wanted | {"a_a", "a_b_up"}


class Scaled(ProcessorABC):
    """Doubles counts in one of the ways that boost-histogram does not notice."""

    def __init__(self, how: str) -> None:
        self.how = how

    def process(self, events: Any) -> Any:
        name = events.metadata["dataset"]
        return {"h": booked(name, storage=hist.storage.Double())}

    def postprocess(self, accumulator: Any) -> Any:
        h = accumulator["h"]
        if self.how == "view":
            h.view(flow=True)[...] *= 2
        elif self.how == "set":
            h[...] = h.values() * 2
        elif self.how == "new":
            accumulator["h"] = hist.Hist(*h.axes, data=h.values(flow=True) * 2)
        return accumulator


@pytest.mark.parametrize("how", ["view", "set", "new", "not"])
def test_counts_that_postprocess_writes_over_have_no_variances(
    how: str, paths: list[Path], tmp_path: Path
) -> None:
    fileset = nanoaod.fileset(a=paths[:1], b=paths[1:])
    result = agc.run(Scaled(how), fileset, output=tmp_path / "run", site="inline", quiet=True)
    for one in (result, agc.RunResult.load(tmp_path / "run")):
        assert one.templates["h_a"].values().tolist() == ([1, 2] if how == "not" else [2, 4])
        assert (variances.of(one.templates["h_a"]) is None) == (how != "not")


class Weighted(Scaled):
    """Of weighted fills, of which nothing keeps the variances."""

    def process(self, events: Any) -> Any:
        made = hist.Hist.new.Reg(2, 0, 1, name="x").Double()
        return {"h": made.fill([0.2, 0.7, 0.7], weight=[3.0, 3.0, 1.0])}


@pytest.mark.parametrize("how", ["view", "set", "new", "not"])
def test_variances_that_were_unknown_stay_so(how: str, paths: list[Path], tmp_path: Path) -> None:
    fileset = nanoaod.fileset(a=paths[:1], b=paths[1:])
    result = agc.run(Weighted(how), fileset, output=tmp_path / "run", site="inline", quiet=True)
    for one in (result, agc.RunResult.load(tmp_path / "run")):
        assert one.hists["h"].values().tolist() == ([6, 8] if how == "not" else [12, 16])
        assert variances.of(one.hists["h"]) is None


def test_names_that_meet_in_the_sum_of_datasets(paths: list[Path], tmp_path: Path) -> None:
    def make(events: Any) -> Any:
        is_first = events.metadata["dataset"] == "a"
        return {"h": booked(*(("tt", "x_up") if is_first else ("tt_x", "up")))}

    with pytest.raises(ProcessorError) as caught:
        run(make, paths, tmp_path)
    assert "processor Of: two histograms would be called h_tt_x_up" in str(caught.value)
    assert "process 'tt', variation 'x_up'; and" in str(caught.value)


def test_what_differs_between_datasets_is_named(paths: list[Path], tmp_path: Path) -> None:
    def make(events: Any) -> Any:
        is_first = events.metadata["dataset"] == "a"
        return {"deep": {"x": 1 if is_first else "one"}}

    with pytest.raises(ProcessorError, match=r"datasets a and b: output\['deep'\]\['x'\] can't be"):
        run(make, paths, tmp_path)


def test_damaged_outputs_are_told(paths: list[Path], tmp_path: Path) -> None:
    run(lambda _: {"x": np.arange(5)}, paths, tmp_path)
    file = tmp_path / "run" / "outputs.npz"
    file.write_bytes(file.read_bytes()[:100])
    called = command("validate", tmp_path / "run")
    assert "outputs of the processor are damaged" in " ".join(called.out.split())
    file.unlink()
    with pytest.raises(agc.AgcError, match="outputs of the processor are damaged"):
        agc.RunResult.load(tmp_path / "run")


def ordered(value: Any) -> str:
    """Text of a value that does not depend on the order of sets."""
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__} {sorted(map(ordered, value))}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} {list(map(ordered, value))}"
    if isinstance(value, dict):
        return f"dict {[(ordered(key), ordered(inner)) for key, inner in value.items()]}"
    return repr(value)


kept = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=4)
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.just("$set"), inner, max_size=3)
        | st.sets(st.integers() | st.text(max_size=2), max_size=3)
        | st.builds(frozenset, st.sets(st.integers(), max_size=3))
        | st.builds(np.array, st.lists(st.integers(-9, 9), min_size=1, max_size=3))
    ),
    max_leaves=10,
)


@given(kept)
def test_what_is_saved_comes_back(value: Any) -> None:
    encoded = saved_outputs.encode(value)
    content = json.loads(json.dumps(encoded.content, allow_nan=False))
    assert ordered(saved_outputs.decode(encoded._replace(content=content))) == ordered(value)
    saved_outputs.check(value)
    saved_outputs.lines(content if isinstance(content, dict) else {"x": content}, 3)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(-9, 9)), min_size=1))
def test_addition_is_that_of_coffea(parts: list[dict[str, int]]) -> None:
    from coffea.processor import accumulate  # noqa: PLC0415 - only here

    copies = [dict(part) for part in parts]
    total = copies[0]
    for part in copies[1:]:
        total = outputs.add(total, part)
    assert total == accumulate(parts)
