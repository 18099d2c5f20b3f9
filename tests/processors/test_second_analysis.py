"""An analysis of a user's own folder, beside ttbar: nothing of ttbar's gets into it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import nanoaod
import pytest
import yaml
from commandline import agc
from places import ROOT

import agc_ml
import processors
from agc_ml import measurement
from agc_ml.analysis import Analysis, Pseudodata, analysis_of, read, shipped_cards, training_task
from agc_ml.errors import FitError, UsageError
from agc_ml.inputs.fileset import Fileset
from agc_ml.presentation.figures import style
from agc_ml.results import pseudodata_choice

PROCESSOR = "processors.jets:JetCounter"
CODE = """
import numpy as np
from agc_ml import DenseHist, blocks

class JetCounter:
    columns = ("Jet_pt", "Jet_eta", "Jet_phi", "Jet_mass", "genWeight")
    flat = True

    def process(self, events):
        process, variation = events.metadata["process"], events.metadata["variation"]
        names = [variation, *(["pt_up", "pt_down"] if variation == "nominal" else [])]
        booked = DenseHist(6, 0, 300, label="$p_T$ [GeV]", process=process, variations=names,
                           counts="Events")
        sumw = 0.0
        for block in blocks(events):
            sumw += float(block.genWeight.sum())
            has_jet = np.flatnonzero(block.Jet.counts > 0)
            first = block.Jet.pt[block.Jet.offsets[has_jet]]
            for name, factor in zip(names, (1.0, 1.1, 0.9)):
                booked.fill(name, first * factor, block.genWeight[has_jet].astype(float))
        return {"SR": booked, "sumw": sumw}
"""
DECLARATION = {
    "processes": {
        "dijets": {"label": "two jets $jj$", "color": "#123456", "symbol": "jj"},
        "noise": {"label": "loud noise", "color": "#654321", "samples": ["Noise"]},
    },
    "pseudodata": {"asimov": {"dijets": 1, "noise": 1}, "loud": {"dijets": 1, "noise": 1.5}},
}
FIT = {
    "General": {
        "Measurement": "jets",
        "POI": "jet_norm",
        "InputPath": "histograms.root:{RegionPath}_{SamplePath}{VariationPath}",
        "VariationPath": "",
        "HistogramFolder": "histograms/",
    },
    "Regions": [{"Name": "Jets", "RegionPath": "SR", "Variable": "$p_T$ [GeV]"}],
    "Samples": [
        {"Name": "Pseudodata", "SamplePath": "pseudodata", "Data": True},
        {"Name": "Dijets", "SamplePath": "dijets"},
        {"Name": "Noise", "SamplePath": "noise"},
    ],
    "Systematics": [
        {
            "Name": "Jet energy",
            "Type": "NormPlusShape",
            "Up": {"VariationPath": "_pt_up"},
            "Down": {"VariationPath": "_pt_down"},
        }
    ],
    "NormFactors": [{"Name": "jet_norm", "Samples": "Dijets", "Nominal": 1, "Bounds": [0, 10]}],
}


@pytest.fixture(scope="module")
def fileset(tmp_path_factory: pytest.TempPathFactory) -> Fileset:
    folder = tmp_path_factory.mktemp("files")
    paths = {
        name: [nanoaod.write(folder / f"{name}.root", nanoaod.events(400, seed))]
        for seed, name in enumerate(("dijets", "noise"))
    }
    return nanoaod.fileset(**paths)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's folder, in the working directory."""
    home = tmp_path / "processors" / "jets"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text(CODE)
    (home / "analysis.yml").write_text(yaml.safe_dump(DECLARATION, sort_keys=False))
    (home / "fit.yml").write_text(yaml.safe_dump(FIT, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(processors, "__path__", list(processors.__path__))
    yield home
    sys.modules.pop("processors.jets", None)


def run(fileset: Fileset) -> None:
    agc_ml.run(PROCESSOR, fileset, site="inline", output="run", quiet=True)


def test_from_run_to_report(
    folder: Path, fileset: Fileset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(fileset)
    drawn: dict[str, str] = {}
    colors = style.process_colors

    def recorded(processes: list[str]) -> dict[str, str]:
        found = colors(processes)
        drawn.update({style.process_label(name): color for name, color in found.items()})
        return found

    monkeypatch.setattr(style, "process_colors", recorded)
    for words in (("plot", "run"), ("fit", "run", "--pseudodata", "loud"), ("report", "run")):
        called = agc(*words)
        assert called.code == 0, called.err
    # its own labels, colours, pseudodata and symbol
    assert drawn.items() >= {"two jets $jj$": "#123456", "loud noise": "#654321"}.items()
    assert drawn["Dijets"] not in {"#123456", "#654321"}  # a sample that is not declared
    fitted = json.loads(Path("run/fit/fit.json").read_text())
    assert fitted["pseudodata"] == "loud"
    assert fitted["cross_section"]["symbol"] == "jj"
    assert pseudodata_choice.load(Path("run")).pseudodata == "loud"
    page = Path("run/report.html").read_text()
    assert "loud pseudodata" in page
    for word in ("ttbar", "wjets", "4j2b", "published", "t\\bar", "single top"):
        assert word not in page, word
        assert word not in Path("run/fit/workspace.json").read_text()
    # a kind of another analysis
    assert "--pseudodata complete: not a kind of this analysis, which has asimov, loud" in (
        agc("fit", "run", "--pseudodata", "complete").error
    )
    assert agc("plot", "run", "--pseudodata", "nonsense").code == 2


def test_the_first_kind_is_the_default(folder: Path, fileset: Fileset) -> None:
    run(fileset)
    assert measurement.fit(Path("run")).pseudodata == "asimov"
    # recorded by an analysis that changed since
    Path("run/measurement.json").write_text('{"schema": 1, "pseudodata": "gone"}')
    error = agc("report", "run").error
    assert "run/measurement.json: damaged ('gone' pseudodata, and its analysis has asimov" in error


def test_without_pseudodata_it_is_said_where_they_belong(folder: Path, fileset: Fileset) -> None:
    (folder / "analysis.yml").write_text(yaml.safe_dump({"processes": DECLARATION["processes"]}))
    run(fileset)
    assert agc("plot", "run").code == 0
    assert "declares no pseudodata: add them to its analysis.yml" in agc("fit", "run").error
    assert agc("report", "run").code == 0


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"proceses": {}}, "proceses: Unexpected keyword argument"),
        ({"processes": {"a": {"colour": "#123456"}}}, "processes -> a -> colour: Unexpected"),
        ({"processes": {"a": {"color": "red"}}}, "processes -> a -> color: String should match"),
        ({"processes": {"a": {"samples": ["b"]}, "b": {}}}, "processes: Value error, 'b' is the n"),
        ({"pseudodata": {"x": {}}}, "pseudodata -> x: Dictionary should have at least 1 item"),
        (
            {"pseudodata": {"x": {"a": float("inf")}}},
            "pseudodata -> x -> a: Input should be a f",
        ),
        ({"pseudodata": {"x": {"a": "much"}}}, "pseudodata -> x -> a: Input should be a valid num"),
        ({"pseudodata": {"data": {"a": 1}}}, "pseudodata: Value error, 'data' are real ones"),
        ({"models": ["../card.json"]}, "models -> 0: String should match pattern"),
        ({"models": "card.json"}, "models: Input should be a valid tuple"),
        ({"training": {"name": "t", "kinds": ["a"]}}, "training -> rows: Field required"),
        (
            {"training": {"name": "t", "kinds": ["a"], "rows": [[0], [1]]}},
            "training -> rows: Value error, its numbers are places in kinds, 0 to 0",
        ),
        (
            {"training": {"name": "t", "kinds": ["a", "b"], "rows": [[0], [1, 1]]}},
            "training -> rows: Value error, all rows need the same number of objects",
        ),
        ([1], "(top): Input should be a dictionary"),
    ],
)
def test_what_is_wrong_is_one_line(content: object, field: str, folder: Path) -> None:
    file = folder / "analysis.yml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError) as error:
        analysis_of(PROCESSOR)
    assert str(error.value).startswith(f"{file}: field {field}")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("; correct the file")


def test_a_file_that_is_no_yaml(folder: Path) -> None:
    (folder / "analysis.yml").write_text("processes: [")
    with pytest.raises(UsageError, match=r"analysis\.yml: can't be read as YAML \(.*, line 2, "):
        analysis_of(PROCESSOR)


def test_ours() -> None:
    assert analysis_of("ttbar") == analysis_of() == analysis_of("processors.ttbar:TtbarProcessor")
    published, complete = (analysis_of().recipe(kind).parts for kind in ("published", "complete"))
    assert published == {"ttbar_ME_var": 0.5, "ttbar_PS_var": 0.5, "wjets": 1}
    assert complete.items() - published.items() == {
        (f"single_top_{channel}", 1) for channel in ("s_chan", "t_chan", "tW")
    }
    assert [card.name for card in shipped_cards()] == ["agc_jet_assignment.json"]
    task = training_task("jet_assignment")
    assert task is not None
    assert len(task.rows) == 12
    assert training_task("another") is None


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "processors.md").read_text()
    (tmp_path / "analysis.yml").write_text(text.split("```yaml\n")[1].split("```")[0])
    declared = read(tmp_path / "analysis.yml")
    assert declared.recipe().parts == {"dijets": 1, "wjets_ME_var": 0.5}
    assert declared.training is not None
    assert len(declared.training.rows) == 3


def test_one_that_declares_nothing_is_as_the_default_one() -> None:
    assert analysis_of("dimuon") == analysis_of("nowhere.at:All") == analysis_of()


def test_recipes() -> None:
    analysis = Analysis(pseudodata={"a": {"x": 1.0}, "b": {"x": 2.0}})
    assert analysis.recipe() == analysis.recipe("a") == Pseudodata("a", {"x": 1.0})
    assert analysis.recipe("b").parts == {"x": 2.0}
    with pytest.raises(UsageError, match="--pseudodata c: not a kind of this analysis, which has"):
        analysis.recipe("c")
    with pytest.raises(FitError, match="declares no pseudodata"):
        Analysis().recipe()
