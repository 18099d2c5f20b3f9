"""Bad input: one line that names the place and the way out, the right exit code, nothing whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hist
import nanoaod
import numpy as np
import pytest
import uproot
import yaml
from commandline import Called, agc
from places import ROOT

from agc_ml.results import run_record
from agc_ml.results.histogram_files import write_root


def fileset(folder: Path, *paths: Path, **changes: Any) -> Path:
    """A fileset of one dataset 'tt', with changes to it."""
    dataset = {
        "process": "ttbar",
        "xsec": {"value": 100, "source": "made up"},
        "files": [str(path) for path in paths],
        **changes,
    }
    dataset = {key: value for key, value in dataset.items() if value is not None}
    content = {
        "schema": 1,
        "luminosity": {"value": 1000, "source": "made up"},
        "datasets": {"tt": dataset},
    }
    path = folder / "fileset.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    return nanoaod.write(folder / "good.root", nanoaod.events(300, 1))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Called]:
    """Run a processor (ttbar) over a fileset; check that nothing looks complete if it fails."""

    def call(source: Path, *options: object, processor: str = "ttbar") -> Called:
        folder = tmp_path / "run"
        called = agc("run", processor, source, "--cluster", "inline", "-o", folder, *options)
        if called.code:
            assert not (folder / "histograms.root").exists()
            assert not (folder / "histograms.zip").exists()
            if (folder / "run.json").exists():
                assert run_record.load_record(folder).status in {"failed", "partial"}
        assert "Traceback" not in called.err
        return called

    return call


# -- routes and replicas -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replicas", "options", "code", "says"),
    [
        (
            "gopher://h/a.root",
            (),
            1,
            ("tt: gopher://h/a.root", "protocol gopher:// is not known here", "https"),
        ),
        ("http://no-such-host.invalid/a.root", (), 1, ("tt: http://no-", "name is not known")),
        ("root://no-such-host.invalid//a.root", (), 1, ("tt: root://no-", "name is not known")),
        (
            "{bad},http://no-such-host.invalid/a.root",
            ("--via", "https"),
            1,
            ("no replica can be", "{bad}"),
        ),
        ("{good}", ("--via", "xrootd"), 1, ("tt: good.root", "no replica for --via xrootd")),
        ("{good}", ("--via", "ftp=x"), 2, ("--via ftp=x: no such route", "xrootd[=URL]")),
        (
            "{good}",
            ("--via", "xcache"),
            2,
            ("--via xcache: name a cache", "xcache=root://HOST:PORT"),
        ),
        ("{good}", ("--via", "https=root://h"), 2, ("root://h should be http://HOST",)),
        ("{good}", ("--via", "servicex=no.yaml"), 2, ("servicex=no.yaml: there is no such file",)),
        ("{good}", ("--via", "servicex=http://127.0.0.1:9"), 1, ("127.0.0.1:9 can't be reached",)),
    ],
)
def test_ways_that_lead_nowhere(
    replicas: str,
    options: tuple[str, ...],
    code: int,
    says: tuple[str, ...],
    good: Path,
    tmp_path: Path,
    run: Callable[..., Called],
) -> None:
    places = {"good": str(good), "bad": str(tmp_path / "missing.root")}
    listed = {"lfn": "good.root", "replicas": replicas.format(**places).split(",")}
    called = run(fileset(tmp_path, files=[listed]), *options)
    assert called.code == code
    last = called.err.splitlines()[-1]
    for part in says:
        assert part.format(**places) in last


def test_replicas_of_two_files(good: Path, tmp_path: Path, run: Callable[..., Called]) -> None:
    other = nanoaod.write(tmp_path / "other.root", nanoaod.events(300, 2))
    listed = fileset(tmp_path, files=[{"lfn": "x.root", "replicas": [str(good), str(other)]}])
    checked = agc("fileset", "check", listed, "--cluster", "inline")
    assert checked.code == 1
    assert str(other) in checked.out + checked.err
    assert "that of its replica" in checked.out + checked.err
    with uproot.open(good) as file:
        uuid = str(file.file.uuid)
    known = {"lfn": "x.root", "replicas": [str(other)], "uuid": uuid}
    called = run(fileset(tmp_path, files=[known]))
    assert called.code == 1
    assert f"but the fileset says {uuid}; is it another file?" in called.err


# -- files -----------------------------------------------------------------------------------------


def make_missing(path: Path, good: Path) -> None:
    pass


def make_folder(path: Path, good: Path) -> None:
    path.mkdir()


def make_empty(path: Path, good: Path) -> None:
    path.touch()


def make_truncated(path: Path, good: Path) -> None:
    path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])


def make_slightly_truncated(path: Path, good: Path) -> None:
    path.write_bytes(good.read_bytes()[:-20])


def make_text(path: Path, good: Path) -> None:
    path.write_text("this is no ROOT file\n" * 100)


def make_other_tree(path: Path, good: Path) -> None:
    nanoaod.write(path, nanoaod.events(10, 1), tree="Ereignisse")


def make_histogram_named_events(path: Path, good: Path) -> None:
    with uproot.recreate(path) as file:
        file["Events"] = hist.Hist.new.Reg(3, 0, 1).Double()


def make_branch_missing(path: Path, good: Path) -> None:
    branches = nanoaod.events(10, 1)
    branches["Jet"] = branches["Jet"][["pt", "eta", "phi", "mass", "jetId"]]
    nanoaod.write(path, branches)


def make_weight_missing(path: Path, good: Path) -> None:
    branches = nanoaod.events(10, 1)
    del branches["genWeight"]
    nanoaod.write(path, branches)


def make_wrong_type(path: Path, good: Path) -> None:
    branches = nanoaod.events(10, 1)
    branches["Jet"] = branches["Jet"][["eta", "phi", "mass", "jetId", "btagCSVV2"]]
    branches["Jet_pt"] = np.full(10, 50, np.float32)
    nanoaod.write(path, branches)


def make_no_entries(path: Path, good: Path) -> None:
    nanoaod.write(path, nanoaod.events(0, 1))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (make_missing, ["No such file"]),
        (make_folder, ["folder"]),
        (make_empty, ["empty"]),
        (make_truncated, ["cut off"]),
        (make_slightly_truncated, ["cut off"]),
        (make_text, ["not a ROOT file"]),
        (make_other_tree, ["no tree 'Events'", "Ereignisse"]),
        (make_histogram_named_events, ["'Events' in it is not a tree"]),
        (make_branch_missing, ["Jet_btagCSVV2", "missing"]),
        (make_weight_missing, ["genWeight", "missing"]),
        (make_wrong_type, ["Jet_pt", "float", "a list of numbers"]),
        (make_no_entries, ["no events", "nor in any other"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_files(
    make: Callable[[Path, Path], None],
    says: list[str],
    tmp_path: Path,
    good: Path,
    run: Callable[..., Called],
) -> None:
    bad = tmp_path / "bad.root"
    make(bad, good)
    called = run(fileset(tmp_path, bad))
    assert called.code == 1
    assert "tt" in called.error
    assert "bad.root" in called.error
    for part in says:
        assert part in called.error
    assert not (tmp_path / "run").exists()  # nothing was begun


def test_bad_file_among_good_ones_is_missing_not_skipped(
    tmp_path: Path, good: Path, run: Callable[..., Called]
) -> None:
    bad = tmp_path / "bad.root"
    make_truncated(bad, good)
    called = run(fileset(tmp_path, good, bad))
    assert called.code == 1
    assert "bad.root" in called.error
    assert "--allow-missing 0.5" in called.error
    accepted = run(fileset(tmp_path, good, bad), "--resume", "--allow-missing", "0.5")
    assert accepted.code == 0
    assert "partial" in accepted.out
    assert "bad.root" in accepted.err
    assert run_record.load_record(tmp_path / "run").missing


def test_broken_in_the_middle_names_the_chunk(
    tmp_path: Path, good: Path, run: Callable[..., Called]
) -> None:
    bad = tmp_path / "bad.root"
    content = bytearray(good.read_bytes())
    start, stop = len(content) // 4, len(content) // 2
    content[start:stop] = bytes(stop - start)
    bad.write_bytes(content)
    called = run(fileset(tmp_path, bad))
    assert called.code == 1
    assert "bad.root [0, 300)" in called.error


# -- filesets --------------------------------------------------------------------------------------


def test_the_same_file_twice(tmp_path: Path, good: Path, run: Callable[..., Called]) -> None:
    called = run(fileset(tmp_path, good, good))
    assert called.code == 1
    assert "listed twice" in called.error
    assert "tt" in called.error
    assert "fileset.json" in called.error


def test_the_same_file_under_two_names(
    tmp_path: Path, good: Path, run: Callable[..., Called]
) -> None:
    copy = shutil.copy(good, tmp_path / "copy.root")
    called = run(fileset(tmp_path, good, Path(copy)))
    assert called.code == 1
    assert "same file (UUID" in called.error
    assert "good.root" in called.error
    assert "copy.root" in called.error


def test_the_same_file_in_two_datasets_is_a_warning(
    tmp_path: Path, good: Path, run: Callable[..., Called]
) -> None:
    path = fileset(tmp_path, good)
    content = json.loads(path.read_text())
    content["datasets"]["other"] = {**content["datasets"]["tt"], "process": "wjets"}
    path.write_text(json.dumps(content))
    called = run(path)
    assert called.code == 0
    assert "the same file is in 2 datasets" in called.err
    assert "the same file is in 2 datasets" in run_record.load_record(tmp_path / "run").warnings[0]


def test_the_same_file_in_two_datasets_that_add_up(
    tmp_path: Path, good: Path, run: Callable[..., Called]
) -> None:
    path = fileset(tmp_path, good)
    content = json.loads(path.read_text())
    copy = str(shutil.copy(good, tmp_path / "copy.root"))
    content["datasets"]["other"] = {**content["datasets"]["tt"], "files": [copy]}
    path.write_text(json.dumps(content))
    called = run(path)
    assert called.code == 1
    assert f"dataset other: {copy} and {good} of dataset tt are the same file" in called.error
    content["datasets"]["other"]["files"] = [str(good)]
    path.write_text(json.dumps(content))
    called = run(path)
    assert called.code == 1
    assert f"{good} in dataset tt and {good} in dataset other are the same file" in called.error


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"crosssection": 3}, ["tt -> crosssection", "unknown field"]),
        ({"xsec": {"value": -3, "source": "x"}}, ["tt -> xsec -> value", "greater than 0", "-3"]),
        ({"xsec": {"value": 3}}, ["tt -> xsec -> source", "required"]),
        ({"files": []}, ["tt -> files", "at least 1"]),
        ({"files": [{"replicas": ["a.root"], "entires": 3}]}, ["files -> 0 -> entires", "unknown"]),
        ({"process": None}, ["tt -> process", "required"]),
        ({"files": ["$NO_SUCH_VARIABLE/a.root"]}, ["dataset tt", "$NO_SUCH_VARIABLE is not set"]),
        ({"xsec": None}, ["dataset tt", "no xsec", "pb"]),
        ({"files": [{"replicas": ["GOOD"], "entries": 7}]}, ["entries is 300", "says 7"]),
        ({"files": [{"replicas": ["GOOD"], "uuid": "0-1"}]}, ["uuid is", "says 0-1"]),
    ],
)
def test_bad_filesets(
    changes: dict[str, Any],
    says: list[str],
    tmp_path: Path,
    good: Path,
    run: Callable[..., Called],
) -> None:
    path = fileset(tmp_path, good, **changes)
    path.write_text(path.read_text().replace("GOOD", str(good)))
    called = run(path)
    assert called.code == 1
    for part in says:
        assert part in called.error


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "can't be read as json"),
        ("[1, 2]", "should be a mapping"),
        ('{"schema": 2, "datasets": {}}', "schema"),
        ('{"a": 3}', "not a fileset"),
        ('{"tt": ["a.root"], "tt": ["b.root"]}', "'tt' is there twice"),
        (
            '{"zjets": {"nominal": {"files": [{"path": "a.root", "nevts": 3}]}}}',
            "process 'zjets' is unknown",
        ),
        (
            '{"ttbar": {"nominal": {"files": [{"path": "a.root", "nevts": -3}]}}}',
            "ttbar -> nominal -> files -> 0 -> nevts",
        ),
        ('{"tt": {"files": ["a.root"], "color": 3}}', "tt -> color: unknown field"),
    ],
)
def test_files_that_are_no_fileset(
    text: str, says: str, tmp_path: Path, run: Callable[..., Called]
) -> None:
    path = tmp_path / "fileset.json"
    path.write_text(text)
    called = run(path)
    assert called.code == 1
    assert "fileset.json" in called.error
    assert says in called.error


# -- usage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "ttbarr", "GOOD"], "no processor 'ttbarr'; installed are dimuon, jet_assign"),
        (["run", "no.such.module:P", "GOOD"], "no module or file no.such.module"),
        (["run", "nanoaod:Nothing", "GOOD"], "no processor class or function 'Nothing'"),
        (["run", "ttbar", "nothere.json"], "nothere.json: no such file or folder"),
        (["run", "ttbar", "EMPTY"], "no *.root files in that folder"),
        (["run", "ttbar", "GOOD", "--dataset", "tt", "--set", "sed=3"], "compat, muons, seed"),
        (["run", "ttbar", "GOOD", "--set", "model=x"], "give a model with --model"),
        (["run", "dimuon", "GOOD", "--model", "x.onnx"], "--model: dimuon takes no model"),
        (["run", "ttbar", "GOOD", "--set", "seed"], "FIELD=VALUE is needed"),
        (["run", "ttbar", "GOOD", "--set", "seed=x"], "--set seed=x"),
        (["run", "ttbar", "GOOD", "--datasets", "w*"], "no dataset matches 'w*'; there are: good"),
        (["run", "ttbar", "GOOD", "--cluster", "nowhere"], "no site 'nowhere'"),
        (["run", "ttbar", "GOOD", "--cluster", "tcp://127.0.0.1:1", "--workers", "2"], "--workers"),
        (["run", "ttbar", "GOOD", "--allow-missing", "1.5"], "--allow-missing 1.5"),
        (["run", "ttbar", "GOOD", "--chunk-size", "0"], "--chunk-size"),
        (["run", "ttbar", "GOOD", "-o", "GOOD"], "a file is in the way"),
        (["run", "ttbar", "GOOD", "-o", "FOLDER"], "there is something in it"),
        (["run", "ttbar", "GOOD", "-o", "FOLDER", "--overwrite"], "not a run directory"),
        (["run", "ttbar", "GOOD", "--nonsense"], "--nonsense'. (see agc-ml run --help)"),
        (["fileset", "show", "GOOD.json"], "no such file or folder"),
        (["compare", "nothere", "GOOD"], "nothere: no such file or folder"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str, tmp_path: Path, good: Path) -> None:
    (tmp_path / "empty").mkdir()
    places = {"GOOD": good, "EMPTY": tmp_path / "empty", "FOLDER": good.parent}
    words: list[object] = [places.get(word, word) for word in arguments]
    if arguments[0] == "run" and "-o" not in arguments:
        words += ["-o", tmp_path / "run"]
    if arguments[0] == "run" and "--cluster" not in arguments:
        words += ["--cluster", "inline"]
    called = agc(*words)
    assert called.code == 2, called
    assert says in called.error
    assert not (tmp_path / "run").exists()
    assert good.exists()


def test_no_scheduler_there(tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agc_ml.execution.cluster.clusters._CONNECT_TIMEOUT", "1s")
    called = agc("run", "ttbar", good, "--cluster", "tcp://127.0.0.1:1", "-o", tmp_path / "run")
    assert called.code == 1
    assert "tcp://127.0.0.1:1: no scheduler answers" in called.error


def test_other_chunk_size_on_resume(tmp_path: Path, good: Path, run: Callable[..., Called]) -> None:
    path = fileset(tmp_path, good, tmp_path / "missing.root")
    assert run(path, "--chunk-size", 100).code == 1
    again = run(path, "--chunk-size", 50, "--resume")
    assert again.code == 2
    assert "--chunk-size 100" in again.error


@pytest.mark.parametrize(
    ("processor", "says"),
    [
        ("Strange", "process() returned NoneType; return a dictionary"),
        ("Spectrum", "no such working point"),
    ],
)
def test_bad_processors(
    processor: str, says: str, tmp_path: Path, good: Path, run: Callable[..., Called]
) -> None:
    settings = ["--set", "fault=raise", "--set", "where=good", "--set", "entry=250"]
    called = run(
        *(fileset(tmp_path, good), "--chunk-size", 100),
        *(settings if processor == "Spectrum" else []),
        processor=f"faulty:{processor}",
    )
    assert called.code == 1
    assert says in called.error
    assert "good.root [" in called.error
    assert "-v" in called.error


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nothing_of_that_name\n", "No module named 'nothing_of_that_name'"),
        ("class Processor\n", "SyntaxError"),
        ("raise RuntimeError('not today')\n", "not today"),
    ],
)
def test_bad_processor_files(
    text: str, says: str, tmp_path: Path, good: Path, run: Callable[..., Called]
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    called = run(fileset(tmp_path, good), processor=f"{path}:Processor")
    assert called.code == 1
    assert "mine.py" in called.error
    assert says in called.error


# -- run directories -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, good: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    path = fileset(folder, good)
    assert agc("run", "ttbar", path, "--cluster", "inline", "-o", folder / "run").code == 0
    return folder / "run"


def newer(folder: Path) -> None:
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**content, "schema": 99}))


def cut_record(folder: Path) -> None:
    text = (folder / "run.json").read_text()
    (folder / "run.json").write_text(text[: len(text) // 2])


def cut_histograms(folder: Path) -> None:
    content = (folder / "histograms.zip").read_bytes()
    (folder / "histograms.zip").write_bytes(content[: len(content) // 2])


def cut_ledger(folder: Path) -> None:
    text = (folder / "ledger.jsonl").read_text()
    (folder / "ledger.jsonl").write_text(text[: len(text) - 30])


def odd_field(folder: Path) -> None:
    content = json.loads((folder / "run.json").read_text())
    content["metrics"]["evnts"] = 3
    (folder / "run.json").write_text(json.dumps(content))


def no_record(folder: Path) -> None:
    (folder / "run.json").unlink()


@pytest.mark.parametrize("command", ["validate", "show", "fit", "report", "compare"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (newer, "schema 99"),
        (cut_record, "run.json"),
        (cut_histograms, "histograms.zip"),
        (cut_ledger, "ledger.jsonl: line 1"),
        (odd_field, "metrics.evnts"),
        (no_record, "not a run directory"),
    ],
)
def test_damaged_run_directories(
    damage: Callable[[Path], None], says: str, command: str, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    damage(folder)
    arguments = [command, folder, *([finished] if command == "compare" else [])]
    called = agc(*arguments)
    if command == "show" and damage in {cut_histograms, cut_ledger}:
        assert called.code == 0  # show needs neither
        return
    assert called.code == 1
    text = called.out if command == "validate" else called.error
    assert says in text
    assert "Traceback" not in called.err


@pytest.mark.parametrize(
    ("command", "name"),
    [("validate", "run.json"), ("show", "run.json"), ("validate", "outputs.npz")],
)
def test_run_directories_that_can_not_be_read(
    command: str, name: str, finished: Path, tmp_path: Path
) -> None:
    """Replacing it would be no help, and destroy what there is."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    called = agc(command, folder)
    text = called.out if command == "validate" else called.error
    assert called.code == 1
    assert f"{name}: can't be read (Is a directory)" in " ".join(text.split())
    assert "--overwrite" not in text


@pytest.mark.parametrize(
    "command",
    [
        *("validate {}", "show {}", "plot {}", "fit {}", "report {}", "compare {} ."),
        *("fileset list {}", "fileset from-record tt={} o.json", "run dimuon demo -o {}"),
    ],
)
def test_names_that_are_too_long(command: str) -> None:
    """As of all that a system refuses, and files without permission: one line that names it."""
    name = "x" * 300
    called = agc(*command.format(name).split())
    text = called.out if command.startswith("validate") else called.error
    assert called.code in {1, 2}
    assert name in text.replace("\n", "")
    assert "ile name too long" in text.replace("\n", "")
    assert "unexpected" not in text


def test_complete_run_of_another_processor_is_not_taken_for_this_one(
    finished: Path, tmp_path: Path, good: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = fileset(tmp_path, good)
    same = agc("run", "ttbar", path, "--cluster", "inline", "-o", folder, "--resume")
    assert same.code == 0
    other = agc(
        *("run", "ttbar", path, "--cluster", "inline", "-o", folder, "--resume"),
        *("--set", "compat=true"),
    )
    assert other.code == 2
    assert "another processor, parameters or fileset" in other.error


# -- fits ------------------------------------------------------------------------------------------


def template(values: float = 10.0) -> hist.Hist[Any]:
    made = hist.Hist.new.Reg(25, 50, 550, name="observable").Weight()
    view = made.view(flow=True)
    view["value"], view["variance"] = values, values
    return made


def all_templates() -> dict[str, hist.Hist[Any]]:
    single_top = [f"single_top_{channel}" for channel in ("s_chan", "t_chan", "tW")]
    common = ["pt_scale_up", "pt_res_up"] + [
        f"btag_var_{i}_{direction}" for i in range(4) for direction in ("up", "down")
    ]
    names = []
    for region in ("4j1b", "4j2b"):
        for process in ("ttbar", "wjets", *single_top):
            own = {
                "ttbar": ["ME_var", "PS_var", "scaleup", "scaledown"],
                "wjets": ["scale_var_up", "scale_var_down"],
            }.get(process, [])
            names += [f"{region}_{process}"]
            names += [f"{region}_{process}_{variation}" for variation in (*common, *own)]
    return {name: template() for name in names}


def with_nan(templates: dict[str, Any]) -> None:
    templates["4j2b_wjets"].view(flow=True)["value"][5] = np.nan


def without_variation(templates: dict[str, Any]) -> None:
    del templates["4j2b_ttbar_scaleup"]


def without_pseudodata_input(templates: dict[str, Any]) -> None:
    del templates["4j1b_ttbar_PS_var"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (with_nan, ["4j2b_wjets"]),
        (without_variation, ["4j2b_ttbar_scaleup"]),
        (without_pseudodata_input, ["4j1b_ttbar_PS_var"]),
    ],
)
def test_bad_histograms(
    damage: Callable[[dict[str, Any]], None], says: list[str], tmp_path: Path
) -> None:
    templates = all_templates()
    damage(templates)
    write_root(tmp_path / "h.root", templates)
    called = agc("fit", tmp_path / "h.root", "-o", tmp_path / "fit")
    assert called.code == 1
    for part in says:
        assert part in called.error
    assert not (tmp_path / "fit" / "fit.json").exists()


def unknown_region(config: dict[str, Any]) -> None:
    config["Regions"][0]["RegionPath"] = "9j9b"


def unknown_field(config: dict[str, Any]) -> None:
    config["Regions"][0]["Colour"] = "red"


def other_bins(config: dict[str, Any]) -> None:
    config["Regions"][0]["Binning"] = [110, 155, 550]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (unknown_region, ["9j9b"]),
        (unknown_field, ["Colour"]),
        (other_bins, ["155"]),
    ],
)
def test_bad_fit_configurations(
    damage: Callable[[dict[str, Any]], None], says: list[str], tmp_path: Path
) -> None:
    config = yaml.safe_load((ROOT / "processors/ttbar/fit.yml").read_text())
    damage(config)
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(config))
    write_root(tmp_path / "h.root", all_templates())
    called = agc("fit", tmp_path / "h.root", path, "-o", tmp_path / "fit")
    assert called.code == 1
    for part in says:
        assert part in called.error


def test_fit_of_a_file_needs_a_folder(tmp_path: Path) -> None:
    write_root(tmp_path / "h.root", all_templates())
    called = agc("fit", tmp_path / "h.root")
    assert called.code == 2
    assert "-o DIR" in called.error


# -- disks -----------------------------------------------------------------------------------------


def test_folder_that_can_not_be_written(tmp_path: Path, good: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    path = fileset(tmp_path, good)
    called = agc("run", "ttbar", path, "--cluster", "inline", "-o", blocked / "run")
    assert called.code == 1
    assert f"{blocked / 'run'}: can't be written" in called.error


@pytest.mark.parametrize("tiny_disk", ["24k"], indirect=True)
def test_full_disk(tmp_path: Path, tiny_disk: Path, good: Path) -> None:
    path = fileset(tmp_path, good)
    called = agc(
        *("run", "ttbar", path, "--cluster", "inline", "--chunk-size", 20),
        *("-o", tiny_disk / "run"),
    )
    assert called.code == 1
    assert str(tiny_disk / "run") in called.error
    assert "No space left on device" in called.error
    assert "Traceback" not in called.err
    assert not (tiny_disk / "run" / "histograms.root").exists()
    left = tiny_disk / "run" / "run.json"
    if left.exists():
        assert run_record.load_record(tiny_disk / "run").status != "complete"
