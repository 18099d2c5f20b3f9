"""What runs promise beyond surviving faults: outputs, accounts, directories."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import awkward as ak
import hist
import nanoaod
import numpy as np
import pytest
from coffea.processor import ProcessorABC
from commandline import agc as command

import agc_ml as agc
from agc_ml.errors import IncompleteError, InputFileError, ProcessorError, UsageError
from agc_ml.execution import rounds
from agc_ml.results import run_directories, templates, variances


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nanoaod.write(tmp_path_factory.mktemp("data") / "a.root", nanoaod.events(100, 1))


def processor(make: Any, **attributes: Any) -> ProcessorABC:
    """A processor whose ``process`` is a function."""
    members = {"process": lambda self, events: make(events), **attributes}
    return type("Made", (ProcessorABC,), members)()


def run(make: Any, path: Path, folder: Path, **options: Any) -> agc.RunResult:
    made = make if hasattr(make, "process") else processor(make)
    options = {"site": "inline", "quiet": True, "chunk_size": 10, **options}
    return agc.run(made, nanoaod.fileset(tt=[path]), output=folder, **options)


# -- outputs ---------------------------------------------------------------------------------------


def test_odd_histograms_come_through(path: Path, tmp_path: Path) -> None:
    def make(events: Any) -> dict[str, Any]:
        n = len(events)
        labels = hist.Hist.new.StrCat([], growth=True, name="cut").Int64()
        labels.fill(cut=["all"] * n)
        counts = hist.Hist.new.Reg(5, 0, 5, name="n").Int64().fill(n=np.arange(n) % 5)
        unnamed = hist.Hist(hist.axis.StrCategory(["x"]), hist.axis.Regular(2, 0, 1))
        unnamed.fill(["x"] * n, np.full(n, 0.2))
        plain = hist.Hist.new.Reg(2, 0, 1, name="o").StrCat(["tt"], name="process")
        plain = plain.StrCat(["nominal"], name="variation").Double()
        plain.fill(o=np.full(n, 0.7), process="tt", variation="nominal")
        large = hist.Hist.new.Reg(2, 0, 1).Reg(2, 0, 1).Reg(2, 0, 1).Reg(2, 0, 1).Double()
        return {
            "labels": labels, "counts": counts, "unnamed": unnamed, "plain": plain, "large": large,
            "array": np.arange(3), "number": 1,
        }  # fmt: skip

    result = run(make, path, tmp_path)
    loaded = agc.RunResult.load(tmp_path)
    assert set(loaded.hists) == {"labels", "counts", "unnamed", "plain", "large"}
    assert set(loaded.templates) == {"labels", "counts", "unnamed_x", "plain_tt", "large"}
    assert loaded.templates["counts"].sum() == 100
    assert loaded.yields()["plain"]["tt"].value == 100
    for outputs in (result.outputs, loaded.outputs):
        assert outputs["number"] == 10
        np.testing.assert_array_equal(outputs["array"], np.arange(3) * 10)


def test_means_are_not_scaled_as_yields(path: Path, tmp_path: Path) -> None:
    def make(events: Any) -> dict[str, Any]:
        mean = hist.Hist.new.Reg(1, 0, 1, name="x").Mean()
        mean.fill(x=np.full(len(events), 0.5), sample=np.full(len(events), 7.0))
        count = hist.Hist.new.Reg(1, 0, 1, name="x").Weight().fill(x=np.full(len(events), 0.5))
        return {"mean": mean, "count": count, "sumw": len(events)}

    result = run(make, path, tmp_path)
    assert result.templates["mean"].values()[0] == pytest.approx(7)
    assert result.templates["count"].values()[0] == pytest.approx(100 * 1000)


@pytest.mark.parametrize("storage", [hist.storage.Double, hist.storage.Int64])
@pytest.mark.parametrize(("weight", "sumw"), [(None, None), (100, None), (None, 100)])
def test_variances_are_known_or_not_wherever_a_run_is_read(
    storage: Any, weight: float | None, sumw: float | None, path: Path, tmp_path: Path
) -> None:
    """Ten chunks of counts stay counts; weighted or scaled ones are unknown, not their contents."""

    def make(events: Any) -> dict[str, Any]:
        axes = hist.axis.Regular(2, 0, 1, name="o"), hist.axis.StrCategory(["tt"], name="process")
        more = hist.axis.StrCategory(["nominal"], name="variation")
        made = hist.Hist(*axes, more, storage=storage())
        made.fill(np.full(len(events), 0.7), "tt", "nominal", weight=weight)
        return {"h": made, **({} if sumw is None else {"sumw": sumw})}

    result = run(make, path, tmp_path / "run")
    (tmp_path / "copy.root").write_bytes((tmp_path / "run" / "histograms.root").read_bytes())
    again = agc.RunResult.load(tmp_path / "run")
    copied = templates.load(tmp_path / "copy.root")
    known = [100.0] if weight is None and sumw is None else None
    for found in (result.templates["h_tt"], again.templates["h_tt"], copied["h_tt"]):
        spread = variances.of(found)
        assert (None if spread is None else [spread[1]]) == known
    for found in (result, again):
        ((yielded,),) = (regions.values() for regions in found.yields().values())
        assert yielded.variance == (None if known is None else 100)
    assert templates.compare(again.templates, copied) == []
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["yields"]["h"]["tt"]["variance"] == (None if known is None else 100)
    shown = command("show", tmp_path / "run").out
    assert ("keeps no variances" in shown) == (known is None)
    compared = command("compare", tmp_path / "run", tmp_path / "copy.root")
    assert compared.code == 0
    assert ("variances are unknown in both" in compared.out) == (known is None)
    assert ("± ?" in again._repr_html_()) == (known is None)


def test_lost_categories_are_told(path: Path, tmp_path: Path) -> None:
    def make(events: Any) -> dict[str, Any]:
        made = hist.Hist.new.StrCat(["a"], name="channel").Reg(2, 0, 1, name="o").Weight()
        return {"h": made.fill(["a", "b"], [0.7, 0.7])}

    result = run(make, path, tmp_path)
    line = next(w for w in result.warnings if "in no template" in w)
    assert "histogram h: 10 of 20 entries" in line
    assert line in agc.RunResult.load(tmp_path).warnings


def test_means_have_no_yields(path: Path, tmp_path: Path) -> None:
    def make(events: Any) -> dict[str, Any]:
        axes = hist.axis.StrCategory(["tt"], name="process"), hist.axis.Regular(2, 0, 1, name="o")
        more = hist.axis.StrCategory(["nominal"], name="variation")
        made = hist.Hist(*axes, more, storage=hist.storage.Mean())
        return {"h": made.fill("tt", [0.7], "nominal", sample=[5])}

    assert run(make, path, tmp_path).yields() == {}
    assert command("compare", tmp_path, tmp_path / "histograms.root").code == 0
    refused = command("plot", tmp_path)
    assert refused.code == 1
    assert "none of its histograms (h) can be drawn" in refused.err


def test_postprocess_may_change_histograms(path: Path, tmp_path: Path) -> None:
    def make(events: Any) -> dict[str, Any]:
        made = hist.Hist.new.Reg(2, 0, 1, name="o").StrCat([], growth=True, name="process").Weight()
        return {"h": made.fill(o=np.full(len(events), 0.7), process="tt")}

    made = processor(make, postprocess=lambda self, total: {"h": total["h"].project("o")})
    result = run(made, path, tmp_path)
    assert list(result.templates) == ["h"]
    assert agc.RunResult.load(tmp_path).templates["h"].sum().value == 100


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ({"sumw": {"tt": float("inf")}}, "'sumw' is inf"),
        ({"sumw": float("nan")}, "'sumw' is nan"),
        ({"warnings": "careful"}, "'warnings' must be a list"),
        (None, "process() returned NoneType"),
    ],
)
def test_bad_outputs_are_told_in_their_chunk(
    output: Any, says: str, path: Path, tmp_path: Path
) -> None:
    with pytest.raises(ProcessorError) as caught:
        run(lambda _: output, path, tmp_path / "run")
    assert says in str(caught.value)
    assert "a.root [0, 10)" in str(caught.value)


def test_nan_is_told_in_its_chunk(path: Path, tmp_path: Path) -> None:
    def make(events: Any) -> dict[str, Any]:
        weight = np.where(np.asarray(events.event) % 100 == 57, np.nan, 1.0)
        return {"h": hist.Hist.new.Reg(1, 0, 1).Weight().fill(np.full(10, 0.5), weight=weight)}

    with pytest.raises(ProcessorError, match=r"a\.root \[50, 60\).*histogram h holds NaN"):
        run(make, path, tmp_path / "run")


def test_exit_in_a_processor_is_an_error(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ProcessorError, match="SystemExit"):
        run(lambda _: sys.exit(0), path, tmp_path / "run")
    script = tmp_path / "script.py"
    script.write_text("import sys\nsys.exit(0)\n")
    called = command("run", f"{script}:P", path, "--cluster", "inline", "-o", tmp_path / "other")
    assert called.code == 1
    assert "SystemExit" in called.error


def test_missing_table_of_the_processor_is_not_blamed_on_the_input(
    path: Path, tmp_path: Path
) -> None:
    with pytest.raises(ProcessorError, match="FileNotFoundError"):
        run(lambda _: {"n": len(Path("/nowhere/table").read_text())}, path, tmp_path / "run")


# -- columns ---------------------------------------------------------------------------------------


def test_columns_of_all_kinds(tmp_path: Path) -> None:
    branches = nanoaod.events(20, 1)
    branches["MET_pt"] = np.full(20, 3.0, np.float32)
    branches["MET_phi"] = np.full(20, 0.1, np.float32)
    branches["HLT_Mu17"] = np.ones(20, bool)
    branches["PSWeight"] = ak.Array([[1.0, 2.0]] * 20)
    path = nanoaod.write(tmp_path / "met.root", branches)
    columns = (
        "MET_pt",
        "MET_phi",
        "HLT_Mu17",
        "PSWeight",
        "Jet_pt",
        "Jet_eta",
        "Jet_phi",
        "Jet_mass",
    )
    made = processor(lambda events: {"met": float(ak.sum(events.MET.pt))}, columns=columns)
    assert run(made, path, tmp_path / "run").outputs["met"] == 60


@pytest.mark.parametrize("columns", ["Jet_pt", (3,)])
def test_columns_must_be_names(columns: Any, path: Path, tmp_path: Path) -> None:
    with pytest.raises(ProcessorError, match="a tuple of branch names"):
        run(processor(lambda _: {}, columns=columns), path, tmp_path / "run")


def test_no_columns_means_all(path: Path, tmp_path: Path) -> None:
    made = processor(lambda events: {"n": len(events.Jet)}, columns=None)
    assert run(made, path, tmp_path / "run").outputs["n"] == 100


# -- accounts --------------------------------------------------------------------------------------


def test_exactly_what_is_allowed_may_be_missing(path: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.root"
    dataset = nanoaod.dataset("tt", [path])
    lost = replace(dataset.files[0], lfn=str(missing), replicas=(str(missing),), entries=25)
    fileset = agc.Fileset((replace(dataset, files=(*dataset.files, lost)),), 1000.0)
    made = processor(lambda events: {"n": len(events)})
    options = {"site": "inline", "output": tmp_path / "run", "quiet": True}
    with pytest.raises(IncompleteError, match=r"--allow-missing 0\.2 \(tt lacks 20\.00%\)"):
        agc.run(made, fileset, allow_missing=0.19, **options)
    result = agc.run(made, fileset, allow_missing=0.2, resume=True, **options)
    assert (result.status, result.outputs["n"]) == ("partial", 100)


def test_empty_and_unreadable_file(tmp_path: Path) -> None:
    empty = nanoaod.write(tmp_path / "empty.root", nanoaod.events(0, 1))
    fileset = nanoaod.fileset(tt=[empty, tmp_path / "nothing.root"])
    with pytest.raises(IncompleteError, match=r"nothing\.root"):
        agc.run(
            *(processor(lambda events: {"n": 1}), fileset),
            site="inline",
            output=tmp_path / "run",
            quiet=True,
        )


def test_resumed_chunks_are_no_retries(path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"

    def make(events: Any) -> dict[str, Any]:
        if broken.exists() and events.metadata["entrystart"] == 50:
            raise ValueError("broken")
        return {"n": len(events)}

    broken.touch()
    made = processor(make)
    with pytest.raises(ProcessorError):
        run(made, path, tmp_path / "run")
    broken.unlink()
    result = run(made, path, tmp_path / "run", resume=True)
    assert result.outputs["n"] == 100
    assert [entry.attempts for entry in result.ledger.entries] == [1] * 5 + [2] + [1] * 4
    assert result.metrics.retries == 1
    assert result.metrics.events == 100


def test_one_sample_in_two_datasets_is_a_warning(path: Path, tmp_path: Path) -> None:
    other = nanoaod.write(tmp_path / "b.root", nanoaod.events(100, 2))
    datasets = [nanoaod.dataset(n, [p], process="tt") for n, p in (("tt", path), ("ext", other))]
    result = agc.run(
        processor(lambda events: {"n": len(events)}),
        agc.Fileset(tuple(datasets), 1.0),
        site="inline",
        output=tmp_path / "run",
        quiet=True,
    )
    assert any("tt and ext are all tt with 100 pb" in warning for warning in result.warnings)


def test_sum_of_weights_that_can_not_normalise(tmp_path: Path, path: Path) -> None:
    with pytest.raises(InputFileError, match="sum of generator weights is -100"):
        run(lambda events: {"sumw": -float(len(events))}, path, tmp_path / "run")


# -- directories -----------------------------------------------------------------------------------


def count(events: Any) -> dict[str, Any]:
    return {"n": len(events)}


def test_results_of_before_do_not_stay(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(count, path, folder)
    (folder / "figures").mkdir()
    for name in ("figures/old.png", "report.html", "histograms.root"):
        (folder / name).touch()
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**content, "status": "partial"}))
    run(count, path, folder, resume=True)
    assert {p.name for p in folder.iterdir()} == {"run.json", "ledger.jsonl"}


def test_one_owner_at_a_time(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another agc-ml is at work"):
            run(count, path, folder)
    assert run(count, path, folder).status == "complete"


def test_default_directories_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    names = {run_directories.new_folder("some/where.py:Mine").name for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("Mine-2") for name in names)


def test_resume_and_overwrite_exclude_each_other(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose one"):
        run(count, path, tmp_path / "run", resume=True, overwrite=True)


def test_linked_directory_is_cleared_not_replaced(path: Path, tmp_path: Path) -> None:
    run(count, path, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    run(count, path, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "run.json").exists()


# -- odd places ------------------------------------------------------------------------------------


def test_name_with_brackets(tmp_path: Path) -> None:
    path = nanoaod.write(tmp_path / "x[1].root", nanoaod.events(20, 1))
    result = agc.run(*(processor(count), path), site="inline", output=tmp_path / "run", quiet=True)
    assert result.outputs["n"] == 20


def test_names_of_folders_that_look_like_secrets(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / f"sig={i}" / "a.root" for i in (1, 2)]
    for seed, place in enumerate(places, 2):
        place.parent.mkdir()
        nanoaod.write(place, nanoaod.events(20, seed))
    monkeypatch.setattr(rounds, "file_label", lambda *_: "as of URLs without their signature")
    result = agc.run(*(processor(count), tmp_path), site="inline", output=path.parent / "run")
    assert result.outputs["n"] == 40
    assert [entry.url for entry in result.ledger.entries] == [str(place) for place in places]


def test_reader_that_has_seen_enough(path: Path, tmp_path: Path) -> None:
    run(count, path, tmp_path / "run")
    show = subprocess.run(
        f"{sys.executable} -m agc_ml show {tmp_path / 'run'} | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in show.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"tt": {"files": {"a.root": {"object_path": "Events", "steps": [[0, 10]]}}}}, "steps"),
        ({"tt": {"files": ["a.root"], "metadata": {"is_data": "false"}}}, "is_data"),
        ({"tt": {"files": ["a.root"], "metadata": {"xsec": True}}}, "xsec"),
        ({"tt": {"files": ["a.root"], "metadata": [1]}}, "metadata"),
        ({"tt": {"files": ["a.root"], "metadata": {"luminosity": [1]}}}, "luminosity"),
    ],
)
def test_odd_coffea_filesets(content: Any, says: str, tmp_path: Path) -> None:
    source = tmp_path / "fileset.json"
    source.write_text(json.dumps(content))
    called = command("fileset", "show", source)
    assert called.code == 1
    assert says in called.error


def test_yaml_names_must_be_text(tmp_path: Path) -> None:
    source = tmp_path / "fileset.yaml"
    source.write_text("2016: [a.root]\n")
    called = command("fileset", "show", source)
    assert called.code == 1
    assert "a mapping of names" in called.error


@pytest.mark.parametrize("name", ["~nouser/x.root", "x" * 300])
def test_impossible_paths(name: str) -> None:
    assert command("fileset", "show", name).code == 2
