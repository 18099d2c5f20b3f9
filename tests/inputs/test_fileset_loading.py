from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agc_ml import documents
from agc_ml.errors import FilesetError, UsageError
from agc_ml.inputs import agc_published, loading
from agc_ml.inputs.datasets import Dataset, File, FileFacts
from agc_ml.inputs.fileset import Fileset


def test_published_input_list(real_data: Path) -> None:
    fileset = Fileset.load(str(real_data / "nanoaod_inputs.json"))
    assert len(fileset.datasets) == 9
    assert fileset.n_files == 787
    assert sum(dataset.n_events or 0 for dataset in fileset.datasets) == pytest.approx(
        940e6, rel=0.01
    )
    assert fileset.luminosity == 3378
    by_name = {dataset.name: dataset for dataset in fileset.datasets}
    assert by_name["ttbar__ME_var"].variation == "ME_var"
    assert by_name["ttbar__scaleup"].xsec == 729.84
    assert by_name["single_top_t_chan__nominal"].xsec == pytest.approx(
        234.79365079365078, rel=1e-15
    )
    assert by_name["wjets__nominal"].xsec == 15487.164
    first = by_name["ttbar__nominal"].files[0]
    assert first.entries == 1334428
    assert first.url.startswith("https://")
    assert first.lfn.startswith("/store/user/AGC/nanoAOD/TT_TuneCUETP8M1")
    assert fileset.limit(files=1).n_files == 9


def test_shipped_numbers_of_entries_are_those_of_the_published_list(real_data: Path) -> None:
    fileset = Fileset.load(str(real_data / "nanoaod_inputs.json"))
    for dataset in fileset.datasets:
        expected = tuple(file.entries for file in dataset.files)
        assert agc_published.entries(dataset.process, dataset.variation) == expected


def load(path: Path, content: object) -> Fileset:
    path.write_text(json.dumps(content))
    return Fileset.load(str(path))


def test_coffea_lists(tmp_path: Path) -> None:
    fileset = load(tmp_path / "f.json", {"ttbar__ME_var": ["a.root", "root://host//store/b.root"]})
    (dataset,) = fileset.datasets
    assert (dataset.process, dataset.variation, dataset.xsec) == ("ttbar", "ME_var", 729.84)
    assert [file.lfn for file in dataset.files] == ["a.root", "/store/b.root"]
    assert dataset.files[0].url == str(tmp_path / "a.root")
    assert any("from the name of the dataset" in note for note in fileset.notes)
    assert any("729.84" in note for note in fileset.notes)


def test_coffea_filesets_with_metadata(tmp_path: Path) -> None:
    content = {
        "DY": {
            "files": {"a.root": "Events", "b.root": {"object_path": "T", "num_entries": 5}},
            "metadata": {"process": "zjets", "xsec": 6000, "luminosity": 100, "era": "B"},
        }
    }
    fileset = load(tmp_path / "f.json", content)
    (dataset,) = fileset.datasets
    assert (dataset.process, dataset.variation, dataset.xsec) == ("zjets", "nominal", 6000)
    assert (fileset.luminosity, fileset.notes) == (100, ())
    assert [(file.tree, file.entries) for file in dataset.files] == [("Events", None), ("T", 5)]
    assert dataset.metadata == {"era": "B"}


@pytest.mark.parametrize(
    ("metadata", "is_data"),
    [
        ({}, False),
        ({"is_data": True, "xsec": -1}, True),
        ({"isMC": False, "xsec": 1.0}, True),
        ({"isMC": 0, "xsec": 0}, True),
        ({"is_mc": True, "xsec": 2}, False),
        ({"isData": True, "is_data": True}, True),
        ({"isMC": "2018", "isData": False}, False),
        ({"isMC": True, "is_data": True}, None),
        ({"isMC": False, "isData": False}, None),
    ],
)
def test_data_as_metadata_say_it(
    metadata: dict[str, Any], is_data: bool | None, tmp_path: Path
) -> None:
    own = {key: value for key, value in metadata.items() if key != "is_data"}
    dataset = {"process": "x", "files": ["a.root"], "metadata": own}
    if "is_data" in metadata:
        dataset["is_data"] = metadata["is_data"]
    for content in (
        {"x": {"files": ["a.root"], "metadata": metadata}},
        {"schema": 1, "datasets": {"x": dataset}},
    ):
        if is_data is None:
            with pytest.raises(FilesetError, match="contradict each other"):
                load(tmp_path / "f.json", content)
            continue
        fileset = load(tmp_path / "f.json", content)
        assert fileset.datasets[0].is_data == is_data
        reached = fileset.metadata(fileset.datasets[0])
        assert {key: reached[key] for key in metadata} == metadata
        loading.save(fileset, tmp_path / "g.json")
        assert Fileset.load(tmp_path / "g.json").digest == fileset.digest


def test_luminosities_that_differ_are_the_processors(tmp_path: Path) -> None:
    content = {
        name: {"files": [f"{name}.root"], "metadata": {"xsec": 10, "luminosity": luminosity}}
        for name, luminosity in (("a", 5.0), ("b", 6.0))
    }
    fileset = load(tmp_path / "f.json", content)
    assert fileset.luminosity is None
    assert [fileset.metadata(dataset)["luminosity"] for dataset in fileset.datasets] == [5, 6]
    assert "luminosity differs between datasets" in fileset.notes[-1]
    del content["a"]["metadata"]["luminosity"]
    assert load(tmp_path / "g.json", content).luminosity == 6
    del content["a"]["metadata"]["xsec"], content["b"]["metadata"]["xsec"]
    fileset = load(tmp_path / "h.json", content)
    assert fileset.luminosity is None
    assert fileset.metadata(fileset.datasets[1])["luminosity"] == 6


def test_coffea_filesets_go_there_and_back(tmp_path: Path) -> None:
    first = load(tmp_path / "f.json", {"ttbar": ["/data/a.root", "/data/b.root"]})
    second = load(tmp_path / "g.json", first.to_coffea())
    assert second.datasets[0].files == first.datasets[0].files
    assert second.datasets[0].xsec == first.datasets[0].xsec


def test_folder_and_glob_and_file(tmp_path: Path) -> None:
    for name in ("b.root", "a.root", "c.txt"):
        (tmp_path / name).touch()
    for source in (str(tmp_path), f"{tmp_path}/*.root"):
        (dataset,) = Fileset.load(source, dataset="wjets").datasets
        assert [Path(file.url).name for file in dataset.files] == ["a.root", "b.root"]
        assert dataset.xsec == agc_published.CROSS_SECTIONS["wjets"]
    fileset = Fileset.load(str(tmp_path / "a.root"))
    assert fileset.datasets[0].name == "a"
    assert fileset.datasets[0].xsec is None
    assert "from the file's name" in fileset.notes[0]


def test_variables_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_DATA", "/data")
    content = {
        "schema": 1,
        "datasets": {"d": {"process": "p", "files": ["$SOME_DATA/a.root", "sub/b.root"]}},
    }
    (dataset,) = load(tmp_path / "f.json", content).datasets
    assert [file.url for file in dataset.files] == ["/data/a.root", str(tmp_path / "sub/b.root")]
    assert [file.lfn for file in dataset.files] == ["$SOME_DATA/a.root", "sub/b.root"]


def test_yaml_with_a_double_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(
        "schema: 1\ndatasets:\n  d: {process: p, files: [a]}\n  d: {process: q, files: [b]}\n"
    )
    with pytest.raises(FilesetError, match="'d' is there twice"):
        Fileset.load(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "{a: &a {files: [a.root], form: x}, b: {<<: *a, files: [b.root]}}",
        "{a: {<<: &b {files: [b.root]}, files: [a.root]}, b: *b}",
        "{a: {<<: [&a {files: [a.root]}, {files: [c.root]}]}, b: {files: [b.root], <<: *a}}",
        "{a: {<<: &b {files: [b.root], <<: &c {files: [c.root]}}, files: [a.root]}, b: *b}",
    ],
)
def test_yaml_with_merges(text: str, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(text)
    found = Fileset.load(tmp_path / "f.yaml").datasets
    assert [file.lfn for d in found for file in d.files] == ["a.root", "b.root"]


def test_yaml_with_merges_of_merges(tmp_path: Path) -> None:
    """A few lines can't stand for billions of values, and double keys are still refused."""
    levels = "".join(
        f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 20)}]}}\n" for a, b in pairwise("abcdefghij")
    )
    (tmp_path / "f.yaml").write_text(f"a: &a {{files: [a.root]}}\n{levels}")
    with pytest.raises(FilesetError, match=r"f\.yaml: .*line 6: more than 1,000,000 values"):
        Fileset.load(tmp_path / "f.yaml")
    (tmp_path / "f.yaml").write_text(
        f"a: &a {{files: [a.root]}}\n{levels[:150]}".rpartition("\n")[0]
    )
    assert [d.files[0].lfn for d in Fileset.load(tmp_path / "f.yaml").datasets] == ["a.root"] * 2
    (tmp_path / "f.yaml").write_text("{a: &a {files: [a.root]}, b: {<<: *a, x: 1, x: 2}}")
    with pytest.raises(FilesetError, match="'x' is there twice"):
        Fileset.load(tmp_path / "f.yaml")


words = st.text("abcXYZ09_", min_size=1, max_size=6)
made_files = st.lists(words, min_size=1, max_size=3, unique=True).flatmap(
    lambda lfns: st.tuples(
        *(
            st.builds(
                File,
                lfn=st.just(f"/store/{lfn}.root"),
                replicas=st.just((f"/data/{lfn}.root", f"root://host//store/{lfn}.root")),
                tree=words,
                uuid=st.none() | st.just(f"7-{lfn}"),
                entries=st.none() | st.integers(0, 10**9),
                size=st.none() | st.integers(0, 10**12),
                adler32=st.none() | st.integers(0, 2**32 - 1).map("{:08x}".format),
            )
            for lfn in lfns
        )
    )
)
made_datasets = st.builds(
    Dataset,
    name=words,
    process=words,
    variation=words,
    files=made_files,
    xsec=st.none() | st.floats(1e-6, 1e9),
    xsec_source=st.just("a paper"),
    is_data=st.booleans(),
    metadata=st.dictionaries(words, st.integers() | words, max_size=2),
)


@pytest.mark.parametrize("ending", ["json", "yaml"])
@given(
    datasets=st.lists(
        made_datasets,
        min_size=1,
        max_size=3,
        # datasets of one process add up, so that they may not share files
        unique_by=(lambda d: d.name, lambda d: d.process),
    )
)
def test_our_own_format_loses_nothing(
    ending: str, datasets: list[Dataset], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"round.{ending}"
    fileset = Fileset(tuple(datasets), 12.5, "a table", ("a note",))
    loading.save(fileset, path)
    again = Fileset.load(str(path))
    assert again.digest == fileset.digest
    assert [d.files for d in again.datasets] == [d.files for d in fileset.datasets]
    assert (again.luminosity, again.luminosity_source) == (12.5, "a table")
    assert again.notes == ("a note",)


# -- folders, patterns, trees and lists inside filesets --------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("d/a.root", "d/b.root.1", "d/n.txt", "d/.h.root", "c.root"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def own(files: list[object]) -> dict[str, object]:
    return {"schema": 1, "datasets": {"tt": {"process": "ttbar", "files": files}}}


FOUND = ["d/a.root", "d/b.root.1"]


@pytest.mark.parametrize(
    "text", ["d", "d/", "./d", "d/*", "d/*.root*", "**/[ab].root*", "file:{}/d"]
)
@pytest.mark.parametrize(
    "content",
    [
        lambda text: own([text]),
        lambda text: own([{"replicas": [text]}]),
        lambda text: {"tt": [text]},
        lambda text: {"tt": {"files": {text: "Events"}}},
        lambda text: {"tt": {"files": {text: {"object_path": "Events"}}}},
    ],
    ids=["own", "own replicas", "coffea list", "coffea mapping", "coffea specs"],
)
def test_folders_and_patterns_in_filesets(text: str, content: Any, files: Path) -> None:
    fileset = load(files / "f.json", content(text.format(files)))
    (dataset,) = fileset.datasets
    assert [file.url for file in dataset.files] == [str(files / name) for name in FOUND]
    expected = [str(files / name) for name in FOUND] if "{}" in text else FOUND
    assert [file.lfn for file in dataset.files] == expected
    if text != "d/*.root*" and "[" not in text:
        assert any("skipped 1 not called *.root (n.txt)" in note for note in fileset.notes)


def test_a_pattern_of_one_file_is_that_file(files: Path) -> None:
    agc_list = {"ttbar": {"nominal": {"files": [{"path": "d/a*", "nevts": 7}]}}}
    assert load(files / "f.json", agc_list).datasets[0].n_events == 7
    content = own([{"replicas": ["root://h//a.root", "d/a*"], "entries": 5, "lfn": "/a.root"}])
    (file,) = load(files / "f.json", content).datasets[0].files
    assert file.replicas == ("root://h//a.root", str(files / "d/a.root"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (own(["e/*.root"]), "dataset tt: e/*.root: no file matches"),
        ({"tt": ["d/*.txt"]}, "dataset tt: d/*.txt: no file matches; only n.txt there"),
        ({"tt": ["d/.*"]}, None),
        ({"tt": {"files": {"e*/": "Events"}}}, "dataset tt: e*/: no file matches"),
        (own(["root://h//d/*.root"]), "agc-ml fileset from-glob"),
        ({"tt": ["https://h/d/*.root"]}, "dataset tt: https://h/d/*.root: a pattern on a server"),
        (own([{"replicas": ["d"], "entries": 5}]), "d: 2 files match, but what is stated"),
        (own([{"replicas": ["d", "root://h//a.root"]}]), "other replicas"),
        (
            {"ttbar": {"nominal": {"files": [{"path": "d/*", "nevts": 7}]}}},
            "dataset ttbar__nominal: d/*: 2 files match, but what is stated beside it (entries)",
        ),
        ({"tt": ["d/*", "d/a.root"]}, "d/a.root is listed twice"),
        ({"tt": ["c.root", "./c.root"]}, "c.root and ./c.root are the same file"),
        ({"tt": ["c.root", "d/../c.root"]}, "are the same file"),
        ({"tt": ["c.root", "file:{files}/c.root"]}, "are the same file"),
        ({"tt": ["file:{files}/c.root", "file://localhost{files}/c.root"]}, "listed twice"),
        ({"tt": ["root://h//c.root:T", "https://g/c.root:T"]}, "/c.root is listed twice"),
        ({"tt": ["c.root:T", "c.root:U"]}, "listed with the trees T and U; make a dataset of each"),
        ({"tt": {"files": {"c.root": ""}}}, "'' is empty"),
        ({"a": {"files": ["c.root"], "metadata": {"process": "p"}},
          "b": {"files": ["./c.root"], "metadata": {"process": "p"}}}, "the same file (path"),
        ({"tt": {"files": {"c.root:T": "Events"}}}, "two trees are named, Events and T"),
        (own([{"replicas": ["c.root:T"], "tree": "U"}]), "two trees are named, T and U"),
        (own([{"replicas": ["c.root:T", "root://h//c.root:U"]}]), "two trees are named"),
        (own(["root://[x//a.root"]), "not a URL"),
        (own(["file://elsewhere/a.root"]), "on another machine"),
        (own(["a\0.root"]), "NUL"),
        (own(["a\ud800.root"]), "UTF-8"),
        ({"": ["a.root"]}, "its name is empty"),
        ({"__up": ["a.root"]}, "its process is empty"),
    ],
)  # fmt: skip
def test_places_that_are_refused(content: Any, says: str | None, files: Path) -> None:
    path = files / "f.json"
    path.write_text(json.dumps(content).replace("{files}", str(files)))
    if says is None:
        assert [file.lfn for file in Fileset.load(path).datasets[0].files] == ["d/.h.root"]
        return
    with pytest.raises(FilesetError) as caught:
        Fileset.load(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_trees_behind_a_colon(files: Path) -> None:
    content = own(["c.root:T", {"replicas": ["d/a*.root:U"]}, "root://h:1//x.root:dir/V"])
    (dataset,) = load(files / "f.json", content).datasets
    assert [(file.lfn, file.tree) for file in dataset.files] == [
        ("c.root", "T"), ("d/a.root", "U"), ("/x.root", "dir/V"),
    ]  # fmt: skip
    for source in (f"{files}/c.root:T", f"file:{files}/c.root:T", f"{files}/c*.root:T"):
        (file,) = Fileset.load(source, dataset="tt").datasets[0].files
        assert (file.url, file.tree) == (str(files / "c.root"), "T")
    fileset = Fileset.load("root://h:1094//x.root.1:T")
    assert (fileset.datasets[0].name, fileset.datasets[0].files[0].tree) == ("x", "T")
    for typed, says in {
        "root://h//*.root": "a pattern on a server",
        "file://elsewhere/a.root": "another machine",
        "$NO_SUCH/a.root": "is not set",
        "~nobody-of-that-name/a.root": "can't be looked up|home",
        "x" * 5000: "too long",
    }.items():
        with pytest.raises(UsageError, match=says):
            Fileset.load(typed)


@pytest.mark.parametrize("name", ["f.json.gz", "f.JSON.GZ", "f.yaml.gz", "f.yml.gz", "plain.json"])
def test_compressed_filesets(name: str, files: Path) -> None:
    path = files / name
    path.write_bytes(gzip.compress(json.dumps({"tt": ["d/*"]}).encode("utf-8-sig")))
    assert len(Fileset.load(path).datasets[0].files) == 2
    assert [found for found, _ in Fileset.find(files)] == [path]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FilesetError, match="can't be read as"):
        Fileset.load(path)


def test_a_bomb(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_BYTES", 1 << 20)
    (files / "f.json.gz").write_bytes(gzip.compress(b"[" * 2_000_000))
    with pytest.raises(FilesetError, match="it unpacks to more than 1,048,576 bytes"):
        Fileset.load(files / "f.json.gz")


LINES = """\ufeff# files of Monday

c.root\r
  d/*.root   # all
root://host//x.root:T
file:{}/d/b.root.1
missing.root
"""


def test_a_list(files: Path) -> None:
    path = files / "ttbar__up.txt"
    path.write_text(LINES.format(files), encoding="utf-8")
    fileset = Fileset.load(path)
    (dataset,) = fileset.datasets
    assert (dataset.name, dataset.process, dataset.variation) == ("ttbar__up", "ttbar", "up")
    assert any("from the list's name (--dataset NAME" in note for note in fileset.notes)
    assert [file.url for file in dataset.files] == [
        *(str(files / name) for name in ("c.root", "d/a.root")),
        *("root://host//x.root", str(files / "d/b.root.1"), str(files / "missing.root")),
    ]
    assert [file.tree for file in dataset.files] == ["Events", "Events", "T", "Events", "Events"]
    assert Fileset.load(path, dataset="wjets").datasets[0].process == "wjets"
    (files / "ttbar__up.txt.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert Fileset.load(files / "ttbar__up.txt.gz") == fileset


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no files are listed"),
        ("# nothing\n\n", "no files are listed"),
        ("c.root\nReadme of this\n", "line 2: Readme of this: no such file; URLs or paths"),
        ("c.root\n./c.root\n", "are the same file"),
        ("c.root\nd/*.txt\n", "line 2: d/*.txt: no file matches; only n.txt there"),
        ("https://h/*.root\n", "line 1: https://h/*.root: a pattern on a server"),
        ("root://h//a.root\t12\tadler32:1\n", "line 1: root://h//a.root"),
        ("\0\1\2", "line 1"),
        ("$NO_SUCH/a.root", "$NO_SUCH is not set"),
    ],
)
def test_what_is_no_list(text: str, says: str, files: Path) -> None:
    path = files / "list.txt"
    path.write_text(text)
    with pytest.raises(FilesetError) as caught:
        Fileset.load(path)
    assert str(caught.value).startswith(f"{path}: ") or "same file" in says
    assert says in str(caught.value)


# -- what coffea writes ----------------------------------------------------------------------------


def preprocessed(**spec: object) -> dict[str, Any]:
    """As coffea's preprocess gives it."""
    whole = {
        "object_path": "Events",
        "steps": [[0, 50], [50, 120]],
        "num_entries": 120,
        "uuid": "3a554482-e0e1-11ea-875a-4a82e4a9beef",
    }
    return {
        "ttbar": {
            "files": {"a.root": {**whole, **spec}},
            "form": "H4sIA",
            "metadata": {"nevts": 500, "era": "B"},
        }
    }


def test_preprocessed_filesets(tmp_path: Path) -> None:
    fileset = load(tmp_path / "f.json", preprocessed())
    (file,) = fileset.datasets[0].files
    assert (file.entries, file.uuid, file.tree) == (
        120,
        preprocessed()["ttbar"]["files"]["a.root"]["uuid"],
        "Events",
    )
    assert fileset.datasets[0].metadata["era"] == "B"
    assert (
        "ttbar: its files state 120 events, metadata -> nevts 500: the files' are taken"
        in fileset.notes
    )


def test_a_dump_of_coffea_is_taken(tmp_path: Path) -> None:
    filespec = pytest.importorskip("coffea.dataset_tools.filespec")
    content = preprocessed()
    del content["ttbar"]["form"]
    dumped = filespec.DataGroupSpec(content).model_dump_json()
    (tmp_path / "f.json").write_text(dumped)
    (file,) = Fileset.load(tmp_path / "f.json").datasets[0].files
    assert file.entries == 120
    listed = filespec.DataGroupSpec({"tt": ["a.root:T", "root://h:1//b.root:U"]})
    (tmp_path / "g.json").write_text(listed.model_dump_json())
    assert [f.tree for f in Fileset.load(tmp_path / "g.json").datasets[0].files] == ["T", "U"]


@pytest.mark.parametrize(
    ("spec", "entries"),
    [
        ({"steps": [[50, 120], [0, 50]]}, 120),
        ({"steps": [[0, 0], [0, 120]]}, 120),
        ({"steps": [[0, 0]], "num_entries": 0}, 0),
        ({"steps": None}, 120),
        ({"steps": None, "num_entries": None}, None),
        ({"steps": [], "num_entries": 0}, 0),
    ],
)
def test_steps_that_are_the_whole_file(spec: dict[str, Any], entries: int, tmp_path: Path) -> None:
    (file,) = load(tmp_path / "f.json", preprocessed(**spec)).datasets[0].files
    assert file.entries == entries


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"steps": [[0, 50]]}, "steps: files are read whole, and these steps leave entries out"),
        ({"steps": [[50, 120]]}, "steps: "),
        ({"steps": [[0, 50], [60, 120]]}, "steps: "),
        ({"steps": [[0, 50], [40, 120]]}, "steps: "),
        ({"steps": [[0, 50], [0, 50], [50, 120]]}, "steps: "),
        ({"steps": [[0, 150]]}, "steps: "),
        ({"steps": []}, "steps: "),
        ({"steps": [[0, 60], [60, 50], [50, 120]]}, "steps: "),
        ({"num_entries": None}, "steps: files are read whole, and without num_entries"),
        ({"steps": [[0, "120"]]}, "steps -> 0 -> 1"),
        ({"steps": [[0, 50, 120]]}, "steps -> 0"),
        ({"steps": 5}, "steps: "),
        ({"num_entries": -1}, "num_entries: "),
        ({"num_entries": True}, "num_entries: "),
        ({"num_entries": 1.5}, "num_entries: "),
        ({"uuid": 5}, "uuid: "),
        ({"object_path": 5}, "object_path: "),
        ({"format": "parquet"}, "format: "),
        ({"entry_stop": 10}, "entry_stop: unknown field"),
        ({"Steps": [[0, 10]]}, "Steps: unknown field"),
    ],
)
def test_steps_and_facts_that_are_refused(spec: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(FilesetError) as caught:
        load(tmp_path / "f.json", preprocessed(**spec))
    assert f"f.json: ttbar -> files -> a.root -> {says}" in str(caught.value)


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    random=st.randoms(use_true_random=False),
    hole=st.integers(0, 4),
)
def test_steps_of_a_whole_file_and_of_less(
    sizes: list[int], random: Any, hole: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "steps.json"
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    steps = [list(pair) for pair in pairwise(ends)]
    random.shuffle(steps)
    content = preprocessed(steps=steps, num_entries=ends[-1])
    assert load(path, content).datasets[0].files[0].entries == ends[-1]
    left = steps[: hole % len(steps)] + steps[hole % len(steps) + 1 :]
    if sum(stop - start for start, stop in left) < ends[-1]:
        with pytest.raises(FilesetError, match="steps: files are read whole"):
            load(path, preprocessed(steps=left, num_entries=ends[-1]))


def test_a_stated_number_of_events_reaches_the_processor(tmp_path: Path) -> None:
    content = {"tt": {"files": ["a.root", "b.root"], "metadata": {"nevts": 500}}}
    fileset = load(tmp_path / "f.json", content)
    assert fileset.metadata(fileset.datasets[0])["nevts"] == 500
    assert fileset.to_coffea()["tt"]["metadata"]["nevts"] == 500
    loading.save(fileset, tmp_path / "g.yaml")
    again = Fileset.load(tmp_path / "g.yaml")
    assert again.metadata(again.datasets[0])["nevts"] == 500
    limited = fileset.limit(files=1)
    assert "nevts" not in limited.metadata(limited.datasets[0])
    assert (
        "tt: metadata -> nevts (500) counts all 2 files and is left out: 1 used"
        in limited.notes[-1]
    )
    assert fileset.limit(files=2) == fileset


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", '"1e999"'])
@pytest.mark.parametrize(
    "content",
    [
        '{"tt": {"files": ["a.root"], "metadata": {"k": %s}}}',
        '{"tt": {"files": ["a.root"], "metadata": {"k": {"l": [1, %s]}}}}',
        '{"tt": {"files": ["a.root"], "metadata": {"nevts": %s}}}',
        '{"tt": {"files": ["a.root"], "metadata": {"xsec": %s}}}',
        '{"tt": {"files": ["a.root"], "metadata": {"luminosity": %s}}}',
        '{"tt": {"files": {"a.root": {"object_path": "T", "num_entries": %s}}}}',
        '{"tt": {"files": {"a.root": {"object_path": "T", "steps": [[0, %s]]}}}}',
        '{"ttbar": {"nominal": {"files": [{"path": "a.root", "nevts": %s}]}}}',
        '{"schema": 1, "datasets": {"t": {"process": "t", "metadata": {"k": %s}, "files": ["a"]}}}',
        '{"schema": 1, "luminosity": {"value": %s, "source": "x"}, "datasets": {}}',
        '{"schema": 1, "datasets": {"t": {"process": "t", "files": [{"entries": %s}]}}}',
    ],
)
def test_numbers_that_are_not_finite(number: str, content: str, tmp_path: Path) -> None:
    in_yaml = {"NaN": ".nan", "Infinity": ".inf", "-Infinity": "-.inf"}.get(number, number)
    for name, text in {"f.json": content % number, "f.yaml": content % in_yaml}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(FilesetError, match=rf"{name}: .*(->|xsec|luminosity)"):
            Fileset.load(tmp_path / name)


LEVELS = [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in pairwise("abcdefg")]
BOMB = f"{{a: &a [0, 0], {', '.join(LEVELS)}}}"


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ("{process: 5}", "process: 5 is not a name"),
        ("{process: [a]}", "process: "),
        ("{nevts: many}", "nevts: 'many' is not a number of events"),
        ("{nevts: -1}", "nevts: -1"),
        ("{nevts: true}", "nevts: True"),
        ("{k: {1: a, b: c}}", "k: can't be stored"),
        ("{k: &x [*x]}", "line 1: a recursive alias"),
        (f"{{k: {'[' * 60}{']' * 60}}}", "k: can't be stored (more than 50 levels"),
        ("{k: {? [1, 2] : 3}}", "unhashable"),
        (BOMB, "line 1: more than 1,000,000 values, with repetitions by anchors and merges"),
        ("{1: a}", "metadata -> 1"),
        ("{k: [!!set {x, y}]}", "k: can't be stored (set is not a number, text, date"),
        ("{k: !!binary gIGC}", "k: can't be stored (bytes is not a"),
        (f"{{xsec: 1{'0' * 400}}}", "line 1: an integer of more than 308 digits: 1000"),
        ("[1]", "metadata: "),
    ],
)
def test_metadata_that_are_refused(metadata: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(f"tt: {{files: [a.root], metadata: {metadata}}}")
    with pytest.raises(FilesetError) as caught:
        Fileset.load(tmp_path / "f.yaml")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"xsec": {"value": True, "source": "x"}}, "value: a number is needed"),
        (
            {"xsec": {"value": 10**400, "source": "x"}},
            "datasets -> d -> xsec -> value: an integer of more than 308 digits: 1000",
        ),
        ({"files": [{"replicas": ["a"], "entries": 1 << 63}]}, "files -> 0 -> entries: Input"),
        ({"files": [{"replicas": ["a"], "size": 10**30}]}, "files -> 0 -> size: Input"),
        ({"files": [{"replicas": ["a"], "adler32": ""}]}, "adler32: String should match"),
        ({"files": [{"replicas": ["a"], "adler32": "zz"}]}, "adler32: String should match"),
        ({"files": [{"replicas": ["a", ""]}]}, "'' is empty"),
    ],
)
def test_fields_that_are_refused(fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    dataset = {"process": "p", "files": ["a.root"], **fields}
    with pytest.raises(FilesetError) as caught:
        load(tmp_path / "f.json", {"schema": 1, "datasets": {"d": dataset}})
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400


def test_total_of_the_published_format(tmp_path: Path) -> None:
    content = {"nevts_total": 7, "files": [{"path": "a.root", "nevts": 3}]}
    (note,) = load(tmp_path / "f.json", {"ttbar": {"nominal": content}}).notes
    assert note == ("ttbar__nominal: its files state 3 events, nevts_total 7: the files' are taken")


@pytest.mark.parametrize(
    "text", ["12345678-9ABC-DEF0-1234-56789ABCDEF0", "123456789abcdef0123456789abcdef0"]
)
def test_spellings_of_a_uuid(text: str) -> None:
    assert File("a", ("a",), uuid=text).uuid == "12345678-9abc-def0-1234-56789abcdef0"


def test_find(tmp_path: Path) -> None:
    load(tmp_path / "one.json", {"ttbar": ["a.root"]})
    (tmp_path / "other.json").write_text('{"x": 3}')
    (tmp_path / "bad.yaml").write_text(":")
    assert [path.name for path, _ in Fileset.find(tmp_path)] == ["one.json"]


def test_a_folder_called_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a path it is what it says; only the word is the embedded set."""
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    with pytest.raises(UsageError, match=r"demo: no \*\.root files in that folder"):
        Fileset.load(Path("demo"))
    assert Fileset.load("demo") == Fileset.load(loading.demo())


def test_facts_are_written_back() -> None:
    files = tuple(
        File(lfn=f"/{name}.root", replicas=(f"/data/{name}.root",), adler32="01020304")
        for name in "ab"
    )
    fileset = Fileset((Dataset(name="tt", process="ttbar", files=files),))
    facts = {("tt", "/a.root"): FileFacts("7-1", 10, 5000, generated=40)}
    first, second = fileset.with_facts(facts).datasets[0].files
    assert (first.uuid, first.entries, first.size, first.generated) == ("7-1", 10, 5000, 40)
    assert (first.adler32, first.replicas) == ("01020304", files[0].replicas)
    assert second == files[1]
    assert fileset.datasets[0].files == files
    facts["tt", "/b.root"] = FileFacts("7-1", 10, 5000)
    with pytest.raises(FilesetError, match=r"/a\.root and /b\.root are the same file"):
        fileset.with_facts(facts)


@pytest.mark.parametrize("name", ["f.json", "f.yaml"])
def test_names_with_signs_are_read_as_they_were_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for stem in ("c$HOME", "d$nope", "st*r", "q?", "x[1]", "~x", "p%20", "a#1", "a.root:T"):
        Path(f"{stem}.root").touch()
    fileset = Fileset.load(".")
    loading.save(fileset, tmp_path.parent / name)
    assert Fileset.load(tmp_path.parent / name).datasets == fileset.datasets


def test_facts_that_can_not_be_written(tmp_path: Path) -> None:
    file = File("/a.root", ("/a.root",), adler32="zzzz")
    with pytest.raises(FilesetError, match=r"dataset d: /a\.root: adler32: String should match"):
        loading.save(Fileset((Dataset("d", "p", (file,)),)), tmp_path / "f.json")


@pytest.mark.parametrize("name", ["agc.txt", "agc", "tt=19980"])
def test_what_would_not_be_known_again_is_not_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.json or \.yaml"):
        loading.save(Fileset.load("demo"), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
