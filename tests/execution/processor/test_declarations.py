"""What a processor declares of columns and schema, and what files have to have for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import awkward as ak
import nanoaod
import numpy as np
import pytest
import uproot
from coffea.nanoevents import (
    BaseSchema,
    DelphesSchema,
    FCCSchema,
    NanoAODSchema,
    NanoEventsFactory,
    PHYSLITESchema,
    TreeMakerSchema,
)
from coffea.processor import ProcessorABC
from commandline import agc as command

import agc_ml as agc
from agc_ml.columnar.events import blocks
from agc_ml.errors import InputFileError, ProcessorError, UsageError
from agc_ml.execution.processor.declarations import coffea_schema_name, schema_of

N = 60


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nanoaod.write(tmp_path_factory.mktemp("data") / "a.root", nanoaod.events(N, 1))


def run(made: Any, path: Path, folder: Path, **options: Any) -> agc.RunResult:
    options = {"site": "inline", "quiet": True, "chunk_size": 25, **options}
    return agc.run(made, nanoaod.fileset(tt=[path]), output=folder / "run", **options)


class Declares(ProcessorABC):
    columns: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *columns: str) -> None:
        self.columns = columns

    def process(self, events: Any) -> dict[str, Any]:
        return {"n": len(events), "fields": {field: len(events[field]) for field in events.fields}}


@pytest.mark.parametrize(
    ("columns", "lacks"),
    [
        (["Jet_pt"], ["Jet_eta, Jet_phi, Jet_mass", "needs for Jet;"]),
        (["Jet_pt", "Jet_eta", "Jet_phi"], ["lack Jet_mass,"]),
        ([f"Muon_{x}" for x in ("pt", "eta", "phi", "mass")], ["lack Muon_charge,"]),
        (["Muon_pt", "Jet_pt"], ["Jet_eta, Jet_phi, Jet_mass", "Muon_mass, Muon_charge"]),
    ],
)
def test_columns_that_a_vector_needs_are_named(
    columns: list[str], lacks: list[str], path: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputFileError) as caught:
        run(Declares(*columns), path, tmp_path)
    for text in lacks:
        assert text in str(caught.value)
    script = tmp_path / "mine.py"
    script.write_text(
        "from coffea.processor import ProcessorABC\nclass P(ProcessorABC):\n"
        f"    columns = {tuple(columns)!r}\n    def process(self, events): return {{}}\n"
    )
    called = command("fileset", "check", path, "--processor", f"{script}:P", "--cluster", "inline")
    assert called.code == 1  # it judges with the needs of run
    assert "add them" in called.out.replace("\n", " ")


def test_columns_that_are_enough(path: Path, tmp_path: Path) -> None:
    columns = [f"Muon_{x}" for x in ("pt", "eta", "phi", "mass", "charge")]
    result = run(Declares(*columns, "genWeight"), path, tmp_path)
    assert set(result.outputs["fields"]) >= {"Muon", "genWeight", "event"}


class Optional(ProcessorABC):
    columns = ("event",)
    optional_columns = ("HLT_IsoMu24", "genWeight")

    def process(self, events: Any) -> dict[str, Any]:
        has = "HLT" in events.fields
        return {"n": len(events), "hlt": int(ak.sum(events.HLT.IsoMu24)) if has else 0}


class OptionalFlat(Optional):
    flat = True

    def process(self, events: Any) -> dict[str, Any]:
        found = {"n": 0, "hlt": 0}
        for block in blocks(events):
            found["n"] += len(block)
            if "HLT" in block.fields:
                found["hlt"] += int(block.HLT.IsoMu24.sum())
        return found


@pytest.mark.parametrize("made", [Optional, OptionalFlat])
def test_optional_columns_may_be_absent_and_are_told(made: Any, path: Path, tmp_path: Path) -> None:
    branches = {**nanoaod.events(N, 2), "HLT_IsoMu24": np.arange(N) % 3 == 0}
    other = nanoaod.write(tmp_path / "b.root", branches)
    fileset = nanoaod.fileset(tt=[path, other])
    options = {"site": "inline", "quiet": True, "chunk_size": 25}
    for folder in ("one", "two"):  # the second time from the cache
        result = agc.run(made(), fileset, output=tmp_path / folder, **options)
        assert result.outputs == {"n": 2 * N, "hlt": 20}
        (told,) = [line for line in result.warnings if "optional" in line]
        assert told == "tt: no branch HLT_IsoMu24 in 1 of 2 files, which is optional"


def test_optional_columns_are_checked_where_they_are(tmp_path: Path) -> None:
    other = nanoaod.write(
        tmp_path / "b.root", {**nanoaod.events(N, 2), "HLT_IsoMu24": np.arange(N, dtype=np.int32)}
    )
    assert run(Optional(), other, tmp_path).outputs["hlt"] == sum(range(N))


# -- schemas ---------------------------------------------------------------------------------------


def written(path: Path, tree: str, columns: dict[str, Any]) -> Path:
    with uproot.recreate(path) as file:
        types = {
            k: v.dtype if isinstance(v, np.ndarray) else ak.type(v).content
            for k, v in columns.items()
        }
        made = file.mktree(tree, types, counter_name=lambda name: f"n{name}")
        made.extend(columns)
    return path


def jagged(rng: np.random.Generator, counts: Any, low: float, high: float) -> Any:
    return ak.unflatten(rng.uniform(low, high, int(counts.sum())).astype(np.float32), counts)


def physlite(path: Path) -> Path:
    rng = np.random.default_rng(1)
    counts = rng.poisson(3, N)
    name = "AnalysisJetsAuxDyn"
    columns = {
        f"{name}.pt": jagged(rng, counts, 20, 100),
        f"{name}.eta": jagged(rng, counts, -2, 2),
        f"{name}.phi": jagged(rng, counts, -3, 3),
        f"{name}.m": jagged(rng, counts, 1, 9),
        "EventInfoAuxDyn.mcChannelNumber": np.full(N, 7, np.uint32),
    }
    return written(path, "CollectionTree", columns)


def treemaker(path: Path) -> Path:
    rng = np.random.default_rng(2)
    counts = rng.poisson(2, N)
    columns = {
        "Jets_fCoordinates_fPt": jagged(rng, counts, 20, 100),
        "Jets_fCoordinates_fEta": jagged(rng, counts, -2, 2),
        "Jets_fCoordinates_fPhi": jagged(rng, counts, -3, 3),
        "Jets_fCoordinates_fE": jagged(rng, counts, 200, 300),
        "MET": rng.exponential(30, N).astype(np.float32),
        "METPhi": rng.uniform(-3, 3, N).astype(np.float32),
    }
    return written(path, "PreSelection", columns)


class Sums(ProcessorABC):
    """All numbers of an event, whatever they are called."""

    def process(self, events: Any) -> dict[str, Any]:
        found = {}
        for field in events.fields:
            values = events[field]
            for inner in values.fields or [""]:
                of_it = values[inner] if inner else values
                if not of_it.fields:
                    found[f"{field}.{inner}"] = float(ak.sum(ak.flatten(of_it, axis=None)))
        return found


def of_coffea(path: Path, tree: str, schema: Any) -> dict[str, Any]:
    with uproot.open(path) as file:
        total: dict[str, Any] = {}
        for start, stop in ((0, 20), (20, 40), (40, 60)):
            events = NanoEventsFactory.from_root(
                file, treepath=tree, schemaclass=schema, entry_start=start, entry_stop=stop
            ).events()
            for name, value in Sums().process(events).items():
                total[name] = total.get(name, 0) + value
        return total


@pytest.mark.parametrize(
    ("make", "tree", "schema"),
    [
        (physlite, "CollectionTree", PHYSLITESchema),
        (physlite, "CollectionTree", BaseSchema),
        (treemaker, "PreSelection", TreeMakerSchema),
        (treemaker, "PreSelection", BaseSchema),
    ],
)
@pytest.mark.parametrize("how", ["given", "own", "named"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_schemas_run_as_coffea_runs_them(
    how: str, make: Any, tree: str, schema: Any, tmp_path: Path
) -> None:
    path = make(tmp_path / "a.root")
    fileset = agc.Fileset.load(f"{path}:{tree}", dataset="tt")
    made = type("Mine", (Sums,), {"schema": schema} if how == "own" else {})()
    options = {"given": {"schema": schema}, "named": {"schema": schema.__name__}}.get(how, {})
    result = agc.run(
        *(made, fileset),
        **{
            "site": "inline",
            "quiet": True,
            "chunk_size": 20,
            "output": tmp_path / "run",
            **options,
        },
    )
    expected = of_coffea(path, tree, schema)
    assert len(expected) > 4
    assert result.outputs == pytest.approx(expected)


def test_base_schema_takes_its_columns_as_they_are_called(tmp_path: Path) -> None:
    path = physlite(tmp_path / "a.root")
    fileset = agc.Fileset.load(f"{path}:CollectionTree", dataset="tt")

    class Mine(Sums):
        schema = BaseSchema
        columns = ("AnalysisJetsAuxDyn.pt",)

    result = agc.run(Mine(), fileset, site="inline", quiet=True, output=tmp_path / "run")
    assert list(result.outputs) == ["AnalysisJetsAuxDyn.pt."]
    Mine.columns = ("no.such",)
    with pytest.raises(
        InputFileError, match=r"needs: no\.such; 'columns' of the processor declares branches"
    ):
        agc.run(Mine(), fileset, site="inline", quiet=True, output=tmp_path / "other")


def test_a_schema_of_ones_own(path: Path, tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "from coffea.nanoevents import NanoAODSchema\nfrom coffea.processor import ProcessorABC\n"
        "class Own(NanoAODSchema):\n"
        "    mixins = {**NanoAODSchema.mixins, 'Jet': 'PtEtaPhiMLorentzVector'}\n"
        "class P(ProcessorABC):\n    schema = Own\n"
        "    def process(self, events):\n"
        "        return {'n': len(events), 'kind': {type(events.Jet[0]).__name__: 1}}\n"
    )
    runs = [("inline",), ("local", "--workers", "1")]
    for site, *more in runs:
        folder = tmp_path / site
        called = command(
            *("run", f"{script}:P", path, "--dataset", "tt", "--cluster", site, *more, "-o", folder)
        )
        assert called.code == 0, called.err
        outputs = agc.RunResult.load(folder).outputs
        assert outputs == {"n": N, "kind": {"PtEtaPhiMLorentzVectorArray": 1}}


def test_wrong_schemas_are_refused(path: Path, tmp_path: Path) -> None:
    called = command("run", "dimuon", path, "--schema", "nonsense", "--cluster", "inline")
    assert called.code == 2
    assert (
        "--schema nonsense: coffea has no such schema; it has BaseSchema, NanoAOD" in called.error
    )
    called = command("run", "ttbar", path, "--schema", "Base", "--cluster", "inline")
    assert called.code == 2
    assert "the processor takes flat columns" in called.error
    with pytest.raises(ProcessorError, match="is not a schema of coffea's kind"):
        schema_of(type("P", (), {"schema": 7})(), None)
    with pytest.raises(UsageError, match="has no such schema"):
        schema_of(object(), "")
    assert schema_of(object(), None) is None
    assert schema_of(object(), "Delphes") is DelphesSchema
    assert schema_of(object(), "FCC") is FCCSchema
    for module in ("base", "nanoaod"):
        with pytest.raises(UsageError, match=f"--schema {module}: coffea has no such schema"):
            schema_of(object(), module)
    assert coffea_schema_name(type("Own", (NanoAODSchema,), {})) == "NanoAODSchema"
