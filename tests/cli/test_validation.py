"""What files and folders are; and nothing is called good that a run refuses."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hist
import nanoaod
import numpy as np
import pytest
import uproot
from commandline import agc as command

import agc_ml as agc
from agc_ml.cli.validation import validate
from agc_ml.errors import AgcError
from agc_ml.execution import rounds
from agc_ml.inputs.columns import EVENT_ID

COUNT = """
from coffea.processor import ProcessorABC


class Count(ProcessorABC):
    def process(self, events):
        return {"cutflow": {events.metadata["dataset"]: {"all": len(events)}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all kinds, good and bad."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "count.py").write_text(COUNT)
    good = nanoaod.write(folder / "good.root", nanoaod.events(30, 1))
    nanoaod.write(folder / "other.root", nanoaod.events(20, 2))
    nanoaod.write(folder / "tree.root", nanoaod.events(10, 3), tree="T")
    nanoaod.write(folder / "none.root", nanoaod.events(0, 4))
    shutil.copy(good, folder / "copy.root")
    (folder / "link.root").symlink_to("good.root")
    (folder / "gone.root").symlink_to("nowhere.root")
    (folder / "cut.root").write_bytes(good.read_bytes()[:-30])
    (folder / "text.root").write_text("this is no ROOT file\n" * 100)
    (folder / "empty.root").touch()
    (folder / "folder.root").mkdir()
    (folder / "none").mkdir()
    (folder / "set").mkdir()
    shutil.copy(good, folder / "set" / "a.root.1")
    for name in ("pipe.root", "pipe.json", "pipe.onnx", "pipe"):
        os.mkfifo(folder / name)
    with uproot.recreate(folder / "two.root") as file:
        for tree in ("A", "d/B"):
            file[tree] = {name: np.ones(7, np.int32) for name in EVENT_ID}
    with uproot.recreate(folder / "hists.root") as file:
        file["Events"] = hist.Hist.new.Reg(3, 0, 1).Double()
    return folder


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs wait before they try again to open what could not be opened."""
    monkeypatch.setattr(rounds, "FIRST_WAIT_S", 0)


def own(*files: object, **fields: object) -> dict[str, Any]:
    dataset = {"process": "tt", "files": list(files), **fields}
    return {"schema": 1, "datasets": {"tt": dataset}}


def spec(**fields: object) -> dict[str, Any]:
    return {"tt": {"files": {"good.root": {"object_path": "Events", **fields}}}}


def refusal(path: Path, output: Path) -> str:
    """Why a run refuses it, or nothing."""
    processor = f"{path.parent}/count.py:Count"
    try:
        agc.run(processor, path, output=output, site="inline", quiet=True)
    except AgcError as error:
        return str(error)
    return ""


def agree(path: Path, output: Path) -> str:
    """Check that `validate` and a run say the same; return what is wrong, or nothing."""
    verdict, refused = validate(path), refusal(path, output)
    assert bool(verdict.problem) == bool(refused), f"run: {refused}; validate: {verdict}"
    assert "\n" not in (verdict.problem or "")
    return verdict.problem or ""


GOOD = [
    own("good.root"),
    own("good.root", "other.root", "none.root"),
    own("tree.root:T"),
    own("two.root:A", "./two.root:d/B"),
    {
        name: {"files": [file], "metadata": {"process": "p"}}
        for name, file in {"a": "two.root:A", "b": "two.root:/d//B"}.items()
    },
    own({"replicas": ["gone.root", "good.root"]}),
    own({"replicas": ["gopher://h/a.root", "good.root"]}),
    own({"replicas": ["good.root"], "entries": 30}),
    own("set", "other.root"),
    own("good.root", metadata={"k": [1, {"l": "NaN"}]}),
    {"tt": ["[go]*er.root", "good.root"]},
    {"tt": ["file:{folder}/good.root"]},
    spec(steps=[[0, 10], [10, 30]], num_entries=30),
    {"tt": {"files": ["good.root"], "metadata": {"nevts": 500}}},
    *({name: ["good.root"]} for name in ("Samples", "learner", "General", "poi", "contents")),
    {"a": {"files": ["good.root"]}, "b": {"files": ["copy.root"]}},
]

BAD = [
    (own("missing.root"), "tt: {folder}/missing.root: can't be opened: No such file"),
    (own("good.root", "missing.root", "gone.root"), "(and 1 more)"),
    (own("cut.root"), "cut off"),
    (own("text.root"), "not a ROOT file"),
    (own("empty.root"), "it is empty"),
    (own("hists.root"), "'Events' in it is not a tree"),
    (own("none.root"), "dataset tt: no events in it"),
    (own("pipe.root"), "it is a pipe"),
    (own("folder.root"), "no *.root files in that folder"),
    (own("none"), "no *.root files in that folder"),
    (own("tree.root"), "(name another as FILE:TREE); it has T"),
    (own("good.root:T"), "no tree 'T'"),
    (own("good.root", "copy.root"), "same file (UUID"),
    (own("good.root", "link.root"), "same file (UUID"),
    (own("good.root", "./good.root"), "same file"),
    (own("good.root:Events;1", "copy.root"), "same file (UUID"),
    (own("good.root:/Events", {"replicas": ["link.root"], "tree": "Events;1"}), "same file (UUID"),
    (own("two.root:d/B", {"replicas": ["two.root"], "tree": "/d;1//B;1"}), "listed twice"),
    (
        {
            name: {"files": [file], "metadata": {"process": "p"}}
            for name, file in {"a": "good.root:Events;1", "b": "good.root"}.items()
        },
        "are the same file",
    ),
    (own("good.root", "set/../good.root"), "same file"),
    (own("good.root", "**/a.root*"), "same file (UUID"),
    (own({"replicas": ["good.root"], "entries": 31}), "its entries is 30, but the fileset says 31"),
    (own({"replicas": ["good.root"], "size": 31}), "its size is"),
    (own({"replicas": ["good.root"], "uuid": str(uuid.UUID(int=1))}), "its uuid is"),
    (own({"replicas": ["gopher://h/a.root"]}), "unknown protocol"),
    (own("root://[h//a.root"), "not a URL"),
    (own("root:///a.root"), "SCHEME://HOST/PATH is needed"),
    (own("file://elsewhere/a.root"), "another machine"),
    (own("https://h/*.root"), "a pattern on a server"),
    (own("$NO_SUCH/a.root"), "is not set"),
    (own("a\0.root"), "NUL"),
    (own("a\ud800.root"), "UTF-8"),
    (own("good.root", metadata={"k": float("nan")}), "metadata -> k"),
    (own("good.root", metadata={"k": {"l": [float("inf")]}}), "metadata -> k"),
    (own("good.root", process=""), "process"),
    (own("good.root", xsec={"value": float("inf"), "source": "x"}), "xsec -> value"),
    (own(), "files"),
    ({**own("good.root"), "notes": ["\ud800"]}, "UTF-8"),
    ({**own("good.root"), "label": "\0"}, "NUL"),
    (own("good.root", xsec={"value": 1, "source": "\ud800"}), "xsec -> source"),
    (spec(steps=[[0, 30]]), "steps: files are read whole, and without num_entries"),
    (spec(steps=[[0, 10]], num_entries=10), "its entries is 30, but the fileset says 10"),
    (spec(steps=[[0, 10]], num_entries=30), "steps: files are read whole"),
    (spec(num_entries=31), "its entries is 30"),
    (spec(format="parquet"), "format"),
    (
        {name: {"files": ["good.root"], "metadata": {"process": "p"}} for name in "ab"},
        "are the same file",
    ),
    (
        {
            name: {"files": [file], "metadata": {"process": "p"}}
            for name, file in {"a": "good.root", "b": "copy.root"}.items()
        },
        "are the same file (uuid",
    ),
]


def written(content: Any, folder: Path) -> Path:
    path = folder / "fileset.json"
    path.write_text(json.dumps(content).replace("{folder}", str(folder)))
    return path


@pytest.mark.parametrize("content", GOOD, ids=range(len(GOOD)))
def test_filesets_that_can_be_run_are_good(content: Any, folder: Path, tmp_path: Path) -> None:
    assert agree(written(content, folder), tmp_path / "run") == ""


@pytest.mark.parametrize(("content", "says"), BAD, ids=range(len(BAD)))
def test_what_a_run_refuses_is_not_good(
    content: Any, says: str, folder: Path, tmp_path: Path
) -> None:
    problem = agree(written(content, folder), tmp_path / "run")
    assert says.format(folder=folder) in problem


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("list.txt", "good.root\ntree.root:T\n", ""),
        ("list.txt", "good.root\n# the same\ncopy.root\n", "same file"),
        ("list.txt", "good.root\nmissing.root\n", "No such file"),
        ("list.txt", "readme\n", "line 1: readme"),
        ("list.txt", "good.root\npipe.json\n", "line 2: pipe.json: a list names ROOT files"),
        ("f.json", '{"tt": {"files": ["good.root"], "metadata": {"k": 1e999}}}', "metadata -> k"),
        ("f.yaml", "tt: {files: [good.root], metadata: {k: .nan}}", "metadata -> k"),
        ("f.yaml", "tt: {files: [good.root], metadata: {k: 1e999}}", "metadata -> k"),
        ("f.yaml", "tt: {files: [good.root], metadata: {k: 2015-06-01}}", ""),
        ("f.json", '\ufeff{"tt": ["good.root"]}', ""),
        ("f.json", '{"tt": ["good.root"], "tt": ["other.root"]}', "twice"),
        ("f.json", '{"tt": ["good.root"]', "can't be read as json"),
    ],
)
def test_lists_and_texts(name: str, content: str, says: str, folder: Path, tmp_path: Path) -> None:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    problem = agree(path, tmp_path / "run")
    assert says in problem
    assert bool(says) == bool(problem)
    assert validate(path).kind == "fileset"


def test_files_on_servers_are_counted(folder: Path) -> None:
    verdict = validate(written(own("good.root", "root://h//a.root", "https://h/b.root"), folder))
    assert verdict.problem is None
    assert verdict.summary == "1 datasets, 3 files, 2 of them on servers and not opened"


# -- files of events -------------------------------------------------------------------------------


def rntuple(path: Path) -> Path:
    with uproot.recreate(path) as file:
        file.mkrntuple("Events", {"x": "f4"}).extend({"x": np.zeros(7, np.float32)})
    return path


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda f, _: f / "good.root", "event file", "30 events in Events"),
        (lambda _, t: rntuple(t / "r.root"), "event file", "7 events in Events"),
        (lambda f, _: f / "tree.root:T", "event file", "10 events in T"),
        (lambda f, t: shutil.copy(f / "good.root", t / "a.root.1"), "event file", "30 events"),
        (lambda f, t: shutil.copy(f / "good.root", t / "a[1]*.root"), "event file", "30 events"),
        (lambda f, _: f / "hists.root", "histograms", "1 histograms"),
        (lambda f, _: f / "set", "fileset", "1 datasets, 1 files"),
    ],
)
def test_files_of_events(
    make: Callable[[Path, Path], Any], kind: str, says: str, folder: Path, tmp_path: Path
) -> None:
    verdict = validate(Path(make(folder, tmp_path)))
    assert (verdict.kind, verdict.problem) == (kind, None)
    assert says in verdict.summary


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("cut.root", "event file", "it is cut off"),
        ("empty.root", "event file", "it is empty"),
        ("text.root", "event file", "not a ROOT file"),
        ("none.root", "event file", "no events in Events"),
        (
            "tree.root",
            "event file",
            "(name another as FILE:TREE); it has T",
        ),
        ("good.root:T", "event file", "no tree 'T' in it"),
        ("good.root:Events/run", "event file", "no tree 'Events/run' in it"),
        *(
            (name, "nothing", "neither a file nor a folder, but a pipe")
            for name in ("pipe.root", "pipe.json", "pipe.onnx", "pipe")
        ),
        ("nowhere.root", "nothing", "no such file"),
        ("nowhere.root:T", "nothing", "no such file"),
        ("none", "fileset", "no *.root files in that folder"),
        ("x" * 300, "nothing", "can't be read (File name too long)"),
    ],
)
def test_what_is_no_file_of_events(name: str, kind: str, says: str, folder: Path) -> None:
    verdict = validate(folder / name)
    assert verdict.kind == kind
    assert says in (verdict.problem or "")


def test_the_command_names_them(folder: Path) -> None:
    called = command("validate", folder / "good.root", folder / "tree.root:T")
    assert called.code == 0
    assert "good.root: event file, good: 30 events in Events" in called.out
    assert "tree.root:T: event file, good: 10 events in T" in called.out
