"""The standard client asks, the endpoint delivers: the same columns, and every failure told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, NamedTuple

import awkward as ak
import nanoaod
import numpy as np
import pytest
import uproot
from services.servicex import Endpoint, tidied

N = 300
COLUMNS = ["run", "luminosityBlock", "event", "genWeight"]
COLUMNS += [f"{name}_{x}" for name in ("Electron", "Jet") for x in ("pt", "eta", "phi", "mass")]
COLUMNS += ["Electron_charge"]


def run_query(path):
    import uproot  # noqa: PLC0415 - it travels as text

    with uproot.open({path: "Events"}) as tree:
        return tree.arrays(["run", "event", "Jet_pt"])


class Delivered(NamedTuple):
    files: list[Path]
    of: dict[str, Any]
    status: dict[str, dict[str, Any]]


def samples(files: list[Path]) -> dict[str, tuple[list[Path], Any]]:
    from servicex import query  # noqa: PLC0415 - heavy

    raw = query.UprootRaw([{"treename": "Events", "filter_name": COLUMNS}])
    func_adl = (
        query.FuncADL_Uproot()
        .FromTree("Events")
        .Where(lambda e: e.genWeight > 0)
        .Select(lambda e: {"event": e.event, "Jet_pt": e.Jet_pt, "Jet_eta": e.Jet_eta})
    )
    missing_tree = query.UprootRaw([{"treename": "Evnts", "filter_name": COLUMNS}])
    return {
        "raw": (files, raw),
        "func_adl": (files, func_adl),
        "python": (files, query.PythonFunction().with_uproot_function(run_query)),
        "missing file": ([files[0], files[0].with_name("nothing.root")], raw),
        "missing tree": (files[:1], missing_tree),
        "no tree for func_adl": (
            files[:1],
            query.FuncADL_Uproot().FromTree("Evnts").Select(lambda e: {"run": e.run}),
        ),
        "twice": ([files[0], files[0]], raw),
        "broken": (files, query.UprootRaw([{"treename": "Events", "cut": "Jet_pt >"}])),
    }


@pytest.fixture(scope="module")
def delivered(servicex_endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    """All samples in one go, as a request takes ten seconds, however small it is."""
    from servicex import dataset  # noqa: PLC0415 - heavy
    from servicex.servicex_client import deliver_async  # noqa: PLC0415 - heavy

    folder = tmp_path_factory.mktemp("files")
    files = [nanoaod.write(folder / f"{i}.root", nanoaod.events(N, i), cluster=100) for i in (1, 2)]
    spec = {
        "General": {"OutputFormat": "root-ttree"},
        "Sample": [
            {"Name": name, "Dataset": dataset.FileList([str(p) for p in paths]), "Query": query}
            for name, (paths, query) in samples(files).items()
        ],
    }
    config = str(servicex_endpoint.config)
    with tidied():
        lists = asyncio.run(deliver_async(spec, config_path=config, progress_bar="none"))
    of = {name: list(files) if files.valid() else repr(files) for name, files in lists.items()}
    requests = servicex_endpoint.get("/servicex/transformation")["requests"]
    return Delivered(files, of, {request["title"]: request for request in requests})


def inputs(files: list[Path]) -> ak.Array:
    return uproot.concatenate([f"{path}:Events" for path in files])


def outputs(paths: list[str], tree: str) -> ak.Array:
    """Events of all outputs in the order of their numbers, as files come in any order."""
    events = uproot.concatenate([{path: tree} for path in paths])
    return events[np.argsort(events["event"])]


def test_raw_columns_are_those_of_the_input(delivered: Delivered) -> None:
    expected, found = inputs(delivered.files), outputs(delivered.of["raw"], "Events")
    assert set(found.fields) == {*COLUMNS, "nElectron", "nJet"}
    for name in found.fields:
        assert ak.array_equal(found[name], expected[name], dtype_exact=name[:1] != "n"), name
    with uproot.open(delivered.of["raw"][0]) as file:
        assert file.classnames() == {"Events;1": "TTree"}


def test_raw_files_are_nanoaod(delivered: Delivered, monkeypatch: pytest.MonkeyPatch) -> None:
    from coffea.nanoevents import NanoAODSchema, NanoEventsFactory  # noqa: PLC0415 - heavy

    monkeypatch.setattr(NanoAODSchema, "warn_missing_crossrefs", False)
    for path in delivered.of["raw"]:
        events = NanoEventsFactory.from_root(
            {path: "Events"}, schemaclass=NanoAODSchema, mode="eager"
        ).events()
        first = int(events.event[0])
        source = inputs([delivered.files[first // 1_000_000 - 1]])
        for found, name in ((events.Jet.pt, "Jet_pt"), (events.Electron.charge, "Electron_charge")):
            assert ak.array_equal(found, source[name], check_parameters=False)


def test_func_adl_selects(delivered: Delivered) -> None:
    source = inputs(delivered.files)
    expected = source[source["genWeight"] > 0]
    found = outputs(delivered.of["func_adl"], "servicex")
    assert found.fields == ["event", "nJet", "Jet_pt", "Jet_eta"]
    assert 0 < len(found) < 2 * N
    for name in found.fields:
        assert ak.array_equal(found[name], expected[name], dtype_exact=name != "nJet"), name


def test_python_functions_run(delivered: Delivered) -> None:
    expected, found = inputs(delivered.files), outputs(delivered.of["python"], "servicex")
    assert found.fields == ["run", "event", "nJet", "Jet_pt"]
    for name in found.fields:
        assert ak.array_equal(found[name], expected[name], dtype_exact=name != "nJet"), name


def test_a_missing_file_is_named(delivered: Delivered, servicex_endpoint: Endpoint) -> None:
    status = delivered.status["missing file"]
    numbers = [status[f"files{kind}"] for kind in ("", "-completed", "-failed", "-remaining")]
    assert (status["status"], *numbers) == ("Complete", 2, 1, 1, 0)
    assert len(delivered.of["missing file"]) == 1  # what the client makes of it
    (failed,) = (
        result
        for result in servicex_endpoint.results(status["request_id"])
        if result["transform_status"] == "failure"
    )
    assert failed["file-path"] == str(delivered.files[0].with_name("nothing.root"))
    assert failed["error"].startswith("FileNotFoundError: ")
    assert failed["s3-object-name"] is None


@pytest.mark.parametrize("name", ["missing tree", "no tree for func_adl"])
def test_a_missing_tree_is_a_failure(
    delivered: Delivered, servicex_endpoint: Endpoint, name: str
) -> None:
    status = delivered.status[name]
    assert (status["files-completed"], status["files-failed"]) == (0, 1)
    (failed,) = servicex_endpoint.results(status["request_id"])
    assert "Evnts" in failed["error"]
    assert "Events" in failed["error"]


def test_an_input_that_is_named_twice_is_delivered_once(delivered: Delivered) -> None:
    assert len(delivered.of["twice"]) == 1
    assert delivered.status["twice"]["files"] == 1


def test_a_broken_query_is_refused_when_it_is_sent(delivered: Delivered) -> None:
    assert "broken" not in delivered.status
    assert "part 1: cut: not Python (invalid syntax, line 1)" in delivered.of["broken"]
