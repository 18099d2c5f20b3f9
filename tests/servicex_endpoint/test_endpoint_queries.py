"""Queries: what is refused, and what a worker makes of the others."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import awkward as ak
import hist
import nanoaod
import numpy as np
import pytest
import uproot

from agc_ml.errors import InputFileError, UsageError
from agc_ml.servicex_endpoint import store
from agc_ml.servicex_endpoint.requests import TransformRequest
from agc_ml.servicex_endpoint.store import RequestStore, TransformOutcome
from agc_ml.servicex_endpoint.transformation.reading import pieces
from agc_ml.servicex_endpoint.transformation.transformer import is_transient, reason
from agc_ml.servicex_endpoint.transformation.writing import write
from agc_ml.servicex_endpoint.translation.generators import (
    DEFAULT,
    check_enabled,
    generate,
    parse_codegens,
)

N = 400


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with a tree, another in a folder, an empty one, and a histogram."""
    path = tmp_path_factory.mktemp("source") / "a:b.root"
    nanoaod.write(path, nanoaod.events(N, 1), cluster=150)
    with uproot.update(path) as file:
        file.mktree("deep/Runs", {"count": np.int64}).extend({"count": [3]})
        file.mktree("Empty", {"x": np.float32})
        file["sumw"] = hist.Hist.new.Reg(4, 0, 1).Double().fill([0.1, 0.6])
        file["sumw2"] = hist.Hist.new.Reg(4, 0, 1).Double().fill([0.2])
    return str(path)


@pytest.fixture(scope="module")
def events(source: str) -> ak.Array:
    with uproot.open({source: "Events"}) as tree:
        return tree.arrays()


def raw(*queries: dict[str, Any], form: Any = "root-file") -> str:
    return generate("uproot-raw", json.dumps(queries), form)


def run(program: str, source: str, output: Path, form: Any = "root-file", gen: str = "uproot-raw"):
    return write(lambda: pieces(gen, program, source), output, form)


def python(source: str) -> str:
    return base64.b64encode(source.encode()).decode()


@pytest.mark.parametrize(
    ("codegen", "selection", "message"),
    [
        ("uproot", "(((", "the query for uproot can't be used: Unexpected"),
        ("uproot", "(call Nope 1)", "there is no function Nope"),
        ("uproot", "", "one statement is needed, not 0"),
        ("uproot-raw", "{", "not JSON"),
        ("uproot-raw", "{}", "a list of queries is needed"),
        ("uproot-raw", "[]", "a list of queries is needed"),
        ("uproot-raw", '[{"treename": ""}]', "part 1: treename: no tree is named"),
        ("uproot-raw", "[{}]", "part 1: treename: Field required"),
        ("uproot-raw", "[3]", "part 1: Input should be a valid dictionary"),
        ("uproot-raw", '[{"treename": "t", "filter": "x"}]', "part 1: filter: Extra inputs"),
        ("uproot-raw", '[{"treename": "t", "cut": "x >"}]', "part 1: cut: not Python"),
        ("uproot-raw", '[{"copy_histograms": []}]', "part 1: .*no histogram is named"),
        ("uproot-raw", '[{"treename": "t"}, {"treename": "t"}]', "2 parts write the tree t"),
        ("python", "???", "not the base64 of a Python function's source"),
        ("python", python("def run_query(:"), "not Python .*line 1"),
        ("python", python("def f(path): return 1"), "must be called run_query; it defines f"),
        ("python", python("x = 1"), "must be called run_query; it defines no function"),
    ],
)
def test_broken_queries_are_refused(codegen: str, selection: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        generate(codegen, selection, "root-file")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "queries",
    [
        [{"copy_histograms": "h"}],
        [{"treename": ["a", "b"]}],
        [{"treename": "a"}, {"copy_histograms": "h"}],
    ],
)
def test_parquet_holds_one_tree(queries: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match="parquet holds one tree and no histograms"):
        raw(*queries, form="parquet")


def body(**changes: Any) -> bytes:
    request = {
        "file-list": ["/a.root"],
        "selection": "x",
        "codegen": "uproot",
        "result-destination": "object-store",
        "result-format": "root-file",
    }
    return json.dumps({**request, **changes}).encode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file-list": []}, "the list of files is empty"),
        ({"did": "rucio://a:b"}, "rucio://a:b: datasets can't be looked up here"),
        ({"file-list": ["a.root"]}, "a.root: not an absolute path"),
        ({"file-list": ["s3://a/b"]}, "s3://a/b: s3:// can't be read here"),
        ({"result-format": "csv"}, "result-format: Input should be"),
        ({"result-destination": "volume"}, "result-destination: Input should be"),
        ({"selection": ""}, "selection: String should have at least 1 character"),
        ({"title": "a\0b"}, "title: it has the character U\\+0000"),
        ({"title": "a" * 10_241}, "title: String should have at most 10240"),
        ({"file-list": ["/a\n\x1b[31m"]}, "file-list.0: it has the character U\\+000A"),
        ({"file-list": ["file:///a%00b"]}, "not a URL \\(it has the character U\\+0000"),
        ({"file-list": ["/" + "a" * 8192]}, "file-list.0: String should have at most 8192"),
        ({"file-list": ["http://[bad"]}, "not a URL \\(Invalid IPv6 URL\\)"),
        ({"file-list": ["file://[bad/x"]}, "not a URL \\(Invalid IPv6 URL\\)"),
        ({"file-list": ["http://h/a::file:///b"]}, "a path with :: would be read as several"),
        ({"file-list": ["/a::/b"]}, "a path with :: would be read as several"),
        (
            {"file-list": [f"/{i}" for i in range(10_001)]},
            "file-list: Tuple should have at most 10000",
        ),
        ({"codegen": "a" * 101}, "codegen: String should have at most 100"),
    ],
)
def test_senseless_requests_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TransformRequest.parse(body(**changes))
    with pytest.raises(UsageError, match="the request is malformed"):
        TransformRequest.parse(b"{")


def test_an_input_counts_once_however_it_is_written() -> None:
    files = ["/d/a.root", "/d/../d/a.root", "file:///d/a.root", "root://h//d/a.root", "/d/b.root"]
    request = TransformRequest.parse(body(**{"file-list": files}))
    assert request.files == ("/d/a.root", "root://h//d/a.root", "/d/b.root")


def test_requests_of_a_sensible_size_are_taken() -> None:
    files = [f"/{'d' * 200}/{i}.root" for i in range(10_000)]
    request = TransformRequest.parse(
        body(**{"file-list": files, "title": "Größe\nin GeV" + " " * 10_000})
    )
    assert request.files == tuple(files)
    assert TransformRequest.parse(body(**{"file-list": ["root://[::1]:1094//a.root"]})).files


def test_code_generators_are_named_as_people_know_them() -> None:
    assert parse_codegens(["uproot-raw", "func_adl"]) == ("uproot", "uproot-raw")
    assert parse_codegens([" python", "uproot"]) == ("uproot", "python")
    for wrong in (["func_adl", "atlasr21"], [""], []):
        with pytest.raises(UsageError, match="no such code generator; there are func_adl, uproot-"):
            parse_codegens(wrong)
    check_enabled("uproot", DEFAULT)
    with pytest.raises(UsageError, match="--codegens func_adl,uproot-raw,python"):
        check_enabled("python", DEFAULT)
    with pytest.raises(UsageError, match="atlasr21: no such code generator; there are uproot-raw"):
        check_enabled("atlasr21", DEFAULT)


def test_names_of_objects_are_plain_and_differ() -> None:
    paths = ["/a/b.root", "/a:b.root", "/a/c/b.root", "root://h//a/b.root?x=1", "/" + "ü" * 300]
    names = [store.object_name(path, "root-file") for path in paths]
    assert len(set(names)) == len(paths)
    assert all(len(name) < 120 and name.isascii() for name in names)
    assert store.object_name("/a/../..", "parquet").startswith("file-")


def test_expressions_cuts_and_aliases(source: str, events: ak.Array, tmp_path: Path) -> None:
    program = raw(
        {
            "treename": {"Events": "skim", "deep/Runs": "deep"},
            "expressions": ["event", "lead", "Jet_pt"],
            "aliases": {"lead": "max(Jet_pt)"},
            "cut": "(num(Jet_pt) > 0) & any(Jet_pt > 60)",
        }
    )
    with pytest.raises(uproot.KeyInFileError, match="event"):  # the second tree has none
        run(program, source, tmp_path / "out.root")
    program = program.replace(',"deep/Runs":"deep"', "")
    expected = events[ak.any(events.Jet_pt > 60, axis=1)]
    assert run(program, source, tmp_path / "out.root") == len(expected)
    with uproot.open({tmp_path / "out.root": "skim"}) as tree:
        found = tree.arrays()
    assert found.fields == ["event", "lead", "nJet", "Jet_pt"]
    assert ak.array_equal(found.Jet_pt, expected.Jet_pt)
    assert ak.all(found.lead == ak.max(expected.Jet_pt, axis=1))
    program = raw(
        {"treename": "Events", "expressions": "lead", "aliases": {"lead": "max(Muon_pt)"}}
    )
    with pytest.raises(InputFileError, match="lead is missing in some events"):
        run(program, source, tmp_path / "out.root")


@pytest.mark.parametrize("form", ["root-file", "root-rntuple", "parquet"])
def test_all_formats_hold_the_same(
    source: str, events: ak.Array, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agc_ml.servicex_endpoint.transformation.reading.STEP", 100)
    names = ["event", "Jet_pt", "Jet_jetId", "Muon_tightId"]
    program = raw({"treename": "Events", "filter_name": names}, form=form)
    assert run(program, source, tmp_path / "out", form) == N
    if form == "parquet":
        found = ak.from_parquet(tmp_path / "out")
    else:
        with uproot.open({tmp_path / "out": "Events"}) as tree:
            assert ("RNTuple" in tree.classname) == (form == "root-rntuple")
            found = tree.arrays()
    for name in names:
        assert ak.array_equal(found[name], events[name], check_parameters=False), name


def test_collections_of_unequal_columns_get_a_counter_each(
    source: str, events: ak.Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agc_ml.servicex_endpoint.transformation.reading.STEP", 100)
    program = raw(
        {
            "treename": "Events",
            "expressions": ["event", "Jet_pt", "Jet_hard", "Muon_pt", "Muon_eta"],
            "aliases": {"Jet_hard": "Jet_pt[Jet_pt > 60 * (event > 1000250)]"},
        }
    )
    run(program, source, tmp_path / "out.root")  # they differ in the third step only
    with uproot.open({tmp_path / "out.root": "Events"}) as tree:
        found = tree.arrays()
    assert [name for name in found.fields if name[0] == "n"] == ["nJet_pt", "nJet_hard", "nMuon"]
    assert ak.array_equal(found.Jet_pt, events.Jet_pt)
    threshold = 60 * (events.event > 1_000_250)
    assert ak.array_equal(found.Jet_hard, events.Jet_pt[events.Jet_pt > threshold])


@pytest.mark.parametrize("form", ["root-file", "root-rntuple", "parquet"])
def test_what_has_no_events_has_its_columns(source: str, tmp_path: Path, form: str) -> None:
    for query in ({"treename": "Empty"}, {"treename": "Events", "cut": "event < 0"}):
        assert run(raw(query, form=form), source, tmp_path / "out", form) == 0
        if form == "parquet":
            fields = ak.from_parquet(tmp_path / "out").fields
        else:
            with uproot.open({tmp_path / "out": query["treename"]}) as tree:
                fields = tree.keys()
                assert tree.num_entries == 0
        assert {"x"} == set(fields) or {"event", "Jet_pt"} < set(fields)


def test_histograms_are_copied(source: str, tmp_path: Path) -> None:
    program = raw({"copy_histograms": "sumw*"}, {"treename": "deep/Runs"})
    assert run(program, source, tmp_path / "out.root") == 1
    with uproot.open(tmp_path / "out.root") as file:
        assert file["sumw"].values().tolist() == [1, 0, 1, 0]
        assert file["sumw2"].values().sum() == 1
        assert file["deep/Runs"]["count"].array().tolist() == [3]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"treename": ["Events", "Nope"]}, "the file has no tree Nope; it has .*Events"),
        ({"treename": "sumw"}, "the file has no tree sumw"),
        ({"treename": "Nope", "fail_on_missing_trees": False}, "nothing that the query selects"),
        ({"treename": "Events", "filter_name": "Tau_*"}, "no column of the tree Events"),
        ({"copy_histograms": "pileup"}, "no object pileup"),
    ],
)
def test_what_is_missing_is_a_failure(
    source: str, tmp_path: Path, query: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputFileError, match=message):
        run(raw(query), source, tmp_path / "out.root")


def test_a_tree_may_be_missing_if_the_query_says_so(source: str, tmp_path: Path) -> None:
    program = raw({"treename": ["Nope", "deep/Runs"], "fail_on_missing_trees": False})
    assert run(program, source, tmp_path / "out.root") == 1


def test_python_functions_give_arrays_or_trees(source: str, tmp_path: Path) -> None:
    program = "import awkward as ak\ndef run_query(path): return ak.Array([[1, 2], []])"
    assert run(program, source, tmp_path / "out.root", gen="python") == 2
    with uproot.open({tmp_path / "out.root": "servicex"}) as tree:
        assert tree["branch"].array().tolist() == [[1, 2], []]
    program = "def run_query(path): return {'a': [{'x': 1}], 'b': [{'y': 2.5}, {'y': 0.5}]}"
    assert run(program, source, tmp_path / "out.root", gen="python") == 3
    with uproot.open(tmp_path / "out.root") as file:
        assert file["b/y"].array().tolist() == [2.5, 0.5]
    with pytest.raises(InputFileError, match="parquet holds only one tree"):
        run(program, source, tmp_path / "out", "parquet", gen="python")
    with pytest.raises(InputFileError, match="nothing that the query selects"):
        run("def run_query(path): return {}", source, tmp_path / "out", "parquet", gen="python")


def test_records_become_columns(tmp_path: Path) -> None:
    program = """
import awkward as ak
def run_query(path):
    lists = ak.Array([[1, 2], []])
    jets, others = ak.zip({"a": lists, "b": lists}), ak.Array([[3], [4]])
    columns = {"Jet": jets, "Jet_c": lists, "Tau": ak.zip({"x": others, "y": 1}, depth_limit=1)}
    return ak.zip({**columns, "_z": others, "name": ["e", "mu"]}, depth_limit=1)
"""
    assert run(program, "", tmp_path / "out.root", gen="python") == 2
    with uproot.open({tmp_path / "out.root": "servicex"}) as tree:
        found = tree.arrays()
    columns = ["nJet", "Jet_a", "Jet_b", "Jet_c", "nTau", "Tau_x", "Tau_y", "n_z", "_z", "name"]
    assert sorted(found.fields) == sorted(columns)
    assert (found.nJet.tolist(), found.Jet_b.tolist()) == ([2, 0], [[1, 2], []])
    assert (found.Tau_x.tolist(), found.name.tolist()) == ([[3], [4]], ["e", "mu"])


def test_errors_worth_another_attempt() -> None:
    inner = OSError("[ERROR] Operation expired")
    outer = TypeError("'NoneType' object is not subscriptable")
    outer.__cause__ = inner
    assert is_transient(outer)
    assert is_transient(ConnectionResetError())
    assert is_transient(RuntimeError("503, message='Service Unavailable'"))
    assert not is_transient(FileNotFoundError("[ERROR] Server responded: [3011] no such file"))
    assert reason(InputFileError("a\n b")) == "a b"
    assert reason(ValueError("a\n b")) == "ValueError: a b"
    assert reason(KeyError()) == "KeyError"


def test_results_come_in_the_order_of_their_times_whatever_the_clock_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Backwards(datetime):
        hours = 23

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            cls.hours -= 1
            return datetime(2026, 1, 1, cls.hours, tzinfo=UTC)

    known = RequestStore(tmp_path / "state.sqlite", tmp_path / "objects")
    request = TransformRequest.parse(body(**{"file-list": [f"/{i}.root" for i in range(3)]}))
    request_id = known.add(request, "program")
    monkeypatch.setattr(store, "datetime", Backwards)
    busy: set[int] = set()
    while job := known.next_job(busy):
        busy.add(job.number)
        known.record(job, TransformOutcome(size=1, events=1))
    seen = []
    later_than = datetime.min.replace(tzinfo=UTC)
    while news := known.results(request_id, later_than):
        seen.append(news[0]["file-path"])
        later_than = datetime.fromisoformat(news[0]["created_at"])
    assert seen == list(request.files)
    found = known.request(request_id)
    assert found is not None
    assert found.status == "Complete"
    known.close()
