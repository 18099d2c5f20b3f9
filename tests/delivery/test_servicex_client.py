"""Columns through a real ServiceX endpoint: equal to direct reading, or an error that says why."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import awkward as ak
import faulty
import nanoaod
import numpy as np
import pytest
import stepwise
import uproot
from coffea.processor import ProcessorABC
from services.servicex import Endpoint, endpoint

import agc_ml as agc
from agc_ml.columnar.events import blocks
from agc_ml.delivery import servicex_client
from agc_ml.errors import AgcError, DeliveryError, FilesetError, ProcessorError, UsageError
from agc_ml.execution import file_check
from agc_ml.inputs import loading
from agc_ml.inputs.columns import EVENT_ID
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset
from agc_ml.results.run_result import RunResult
from agc_ml.results.templates import compare
from processors.ttbar import TtbarProcessor

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # the client's own


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def listed(*paths: Path, **known: Any) -> Fileset:
    files = tuple(File(path.name, (str(path),), **known) for path in paths)
    return Fileset((Dataset("tt", "tt", files, xsec=1.0),), 1.0, "made up")


def run(what: Fileset, output: Path, via: str | None, processor: Any = None) -> RunResult:
    made = stepwise.Flat() if processor is None else processor
    return agc.run(made, what, via=via, site="inline", output=output, quiet=True)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [nanoaod.write(tmp_path / f"{i}.root", nanoaod.events(300, i)) for i in range(3)]


def test_the_measurement_is_the_same_bin_by_bin(
    servicex_endpoint: Endpoint, tmp_path: Path
) -> None:
    chosen = Fileset.load(loading.DEMO).select(["ttbar__nominal", "wjets__nominal"])
    options: dict[str, Any] = {"site": "inline", "quiet": True}
    direct = agc.run("ttbar", chosen, output=tmp_path / "direct", **options)
    via = f"servicex={servicex_endpoint.config}"
    through = agc.run("ttbar", chosen, via=via, output=tmp_path / "through", **options)
    # events come in another order: those that the preselection dropped are last
    assert compare(through.templates, direct.templates, 1e-12) == []
    assert through.cutflow == direct.cutflow
    assert through.status == "complete"
    assert through.ledger.events == direct.ledger.events
    assert [e.lfn for e in through.ledger.entries] == [e.lfn for e in direct.ledger.entries]
    asked = servicex_endpoint.get("/servicex/transformation")["requests"]
    again = agc.run("ttbar", chosen, via=via, output=tmp_path / "again", **options)
    assert servicex_endpoint.get("/servicex/transformation")["requests"] == asked != []
    assert compare(again.templates, through.templates, 0.0) == []


def test_only_selected_events_travel(
    servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path
) -> None:
    """Also where chunks hold events of both kinds, or none of one; the others are counted."""
    none = nanoaod.events(300, 7)
    none["Electron"], none["Muon"] = none["Electron"][:, :0], none["Muon"][:, :0]
    every = nanoaod.events(2000, 8)
    lepton = every["Electron"].pt > 30
    every = {
        name: some[ak.any(lepton & (every["Electron"].cutBased == 4), axis=1)]
        for name, some in every.items()
    }
    paths += [
        nanoaod.write(tmp_path / f"{name}.root", some)
        for name, some in (("none", none), ("every", every))
    ]
    via = f"servicex={servicex_endpoint.config}"
    processor = TtbarProcessor()
    direct = run(listed(*paths), tmp_path / "direct", None, processor)
    through = agc.run(
        processor,
        listed(*paths),
        via=via,
        site="inline",
        output=tmp_path / "through",
        quiet=True,
        chunk_size=70,
    )
    assert compare(through.templates, direct.templates, 1e-12) == []
    assert through.cutflow == direct.cutflow
    assert through.warnings == direct.warnings
    assert through.ledger.events == direct.ledger.events
    kept = {}
    for path in (tmp_path / "cache").rglob("*.root"):
        with uproot.open(path) as file:
            counted = {"genWeight", "nMuon", "Muon_tightId", *EVENT_ID}
            assert set(file["Dropped"].keys()) == counted
            kept[path] = file["Events"].num_entries, file["Dropped"].num_entries
    assert len(kept) == len(paths)
    assert {(0, 300), (len(every["event"]), 0)} < set(kept.values())
    assert sum(map(sum, kept.values())) == direct.ledger.events


@dataclass(frozen=True)
class Counting(ProcessorABC):
    """Counts events, with a preselection of the kind that it is told."""

    preselection: str
    flat: ClassVar = True
    columns: ClassVar = ("Muon_pt", "genWeight")
    counted_columns: ClassVar = ("genWeight",)

    def process(self, events: Any) -> dict[str, Any]:
        counts = {"all": 0, "selected": 0}
        for block in blocks(events):
            counts["all"] += len(block)
            counts["selected"] += len(block) if block.is_selected else 0
        return {"cutflow": {events.metadata["dataset"]: counts}}


@pytest.mark.parametrize("preselection", ["nMuon", "nMuon > 0", "any(Muon_pt > 0, axis=1)"])
def test_every_event_is_selected_or_dropped(
    preselection: str, servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path
) -> None:
    via = f"servicex={servicex_endpoint.config}"
    result = run(listed(*paths), tmp_path / "run", via, Counting(preselection))
    with_muons = 0
    for path in paths:
        with uproot.open(path) as file:
            with_muons += int((file["Events"]["nMuon"].array(library="np") > 0).sum())
    assert result.cutflow == {"tt": {"all": 900, "selected": with_muons}}


def test_recorded_data_too(servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path) -> None:
    """Their trees of runs have no counts of what was generated."""
    for path in paths:
        with uproot.update(path) as file:
            file.mktree("Runs", {"run": np.uint32}).extend({"run": np.array([1], np.uint32)})
    via = f"servicex={servicex_endpoint.config}"
    files = tuple(File(path.name, (str(path),)) for path in paths)
    for is_data in (True, False):
        what = Fileset((Dataset("tt", "data", files, is_data=is_data, xsec=None),), 1.0, "made up")
        processor = Counting("nMuon > 0")
        assert run(what, tmp_path / f"{is_data}", via, processor).ledger.events == 900


def test_a_processor_that_does_not_know_of_dropped_events_is_told(
    servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path
) -> None:
    class Forgetful(stepwise.Flat):
        preselection = "any(Jet_pt > 60, axis=1)"
        counted_columns = ("genWeight",)

    with pytest.raises(ProcessorError, match=r"column Jet .*is_selected.*counted_columns"):
        run(listed(*paths), tmp_path / "run", f"servicex={servicex_endpoint.config}", Forgetful())


def test_an_expression_that_is_none_is_told(
    servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path
) -> None:
    class Wrong(stepwise.Flat):
        preselection = "any(Jet_pt >"

    with pytest.raises(DeliveryError, match=r"dataset tt: ServiceX.*cut: not Python.*never closed"):
        run(listed(*paths), tmp_path / "run", f"servicex={servicex_endpoint.config}", Wrong())


def test_records_too(servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path) -> None:
    via = f"servicex={servicex_endpoint.config}"
    for processor in (stepwise.Records(), faulty.Spectrum()):
        name = type(processor).__name__
        direct = run(listed(*paths), tmp_path / f"{name}-direct", None, processor)
        through = run(listed(*paths), tmp_path / f"{name}-through", via, processor)
        assert through.cutflow == direct.cutflow
        for key, template in through.templates.items():
            np.testing.assert_array_equal(template.values(), direct.templates[key].values())


class TestFailures:
    def test_some_files(
        self, servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path
    ) -> None:
        paths[1].unlink()
        with pytest.raises(DeliveryError, match="did not deliver 1 of 3 files") as caught:
            run(listed(*paths), tmp_path / "run", f"servicex={servicex_endpoint.config}")
        assert "dataset tt" in str(caught.value)
        assert str(paths[1]) in str(caught.value)
        assert "No such file" in str(caught.value)
        assert not (tmp_path / "run").exists()

    def test_all_files(
        self, servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path
    ) -> None:
        what = listed(*paths)
        for path in paths:
            path.write_text("no ROOT file at all")
        with pytest.raises(DeliveryError, match="did not deliver 3 of 3 files"):
            run(what, tmp_path / "run", f"servicex={servicex_endpoint.config}")

    def test_a_file_without_the_tree(
        self, servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path
    ) -> None:
        nanoaod.write(paths[0], nanoaod.events(10, 1), tree="Others")
        with pytest.raises(DeliveryError, match=r"0.root.*no tree Events"):
            run(listed(*paths), tmp_path / "run", f"servicex={servicex_endpoint.config}")

    def test_fewer_events_than_the_fileset_says(
        self, servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path
    ) -> None:
        with pytest.raises(DeliveryError, match="it has 300 events, the fileset says 400"):
            run(
                listed(paths[0], entries=400),
                tmp_path / "run",
                f"servicex={servicex_endpoint.config}",
            )

    def test_an_endpoint_that_is_killed_and_started_again(
        self, paths: list[Path], tmp_path: Path
    ) -> None:
        folder = tmp_path / "endpoint"
        direct = run(listed(*paths), tmp_path / "direct", None)
        found: list[RunResult] = []
        with endpoint(folder, "--workers", 1) as first:
            via = f"servicex={first.config}"

            def work() -> None:
                found.append(run(listed(*paths), tmp_path / "through", via))

            worker = threading.Thread(target=work)
            worker.start()
            while not list((tmp_path / "cache").rglob("delivered.json")):
                time.sleep(0.05)
            first.kill()
            with endpoint(folder, "--workers", 1, port=first.port):
                worker.join(timeout=60)
        assert found
        assert found[0].cutflow == direct.cutflow
        assert compare(found[0].templates, direct.templates, 0.0) == []


class TestWhatWasDelivered:
    def test_files_that_were_changed_are_asked_for_again(
        self, servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path
    ) -> None:
        via = f"servicex={servicex_endpoint.config}"
        first = run(listed(*paths), tmp_path / "first", via)
        kept = sorted((tmp_path / "cache" / "agc-ml" / "servicex").rglob("*root*"))
        assert len(kept) == 3
        content = bytearray(kept[0].read_bytes())
        content[len(content) // 2] ^= 1
        kept[0].write_bytes(content)
        kept[1].unlink()
        for name in ("second", "third"):
            again = run(listed(*paths), tmp_path / name, via)
            assert compare(again.templates, first.templates, 0.0) == []
            assert again.warnings == first.warnings

    def test_what_another_run_reads_stays(
        self,
        servicex_endpoint: Endpoint,
        paths: list[Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from servicex.minio_adapter import MinioAdapter  # noqa: PLC0415 - heavy

        via = f"servicex={servicex_endpoint.config}"
        run(listed(*paths), tmp_path / "first", via)
        (note,) = (tmp_path / "cache").rglob("delivered.json")
        kept = {path: path.read_bytes() for path in note.parent.glob("*.root")}
        note.write_text(json.dumps({"request": json.loads(note.read_text())["request"]}))
        download, seen = MinioAdapter.download_file, []

        async def looking(*arguments: Any, **options: Any) -> Path:
            seen.append(all(path.is_file() for path in kept))
            return await download(*arguments, **options)

        monkeypatch.setattr(MinioAdapter, "download_file", looking)
        run(listed(*paths), tmp_path / "second", via)
        assert {path: path.read_bytes() for path in kept} == kept
        assert seen == [True] * 3

    def test_datasets_of_the_same_files_are_kept_apart(
        self, servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path
    ) -> None:
        files = listed(*paths).datasets[0].files
        both = Fileset(tuple(Dataset(x, x, files, xsec=1.0) for x in "ab"), 1.0, "made up")
        run(both, tmp_path / "run", f"servicex={servicex_endpoint.config}")
        assert len(list((tmp_path / "cache").rglob("delivered.json"))) == 2

    def test_no_token_is_noted_or_logged(self, paths: list[Path], tmp_path: Path) -> None:
        """Not of a file that was delivered, nor of one that was not."""
        with endpoint(tmp_path / "endpoint", "--workers", 1) as running:
            via = f"servicex={running.config}"
            url = "http://127.0.0.1:9/x.root?authz=TOPSECRET"
            what = Fileset((Dataset("tt", "tt", (File("x", (url,)),), xsec=1.0),), 1.0, "made up")
            with pytest.raises(DeliveryError, match="did not deliver") as caught:
                run(what, tmp_path / "run", via)
            run(listed(*paths), tmp_path / "first", via)
        log = (tmp_path / "endpoint.log").read_text()
        notes = [path.read_text() for path in (tmp_path / "cache").rglob("delivered.json")]
        assert "x.root" in log
        for text in (log, str(caught.value), *notes):
            assert "TOPSECRET" not in text
        assert not any(str(path) in text for path in paths for text in notes)

    def test_a_file_that_was_replaced_is_asked_for_again(
        self, servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path
    ) -> None:
        via = f"servicex={servicex_endpoint.config}"
        run(listed(*paths), tmp_path / "first", via)
        nanoaod.write(paths[0], nanoaod.events(350, 33))
        assert run(listed(*paths), tmp_path / "second", via).ledger.events == 950

    def test_a_file_that_was_mended_is_asked_for_again(
        self, servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path
    ) -> None:
        """Also where nothing tells that it is another one."""
        via = f"servicex={servicex_endpoint.config}"
        good, status = paths[0].read_bytes(), paths[0].stat()
        paths[0].write_bytes(bytes(len(good)))
        os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(DeliveryError, match="did not deliver 1 of 3 files"):
            run(listed(*paths), tmp_path / "first", via)
        paths[0].write_bytes(good)
        os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))
        assert run(listed(*paths), tmp_path / "second", via).ledger.events == 900

    def test_a_request_that_is_not_known_any_more_is_made_again(
        self, servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path
    ) -> None:
        via = f"servicex={servicex_endpoint.config}"
        first = run(listed(*paths), tmp_path / "first", via)
        (note,) = (tmp_path / "cache" / "agc-ml" / "servicex").rglob("delivered.json")
        note.write_text(json.dumps({"request": "00000000-0000-4000-8000-000000000000"}))
        second = run(listed(*paths), tmp_path / "second", via)
        assert compare(second.templates, first.templates, 0.0) == []

    def test_a_request_that_is_under_way_is_gone_on_with(
        self, servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path
    ) -> None:
        via = f"servicex={servicex_endpoint.config}"
        run(listed(*paths), tmp_path / "first", via)
        (note,) = (tmp_path / "cache" / "agc-ml" / "servicex").rglob("delivered.json")
        request = json.loads(note.read_text())["request"]
        note.write_text(json.dumps({"request": request}))
        run(listed(*paths), tmp_path / "second", via)
        assert json.loads(note.read_text())["request"] == request


class Anything(BaseHTTPRequestHandler):
    """Answers what its server was told to."""

    def do_GET(self) -> None:
        body = json.dumps(self.server.answer).encode()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def other_server() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Anything) as server:
        server.answer = {}  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class TestBadInput:
    def says(self, paths: list[Path], via: str, *parts: str, processor: Any = None) -> AgcError:
        begun = time.monotonic()
        with pytest.raises(AgcError) as caught:
            run(listed(*paths), Path("run"), via, processor)
        for part in parts:
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)
        assert time.monotonic() - begun < 30
        return caught.value

    def test_copies_of_a_file(
        self, servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path
    ) -> None:
        via, copy = f"servicex={servicex_endpoint.config}", tmp_path / "copy.root"
        shutil.copy(paths[0], copy)
        for attempt in range(2):  # the second time what was delivered is kept
            error = self.says([*paths, copy], via, "copy.root and 0.root", "would count twice")
            assert isinstance(error, FilesetError), attempt
        each = {"a": paths[0], "b": copy}
        datasets = tuple(
            Dataset(name, "tt", (File(path.name, (str(path),)),), xsec=1.0)
            for name, path in each.items()
        )
        two = Fileset(datasets, 1.0, "made up")
        with pytest.raises(FilesetError, match=r"dataset b: copy.root and 0.root of dataset a"):
            run(two, tmp_path / "two", via)

    def test_two_trees_of_a_file(self, servicex_endpoint: Endpoint, paths: list[Path]) -> None:
        files = tuple(File(f"x:{tree}", (str(paths[0]),), tree=tree) for tree in ("Events", "B"))
        what = Fileset((Dataset("tt", "tt", files, xsec=1.0),), 1.0, "made up")
        with pytest.raises(FilesetError, match="dataset tt: a file is listed twice"):
            run(what, Path("run"), f"servicex={servicex_endpoint.config}")

    def test_checks_look_at_files_where_they_are(self, paths: list[Path]) -> None:
        with pytest.raises(UsageError, match="files are checked at their place"):
            file_check.check(listed(*paths), via="servicex")

    def test_a_token_that_is_none(
        self, servicex_endpoint: Endpoint, paths: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("token").write_text("MDAxbWFjYXJvb24-a-secret")
        monkeypatch.setenv("BEARER_TOKEN_FILE", "token")
        error = self.says(
            paths, f"servicex={servicex_endpoint.config}", "denies access", "BEARER_TOKEN_FILE"
        )
        assert "MDAx" not in "".join(traceback.format_exception(error))

    def test_no_configuration(self, paths: list[Path]) -> None:
        error = self.says(paths, "servicex", "no servicex.yaml here", "agc-ml service servicex")
        assert isinstance(error, UsageError)

    def test_a_name_that_is_not_in_it(self, paths: list[Path], tmp_path: Path) -> None:
        (tmp_path / "servicex.yaml").write_text(
            "api_endpoints: [{name: af, endpoint: 'http://127.0.0.1:9', token: x}]"
        )
        self.says(paths, "servicex=mine", "no such endpoint", "it has af")
        self.says(paths, "servicex=no/such.yaml", "servicex=no/such.yaml: there is no such file")
        self.says(paths, "servicex", "http://127.0.0.1:9 can't be reached", "servicex.yaml")

    def test_a_broken_configuration(self, paths: list[Path], tmp_path: Path) -> None:
        (tmp_path / "servicex.yaml").write_text("api_endpoints: 7")
        self.says(paths, "servicex", "servicex.yaml", "list")

    def test_something_else(self, paths: list[Path], other_server: Any) -> None:
        url = f"http://127.0.0.1:{other_server.server_port}"
        self.says(paths, f"servicex={url}", f"{url} is not a ServiceX")
        other_server.answer = {"app-version": "1.0", "code-gen-image": {"uproot": "x"}}
        self.says(paths, f"servicex={url}", "too old (version 1.0)")
        other_server.answer["capabilities"] = ["poll_local_transformation_results"]
        self.says(paths, f"servicex={url}", "has no code generator uproot-raw, only uproot")

    def test_a_wrong_token(
        self, servicex_endpoint: Endpoint, paths: list[Path], tmp_path: Path
    ) -> None:
        right = servicex_endpoint.config.read_text()
        (tmp_path / "servicex.yaml").write_text(right.replace(servicex_endpoint.token, "wrong"))
        self.says(paths, "servicex", "denies access", "token")

    def test_a_processor_that_declares_nothing(
        self, servicex_endpoint: Endpoint, paths: list[Path]
    ) -> None:
        via = f"servicex={servicex_endpoint.config}"
        self.says(paths, via, "it declares none", processor=faulty.Plain())

    def test_no_client(self, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "servicex", None)
        self.says(paths, "servicex", "pip install 'agc-ml[servicex]'")

    @pytest.mark.parametrize("forgotten", [True, False])
    def test_one_that_stops_or_forgets_at_the_end(
        self,
        forgotten: bool,
        paths: list[Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        finished = servicex_client.wait_until_finished
        with endpoint(tmp_path / "endpoint", "--workers", 2) as running:

            async def then(*arguments: Any) -> None:
                await finished(*arguments)
                if forgotten:
                    await running.adapter().delete_transform(arguments[-1])
                else:
                    running.kill()

            monkeypatch.setattr(servicex_client, "wait_until_finished", then)
            reason = "does not know the request any more" if forgotten else "attempts failed"
            error = self.says(
                paths, f"servicex={running.config}", "does not tell the results", reason
            )
            assert isinstance(error, DeliveryError)

    def test_one_that_stops_for_good(
        self, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(servicex_client, "SILENT_S", 1)
        monkeypatch.setattr(servicex_client, "CALL_S", 10)
        with endpoint(tmp_path / "endpoint", "--workers", 1) as running:
            via = f"servicex={running.config}"

            def kill() -> None:
                while not list((tmp_path / "cache").rglob("delivered.json")):
                    time.sleep(0.05)
                running.kill()

            killer = threading.Thread(target=kill, daemon=True)
            killer.start()
            with pytest.raises(DeliveryError, match="does not answer for 1 s"):
                run(listed(*paths), tmp_path / "run", via)
            killer.join()
        shutil.rmtree(tmp_path / "endpoint")
