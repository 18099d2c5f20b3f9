"""Filesets from a portal, from Rucio and from servers, with the real clients."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nanoaod
import pytest
from commandline import Called, agc
from services.catalogues import (
    Answer,
    LimitedRequest,
    RucioServer,
    configure_rucio,
    hanging,
    record,
    refusing,
    serving,
    use_rucio_configuration,
)
from services.xrootd import Server, Storage

from agc_ml.errors import AgcError, CatalogueError, FilesetError, UsageError
from agc_ml.inputs.datasets import File
from agc_ml.inputs.fileset import Fileset
from agc_ml.inputs.sources import globs, opendata, rucio

DOOR = "root://eospublic.cern.ch/"
TTBAR = "/TT_TuneCUETP8M1/RunIIFall15NanoAODv1/NANOAODSIM"
STORE = "/store/mc/RunIIFall15NanoAODv1/TT/NANOAODSIM/v1/10000"

STORE_2 = "/store/mc/RunIIFall15NanoAODv1/TT/NANOAODSIM/v2/20000"


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Called]:
    """Call ``agc-ml fileset from-...``; check that a failure is one line and writes nothing."""

    def call(command: str, *arguments: object) -> Called:
        target = tmp_path / "made.yaml"
        called = agc("fileset", command, *arguments[:1], target, *arguments[1:])
        assert "Traceback" not in called.err
        assert target.exists() == (called.code == 0)
        return called

    return call


def made(tmp_path: Path) -> Fileset:
    return Fileset.load(tmp_path / "made.yaml")


def files(fileset: Fileset) -> list[File]:
    return [file for dataset in fileset.datasets for file in dataset.files]


# -- CERN Open Data ----------------------------------------------------------------------------


def listed(number: int) -> list[dict[str, Any]]:
    """The ROOT files of a record, as its JSON lists them."""
    metadata = record(number)["metadata"]
    indexed = [file for index in metadata["_file_indices"] for file in index["files"]]
    return [file for file in metadata["files"] + indexed if file["uri"].endswith(".root")]


def test_a_record_from_the_portal(portal: str, make: Callable[..., Called], tmp_path: Path) -> None:
    """CERN's client asks the portal; the files of an index are taken as they are listed there."""
    called = make("from-record", "ttbar__ME_var=19980", "--server", portal)
    assert (called.code, called.out) == (0, f"{tmp_path / 'made.yaml'}\n")
    assert "note: ttbar__ME_var: process 'ttbar', variation 'ME_var', from the name" in called.err
    fileset = made(tmp_path)
    (dataset,) = fileset.datasets
    assert (dataset.process, dataset.variation, dataset.is_data) == ("ttbar", "ME_var", False)
    assert dataset.xsec == 729.84
    assert fileset.luminosity == 3378
    assert "record 19980" in fileset.notes[0]
    assert "Simulated dataset TT_TuneCUETP8M1_13TeV-powheg-pythia8" in fileset.notes[0]
    assert len(dataset.files) == 2
    for file, expected in zip(dataset.files, listed(19980), strict=True):
        path = expected["uri"].removeprefix(DOOR)
        assert file.lfn == path
        assert file.replicas == (expected["uri"], f"{portal}{path}")
        assert file.size == expected["size"]
        assert f"adler32:{file.adler32}" == expected["checksum"]


def test_several_records(portal: str) -> None:
    fileset = opendata.from_records(["tt=19980", "data=24120"], server=f"{portal}/")
    assert [(d.name, len(d.files), d.is_data) for d in fileset.datasets] == [
        ("tt", 2, False),
        ("data", 1, True),  # and not the text beside it
    ]
    with pytest.raises(FilesetError, match=r"dataset tt: .*0001.*\.root is listed twice"):
        opendata.from_records(["tt=19980", "tt=19980"], server=portal)
    with pytest.raises(FilesetError, match="dataset x: recorded collisions and simulation in one"):
        opendata.from_records(["x=19980", "x=24120"], server=portal)


def client_output(portal: str, *options: str) -> str:
    command = [sys.executable, "-c", opendata._CLIENT, "get-file-locations", "--recid", "19980"]
    return subprocess.run(
        [*command, "--server", portal, *options], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("api.json", lambda _: json.dumps(record(19980))),
        ("metadata.json", lambda _: json.dumps(record(19980)["metadata"])),
        ("file_index.json", lambda _: json.dumps(listed(19980))),
        ("verbose.txt", lambda portal: client_output(portal, "--protocol", "xrootd", "--verbose")),
    ],
)
def test_records_in_files(
    name: str, content: Callable[[str], str], portal: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content(portal))
    found = files(opendata.from_records([f"tt={path}"]))
    assert [file.size for file in found] == [1234567890, 987654321]
    assert [file.adler32 for file in found] == ["6dbb3ec5", "0a1b2c3d"]
    for file, expected in zip(found, listed(19980), strict=True):
        lfn = expected["uri"].removeprefix(DOOR)
        assert file.lfn == lfn
        assert file.replicas == (f"{DOOR}{lfn}", f"https://opendata.cern.ch{lfn}")


def test_locations_without_size_and_checksum(portal: str, tmp_path: Path) -> None:
    path = tmp_path / "locations.txt"
    path.write_text(client_output(portal, "--protocol", "xrootd"))
    assert [(file.size, file.adler32) for file in files(opendata.from_records([f"tt={path}"]))] == [
        (None, None)
    ] * 2
    path.write_text("root://elsewhere.org//data/a.root\n\n/eos/opendata/cms/b.root\n")
    assert [file.replicas for file in files(opendata.from_records([f"tt={path}"]))] == [
        ("root://elsewhere.org//data/a.root",),
        (f"{DOOR}/eos/opendata/cms/b.root", "https://opendata.cern.ch/eos/opendata/cms/b.root"),
    ]


PLACE = f"{DOOR}/eos/opendata/x"
INDEX = f"{PLACE}/file-indexes/D_0000"


def indexed(*names: str) -> list[dict[str, Any]]:
    return [{"uri": f"{PLACE}/{name}", "size": 5} for name in names]


def test_all_indexes_of_a_record(tmp_path: Path) -> None:
    """Those that are not part of the record are fetched, in whichever form there is."""
    metadata = {
        "type": {"secondary": ["Simulated"]},
        "files": [
            *({"uri": f"{INDEX}{n}_file_index.json"} for n in (0, 1, 2)),
            *({"uri": f"{INDEX}{n}_file_index.txt"} for n in (0, 1, 2, 3)),
            *indexed("validation/check.root", "README.txt"),
        ],
        "_file_indices": [
            {
                "key": "D_00000_file_index.json",
                "number_files": 2,
                "files": indexed("a.root", "a.pool.root.1"),
            }
        ],
    }
    answers = {
        "D_00001_file_index.json": Answer(body=json.dumps(indexed("b.root.1", "log.tgz"))),
        "D_00002_file_index.txt": Answer(body=f"{PLACE}/c.root\t7\tadler32:a\r\n{PLACE}/a.root\n"),
        "D_00003_file_index.txt": Answer(body=f"{PLACE}/d.root?download=1\n"),
    }
    asked = []

    def answer(request: LimitedRequest) -> Answer:
        asked.append(request.path.rpartition("/")[2])
        return answers.get(asked[-1], Answer(404))

    path = tmp_path / "record.json"
    path.write_text(json.dumps({"metadata": metadata}))
    with serving(answer) as server:
        fileset = opendata.from_records([f"tt={path}"], server=server)
        lfns = [file.lfn.removeprefix("/eos/opendata/x/") for file in files(fileset)]
        expected = ["validation/check.root", "a.root", "a.pool.root.1", "b.root.1", "c.root"]
        assert lfns == [*expected, "d.root"]
        assert files(fileset)[-1].replicas == (f"{PLACE}/d.root", f"{server}/eos/opendata/x/d.root")
        assert any("skipped 2 not called *.root (README.txt, log.tgz)" in n for n in fileset.notes)
        del answers["D_00003_file_index.txt"]
        with pytest.raises(CatalogueError, match=r"D_00003_file_index\.txt: .*404.*download-files"):
            opendata.from_records([f"tt={path}"], server=server)
        answers["D_00003_file_index.txt"] = Answer(body="<html>log in</html>")
        with pytest.raises(CatalogueError, match=r"D_00003_file_index\.txt: line 1"):
            opendata.from_records([f"tt={path}"], server=server)
    assert "D_00000_file_index.txt" not in asked


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        (
            {"files": [*indexed("check.root"), {"uri": f"{INDEX}1_file_index.json"}]},
            "an index can't be read: http",
        ),
        (
            {"files": [*indexed("check.root"), {"uri": "root://else//1_file_index.txt"}]},
            "1_file_index.txt is not available over http",
        ),
        (
            {"_file_indices": [{"key": "D", "number_files": 2, "files": indexed("a.root")}]},
            "its index D lists 1 of 2 files",
        ),
        (
            {"files": [{"uri": f"{PLACE}/a.root", "size": 3}, *indexed("a.root")]},
            "/eos/opendata/x/a.root is listed with the size 3 and with 5",
        ),
    ],
)
def test_never_fewer_files(metadata: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"metadata": metadata}))
    with pytest.raises(AgcError) as caught:
        opendata.from_records([f"tt={path}"], server=f"http://127.0.0.1:{refusing()}")
    assert "record.json: " in str(caught.value)
    assert says in str(caught.value)


def test_what_a_record_states_of_its_files(tmp_path: Path) -> None:
    """That not all are listed, or online, is told; a mark of the byte order is none of it."""
    listed = [{**file, "availability": "on demand"} for file in indexed("a.root", "b.root")]
    metadata = {"files": [*listed, *indexed("c.root")], "distribution": {"number_files": 5}}
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"metadata": metadata}), encoding="utf-8-sig")
    notes = opendata.from_records([f"tt={path}"]).notes
    assert any("only 3 of the 5 files that it states are listed" in note for note in notes)
    assert any("2 of 3 files are not online (on demand); have" in note for note in notes)


def test_a_file_at_several_doors_is_one(tmp_path: Path) -> None:
    path = tmp_path / "locations.txt"
    path.write_text(
        f"{PLACE}/a.root\t12\tadler32:1\n"
        "http://opendata.cern.ch/eos/opendata/x/a.root?download=1\n"
        "/eos/opendata/x/a.root\t12\tadler32:00000001\n"
    )
    (file,) = files(opendata.from_records([f"tt={path}"]))
    assert (file.size, file.adler32, len(file.replicas)) == (12, "00000001", 2)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (999, ["record 999", "not valid", "/record/999 in a browser"]),
        (5500, ["record 5500", "no .root files", "BuildFile.xml"]),
        (6021, ["record 6021", "only indexes", "20000_file_index.json", "download-files"]),
    ],
)
def test_records_that_give_no_files(
    number: int, says: list[str], portal: str, make: Callable[..., Called]
) -> None:
    called = make("from-record", f"tt={number}", "--server", portal)
    assert called.code == 1
    for part in says:
        assert part in called.error


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no .root files are listed"),
        ("{", "can't be read as JSON"),
        ("3 files\n", "line 1: '3 files' is not a file location"),
        ('{"metadata": {"files": [{"size": 3}]}}', "files -> 0 -> uri: Field required"),
        ('{"metadata": {"files": [{"uri": "/a.root", "size": -3}]}}', "files -> 0 -> size"),
        ('{"metadata": {"files": [{"uri": "root://[x"}]}}', "files -> 0 -> uri"),
        ('{"metadata": 3}', "not a record of files"),
        ("/a.root\tmany\tadler32:1\n", "files -> 0 -> size"),
        ("/a.root\t1\tadler32:zzzz\n", "files -> 0 -> checksum"),
        ("/a.root\t1\tadler32:\n", "files -> 0 -> checksum"),
    ],
)
def test_files_that_hold_no_record(
    text: str, says: str, tmp_path: Path, make: Callable[..., Called]
) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    called = make("from-record", f"tt={path}")
    assert called.code == 1
    assert "record.json: " in called.error
    assert says in called.error


def test_no_portal_there(make: Callable[..., Called]) -> None:
    for server, reason in {
        f"http://127.0.0.1:{refusing()}": "Connection refused",
        "http://no-such-host.invalid": "Name or service not known",
    }.items():
        called = make("from-record", "tt=19980", "--server", server)
        assert called.code == 1
        assert f"record 19980: {server}: it can't be reached ({reason})" in called.error


def test_a_portal_that_says_nothing(
    make: Callable[..., Called], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opendata, "TIMEOUT_S", 2.0)
    with hanging() as port:
        called = make("from-record", "tt=19980", "--server", f"http://127.0.0.1:{port}")
    assert called.code == 1
    assert "does not answer within 2 s" in called.error


def test_a_portal_of_something_else(make: Callable[..., Called]) -> None:
    with serving(lambda _: Answer(200, "<html>log in</html>", "text/html")) as address:
        called = make("from-record", "tt=19980", "--server", address)
    assert called.code == 1
    assert "record 19980" in called.error
    assert "JSON" in called.error


# -- Rucio -------------------------------------------------------------------------------------


def test_a_dataset_of_rucio(
    rucio: RucioServer, make: Callable[..., Called], tmp_path: Path
) -> None:
    called = make("from-rucio", f"ttbar=cms:{TTBAR}")
    assert called.code == 0, called.err
    fileset = made(tmp_path)
    assert fileset.notes[0] == f"ttbar: cms:{TTBAR} of Rucio at {rucio.address}"
    near, far = "root://near.example.org:1094/", "https://far.example.org:443/pnfs/cms"
    # nearest first; a door by its two names is one, and what is on tape is left out
    assert fileset.datasets[0].files == (
        File(
            lfn=f"{STORE}/A.root",
            replicas=(f"{near}{STORE}/A.root", f"{far}{STORE}/A.root"),
            size=1000,
            adler32="0000a0a0",
        ),
        File(
            lfn=f"{STORE}/B.root",
            replicas=(f"{far}{STORE}/B.root",),
            size=2000,
            adler32="0000b0b0",
        ),
    )
    (asked,) = rucio.posted
    assert asked["dids"] == [{"scope": "cms", "name": TTBAR}]
    assert asked["schemes"] == ["root", "davs", "https"]
    assert not asked["ignore_availability"]


@pytest.mark.usefixtures("rucio")
def test_what_is_left_out_of_a_dataset_of_rucio() -> None:
    """What is no ROOT file, and replicas that nobody here can read, are counted."""
    fileset = rucio.from_dids(["tt=cms:/Mixed/NANOAODSIM"])
    assert [file.replicas for file in files(fileset)] == [
        (f"root://near.example.org:1094/{STORE_2}/A.root",),
        (f"https://far.example.org:443{STORE_2}/B.pool.root.1",),
    ]
    assert any("skipped 1 not called *.root" in note for note in fileset.notes)
    says = "left out 3 replicas that can't be read from here (gsiftp://, srm://, tape)"
    assert f"tt: {says}" in fileset.notes


@pytest.mark.usefixtures("rucio")
def test_names_that_are_no_paths_keep_their_scope() -> None:
    (file,) = files(rucio.from_dids(["d=mc16:DAOD.test"]))
    assert file.lfn == "mc16:DAOD.test._000001.pool.root.1"


@pytest.mark.parametrize(
    ("did", "says"),
    [
        ("cms:/Unknown/NANOAODSIM", ["knows no such data identifier", "rucio did list"]),
        ("cms:/Empty/NANOAODSIM", ["no files"]),
        ("cms:/Old/NANOAODSIM", ["1 of 1 files have no replica", "there are others: gsiftp://"]),
        ("cms:/Logs/NANOAODSIM", ["no ROOT files, only /store", "logs.tgz"]),
        ("cms:/Lost/NANOAODSIM", ["2 of 3 files have no replica", f"cms:{STORE}/B.root (and 1"]),
    ],
)
@pytest.mark.usefixtures("rucio")
def test_data_identifiers_that_give_no_files(
    did: str, says: list[str], make: Callable[..., Called]
) -> None:
    called = make("from-rucio", f"tt={did}")
    assert called.code == 1
    for part in (did, *says):
        assert part in called.error


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"password": "wrong"}, "the server refuses"),
        ({"auth_type": "magic"}, "'magic' not supported"),
        ({"rucio_host": ""}, "not configured"),
        ({"username": ""}, "'username' cannot be found"),
        ({"auth_type": "x509_proxy"}, "client_proxy"),
        ({"rucio_host": "ftp://host"}, "'ftp' not supported"),
    ],
)
def test_wrong_configurations_of_rucio(
    changes: dict[str, str],
    says: str,
    rucio: RucioServer,
    make: Callable[..., Called],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rucio.configure(rucio.address, **changes)
    monkeypatch.delenv("X509_USER_PROXY", raising=False)
    called = make("from-rucio", f"tt=cms:{TTBAR}")
    assert called.code == 1
    assert says in called.error
    assert not rucio.posted


@pytest.mark.parametrize("text", [None, "no sections"])
def test_no_configuration_of_rucio(
    text: str | None,
    make: Callable[..., Called],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "other.cfg"
    if text is not None:
        path.write_text(text)
    use_rucio_configuration(monkeypatch, path)
    assert "set RUCIO_CONFIG to a rucio.cfg" in make("from-rucio", "tt=cms:/x").error
    use_rucio_configuration(monkeypatch, None)
    assert "set RUCIO_CONFIG to a rucio.cfg" in make("from-rucio", "tt=cms:/x").error


def test_no_rucio_there(
    make: Callable[..., Called], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for server in (f"http://127.0.0.1:{refusing()}", "http://no-such-host.invalid"):
        configure_rucio(monkeypatch, tmp_path, server)
        called = make("from-rucio", "tt=cms:/x")
        assert called.code == 1
        assert f"the server at {server} can't be reached" in called.error


def test_a_rucio_that_says_nothing(
    make: Callable[..., Called], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rucio, "ANSWER_TIMEOUT_S", 1.0)
    with hanging() as port:
        configure_rucio(monkeypatch, tmp_path, f"http://127.0.0.1:{port}")
        called = make("from-rucio", "tt=cms:/x")
    assert called.code == 1
    assert "does not answer within 1 s" in called.error


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(200, "<html>log in</html>", "text/html"), "is not valid ("),
        (Answer(200, '{"scope": "cms", "na', "application/x-json-stream"), "is not valid ("),
        (Answer(500, "{}"), "Rucio's server says"),
    ],
)
def test_a_rucio_of_something_else(
    answer: Answer,
    says: str,
    make: Callable[..., Called],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "token").write_text("any")
    with serving(lambda _: answer) as address:
        configure_rucio(monkeypatch, tmp_path, address)
        called = make("from-rucio", "tt=cms:/x")
    assert called.code == 1
    assert says in called.error


# -- patterns ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(shared_storage: Storage) -> Server:
    """A server of some files; ``closed`` may not be looked into."""
    folder = shared_storage.folder()
    for name in ("a.root", "b.root", "deep/c.root", "deep/er/d.root", "notes.txt"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100)
    (folder / "other").mkdir()
    nanoaod.write(folder / "other" / "events.root", nanoaod.events(20, 1))
    (folder / "closed").mkdir(mode=0o700)
    return shared_storage.data(folder)


def test_patterns_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.root", "b.root", "deep/c.root", "x[1].root", "n.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * len(name))
    monkeypatch.setenv("SOME_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fileset = globs.from_patterns(
        ["tt=$SOME_DATA/[ab].root", "tt=deep/**/*.root", "w__up=x[1].root", "v=*"]
    )
    assert [(d.process, d.variation) for d in fileset.datasets] == [
        ("tt", "nominal"),
        ("w", "up"),
        ("v", "nominal"),
    ]
    assert [file.url for file in fileset.datasets[0].files] == [
        str(tmp_path / name) for name in ("a.root", "b.root", "deep/c.root")
    ]
    assert [file.size for file in fileset.datasets[0].files] == [6, 6, 11]
    assert [file.lfn for file in fileset.datasets[1].files] == [str(tmp_path / "x[1].root")]
    assert str(tmp_path / "deep") not in [file.url for file in fileset.datasets[2].files]


def test_patterns_of_paths_are_those_of_filesets(tmp_path: Path) -> None:
    """A folder, links, hidden files, a tree, file: and what is passed over, as in filesets."""
    for name in ("d/a.root", "d/e/b.root.1", "d/.old/c.root", "d/n.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "link").symlink_to("d")
    for pattern in (f"{tmp_path}/d", f"file:{tmp_path}/d/**", f"{tmp_path}/link"):
        fileset = globs.from_patterns([f"tt={pattern}"])
        assert [Path(file.url).name for file in files(fileset)] == ["a.root", "b.root.1"]
        assert [file.size for file in files(fileset)] == [5, 5]
        assert any("skipped 1 not called *.root (n.txt)" in note for note in fileset.notes)
    (file,) = files(globs.from_patterns([f"tt={tmp_path}/d/*.root:T"]))
    assert (Path(file.url).name, file.tree) == ("a.root", "T")
    with pytest.raises(UsageError, match=r"no file matches; only n\.txt there"):
        globs.from_patterns([f"tt={tmp_path}/d/*.txt"])


PAGE = (
    "<a href='a.root'>a</a> <a href='b.root.1'>b</a> <a href='n.txt'>n</a> <a href='.h.root'>h</a>"
)


def test_pages_of_links() -> None:
    """Over http, too, without hidden files and what is no ROOT file."""

    def answer(request: LimitedRequest) -> Answer:
        return Answer(404) if "none" in request.path else Answer(200, PAGE, "text/html")

    with serving(answer) as server:
        fileset = globs.from_patterns([f"tt={server}/d/*"])
        assert [file.lfn for file in files(fileset)] == ["/d/a.root", "/d/b.root.1"]
        assert any("skipped 1 not called *.root (n.txt)" in note for note in fileset.notes)
        (file,) = files(globs.from_patterns([f"tt={server}/d/a*.root:T"]))
        assert (file.url, file.tree) == (f"{server}/d/a.root", "T")
        for pattern, says in {"d/*.txt": "only n.txt there", "none/*.root": "no file m"}.items():
            with pytest.raises(UsageError, match=says):
                globs.from_patterns([f"tt={server}/{pattern}"])


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.root", ["a.root", "b.root"]),
        ("[b-z].root", ["b.root"]),
        ("a.root", ["a.root"]),
        ("d*/*.root", ["deep/c.root"]),
        ("deep/**", ["deep/c.root", "deep/er/d.root"]),
        ("deep/**/*.root", ["deep/c.root", "deep/er/d.root"]),
        ("deep/**/d.root", ["deep/er/d.root"]),
    ],
)
def test_patterns_over_xrootd(pattern: str, expected: list[str], served: Server) -> None:
    door = f"root://127.0.0.1:{served.port}/"
    found = files(globs.from_patterns([f"tt={door}/{pattern}"]))
    assert [file.lfn for file in found] == [f"/{name}" for name in expected]
    assert [file.url for file in found] == [f"{door}/{name}" for name in expected]
    assert {file.size for file in found} == {100}


def test_patterns_over_http(served: Server) -> None:
    door = f"http://127.0.0.1:{served.http_port}"
    found = files(globs.from_patterns([f"tt={door}/*.root", f"tt={door}/deep/c*"]))
    assert [file.url for file in found] == [
        f"{door}/{name}" for name in ("a.root", "b.root", "deep/c.root")
    ]
    with pytest.raises(UsageError, match="only the last part can be a pattern"):
        globs.from_patterns([f"tt={door}/**/*.root"])


def test_from_a_glob_to_a_checked_fileset(
    served: Server, make: Callable[..., Called], tmp_path: Path
) -> None:
    pattern = f"root://127.0.0.1:{served.port}//other/*.root"
    assert make("from-glob", f"tt={pattern}").code == 0
    target = tmp_path / "checked.json"
    source = tmp_path / "made.yaml"
    called = agc("fileset", "check", source, "--cluster", "inline", "--write", target)
    assert called.code == 0, called.out + called.err
    (file,) = files(Fileset.load(target))
    assert file.entries == 20
    assert file.uuid is not None


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("root://{xrootd}//none/*.root", "no file matches"),
        ("root://{xrootd}//none.root", "no file matches"),
        ("root://{xrootd}//deep", "no file matches; FOLDER/*.root matches the files of a folder"),
        ("root://{xrootd}//deep/x*", "no file matches"),
        ("http://{http}/none/*.root", "no file matches"),
        ("http://{http}/none.root", "no file matches"),
        ("/nowhere/*.root", "no file matches"),
        ("s3://bucket/*.root", "unknown scheme 's3'; known are root, http, https"),
        ("root:///data/*.root", "no host in it"),
        ("root://[x/*.root", "not a URL"),
        ("http://[::1]/*/a.root", "only the last part"),
    ],
)
def test_patterns_without_files(
    place: str, says: str, served: Server, make: Callable[..., Called]
) -> None:
    pattern = place.format(xrootd=f"127.0.0.1:{served.port}", http=f"127.0.0.1:{served.http_port}")
    called = make("from-glob", f"tt={pattern}")
    assert called.code == 2
    assert pattern in called.error
    assert says in called.error


def test_a_folder_that_may_not_be_listed(served: Server, make: Callable[..., Called]) -> None:
    """An error, as files in it would be missing in silence."""
    xrootd, http = f"root://127.0.0.1:{served.port}", f"http://127.0.0.1:{served.http_port}"
    for pattern, says in {
        f"{xrootd}//closed/*.root": "/closed may not be listed",
        f"{xrootd}//**/*.root": "/closed may not be listed",
        f"{http}/closed/*.root": "403",
        f"{http}/closed/a.root": "403",
    }.items():
        called = make("from-glob", f"tt={pattern}")
        assert called.code == 1
        assert pattern in called.error
        assert says in called.error


@pytest.mark.parametrize("scheme", ["root", "http"])
def test_no_server_there(scheme: str, make: Callable[..., Called]) -> None:
    for host in (f"127.0.0.1:{refusing()}", f"[::1]:{refusing()}", "no-such-host.invalid"):
        start = time.monotonic()
        for name in ("*.root", "a.root"):
            called = make("from-glob", f"tt={scheme}://{host}//data/{name}")
            assert called.code == 1
            assert f"{scheme}://{host} does not list it" in called.error
        assert time.monotonic() - start < 30


def test_servers_that_say_nothing(
    served: Server, make: Callable[..., Called], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(globs, "TIMEOUT_S", 2.0)
    start = time.monotonic()
    served.freeze()
    called = make("from-glob", f"tt=root://127.0.0.1:{served.port}//*.root")
    served.thaw()
    assert called.code == 1
    assert "Operation expired" in called.error
    with hanging() as port:
        called = make("from-glob", f"tt=http://127.0.0.1:{port}/*.root")
    assert called.code == 1
    assert "no answer within 2 s" in called.error
    assert time.monotonic() - start < 30


# -- all ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "wanted", "says"),
    [
        ("from-record", "19980", "19980: NAME=RECORD is needed"),
        ("from-record", "tt=", "tt=: NAME=RECORD is needed"),
        ("from-record", "tt=nothere.json", "neither the number of a record nor a file"),
        ("from-rucio", "cms:/x", "cms:/x: NAME=SCOPE:DID is needed"),
        ("from-rucio", "tt=/x", "a data identifier is SCOPE:NAME"),
        ("from-glob", "root://host//a=b.root", "NAME=PATTERN is needed"),
        ("from-glob", "tt=$NO_SUCH_VARIABLE/a.root", "$NO_SUCH_VARIABLE is not set"),
    ],
)
def test_what_is_no_pair(command: str, wanted: str, says: str, make: Callable[..., Called]) -> None:
    called = make(command, wanted)
    assert called.code == (1 if "VARIABLE" in wanted else 2)
    assert says in called.error


def test_targets_and_servers(tmp_path: Path, make: Callable[..., Called]) -> None:
    called = agc("fileset", "from-record", "tt=19980", "wjets=20548")
    assert called.code == 2
    assert "wjets=20548: a fileset is written to a file that ends in .json or .yaml" in called.error
    called = make("from-record", "tt=19980", "--server", "opendata.cern.ch")
    assert called.code == 2
    assert "--server opendata.cern.ch: an address such as https://" in called.error


WITHOUT = """
import sys
sys.modules[{module!r}] = None
from agc_ml.cli.main import main
sys.argv = ["agc-ml", "fileset", {command!r}, {wanted!r}, "made.yaml"]
main()
"""


@pytest.mark.parametrize(
    ("module", "command", "wanted", "extra"),
    [
        ("cernopendata_client", "from-record", "tt=1", "opendata"),
        ("rucio", "from-rucio", "tt=cms:/x", "rucio"),
        ("fsspec_xrootd", "from-glob", "tt=root://127.0.0.1:1//*.root", "xrootd"),
    ],
)
def test_a_client_that_is_not_installed(
    module: str, command: str, wanted: str, extra: str, tmp_path: Path
) -> None:
    script = WITHOUT.format(module=module, command=command, wanted=wanted)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"pip install 'agc-ml[{extra}]'" in line
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_functions_are_one_line_too(portal: str) -> None:
    with pytest.raises(CatalogueError, match="record 999") as caught:
        opendata.from_records(["tt=999"], server=portal)
    assert "\n" not in str(caught.value)
