"""The commands as people type them."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import click
import nanoaod
import pytest
import uproot
from commandline import agc
from places import ROOT
from rich.console import Console

from agc_ml.cli.main import cli
from agc_ml.inputs import loading
from agc_ml.inputs.fileset import Fileset
from agc_ml.results.run_result import RunResult


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files, a fileset of them, and a run."""
    folder = tmp_path_factory.mktemp("cli")
    paths = [nanoaod.write(folder / f"{i}.root", nanoaod.events(200, i)) for i in (1, 2)]
    fileset = nanoaod.fileset(
        ttbar=paths, wjets=[nanoaod.write(folder / "w.root", nanoaod.events(99, 5))]
    )
    loading.save(fileset, folder / "fileset.yaml")
    called = agc(
        *("run", "ttbar", folder / "fileset.yaml", "--cluster", "inline"),
        *("--chunk-size", "100", "-o", folder / "run"),
    )
    assert called.code == 0, called.err
    return folder


def commands(group: click.Group = cli, prefix: str = "") -> list[list[str]]:
    found = []
    for name, command in group.commands.items():
        words = [*prefix.split(), name]
        found.append(words)
        if isinstance(command, click.Group):
            found += commands(command, " ".join(words))
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_help_teaches(words: list[str]) -> None:
    called = agc(*words, "--help")
    assert called.code == 0
    assert len(called.out.splitlines()[2].strip()) > 20
    if words != ["fileset"]:
        assert "Example: agc-ml " + " ".join(words) in " ".join(called.out.split())


@pytest.mark.parametrize("words", [[], ["fileset"], ["service"]], ids=str)
def test_groups_alone_print_their_help(words: list[str]) -> None:
    alone, asked = agc(*words), agc(*words, "--help")
    assert (alone.code, alone.out) == (2, "")
    assert alone.err == asked.out


def test_names_that_look_like_emoji(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps({":smile:": ["a.root"], ":x:": [":smile:.root"]}))
    called = agc("fileset", "show", tmp_path / "f.json")
    assert called.out.count(":smile:") == 4


def test_run_says_three_things(folder: Path, tmp_path: Path) -> None:
    called = agc(
        *("run", "ttbar", folder / "fileset.yaml", "--cluster", "inline"),
        *("--datasets", "tt*", "--max-files", "1", "-o", tmp_path / "run"),
    )
    assert called.code == 0
    assert re.fullmatch(
        r"complete: 200 events in 1 chunks, .* s, .* events/s\n"
        r"22 histograms; nothing is missing, nothing counted twice\n"
        r"look at it with: agc-ml show .*/run\n",
        called.out,
    )
    assert "run directory: " in called.err
    assert "1/1 chunks, 200/200 events" in called.err


def test_quiet_is_quiet(folder: Path, tmp_path: Path) -> None:
    called = agc(
        *("run", "ttbar", folder / "fileset.yaml", "--cluster", "inline", "-q"),
        *("-o", tmp_path / "run"),
    )
    assert (called.code, called.err) == (0, "")


def test_plan(folder: Path) -> None:
    arguments = [
        "plan",
        "ttbar",
        folder / "fileset.yaml",
        "--cluster",
        "inline",
        "--chunk-size",
        150,
    ]
    called = agc(*arguments)
    assert called.code == 0
    assert "499 events in 5 chunks of at most 150" in called.out
    assert "Jet_btagCSVV2" in called.out
    facts = json.loads(agc(*arguments, "--json").out)
    assert [d["chunks"] for d in facts["datasets"]] == [4, 1]
    assert all(d["bytes"] > 0 for d in facts["datasets"])


def test_show(folder: Path) -> None:
    called = agc("show", folder / "run")
    assert called.code == 0
    for part in ("status: complete", "4j2b", "all events", "events_per_s", "uproot"):
        assert part in called.out
    facts = json.loads(agc("show", folder / "run", "--json").out)
    result = RunResult.load(folder / "run")
    assert facts == json.loads(result.record().model_dump_json(by_alias=True))
    assert facts["metrics"]["events"] == 499


def test_compare(folder: Path, tmp_path: Path) -> None:
    same = agc("compare", folder / "run", folder / "run" / "histograms.root")
    assert (same.code, same.out) == (0, "48 histograms in both, 0 differences\n")
    agc(
        *("run", "ttbar", folder / "fileset.yaml", "--cluster", "inline", "-o", tmp_path / "run"),
        *("--set", "compat=true"),
    )
    other = agc("compare", folder / "run", tmp_path / "run")
    assert other.code == 1
    assert "contents differ" in other.out
    facts = json.loads(agc("compare", folder / "run", tmp_path / "run", "--json").out)
    assert len(facts) > 10


def test_validate(folder: Path) -> None:
    config = ROOT / "processors" / "ttbar" / "fit.yml"
    good = agc(
        "validate", folder / "fileset.yaml", folder / "run", config, folder / "run/histograms.root"
    )
    assert good.code == 0, good.out
    kinds = [line.rsplit(": ", 1)[0].split(": ")[-1] for line in good.out.splitlines()]
    assert kinds == [
        "fileset, good",
        "run directory, good",
        "fit configuration, good",
        "histograms, good",
    ]
    bad = agc("validate", folder / "fileset.yaml", folder / "nothing", "--json")
    assert bad.code == 1
    assert [verdict["problem"] is None for verdict in json.loads(bad.out)] == [True, False]


def test_fileset_commands(folder: Path, tmp_path: Path) -> None:
    assert "fileset.yaml" in agc("fileset", "list", folder).out
    shown = json.loads(agc("fileset", "show", folder / "fileset.yaml", "--json").out)
    assert [d["files"] for d in shown["datasets"]] == [2, 1]
    target = tmp_path / "other.json"
    assert agc("fileset", "convert", folder / "fileset.yaml", target).code == 0
    again = json.loads(agc("fileset", "show", target, "--json").out)
    assert again["digest"] == shown["digest"]


def test_fileset_check(folder: Path, tmp_path: Path) -> None:
    arguments = ["--cluster", "inline", "--processor", "ttbar"]
    good = agc("fileset", "check", folder / "fileset.yaml", *arguments)
    assert (good.code, good.out) == (0, "all 3 files are good, 499 events\n")
    (tmp_path / "broken.root").write_bytes((folder / "1.root").read_bytes()[:5000])
    (tmp_path / "copy.root").write_bytes((folder / "1.root").read_bytes())
    (tmp_path / "whole.root").write_bytes((folder / "1.root").read_bytes())
    bad = agc("fileset", "check", tmp_path, *arguments, "--json")
    assert bad.code == 1
    problems = {Path(file["url"]).name: file["problem"] for file in json.loads(bad.out)}
    assert "cut off" in problems["broken.root"]
    assert problems["copy.root"] is None
    assert "the same file as" in problems["whole.root"]


def test_fileset_check_writes_back(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "checked.yaml"
    arguments = ["fileset", "check", folder / "fileset.yaml", "--cluster", "inline"]
    called = agc(*arguments, "--write", target)
    assert called.code == 0
    assert called.err.splitlines() == ["3/3 files", f"written: {target}"]
    checked = Fileset.load(target)
    for dataset in checked.datasets:
        for file in dataset.files:
            assert file.size == Path(file.url).stat().st_size
            assert file.uuid
    assert [dataset.n_events for dataset in checked.datasets] == [400, 99]
    again = agc("fileset", "check", target, "--cluster", "inline", "--json", "--write", target)
    assert (again.code, again.err) == (0, f"written: {target}\n")
    assert Fileset.load(target) == checked
    quiet = agc("fileset", "check", target, "--cluster", "inline", "-q")
    assert (quiet.code, quiet.err) == (0, "")


def test_fileset_check_shows_a_bar_on_a_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = partial(Console, force_terminal=True, width=100)
    monkeypatch.setattr("rich.console.Console", terminal)
    arguments = ["fileset", "check", folder / "fileset.yaml", "--cluster", "inline"]
    called = agc(*arguments)
    assert called.code == 0
    assert "3/3 files" in called.err
    assert "events" not in called.err
    assert agc(*arguments, "--json").err == ""


def test_fileset_check_writes_nothing_if_a_file_is_bad(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "good.root").write_bytes((folder / "1.root").read_bytes())
    (tmp_path / "broken.root").write_bytes((folder / "2.root").read_bytes()[:5000])
    arguments = ["fileset", "check", tmp_path, "--cluster", "inline", "--write"]
    called = agc(*arguments, tmp_path / "checked.yaml")
    assert called.code == 1
    assert "1 of 2 files are good" in called.out
    assert "2/2 files, 1 failed attempts" in called.err
    assert not (tmp_path / "checked.yaml").exists()
    called = agc(*arguments, tmp_path / "checked.root")
    assert called.code == 2
    assert "checked.root: a fileset is written to a file that ends in .json" in called.error


def test_fileset_check_finds_a_file_in_datasets_that_add_up(folder: Path, tmp_path: Path) -> None:
    paths = [folder / "1.root", tmp_path / "copy.root"]
    paths[1].write_bytes(paths[0].read_bytes())
    alike = [
        nanoaod.dataset(name, [path], process="tt") for name, path in zip("ab", paths, strict=True)
    ]
    loading.save(Fileset(tuple(alike)), tmp_path / "fileset.json")
    called = agc("fileset", "check", tmp_path / "fileset.json", "--cluster", "inline", "--json")
    assert called.code == 1
    problems = [file["problem"] for file in json.loads(called.out)]
    assert problems[0] is None
    assert f"the same file as {paths[0]} in dataset a" in problems[1]


ONE_CUT = """
from dataclasses import dataclass

from coffea.processor import ProcessorABC


@dataclass
class OneCut(ProcessorABC):
    cut: float
    columns = ("genWeight",)
    takes = {"process": "tt"}

    def process(self, events):
        return {"n": len(events)}
"""


def test_fileset_check_judges_as_runs_do(tmp_path: Path) -> None:
    """What the processor takes, with its parameters; empty files where others have events."""
    (tmp_path / "mine.py").write_text(ONE_CUT)
    for name, n in {"some.root": 5, "none.root": 0}.items():
        nanoaod.write(tmp_path / name, nanoaod.events(n, n))
    content = {"tt": ["some.root"], "tt__empty": ["none.root"], "other": ["missing.root"]}
    (tmp_path / "f.json").write_text(json.dumps(content))
    arguments = ["fileset", "check", tmp_path / "f.json", "--cluster", "inline"]
    processor = ["--processor", f"{tmp_path}/mine.py:OneCut"]
    assert agc(*arguments).code == 1
    assert "missing parameter cut; set it with --set cut=" in agc(*arguments, *processor).error
    called = agc(*arguments, *processor, "--set", "cut=1")
    assert called.code == 0
    assert "all 2 files are good, 5 events; 1 without any" in called.out
    called = agc(*arguments, *processor, "--set", "cut=1", "--datasets", "tt__*, other", "--json")
    assert called.code == 1
    assert json.loads(called.out)[0]["problem"] == "no events in it, nor in any other"
    assert "--set cut: given twice" in agc(*arguments, *["--set", "cut=1"] * 2).error
    assert "name it with --processor" in agc(*arguments, "--set", "cut=1").error


def test_a_plan_with_a_file_that_can_not_be_opened(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps({"tt": [str(folder / "1.root"), "missing.root"]}))
    called = agc("plan", "ttbar", tmp_path / "f.json", "--cluster", "inline")
    assert called.code == 1
    assert "can't be opened: tt: " in called.out


def test_fileset_check_tells_trees_apart(tmp_path: Path) -> None:
    path = nanoaod.write(tmp_path / "a.root", nanoaod.events(5, 1), tree="A")
    with uproot.update(path) as file:
        file["B"] = {"x": [1.0, 2.0]}
    (tmp_path / "link.root").symlink_to(path)
    listed = [{"replicas": [str(path)], "tree": "A"}, {"replicas": ["link.root"]}]
    fileset = {"schema": 1, "datasets": {"a": {"process": "tt", "files": listed}}}
    for tree, says in (("B", "all 2 files are good"), ("/A;1", "the same file as")):
        listed[1]["tree"] = tree
        (tmp_path / "f.json").write_text(json.dumps(fileset))
        called = agc("fileset", "check", tmp_path / "f.json", "--cluster", "inline")
        assert says in " ".join((called.out + called.err).split())


def test_version() -> None:
    assert agc("--version").out.startswith("agc-ml, version 0.")


def test_readme_processor_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text()
    (source,) = re.findall(r"```python\n(# mine\.py\n.*?)```", readme, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(source)
    Path("data").mkdir()
    nanoaod.write(Path("data/a.root"), nanoaod.events(50, 1))
    called = agc(
        *("run", "mine.py:JetPt", "data/*.root", "--dataset", "ttbar", "--cluster", "inline"),
        *("-o", "run"),
    )
    assert called.code == 0, called.err
    assert RunResult.load("run").templates["jet_pt"].sum(flow=True).value > 0
