"""Processors of coffea's users give here what coffea's own Runner gives."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import awkward as ak
import coffea_processors as theirs
import hist
import nanoaod
import numpy as np
import pytest
from coffea.analysis_tools import WeightStatistics
from coffea.nanoevents import BaseSchema, NanoAODSchema
from coffea.processor import IterativeExecutor, Runner, column_accumulator, value_accumulator
from commandline import agc as command
from distributed import Client, LocalCluster

import agc_ml as agc
from agc_ml.errors import ProcessorError
from agc_ml.execution.processor import outputs

N, CHUNK = 100, 50


def branches(n: int, seed: int) -> dict[str, Any]:
    """Random events with missing energy, and the jet that each muon belongs to."""
    rng = np.random.default_rng(seed)
    made = nanoaod.events(n, seed)
    n_jets, muons = ak.num(made["Jet"]), made["Muon"]
    matched = ak.local_index(muons.pt) + rng.integers(-1, 3, n)
    matched = ak.where(matched < n_jets, matched, -1)
    made["Muon"] = ak.with_field(muons, ak.values_astype(matched, np.int32), "jetIdx")
    made["MET"] = ak.zip(
        {
            "pt": rng.exponential(40, n).astype(np.float32),
            "phi": rng.uniform(-3, 3, n).astype(np.float32),
        }
    )
    return made


@pytest.fixture(scope="module")
def fileset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fileset of coffea: two datasets of two files, each of two chunks."""
    folder = tmp_path_factory.mktemp("data")
    content = {}
    for i, name in enumerate(("signal", "background")):
        files = [
            nanoaod.write(folder / f"{name}{j}.root", branches(N, 2 * i + j + 1)) for j in (0, 1)
        ]
        content[name] = {
            "files": {str(file): "Events" for file in files},
            "metadata": {
                "process": name,
                "nevts": 2 * N,
                "x_sec": 3.5 + i,
                "tag": ["someusermeta", {"of": name}],
            },
        }
    path = folder / "fileset.json"
    path.write_text(json.dumps(content))
    return path


def coffea_run(processor: Any, fileset: Path, schema: Any = NanoAODSchema) -> Any:
    NanoAODSchema.warn_missing_crossrefs = False
    executor = IterativeExecutor(status=False)
    runner = Runner(executor=executor, schema=schema, chunksize=CHUNK, metadata_cache={})
    return runner(json.loads(fileset.read_text()), processor)


@pytest.fixture(scope="module")
def of_coffea(fileset: Path) -> Any:
    """What coffea gives for each of the processors."""
    return coffea_run(theirs.Everything(tuple(theirs.PROCESSORS)), fileset)


def ours(processor: Any, fileset: Path, folder: Path, **options: Any) -> agc.RunResult:
    options = {"site": "inline", "quiet": True, "chunk_size": CHUNK, **options}
    return agc.run(processor, agc.Fileset.load(fileset), output=folder, **options)


def leaves(output: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """What is in nested mappings, by its place."""
    if isinstance(output, Mapping):
        for key, inner in output.items():
            name = str.__str__(key) if isinstance(key, str) else str(key)
            yield from leaves(inner, f"{place}/{name}" if place else name)
        if not output:
            yield place, {}
    else:
        yield place, output


def of_result(result: agc.RunResult) -> dict[str, Any]:
    """What is in a result, by its place as coffea has it."""
    found = dict(leaves(result.outputs)) if result.outputs else {}
    if "cutflow" not in result.outputs:
        found |= {f"cutflow/{place}": int(n) for place, n in leaves(result.cutflow) if place}
    return found | result.hists


def plain(value: Any) -> Any:  # noqa: PLR0911 - a line for each kind
    """The same in a form that can be compared."""
    if isinstance(value, hist.BaseHist):
        view = value.view(flow=True)
        parts = [view[name] for name in view.dtype.names or [...]]
        axes = [(type(axis).__name__, axis.name, axis.label, *axis) for axis in value.axes]
        return [axes, value.storage_type.__name__, [part.ravel().tolist() for part in parts]]
    if isinstance(value, column_accumulator | value_accumulator):
        return plain(value.value)
    if isinstance(value, WeightStatistics):
        return plain(vars(value))
    if isinstance(value, np.ndarray):
        return [value.dtype.kind, value.tolist()]
    if isinstance(value, ak.Array):
        # parameters of a type have no order
        return [str(ak.without_parameters(value).type.content), value.to_list()]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {plain(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return ["list" if isinstance(value, list) else "tuple", *map(plain, value)]
    return set(map(repr, map(plain, value))) if isinstance(value, set | frozenset) else value


def same(found: Any, wanted: Any, place: str) -> None:
    """Numbers and text alike, but for the rounding of sums of which the order is another one."""
    assert type(found) is type(wanted), place
    if isinstance(wanted, list | dict):
        assert len(found) == len(wanted), place
        keys = wanted if isinstance(wanted, dict) else range(len(wanted))
        for key in keys:
            same(found[key], wanted[key], f"{place}[{key!r}]")
    else:
        is_float = isinstance(wanted, float)
        alike = pytest.approx(wanted, rel=1e-12, abs=1e-12, nan_ok=True) if is_float else wanted
        assert found == alike, place


def compare(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert sorted(found) == sorted(wanted)
    for place, value in wanted.items():
        same(plain(found[place]), plain(value), place)


ALONE = (
    *("NanoEvents", "Agc", "Old", "Bare", "Loose", "function"),
    *(name for name in theirs.PROCESSORS if ":" in name),
)
"""Of which keys mean something, or the bare output does."""


@pytest.mark.parametrize("name", ALONE)
def test_what_coffea_gives(
    name: str, fileset: Path, of_coffea: dict[str, Any], tmp_path: Path
) -> None:
    result = ours(theirs.PROCESSORS[name](), fileset, tmp_path / "run")
    wanted = of_coffea[name]
    wanted = dict(leaves(wanted if isinstance(wanted, Mapping) else {name: wanted}))
    compare(of_result(result), wanted)
    compare(of_result(agc.RunResult.load(tmp_path / "run")), wanted)


def test_branches_as_they_are(fileset: Path, tmp_path: Path) -> None:
    result = ours(theirs.Flat(), fileset, tmp_path / "run", schema="BaseSchema")
    compare(of_result(result), dict(leaves(coffea_run(theirs.Flat(), fileset, BaseSchema))))


@pytest.mark.parametrize(
    ("spec", "settings", "name"),
    [
        ("analysis", (), "function"),
        ("analysis", ("--set", "threshold=50", "--set", "label=hard"), "partial"),
        ("hard", (), "partial"),
        ("Agc", ("--set", "use_inference=false"), "Agc"),
        ("Cutflow", ("--set", "shape=regions"), "cutflow: regions"),
    ],
)
def test_processors_in_files(
    spec: str,
    settings: tuple[str, ...],
    name: str,
    fileset: Path,
    of_coffea: dict[str, Any],
    tmp_path: Path,
) -> None:
    called = command(
        *("run", f"{theirs.__file__}:{spec}", fileset, "--cluster", "inline"),
        *("--chunk-size", CHUNK, "-o", tmp_path / "run", *settings),
    )
    assert called.code == 0, called.err
    compare(of_result(agc.RunResult.load(tmp_path / "run")), dict(leaves(of_coffea[name])))


@pytest.fixture(scope="module")
def inline(fileset: Path, tmp_path_factory: pytest.TempPathFactory) -> agc.RunResult:
    folder = tmp_path_factory.mktemp("inline") / "run"
    return ours(theirs.Everything(tuple(theirs.PROCESSORS)), fileset, folder)


@pytest.mark.parametrize("name", theirs.PROCESSORS)
def test_what_coffea_gives_of_all_at_once(
    name: str, inline: agc.RunResult, of_coffea: dict[str, Any]
) -> None:
    found = {p: v for p, v in of_result(inline).items() if p == name or p.startswith(f"{name}/")}
    compare(found, dict(leaves({name: of_coffea[name]})))


@pytest.fixture(scope="module")
def with_cross_sections(fileset: Path) -> Path:
    """The same with cross-sections and a luminosity."""
    stated = agc.Fileset.load(fileset)
    content = {
        "schema": 1,
        "luminosity": {"value": 100, "source": "made up"},
        "datasets": {
            dataset.name: {
                "process": dataset.name,
                "xsec": {"value": xsec, "source": "made up"},
                "files": [file.url for file in dataset.files],
                "metadata": dict(dataset.metadata),
            }
            for dataset, xsec in zip(stated.datasets, XSECS.values(), strict=True)
        },
    }
    path = fileset.with_name("cross_sections.json")
    path.write_text(json.dumps(content))
    return path


XSECS = {"signal": 2.5, "background": 50.0}


@pytest.mark.parametrize("shape", theirs.SumOfWeights.SHAPES)
def test_a_sum_of_weights_scales_where_there_are_cross_sections(
    shape: str, with_cross_sections: Path, of_coffea: dict[str, Any], tmp_path: Path
) -> None:
    """On purpose other than in coffea: each dataset to cross-section times luminosity."""
    result = ours(theirs.SumOfWeights(shape), with_cross_sections, tmp_path / "run")
    wanted = of_coffea[f"sumw: {shape}"]["met"]
    for name, sumw in of_coffea["sumw: datasets"]["sumw"].items():
        of_dataset = result.hists["met"][name, :].values(flow=True)
        factor = XSECS[name] * 100 / sumw
        assert of_dataset == pytest.approx(wanted[name, :].values(flow=True) * factor, rel=1e-6)
        assert factor != pytest.approx(1)


def test_what_is_scaled_and_what_is_told(with_cross_sections: Path, tmp_path: Path) -> None:
    """Histograms in lists too; a sum of weights that is no number scales nothing, and is told."""

    for shape in ("number", "array"):
        analysis = partial(theirs.listed, shape=shape)
        result = ours(analysis, with_cross_sections, tmp_path / shape)
        is_scaled = shape == "number"
        of_chunks = [h.values().sum() for h in result.outputs["list"]]
        of_tuple = [found["h"].values().sum() for found in result.outputs["deep"]["tuple"]]
        total = 100 * sum(XSECS.values()) if is_scaled else 4 * N
        assert result.hists["h"].values().sum() == pytest.approx(total)
        assert sum(of_chunks) == sum(of_tuple) == pytest.approx(total)
        told = [line for line in result.warnings if "'sumw' is neither a number" in line]
        assert len(told) == (0 if is_scaled else 2)


WHOLE = {
    # outputs of a dataset with a histogram and a sum of weights, and whether that is understood
    "number": (lambda _, h, n: {"h": h, "sumw": n}, True),
    "dataset": (lambda name, h, n: {"h": h, "sumw": {name: n}}, True),
    "beside the year": (lambda name, h, n: {"h": h, "sumw": {("2018", name): n}}, True),
    "under the dataset": (lambda name, h, n: {name: {"h": h, "sumw": n}}, True),
    "twice under it": (lambda name, h, n: {name: {"h": h, "sumw": {name: n}}}, True),
    "accumulated": (lambda _, h, n: {"h": h, "sumw": value_accumulator(float, n)}, True),
    "variations": (lambda _, h, n: {"h": h, "sumw": {"nominal": n, "up": n, "down": n}}, False),
    "and a total": (lambda name, h, n: {"h": h, "sumw": {name: n, "total": n}}, False),
    "and squares": (lambda _, h, n: {"h": h, "sumw": {"sumw": n, "sumw2": n**2}}, False),
    "of processes": (lambda name, h, n: {"h": h, "sumw": {name: n, f"{name}_sq": n}}, False),
    "deeper": (lambda name, h, n: {name: {"sr": {"h": h, "sumw": n}}}, False),
}


@pytest.mark.parametrize("shape", WHOLE)
def test_shapes_that_are_sums_of_weights(shape: str) -> None:
    make, is_understood = WHOLE[shape]
    output = make("signal", None, 3)
    assert outputs.sum_of_weights(output, "signal") == (3 if is_understood else None)
    assert outputs.has_sumw(output)


@pytest.mark.parametrize("shape", ["under the dataset", "variations"])
def test_shapes_of_sums_of_weights(shape: str, with_cross_sections: Path, tmp_path: Path) -> None:
    """Understood, or nothing is scaled and a line says why."""
    make, is_understood = WHOLE[shape]

    def analysis(events: Any) -> Any:
        h = hist.Hist.new.Reg(2, 0, 1, name="x").Weight().fill(np.full(len(events), 0.7))
        return make(events.metadata["dataset"], h, len(events))

    result = ours(analysis, with_cross_sections, tmp_path / "run", chunk_size=N)
    total = sum(h.values().sum() for h in result.hists.values())
    assert total == pytest.approx(100 * sum(XSECS.values()) if is_understood else 4 * N)
    told = [line for line in result.warnings if "'sumw' is neither a number" in line]
    assert len(told) == (0 if is_understood else 2)
    scaled = [line for line in result.warnings if "signal by 1.25, background by 25" in line]
    assert len(scaled) == is_understood


def test_without_a_luminosity_nothing_is_scaled(with_cross_sections: Path, tmp_path: Path) -> None:
    content = json.loads(with_cross_sections.read_text())
    del content["luminosity"]
    (tmp_path / "fileset.json").write_text(json.dumps(content))
    analysis = partial(theirs.listed, shape="number")
    result = ours(analysis, tmp_path / "fileset.json", tmp_path / "run", chunk_size=N)
    assert result.hists["h"].values().sum() == 4 * N
    assert any("states no luminosity, so 'sumw' scales nothing" in w for w in result.warnings)


def test_what_is_scaled_in_part_is_told_or_refused(
    with_cross_sections: Path, tmp_path: Path
) -> None:
    def analysis(events: Any, *, where: str) -> Any:
        h = hist.Hist.new.Reg(2, 0, 1, name="x").Weight().fill(np.full(len(events), 0.7))
        output = {"h": h, "value": value_accumulator(hist.Hist, h.copy())}
        has = {"signal": events.metadata["dataset"] == "signal", "start": True, "chunks": False}
        if has[where] or (where == "chunks" and events.metadata["entrystart"] == 0):
            output["sumw"] = len(events)
        return output

    result = ours(partial(analysis, where="signal"), with_cross_sections, tmp_path / "signal")
    assert any(
        "as they have no 'sumw', unlike the others: background" in w for w in result.warnings
    )
    result = ours(partial(analysis, where="start"), with_cross_sections, tmp_path / "all")
    assert result.outputs["value"].value == result.hists["h"]
    with pytest.raises(ProcessorError, match="only some chunks of the dataset have a 'sumw'"):
        ours(partial(analysis, where="chunks"), with_cross_sections, tmp_path / "chunks")


@pytest.mark.parametrize("name", ["Scales", "ByMethod", "ByFunction", "ByAttribute"])
def test_nothing_is_normalised_twice(
    name: str, with_cross_sections: Path, of_coffea: dict[str, Any], tmp_path: Path
) -> None:
    result = ours(theirs.PROCESSORS[name](), with_cross_sections, tmp_path / "run")
    compare(of_result(result), dict(leaves(of_coffea[name])))
    assert any("the processor's own postprocess uses 'sumw'" in w for w in result.warnings)


def test_threads_of_a_worker(fileset: Path, inline: agc.RunResult, tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        everything = theirs.Everything(tuple(theirs.PROCESSORS))
        ours(everything, fileset, tmp_path / "run", client=client)
    compare(of_result(agc.RunResult.load(tmp_path / "run")), of_result(inline))


def test_columns_that_were_not_read_yet(
    fileset: Path, of_coffea: dict[str, Any], tmp_path: Path
) -> None:
    """Wherever they are in an output; coffea's own can't be read after the chunk."""
    result = ours(theirs.Accumulators(read=theirs.unread), fileset, tmp_path / "run")
    compare(of_result(result), dict(leaves(of_coffea["Accumulators"])))


@pytest.mark.parametrize(("make", "says"), theirs.REFUSED)
def test_what_is_no_processor_or_output_is_said(
    make: Any, says: str, fileset: Path, tmp_path: Path
) -> None:
    with pytest.raises(ProcessorError) as caught:
        ours(make(), fileset, tmp_path / "run")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["pt", np.sum])
def test_attributes_may_be_called_anything(
    value: Any, fileset: Path, of_coffea: dict[str, Any], tmp_path: Path
) -> None:
    names = ("function", "values", "key", "name", "done", "takes_long", "parameters")
    result = ours(theirs.declaring(**dict.fromkeys(names, value)), fileset, tmp_path / "run")
    compare(result.hists, {"Mine": of_coffea["Bare"]})
