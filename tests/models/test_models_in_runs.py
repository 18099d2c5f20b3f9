"""Models in runs: pinned, sent to workers, named in what comes out, and never scored by default."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import nanoaod
import numpy as np
import pytest
from commandline import agc as typed
from distributed import Client
from models import forest, linear_onnx
from services.triton import SLOW_S, Triton, free_port, weighted

import agc_ml as agc
from agc_ml.errors import ModelError, UsageError
from agc_ml.execution.cluster.dask_executor import DaskExecutor
from agc_ml.inputs import loading
from agc_ml.inputs.fileset import Fileset
from agc_ml.models.cards import published_cards
from agc_ml.models.loading import load_model
from agc_ml.models.model import by_reference, contents
from agc_ml.results.run_record import load_record
from agc_ml.results.run_result import RunResult
from processors.ttbar import TtbarProcessor
from processors.ttbar.features import FEATURES

MINE = """
import awkward as ak
import hist
import numpy as np
from coffea.processor import ProcessorABC


class Mine(ProcessorABC):
    columns = ("Jet_pt", "Jet_eta", "Jet_phi", "Jet_mass")

    def __init__(self, model, offset: float = 0):
        self.model, self.offset = model, offset

    def process(self, events):
        jets = ak.flatten(events.Jet)
        features = np.stack([np.asarray(jets[name]) for name in ("pt", "eta")], axis=1)
        scores = self.model(features + self.offset)
        found = hist.Hist.new.Reg(20, 0, 500, name="score").Weight()
        found.fill(scores)
        return {"score": found}
"""


@pytest.fixture(scope="module")
def fileset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("files")
    paths = [nanoaod.write(folder / f"{i}.root", nanoaod.events(500, i)) for i in range(3)]
    return nanoaod.fileset(one=paths)


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return f"{tmp_path / 'mine.py'}:Mine"


@pytest.mark.parametrize("kind", ["onnx", "xgboost"])
def test_a_users_own_model_in_two_lines(kind: str, mine: str, fileset: Any, tmp_path: Path) -> None:
    path = tmp_path / f"model.{'onnx' if kind == 'onnx' else 'json'}"
    if kind == "onnx":
        path.write_bytes(linear_onnx([1, 10]))
    else:
        forest(path, n_features=2)
    found = []
    for site, workers in (("inline", None), ("local", 2)):
        result = agc.run(
            *(mine, fileset),
            model=path,
            site=site,
            workers=workers,
            output=tmp_path / site,
            chunk_size=200,
            quiet=True,
        )
        found.append(result)
    assert agc.compare(found[0].templates, found[1].templates, rtol=0) == []
    assert found[0].hists["score"].sum(flow=True).value > 5000
    made = load_record(tmp_path / "local").provenance
    assert made.versions["onnxruntime" if kind == "onnx" else "xgboost"].count(".") == 2
    assert list(made.models.values()) == [agc.load_model(path).sha256]
    assert made.processor.parameters["model"].startswith("model@")


def test_ttbar_fills_the_features_of_the_best_assignment(real_data: Path, tmp_path: Path) -> None:
    fileset = Fileset.load(loading.DEMO).select(["ttbar__nominal", "wjets__nominal"])
    found = []
    for workers in (1, 2, 4):
        with agc.connect("local", workers=workers) as client:
            output = tmp_path / str(workers)
            options: dict[str, Any] = {"client": client, "output": output, "quiet": True}
            found.append(agc.run("ttbar", fileset, model=real_data, chunk_size=1500, **options))
    for other in found[1:]:
        assert agc.compare(found[0].templates, other.templates, rtol=0) == []
    templates = found[0].templates
    selected = found[0].cutflow["ttbar__nominal"]["4j2b"]
    for name, feature in FEATURES.items():
        nominal = templates[f"{name}_ttbar"]
        yields = nominal.sum(flow=True).value, templates["4j2b_ttbar"].sum(flow=True).value
        assert yields[0] == pytest.approx(yields[1])
        assert nominal.axes[0].label == feature.label
        assert f"{name}_wjets_scale_var_up" in templates
        assert f"{name}_ttbar_btag_var_3_down" in templates
    assert selected > 1000
    without = agc.run("ttbar", fileset, site="inline", output=tmp_path / "without", quiet=True)
    regions = {name: h for name, h in templates.items() if name.startswith("4j")}
    assert agc.compare(without.templates, regions) == []


def test_workers_that_join_late_have_the_model(tmp_path: Path) -> None:
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear_onnx([3]))
    model = agc.load_model(path)
    with agc.connect("local", workers=1) as client:
        executor = DaskExecutor(client)
        executor.provide(contents([model]))
        client.cluster.scale(2)
        client.wait_for_workers(2, timeout=60)
        with by_reference():
            found = client.run(lambda model: model(np.ones((1, 1))).tolist(), model)
        assert list(found.values()) == [[3.0], [3.0]]
        ours = set(executor._plugins)
        assert all(ours <= set(names) for names in plugins(client))
        executor.close()
        assert not any(ours & set(names) for names in plugins(client))


def plugins(client: Client) -> list[list[str]]:
    """Names of the plugins of each worker."""
    return list(client.run(lambda dask_worker: list(dask_worker.plugins)).values())


def test_angles_are_wrapped_as_the_model_was_trained(real_data: Path, tmp_path: Path) -> None:
    fileset = Fileset.load(loading.DEMO).select(["ttbar__nominal"])
    beyond = {}
    for delta_phi in ("raw", "wrapped"):
        folder = tmp_path / delta_phi
        folder.mkdir()
        model = card(folder, real_data, delta_phi=delta_phi)
        options: dict[str, Any] = {"site": "inline", "output": folder / "run", "quiet": True}
        templates = agc.run("ttbar", fileset, model=model, **options).templates
        beyond[delta_phi] = templates["deltar_w1w2_ttbar"].values(flow=True)[-1]
    assert beyond["raw"] > 0
    assert beyond["wrapped"] == 0


def test_what_is_scored_by_xgboost_itself_is_said(mine: str, fileset: Any, tmp_path: Path) -> None:
    path = forest(tmp_path / "trees.ubj", n_features=2)
    result = agc.run(mine, fileset, model=path, workers=1, output=tmp_path / "run", quiet=True)
    (note,) = [line for line in result.warnings if "xgboost" in line]
    assert "model trees (version" in note
    assert "scored by xgboost, not by the faster forest kernel: it is not JSON" in note


# -- models on servers -----------------------------------------------------------------------------

REMOTE = MINE.replace('("pt", "eta")', '("pt", "eta", "phi", "mass")')


@pytest.fixture
def remote(tmp_path: Path) -> str:
    (tmp_path / "remote.py").write_text(REMOTE)
    return f"{tmp_path / 'remote.py'}:Mine"


def test_a_model_on_a_server(remote: str, fileset: Any, triton: Triton, tmp_path: Path) -> None:
    uri = f"grpc://{triton.main.address}/weighted?version=2"
    result = agc.run(
        remote, fileset, model=uri, workers=2, output=tmp_path / "run", chunk_size=200, quiet=True
    )
    found = result.hists["score"].sum(flow=True).value
    jets = sum(len(nanoaod.events(500, i)["Jet"].pt.layout.content) for i in range(3))
    assert found == jets
    assert list(result.provenance.models) == ["weighted@2"]


def test_two_models_on_servers_behind_one_card(triton: Triton, tmp_path: Path) -> None:
    entries = [
        {"uri": f"grpc://{triton.main.address}/weighted?version={v}", "trained_on": parity}
        for v, parity in ((1, "even"), (2, "odd"))
    ]
    content = {"schema": 1, "name": "both", "version": "1", "models": entries}
    (tmp_path / "model.json").write_text(json.dumps(content))
    bundle = load_model(tmp_path / "model.json")
    rows = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    event = np.arange(6)
    expected = np.where(event % 2 == 0, weighted(rows, 2), weighted(rows, 1))
    np.testing.assert_array_equal(bundle(rows, event), expected)


def test_a_server_that_dies_stops_the_run_which_goes_on_later(
    remote: str, fileset: Any, triton: Triton, tmp_path: Path
) -> None:
    server = triton.start("slow")
    address = server.address
    loading.save(fileset, tmp_path / "fileset.json")
    arguments = ["run", remote, tmp_path / "fileset.json", "--cluster", "inline"]
    arguments += ["--model", f"grpc://{address}/slow?version=1", "--chunk-size", "250"]
    arguments += ["-o", tmp_path / "run", "-q"]
    killer = threading.Timer(2 * SLOW_S + 0.5, lambda: server.signal(signal.SIGKILL))
    killer.start()
    called = typed(*arguments)
    killer.join()
    assert called.code == 1
    assert f"model slow (version 1): no server scores: {address} (" in called.error
    assert "resume with: agc-ml run" in called.error
    record = load_record(tmp_path / "run")
    assert record.status == "partial"
    server.stop()
    triton.start("slow", port=int(address.rpartition(":")[2]))
    again = typed(*arguments, "--resume")
    assert again.code == 0, again.err
    ledger = RunResult.load(tmp_path / "run").ledger
    assert ledger.events == 1500
    assert not ledger.missing


def test_a_server_that_is_not_there(remote: str, fileset: Any, tmp_path: Path) -> None:
    uri = f"grpc://127.0.0.1:{free_port()}/weighted?version=1"
    loading.save(fileset, tmp_path / "fileset.json")
    called = typed("run", remote, tmp_path / "fileset.json", "--model", uri, "-o", tmp_path / "run")
    assert called.code == 1
    assert "model weighted (version 1): no server scores: 127.0.0.1:" in called.error
    assert not (tmp_path / "run").exists()


# -- bad input -------------------------------------------------------------------------------------


def test_features_that_are_not_finite_stop_the_run(mine: str, fileset: Any, tmp_path: Path) -> None:
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear_onnx([1, 1]))
    output = tmp_path / "run"
    with pytest.raises(
        ModelError, match=r"one: .*0\.root \[0, 500\): model linear .* row 0 is nan"
    ):
        agc.run(
            *(mine, fileset),
            model=path,
            settings={"offset": "nan"},
            site="inline",
            output=output,
            quiet=True,
        )
    assert load_record(output).status == "partial"
    assert not (output / "histograms.root").exists()


def card(folder: Path, real_data: Path, **changes: Any) -> Path:
    """A card of the published models, changed."""
    for parity in ("even", "odd"):
        shutil.copy(real_data / f"model_{parity}.json", folder)
    content = json.loads(published_cards()[0].model_dump_json(by_alias=True))
    content |= changes
    (folder / "model.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "b_tagging"}, "made for the task 'b_tagging', not for 'jet_assignment'"),
        ({"features": [f"f{i}" for i in range(20)]}, "other features than those of jet_assignment"),
        ({"features": [f"f{i}" for i in range(19)]}, "takes 20 features, but its card names 19"),
        ({"delta_phi": "sideways"}, "delta_phi: "),
    ],
)
def test_models_of_another_kind_are_refused(
    changes: dict[str, Any], message: str, real_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        agc.run("ttbar", model=card(tmp_path, real_data, **changes), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("model_even.json", "needs two models of 20 features, trained on even and odd events"),
        ("reference", "no card (model.yaml) in it, nor the published models"),
        ("nowhere.onnx", "can't be read (No such file or directory)"),
        ("README.md", ".md: not a format; give xgboost's .json or .ubj, or ONNX"),
    ],
)
def test_wrong_models_on_the_command_line(
    model: str, message: str, real_data: Path, tmp_path: Path
) -> None:
    called = typed("run", "ttbar", "--model", real_data / model, "-o", tmp_path / "run")
    assert called.code == 1
    assert message in called.error
    assert Path(model).stem in called.error
    assert not (tmp_path / "run").exists()


def test_processors_without_a_model(real_data: Path, tmp_path: Path) -> None:
    called = typed("run", "dimuon", "--model", real_data, "-o", tmp_path / "run")
    assert called.code == 2
    assert "--model: dimuon takes no model" in called.error
    called = typed("run", "dimuon", "--set", "model=x", "-o", tmp_path / "run")
    assert "--set model: dimuon has no such parameter" in called.error
    called = typed("run", "ttbar", "--set", f"model={real_data}", "-o", tmp_path / "run")
    assert called.code == 2
    assert "--set model: give a model with --model" in called.error
    with pytest.raises(UsageError, match="pass model= to the processor"):
        agc.run(TtbarProcessor(), model=real_data, output=tmp_path / "run")


def test_a_processor_that_needs_a_model(mine: str, tmp_path: Path) -> None:
    called = typed("run", mine, "-o", tmp_path / "run")
    assert called.code == 2
    assert "mine.py:Mine: missing parameter model; set it with --model" in called.error


def test_a_finished_run_is_not_taken_for_one_with_another_model(
    mine: str, fileset: Any, tmp_path: Path
) -> None:
    for name, weight in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.onnx").write_bytes(linear_onnx([weight, weight]))
    options: dict[str, Any] = {"site": "inline", "output": tmp_path / "run", "quiet": True}
    agc.run(mine, fileset, model=tmp_path / "a.onnx", **options)
    agc.run(mine, fileset, model=tmp_path / "a.onnx", resume=True, **options)
    with pytest.raises(UsageError, match="of another processor, parameters"):
        agc.run(mine, fileset, model=tmp_path / "b.onnx", resume=True, **options)


def test_inference_does_not_import_xgboost(real_data: Path, tmp_path: Path) -> None:
    """It costs seconds, and the forest kernel does without it."""
    with agc.connect("local", workers=1) as client:
        agc.run(
            "ttbar",
            Fileset.load(loading.DEMO).select(["ttbar__nominal"]),
            model=real_data,
            client=client,
            output=tmp_path / "run",
            quiet=True,
        )
        loaded = client.run(lambda: sorted(__import__("sys").modules))
    (modules,) = loaded.values()
    assert "agc_ml.models.backends.forest" in modules
    assert not {"xgboost", "onnxruntime", "tensorflow"} & set(modules)
