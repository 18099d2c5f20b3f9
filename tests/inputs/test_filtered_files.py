"""Files that hold a part of what was generated: normalised to all of it."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import hist
import nanoaod
import numpy as np
import pytest
import uproot
from commandline import agc
from hypothesis import assume, given
from hypothesis import strategies as st

import agc_ml
from agc_ml.errors import FilesetError, InputFileError
from agc_ml.execution import normalisation
from agc_ml.execution.inspection import FileInfo
from agc_ml.execution.processor.outputs import BOTH, COUNTS, WEIGHTS, kind_of_sum
from agc_ml.execution.state.checkpoints import Chunk, Receipt
from agc_ml.inputs import loading
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset
from agc_ml.results.run_result import RunResult

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
    loading.save(Fileset((dataset,), LUMINOSITY, "made up"), folder / name)
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
    assert not any("skimmed files with" in line for line in result.warnings)


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
        ("top", lfn): FileInfo(entries, lfn, 1, 1, None, generated, generated_sumw=generated / 2)
        for lfn, entries, generated in (("a", 40, 400), ("b", 10, 1000), ("none", 0, 500))
    }
    dataset = Dataset(
        "top", process="top", files=tuple(File(lfn, replicas=(lfn,)) for _, lfn in files)
    )
    for done, of_events, of_weights in (
        (chunks, 1900, 1900 / 2),
        (chunks[1:], 200 + 1000 + 500, (200 + 1000 + 500) / 2),
        (chunks[1:2], 200 + 500, (200 + 500) / 2),
    ):
        for sums, expected in (("events", of_events), ("weights", of_weights)):
            receipts = {
                c: Receipt(c.events, "", 0, 0, 0, 0, 0, 0, sumw=c.events, sums=sums) for c in done
            }
            account: Any = SimpleNamespace(
                files=files, chunks=chunks, done=receipts, rules_nevts=False
            )
            part = {"sumw": sum(chunk.events for chunk in done)}
            assert normalisation.generated(account, dataset, part) == pytest.approx(expected)


def test_the_files_own_numbers_count_where_none_are_stated(
    folder: Path, spectrum: Path, tmp_path: Path, numbers: dict[str, Any]
) -> None:
    result = run(merged(folder, {}), spectrum, tmp_path / "run")
    entries, generated = (
        sum(numbers[name][key] for name in NAMES) for key in ("entries", "generated")
    )
    assert total(result) == pytest.approx(XSEC * LUMINOSITY * entries / generated, rel=1e-12)
    (told,) = [line for line in result.warnings if "skimmed files with" in line]
    assert f": skimmed files with {entries:,} of {generated:,} generated events" in told


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


SIGNED = {
    # how a processor sums, and what its histogram is, of 229 events that 1000 generated ones with
    # a sum of weights of 500 left (weights are 1, -1 and, in a few, 3)
    "weights": ("w.sum()", "weights"),
    "weights in single precision": ("np.sum(events.genWeight)", "weights"),
    "weights by dataset": ("{events.metadata['dataset']: w.sum()}", "weights"),
    "events": ("len(events)", "events"),
    "events as numpy counts": ("np.count_nonzero(w)", "events"),
    "signs": ("np.sign(w).sum()", "refused"),
    "clipped": ("np.clip(w, -1, 1).sum()", "refused"),
    "absolute": ("np.abs(w).sum()", "refused"),
    "half of it": ("w.sum() / 2", "refused"),
}


def filtered(
    path: Path,
    tree: str,
    runs: str,
    n: int = 229,
    *,
    counts: tuple[int, ...] = (600, 400),
    sumw: bool = True,
    within: str = "",
) -> tuple[Path, float]:
    """A file that a filter made, with Runs as a TTree or an RNTuple; and the sum of its weights.

    ``counts`` are the generated events of each run: half of that is the sum of their weights.
    """
    rng = np.random.default_rng(n)
    weights = rng.choice([1.0, 1.0, 1.0, -1.0, 3.0], n).astype(np.float32)
    columns = {
        "run": np.ones(n, np.uint32),
        "luminosityBlock": np.ones(n, np.uint32),
        "event": np.arange(n, dtype=np.uint64),
        "genWeight": weights,
    }
    told = {
        "run": np.arange(len(counts), dtype=np.uint32),
        "genEventCount": np.array(counts, np.int64),
    }
    if sumw:
        told["genEventSumw"] = np.array(counts) / 2
    with uproot.recreate(path) as file:
        for leaf, content, kind in (("Events", columns, tree), ("Runs", told, runs)):
            name = f"{within}{leaf}"
            if kind == "RNTuple":
                file.mkrntuple(name, content)
            elif kind == "TTree":
                made = file.mktree(name, {key: values.dtype for key, values in content.items()})
                made.extend(content)
    return path, float(weights.astype(float).sum())


def summing(folder: Path, how: str, more: str = "") -> Path:
    path = folder / "summing.py"
    path.write_text(
        "import hist, numpy as np\n"
        "from coffea.processor import ProcessorABC\n"
        "class Counting(ProcessorABC):\n"
        f"    {more or 'pass'}\n"
        "    def process(self, events):\n"
        "        w = np.asarray(events.genWeight, float)\n"
        "        h = hist.Hist.new.Reg(1, 0, 1, name='x').Weight()\n"
        f"        return {{'n': h.fill(w * 0, weight=w), 'sumw': {how}}}\n"
    )
    return path


def normalised(how: str, folder: Path, *files: File, **options: Any) -> RunResult:
    """A run over one dataset, with a processor that sums as it is told."""
    dataset = Dataset("tt", "tt", files, xsec=XSEC, xsec_source="made up")
    fileset = Fileset((dataset,), LUMINOSITY, "made up")
    options = {"site": "inline", "quiet": True, "output": folder / "run", **options}
    return agc_ml.run(f"{summing(folder, how)}:Counting", fileset, **options)


@pytest.mark.parametrize("how", SIGNED)
def test_sums_go_with_what_they_are_of(how: str, tmp_path: Path) -> None:
    path, weights = filtered(tmp_path / "x.root", "TTree", "TTree")
    code, expected = SIGNED[how]
    content = {
        "tt": {"files": {str(path): "Events"}, "metadata": {"xsec": XSEC, "luminosity": LUMINOSITY}}
    }
    fileset = tmp_path / "fileset.json"
    fileset.write_text(json.dumps(content))
    processor = summing(tmp_path, code)
    if expected == "refused":
        called = agc(
            "run", f"{processor}:Counting", fileset, "--cluster", "inline", "-o", tmp_path / "run"
        )
        assert called.code == 1
        assert "neither their number nor the sum of genWeight" in called.error
        assert "return one of the two as 'sumw'" in called.error
        return
    result = run(fileset, processor, tmp_path / "run")
    generated = 1000 if expected == "events" else 500
    assert total(result) == pytest.approx(weights * XSEC * LUMINOSITY / generated, rel=1e-12)
    (told,) = [line for line in result.warnings if "skimmed files with 229 of 1,000" in line]
    assert ("genEventSumw" in told) == (expected == "weights")


@pytest.mark.parametrize(
    ("how", "generated"),
    [
        ("w.sum()", 500),
        ("len(events)", 1000),
        ("500.0 * (events.metadata['entrystart'] == 0)", 500),
        ("1000 * (events.metadata['entrystart'] == 0)", 1000),
        ("np.sign(w).sum()", None),
    ],
)
def test_a_stated_number_of_events_is_none_of_weights(
    how: str, generated: int | None, tmp_path: Path
) -> None:
    path, weights = filtered(tmp_path / "x.root", "TTree", "TTree")
    file = File("x", (str(path),), generated=1000)
    if generated is None:
        with pytest.raises(InputFileError, match="neither their number nor the sum of genWeight"):
            normalised(how, tmp_path, file, chunk_size=50)
        return
    result = normalised(how, tmp_path, file, chunk_size=50)
    assert total(result) == pytest.approx(weights * XSEC * LUMINOSITY / generated, rel=1e-12)
    factor = XSEC * LUMINOSITY / generated
    assert any(line.endswith(f"(before postprocess): tt by {factor:g}") for line in result.warnings)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 900)), min_size=1, max_size=3),
    st.sampled_from(["generated", "generated_sumw"]),
    st.data(),
)
def test_whole_sums_of_files_are_taken_as_such(
    chunks_and_dropped: list[tuple[int, int]], which: str, data: st.DataObject
) -> None:
    """From a processor that looks into Runs itself, and states all of a file in its first chunk."""
    files, chunks, receipts = {}, [], {}
    for i, (n_chunks, dropped) in enumerate(chunks_and_dropped):
        entries = 10 * n_chunks
        info = FileInfo(
            *(entries, f"{i}", 1, 1, None, entries + dropped), generated_sumw=entries / 3 + dropped
        )
        files["top", f"{i}"] = info
        for start in range(0, entries, 10):
            chunk = Chunk("top", f"{i}", "Events", f"{i}", entries, start, start + 10)
            whole = 0.0 if start else float(getattr(info, which))
            chunks.append(chunk)
            receipts[chunk] = Receipt(10, "", 0, 0, 0, 0, 0, 0, sumw=whole)
    done = {
        chunk: receipt
        for chunk, receipt in receipts.items()
        if chunk.start == 0 or data.draw(st.booleans())
    }
    dataset = Dataset(
        "top", process="top", files=tuple(File(lfn, replicas=(lfn,)) for _, lfn in files)
    )
    account: Any = SimpleNamespace(files=files, chunks=chunks, done=done, rules_nevts=False)
    expected = sum(
        getattr(files["top", chunk.lfn], which) * chunk.events / chunk.entries for chunk in done
    )
    part = {"sumw": sum(receipt.sumw for receipt in done.values())}
    assert normalisation.generated(account, dataset, part) == pytest.approx(expected)


@pytest.mark.parametrize(("stated", "factor"), [(None, 1), (100, 1), (400, 4), (50, 0)])
def test_the_filesets_nevts_of_a_dataset_rules_where_it_is_wanted(
    stated: int | None, factor: int, tmp_path: Path
) -> None:
    path = nanoaod.write(tmp_path / "x.root", nanoaod.events(100, 3))
    metadata = {} if stated is None else {"nevts": stated}
    dataset = Dataset(
        *("tt", "tt", (File("x", (str(path),)),)),
        xsec=XSEC,
        xsec_source="made up",
        metadata=metadata,
    )
    fileset = Fileset((dataset,), LUMINOSITY, "made up")
    options = {"site": "inline", "quiet": True, "chunk_size": 30}

    def analysis(events: Any) -> dict[str, Any]:
        h = hist.Hist.new.Reg(1, 0, 1, name="x").Weight().fill(np.zeros(len(events)))
        return {"n": h, "sumw": len(events)}

    for wants in (True, False):
        analysis.normalised_to = "nevts" if wants else ""  # type: ignore[attr-defined]
        output = tmp_path / f"{wants}"
        if wants and not factor:
            with pytest.raises(InputFileError, match="nevts is 50, but its files have 100 events"):
                agc_ml.run(analysis, fileset, output=output, **options)
            continue
        result = agc_ml.run(analysis, fileset, output=output, **options)
        assert total(result) * (factor if wants else 1) == pytest.approx(XSEC * LUMINOSITY)
        told = [line for line in result.warnings if "number of generated events" in line]
        assert bool(told) == (stated != 100 and not (wants and stated))
        assert any("in the fileset" in line for line in told) == (stated is None)


@pytest.mark.parametrize("runs", ["TTree", "RNTuple", "none"])
@pytest.mark.parametrize("tree", ["TTree", "RNTuple"])
def test_runs_are_looked_at_in_either_form(tree: str, runs: str, tmp_path: Path) -> None:
    path, weights = filtered(tmp_path / "x.root", tree, runs)
    dataset = Dataset("tt", "tt", (File("x", (str(path),)),), xsec=XSEC, xsec_source="made up")
    loading.save(Fileset((dataset,), LUMINOSITY, "made up"), tmp_path / "f.json")
    result = run(tmp_path / "f.json", summing(tmp_path, "w.sum()"), tmp_path / "run")
    generated = weights if runs == "none" else 500
    assert total(result) == pytest.approx(weights * XSEC * LUMINOSITY / generated, rel=1e-12)
    assert any("no number of generated events" in w for w in result.warnings) == (runs == "none")


def test_without_a_sum_of_all_weights_dropped_events_are_like_the_kept(tmp_path: Path) -> None:
    path, weights = filtered(tmp_path / "x.root", "TTree", "TTree", sumw=False)
    dataset = Dataset("tt", "tt", (File("x", (str(path),)),), xsec=XSEC, xsec_source="made up")
    loading.save(Fileset((dataset,), LUMINOSITY, "made up"), tmp_path / "f.json")
    result = run(tmp_path / "f.json", summing(tmp_path, "w.sum()"), tmp_path / "run")
    assert total(result) == pytest.approx(XSEC * LUMINOSITY * 229 / 1000, rel=1e-12)
    assert any("with the weights of the kept events" in w for w in result.warnings)
    assert weights


def test_files_with_and_without_a_filter_add_up(tmp_path: Path) -> None:
    paths, sums = zip(
        *(filtered(tmp_path / f"{kind}.root", "TTree", kind, 50) for kind in ("TTree", "none")),
        strict=True,
    )
    files = tuple(File(path.name, (str(path),)) for path in paths)
    dataset = Dataset("tt", "tt", files, xsec=XSEC, xsec_source="made up")
    loading.save(Fileset((dataset,), LUMINOSITY, "made up"), tmp_path / "f.json")
    result = run(tmp_path / "f.json", summing(tmp_path, "w.sum()"), tmp_path / "run")
    expected = sum(sums) * XSEC * LUMINOSITY / (500 + sums[1])
    assert total(result) == pytest.approx(expected, rel=1e-12)
    assert any("in 1 of 2 files" in line for line in result.warnings)


@pytest.mark.parametrize("stated", [None, 500])
@pytest.mark.parametrize("how", ["w.sum()", "len(events)", "np.sign(w).sum()"])
def test_files_of_which_nothing_was_kept_beside_whole_ones(
    how: str, stated: int | None, tmp_path: Path
) -> None:
    """The whole one tells what the processor's sums are of."""
    rng = np.random.default_rng(3)
    weights = rng.choice([1.0, -1.0, 3.0], 100).astype(np.float32)
    columns = {
        "run": np.ones(100, np.uint32),
        "luminosityBlock": np.ones(100, np.uint32),
        "event": np.arange(100, dtype=np.uint64),
        "genWeight": weights,
    }
    sumw = float(weights.sum())
    with uproot.recreate(tmp_path / "whole.root") as file:
        for name, content in (
            ("Events", columns),
            ("Runs", {"genEventCount": np.array([100]), "genEventSumw": np.array([sumw])}),
        ):
            tree = file.mktree(name, {key: values.dtype for key, values in content.items()})
            tree.extend(content)
    filtered(tmp_path / "none.root", "TTree", "TTree", 0, counts=(500,))
    files = (
        File("whole", (str(tmp_path / "whole.root"),)),
        File("none", (str(tmp_path / "none.root"),), generated=stated),
    )
    if "sign" in how:
        with pytest.raises(InputFileError, match="neither their number nor the sum of genWeight"):
            normalised(how, tmp_path, *files, chunk_size=30)
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        assert record["status"] == "partial"
        return
    result = normalised(how, tmp_path, *files, chunk_size=30)
    generated = 100 + 500 if "len" in how else sumw + 250
    assert total(result) == pytest.approx(sumw * XSEC * LUMINOSITY / generated, rel=1e-6)
    assert any("skimmed files with 0 of 500" in w for w in result.warnings) == (stated is None)


def test_dropped_events_of_which_only_the_number_is_stated(tmp_path: Path) -> None:
    """Of a file with no Runs, beside one that knows the sum of its weights."""
    path, weights = filtered(tmp_path / "x.root", "TTree", "TTree")
    none, _ = filtered(tmp_path / "none.root", "TTree", "none", 0)
    files = (File("x", (str(path),)), File("none", (str(none),), generated=300))
    for how, generated in (("w.sum()", 500 + 300 / 2), ("len(events)", 1000 + 300)):
        result = normalised(how, tmp_path, *files, output=tmp_path / how)
        assert total(result) == pytest.approx(weights * XSEC * LUMINOSITY / generated, rel=1e-12)


@pytest.mark.parametrize("chunk_size", [50, 1000])
@pytest.mark.parametrize("sumw", [True, False])
def test_a_whole_sum_is_extended_once(sumw: bool, chunk_size: int, tmp_path: Path) -> None:
    """Of a file whose generated events are stated too, in one chunk as in many."""
    path, weights = filtered(tmp_path / "x.root", "TTree", "TTree", sumw=sumw)
    file = File("x", (str(path),), generated=1000)
    how = "1000 * (events.metadata['entrystart'] == 0)"
    result = normalised(how, tmp_path, file, chunk_size=chunk_size)
    assert total(result) == pytest.approx(weights * XSEC * LUMINOSITY / 1000, rel=1e-12)


class Made(NamedTuple):
    """A file of a sample: the weights of what was kept, by chunk, and of what was dropped."""

    runs: bool
    stated: bool
    kept: list[list[float]]
    dropped: list[float]
    done: list[bool]


WEIGHT = st.sampled_from([1.0, -1.0, 3.0])


@st.composite
def made(draw: st.DrawFn) -> Made:
    kept = draw(st.lists(st.lists(WEIGHT, min_size=1, max_size=5), max_size=3))
    runs, stated = draw(st.sampled_from([(True, False), (True, True), (False, False)]))
    dropped = draw(st.lists(WEIGHT, max_size=9)) if runs else []
    return Made(runs, stated, kept, dropped, [draw(st.booleans()) for _ in kept])


@given(st.lists(made(), min_size=1, max_size=4), st.booleans())
def test_what_was_generated_is_found_whatever_files_say(files: list[Made], counts: bool) -> None:
    """A chunk stands for its part of what its file was made of; what was not kept counts too."""
    listed, infos, chunks, done, truth = [], {}, [], {}, 0.0

    def of(weights: list[float]) -> float:
        return float(len(weights) if counts else sum(weights))

    for lfn, one in zip("abcd", files, strict=False):
        kept = [weight for part in one.kept for weight in part]
        generated, sumw = len(kept + one.dropped), sum(kept + one.dropped)
        assume(not (one.stated and sumw == generated))  # taken for weights that are all 1
        listed.append(File(lfn, (lfn,), generated=generated if one.stated else None))
        infos["d", lfn] = FileInfo(
            *(len(kept), lfn, 1, 1, None, generated if one.runs and generated else None),
            generated_sumw=sumw if one.runs and generated else None,
        )
        truth += 0 if kept else of(one.dropped)
        start = 0
        for part, is_done in zip(one.kept, one.done, strict=True):
            chunk = Chunk("d", lfn, "Events", lfn, len(kept), start, start + len(part))
            start = chunk.stop
            chunks.append((chunk, part, is_done))
            if is_done:
                is_filtered = bool(one.dropped)
                whole = of(kept + one.dropped) * len(part) / len(kept)
                truth += whole if is_filtered else of(part)
    dataset = Dataset("d", "d", tuple(listed))
    account: Any = SimpleNamespace(
        files=infos,
        chunks=[chunk for chunk, _, _ in chunks],
        done=done,
        rules_nevts=False,
        is_scaled=True,
        with_empty_files={"d"} if any(not one.kept and one.dropped for one in files) else set(),
        file=lambda chunk: next(file for file in listed if file.lfn == chunk.lfn),
    )
    for chunk, part, is_done in chunks:
        if is_done:
            doubtful = normalisation.doubtful(account, dataset, chunk)
            is_asked = doubtful is None or of(part) in doubtful
            sums = kind_of_sum(of(part), len(part), part) if is_asked else ""
            done[chunk] = Receipt(len(part), "", 0, 0, 0, 0, 0, 0, sumw=of(part), sums=sums)
    filtered = {lfn for lfn, one in zip("abcd", files, strict=False) if one.dropped}
    known = {c: receipt.sums for c, receipt in done.items() if receipt.sums}
    kinds = {sums for c, sums in known.items() if c.lfn in filtered} or {*known.values()}
    if not done or truth <= 0.01 or kinds == {BOTH}:  # which may be meant as either
        return
    part = {"sumw": sum(receipt.sumw for receipt in done.values())}
    assert normalisation.generated(account, dataset, part) == pytest.approx(truth)


@pytest.mark.parametrize("missing", ["a 0", "b 0", "b 10"])
def test_whole_sums_of_files_with_a_chunk_missing(missing: str) -> None:
    """One file is a chunk, the other two, of which the first one has the sum."""
    dataset = Dataset("top", "top", tuple(File(lfn, (lfn,)) for lfn in "ab"))
    files = {
        ("top", lfn): FileInfo(n, lfn, 1, 1, None, n, generated_sumw=n / 2)
        for lfn, n in (("a", 10), ("b", 20))
    }
    whole = {"a 0": 5.0, "b 0": 10.0, "b 10": 0.0}
    chunks = {
        key: Chunk("top", key[0], "Events", key[0], 10 if key[0] == "a" else 20, begin, begin + 10)
        for key in whole
        for begin in [int(key[2:])]
    }
    done = {
        chunks[key]: Receipt(10, "", 0, 0, 0, 0, 0, 0, sumw=sumw)
        for key, sumw in whole.items()
        if key != missing
    }
    account: Any = SimpleNamespace(
        files=files, chunks=list(chunks.values()), done=done, rules_nevts=False
    )
    part = {"sumw": sum(receipt.sumw or 0 for receipt in done.values())}
    assert normalisation.generated(account, dataset, part) == pytest.approx(10.0)


def test_runs_beside_events_in_a_folder(tmp_path: Path) -> None:
    path, weights = filtered(tmp_path / "x.root", "TTree", "TTree", within="ntuple/")
    file = File("x", (str(path),), tree="ntuple/Events")
    result = normalised("w.sum()", tmp_path, file)
    assert total(result) == pytest.approx(weights * XSEC * LUMINOSITY / 500, rel=1e-12)


@pytest.mark.parametrize("counts", [(), (0,), (100, 100)])
@pytest.mark.parametrize("stated", [None, 1000])
def test_runs_that_know_of_fewer_events_than_there_are_say_nothing(
    counts: tuple[int, ...], stated: int | None, tmp_path: Path
) -> None:
    path, weights = filtered(tmp_path / "x.root", "TTree", "TTree", counts=counts)
    result = normalised("len(events)", tmp_path, File("x", (str(path),), generated=stated))
    expected = weights * XSEC * LUMINOSITY / (stated or 229)
    assert total(result) == pytest.approx(expected, rel=1e-12)
    told = any("no number of generated events in its files" in w for w in result.warnings)
    assert told == (stated is None)


def test_a_stated_number_below_that_of_the_entries(tmp_path: Path) -> None:
    path, _ = filtered(tmp_path / "x.root", "TTree", "none")
    with pytest.raises(InputFileError, match="it has 229 events, but the fileset states only 100"):
        normalised("len(events)", tmp_path, File("x", (str(path),), generated=100))


def test_a_processor_may_have_the_filesets_number_rule(tmp_path: Path) -> None:
    path, weights = filtered(tmp_path / "x.root", "TTree", "TTree")
    file = File("x", (str(path),), entries=229)
    dataset = Dataset("tt", "tt", (file,), xsec=XSEC, xsec_source="made up")
    loading.save(Fileset((dataset,), LUMINOSITY, "made up"), tmp_path / "f.json")
    processor = summing(tmp_path, "len(events)", "normalised_to = 'nevts'")
    result = run(tmp_path / "f.json", processor, tmp_path / "run")
    assert total(result) == pytest.approx(weights * XSEC * LUMINOSITY / 229, rel=1e-12)
    assert any("its files state 1,000 generated events" in line for line in result.warnings)


def test_compat_has_the_filesets_nevts_rule(tmp_path: Path) -> None:
    """As the reference does, whatever a skim's Runs say; by default they may."""
    plain = nanoaod.write(tmp_path / "plain.root", nanoaod.events(100, 3))
    skim = tmp_path / "skim.root"
    shutil.copy(plain, skim)
    with uproot.update(skim) as file:
        told = {"run": np.array([1], np.uint32), "genEventCount": np.array([45_927], np.int64)}
        runs = file.mktree("Runs", {name: values.dtype for name, values in told.items()})
        runs.extend(told)
    found = {}
    for path, compat in itertools.product((plain, skim), ("true", "false")):
        listed = {"ttbar": {"nominal": {"files": [{"path": str(path), "nevts": 100}]}}}
        fileset = tmp_path / f"{path.stem}.json"
        fileset.write_text(json.dumps(listed))
        folder = tmp_path / f"{path.stem}-{compat}"
        called = agc(
            *("run", "ttbar", fileset, "--cluster", "inline", "-o", folder),
            *("--set", f"compat={compat}"),
        )
        assert called.code == 0, called.err
        found[path.stem, compat] = RunResult.load(folder)
    assert len(found["skim", "true"].templates) == 22
    for name, template in found["plain", "true"].templates.items():
        same = found["skim", "true"].templates[name].view(flow=True)
        assert np.array_equal(template.view(flow=True), same)
    assert any(
        "its files state 45,927 generated" in line for line in found["skim", "true"].warnings
    )
    ours, all_of_them = (found[name, "false"].templates["4j1b_ttbar"] for name in ("skim", "plain"))
    assert np.allclose(ours.values() * 459.27, all_of_them.values(), rtol=1e-12)
    assert any(
        "skimmed files with 100 of 45,927" in line for line in found["skim", "false"].warnings
    )


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30))
def test_kinds_of_sums(weights: list[float]) -> None:
    values, n = np.array(weights, np.float32), len(weights)
    exact = values.astype(float).sum()
    assert kind_of_sum(float(values.sum()), n, values) in {WEIGHTS, BOTH, COUNTS}
    assert kind_of_sum(n, n, values) == (BOTH if exact == n else COUNTS)
    assert kind_of_sum(n, n, None) == COUNTS
    off = exact + 0.01 * np.abs(values).sum() + 0.01
    if off != n:
        assert kind_of_sum(off, n, values) == ""
    assert kind_of_sum(n + 0.5, n, None) == ""


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
