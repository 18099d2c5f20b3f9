from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agc_ml import agc, catalogue
from agc_ml.catalogue import Facts
from agc_ml.datasets import Dataset, File, Fileset
from agc_ml.errors import FilesetError, UsageError


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
        assert agc.entries(dataset.process, dataset.variation) == expected


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
        assert dataset.xsec == agc.CROSS_SECTIONS["wjets"]
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
    catalogue.save(fileset, path)
    again = Fileset.load(str(path))
    assert again.digest == fileset.digest
    assert [d.files for d in again.datasets] == [d.files for d in fileset.datasets]
    assert (again.luminosity, again.luminosity_source) == (12.5, "a table")
    assert again.notes == ("a note",)


def test_find(tmp_path: Path) -> None:
    load(tmp_path / "one.json", {"ttbar": ["a.root"]})
    (tmp_path / "other.json").write_text('{"x": 3}')
    (tmp_path / "bad.yaml").write_text(":")
    assert [path.name for path, _ in catalogue.find(tmp_path)] == ["one.json"]


def test_a_folder_called_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a path it is what it says; only the word is the embedded set."""
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    with pytest.raises(UsageError, match=r"demo: no \*\.root files in that folder"):
        Fileset.load(Path("demo"))
    assert Fileset.load("demo") == Fileset.load(catalogue.demo())


def test_facts_are_written_back() -> None:
    files = tuple(
        File(lfn=f"/{name}.root", replicas=(f"/data/{name}.root",), adler32="01020304")
        for name in "ab"
    )
    fileset = Fileset((Dataset(name="tt", process="ttbar", files=files),))
    facts = {("tt", "/a.root"): Facts("7-1", 10, 5000, generated=40)}
    first, second = catalogue.with_facts(fileset, facts).datasets[0].files
    assert (first.uuid, first.entries, first.size, first.generated) == ("7-1", 10, 5000, 40)
    assert (first.adler32, first.replicas) == ("01020304", files[0].replicas)
    assert second == files[1]
    assert fileset.datasets[0].files == files
    facts["tt", "/b.root"] = Facts("7-1", 10, 5000)
    with pytest.raises(FilesetError, match=r"/a\.root and /b\.root are the same file"):
        catalogue.with_facts(fileset, facts)


@pytest.mark.parametrize("name", ["agc.txt", "agc", "tt=19980"])
def test_what_would_not_be_known_again_is_not_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.json or \.yaml"):
        catalogue.save(Fileset.load("demo"), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
