"""Files that hold a part of what was generated: normalised to all of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nanoaod
import pytest
from commandline import agc

from agc_ml import catalogue, reduction
from agc_ml.checkpoints import Chunk
from agc_ml.datasets import Dataset, File, Fileset
from agc_ml.errors import FilesetError
from agc_ml.inspection import FileInfo
from agc_ml.results import RunResult

XSEC, LUMINOSITY = 10.0, 1000.0
NAMES = ("ttbar__nominal.root", "single_top_tW__nominal.root")


@pytest.fixture(scope="module")
def spectrum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A processor that counts events in a weighted histogram."""
    path = tmp_path_factory.mktemp("processor") / "counting.py"
    path.write_text(
        "import hist, numpy as np\n"
        "from coffea.processor import ProcessorABC\n"
        "class Counting(ProcessorABC):\n"
        "    columns = ('genWeight',)\n"
        "    def process(self, events):\n"
        "        w = np.asarray(events.genWeight, float)\n"
        "        h = hist.Hist.new.Reg(1, 0, 1, name='x').Weight()\n"
        "        return {'n': h.fill(w * 0, weight=w), 'sumw': float(w.sum())}\n"
    )
    return path


def merged(folder: Path, stated: dict[str, int | None], name: str = "fileset.json") -> Path:
    """One dataset of two files, with the numbers of generated events that are stated."""
    files = tuple(
        File(lfn=file, replicas=(str(folder / file),), generated=stated.get(file)) for file in NAMES
    )
    dataset = Dataset("top", process="top", xsec=XSEC, xsec_source="made up", files=files)
    catalogue.save(Fileset((dataset,), LUMINOSITY, "made up"), folder / name)
    return folder / name


@pytest.fixture
def folder(generated_set: Path, tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    for name in NAMES:
        shutil.copy(generated_set / name, made)
    return made


@pytest.fixture(scope="module")
def numbers(generated_set: Path) -> dict[str, Any]:
    """Entries and generated events of the files."""
    manifest = json.loads((generated_set / "manifest.json").read_text())
    files = [file for d in manifest["datasets"].values() for file in d["files"]]
    return {file["name"]: file for file in files if file["name"] in NAMES}


def run(fileset: Path, processor: Path, output: Path, *more: str) -> RunResult:
    called = agc(
        *("run", f"{processor}:Counting", fileset, "--cluster", "inline", "-o", output),
        *("--chunk-size", "20", *more),
    )
    assert called.code == 0, called.err
    return RunResult.load(output)


def total(result: RunResult) -> float:
    return float(result.hists["n"].values(flow=True).sum())


def test_all_generated_events_count(
    folder: Path, spectrum: Path, tmp_path: Path, numbers: dict[str, Any]
) -> None:
    generated = {name: numbers[name]["generated"] for name in NAMES}
    result = run(merged(folder, generated), spectrum, tmp_path / "run")
    entries = sum(numbers[name]["entries"] for name in NAMES)
    expected = XSEC * LUMINOSITY * entries / sum(generated.values())
    assert total(result) == pytest.approx(expected, rel=1e-12)
    assert not any("a filter kept" in line for line in result.warnings)


def test_with_a_part_missing_each_file_counts_as_it_was_filtered(
    folder: Path, spectrum: Path, tmp_path: Path, numbers: dict[str, Any]
) -> None:
    generated = {name: numbers[name]["generated"] for name in NAMES}
    fileset = merged(folder, generated)
    (folder / NAMES[1]).unlink()
    result = run(fileset, spectrum, tmp_path / "run", "--allow-missing", "0.6")
    first = numbers[NAMES[0]]
    expected = XSEC * LUMINOSITY * first["entries"] / first["generated"]
    assert total(result) == pytest.approx(expected, rel=1e-12)
    assert result.status == "partial"


def test_with_a_chunk_missing_the_others_stand_for_their_part() -> None:
    chunks = [
        Chunk("top", "a", "Events", "a", 40, 0, 20),
        Chunk("top", "a", "Events", "a", 40, 20, 40),
        Chunk("top", "b", "Events", "b", 10, 0, 10),
    ]
    files = {
        ("top", lfn): FileInfo(entries, lfn, 1, 1, None, generated)
        for lfn, entries, generated in (("a", 40, 400), ("b", 10, 1000), ("none", 0, 500))
    }
    dataset = Dataset(
        "top", process="top", files=tuple(File(lfn, replicas=(lfn,)) for _, lfn in files)
    )
    for done, efficiency in (
        (chunks, 50 / 1900),
        (chunks[1:], 30 / (200 + 1000 + 500)),
        (chunks[1:2], 20 / (200 + 500)),
    ):
        account: Any = SimpleNamespace(files=files, chunks=chunks, done=set(done))
        assert reduction._filter_efficiency(account, dataset) == pytest.approx(efficiency)


def test_the_files_own_numbers_count_where_none_are_stated(
    folder: Path, spectrum: Path, tmp_path: Path, numbers: dict[str, Any]
) -> None:
    result = run(merged(folder, {}), spectrum, tmp_path / "run")
    entries, generated = (
        sum(numbers[name][key] for name in NAMES) for key in ("entries", "generated")
    )
    assert total(result) == pytest.approx(XSEC * LUMINOSITY * entries / generated, rel=1e-12)
    (told,) = [line for line in result.warnings if "a filter kept" in line]
    assert f": a filter kept {entries:,} of {generated:,} generated events" in told


def test_a_file_of_which_nothing_was_kept_counts(
    folder: Path, spectrum: Path, tmp_path: Path, numbers: dict[str, Any]
) -> None:
    branches = nanoaod.events(3, seed=1)
    nanoaod.write(folder / NAMES[1], {name: values[:0] for name, values in branches.items()})
    generated = numbers[NAMES[0]]["generated"]
    fileset = merged(folder, {NAMES[0]: generated, NAMES[1]: 1000})
    result = run(fileset, spectrum, tmp_path / "run")
    entries = numbers[NAMES[0]]["entries"]
    expected = XSEC * LUMINOSITY * entries / (generated + 1000)
    assert total(result) == pytest.approx(expected, rel=1e-12)


def test_a_number_that_is_not_the_files(folder: Path, spectrum: Path, tmp_path: Path) -> None:
    fileset = merged(folder, {NAMES[0]: 123_456})
    called = agc(
        *("run", f"{spectrum}:Counting", fileset, "--cluster", "inline"), "-o", tmp_path / "run"
    )
    assert called.code == 1
    assert "its generated is" in called.error
    assert "the fileset says 123456" in called.error


def test_fewer_generated_than_entries() -> None:
    file = File(lfn="a", replicas=("a",), entries=10, generated=9)
    with pytest.raises(FilesetError, match="10 entries, but states only 9 generated events"):
        Dataset("d", process="p", files=(file,))


def test_numbers_to_normalise_to(generated_set: Path) -> None:
    fileset = Fileset.load(str(generated_set / "fileset.json"))
    dataset = fileset.datasets[0]
    assert dataset.n_events == 70
    assert fileset.metadata(dataset)["nevts"] == dataset.n_generated > 300
    plain = Dataset("d", process="p", files=(File("a", ("a",), entries=5), File("b", ("b",))))
    assert plain.n_generated is None


def test_generated_events_are_part_of_the_digest(generated_set: Path, tmp_path: Path) -> None:
    path = generated_set / "fileset.json"
    content = json.loads(path.read_text())
    before = Fileset.load(str(path)).digest
    content["datasets"]["ttbar__nominal"]["files"][0]["generated"] += 1
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert Fileset.load(str(tmp_path / "other.json")).digest != before
