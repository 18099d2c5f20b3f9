"""Jobs and gates: what passes, what does not, and what a bundle is made of."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from services.triton import Triton, weighted
from trained import SPEC, setup_of

import agc_ml
from agc_ml import (
    agc,  # noqa: F401 - the package
    rows,
)
from agc_ml.errors import ClusterError, ModelError, TrainingError
from agc_ml.ml import hook
from agc_ml.ml.cards import load_model
from agc_ml.ml.hook import Bundle
from agc_ml.training import bundles, gates, job, scores, trainingset, trials
from agc_ml.training.gates import Judged
from agc_ml.training.spec import Known, Limits


def sets_of(run: Path) -> dict[str, trainingset.TrainingSet]:
    table = rows.read(run / "training.parquet")
    return {
        name: trainingset.of_table(table, name) for name in ("nominal", "pt_scale_up", "pt_res_up")
    }


@pytest.fixture(scope="module")
def done(trained_job: Path) -> Path:
    return trained_job


def by_name(judged: Judged) -> dict[str, gates.Gate]:
    return {gate.name: gate for gate in judged.gates}


def test_a_job_makes_a_judged_bundle(done: Path, training_run: Path) -> None:
    bundle = done / "bundle"
    result = json.loads((done / "result.json").read_text())
    files = {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()}
    assert files == set(result["files"])
    for name, sha256 in result["files"].items():
        assert trainingset.sha256_of(bundle / name) == sha256
    judged = Judged.model_validate_json((bundle / "gates.json").read_bytes())
    assert judged.passed
    assert judged.quality["auc"] > 0.95
    trained = bundles.read_trained(bundle)
    assert set(trained.models) == {"even", "odd"}
    assert trained.inputs == {
        process: {name: tuple(counts) for name, counts in one.items()}
        for process, one in rows.read(training_run / "training.parquet").about["inputs"].items()
    }
    page = (bundle / "report.html").read_text()
    assert all(gate.title in page for gate in judged.gates)
    assert page.count("data:image/png") == 8
    assert not any(path.suffix in {".pkl", ".pickle", ".joblib"} for path in bundle.iterdir())


def test_quality_is_of_events_that_the_model_never_saw(done: Path, training_run: Path) -> None:
    """Each event scored by the model of the other parity; by its own one it looks better."""
    data = sets_of(training_run)["nominal"]
    bundle = bundles.read_bundle(done / "bundle")
    judged = Judged.model_validate_json((done / "bundle" / "gates.json").read_bytes())
    found = np.empty(data.labels.shape)
    own = np.empty(data.labels.shape)
    for parity, chosen in (("even", data.is_even), ("odd", ~data.is_even)):
        for model, into in ((bundle.scorer(parity), found), (getattr(bundle, parity), own)):
            flat = model(data.features[chosen].reshape(-1, 20))
            into[chosen] = flat.reshape(-1, 12)
    assert scores.quality(found, data.right).auc == judged.quality["auc"]
    assert scores.quality(own, data.right).auc > judged.quality["auc"] + 0.01


def test_the_bundle_needs_no_xgboost_to_be_loaded(done: Path) -> None:
    """Golden rows are in the card, so that the driver of a run does not import it."""
    code = (
        "import sys, agc_ml, numpy as np\n"
        f"b = agc_ml.load_model({str(done / 'bundle')!r})\n"
        "b(np.zeros((4, 20), np.float32), np.arange(4))\n"
        "print('xgboost' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def judge(folder: Path, run: Path, **given: Any) -> Judged:
    limits = given.pop("limits", Limits())
    champion = given.pop("champion", None)
    return gates.judge(folder, sets_of(run), champion=champion, limits=limits, **given)[0]


def test_each_gate_can_fail(done: Path, training_run: Path) -> None:
    """With limits that nothing fulfils, or a champion that is better."""
    strict = Limits(
        min_auc=1,
        max_gap=0,
        max_calibration=0,
        max_multiplicity=0,
        max_variation=0,
        max_latency=0,
    )
    failed = by_name(judge(done / "bundle", training_run, limits=strict))
    assert not failed["auc"].passed
    assert not failed["calibration"].passed
    assert not failed["variations"].passed
    assert not failed["latency"].passed
    assert failed["same_scores_here"].passed


def test_a_worse_bundle_fails_against_the_champion(
    done: Path, training_run: Path, real_data: Path, tmp_path: Path
) -> None:
    better = bundles.read_bundle(done / "bundle")
    worse = tmp_path / "worse"
    shutil.copytree(done / "bundle", worse)
    import xgboost  # noqa: PLC0415 - heavy

    for parity in ("even", "odd"):  # the first trees only
        booster = xgboost.Booster()
        booster.load_model(worse / f"{parity}.json")
        (worse / f"{parity}.json").write_bytes(bytes(booster[:2].save_raw("json")))
    card = json.loads((worse / "model.json").read_text())
    for entry in card["models"]:
        del entry["sha256"], entry["golden"]
    (worse / "model.json").write_text(json.dumps(card))
    judged = by_name(judge(worse, training_run, champion=("7", better)))
    assert not judged["auc_against_champion"].passed
    assert not judged["jet_score_against_champion"].passed
    # what the golden rows were scored with is another model by now
    assert not judged["same_scores_here"].passed
    equal = by_name(judge(done / "bundle", training_run, champion=("7", better)))
    assert equal["auc_against_champion"].passed
    assert equal["auc_against_champion"].value == 0


def test_models_with_other_features(done: Path, training_run: Path, real_data: Path) -> None:
    """They can't be judged; a champion that needs others makes a gate fail, which says so."""
    published = load_model(real_data)
    assert isinstance(published, Bundle)
    judged = by_name(judge(done / "bundle", training_run, champion=("1", published)))
    assert not judged["auc_against_champion"].passed
    assert "other features" in judged["auc_against_champion"].detail
    with pytest.raises(ModelError, match="other features"):
        gates._check_features(published, sets_of(training_run)["nominal"])


def test_too_good_to_be_true(done: Path, training_run: Path, tmp_path: Path) -> None:
    """A bundle whose models score what they learned has a gap between validation and test."""
    folder = tmp_path / "leaky"
    shutil.copytree(done / "bundle", folder)
    trained = json.loads((folder / "training.json").read_text())
    for one in trained["models"].values():
        one["validation"]["auc"] = 0.9999
    (folder / "training.json").write_text(json.dumps(trained))
    assert not by_name(judge(folder, training_run))["gap"].passed


def test_jobs_that_can_not_be_done(training_run: Path, tmp_path: Path) -> None:
    for number, (change, message) in enumerate(
        (
            ({"dataset": "0" * 64}, "upload it again"),
            ({"variation": "JER"}, "no events of the variation 'JER'"),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        setup_of(folder, training_run, **change)
        assert job.main(folder) == 1
        assert message in json.loads((folder / "error.json").read_text())["error"]
        assert not (folder / "result.json").exists()


def test_one_parity_alone_is_not_judged(training_run: Path, tmp_path: Path) -> None:
    setup_of(tmp_path, training_run, fold="odd", trials=1, space={"n_estimators": 20})
    assert job.main(tmp_path) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["parities"] == ["odd"]
    assert result["passed"] is None
    with pytest.raises(ModelError, match="one model, not a bundle"):
        bundles.read_bundle(tmp_path / "bundle")


def test_two_models_of_other_jobs_are_judged_together(
    done: Path, training_run: Path, tmp_path: Path
) -> None:
    known = Known(version="1", folder=str(done / "bundle"))
    members = {"even": known, "odd": known}
    spec = {"kind": "judge", "versions": {"even": 1, "odd": 1}, "space": None}
    setup_of(tmp_path, training_run, members=members, champion=known, **spec)
    assert job.main(tmp_path) == 0
    first, second = (
        Judged.model_validate_json((folder / "bundle" / "gates.json").read_bytes())
        for folder in (done, tmp_path)
    )
    assert second.quality == first.quality
    assert second.against == "1"
    wrong = {"even": known, "odd": Known(version="2", folder=str(tmp_path / "gone"))}
    (tmp_path / "b").mkdir()
    setup_of(tmp_path / "b", training_run, members=wrong, **spec)
    assert job.main(tmp_path / "b") == 1


@pytest.mark.parametrize("tiny_disk", ["900k"], indirect=True)
def test_a_full_disk_ends_in_one_line(training_run: Path, tiny_disk: Path) -> None:
    setup_of(tiny_disk, training_run, **SPEC)
    command = [sys.executable, "-m", "agc_ml.training.job", str(tiny_disk)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    error = json.loads((tiny_disk / "error.json").read_text())["error"]
    assert "space" in error
    assert not (tiny_disk / "result.json").exists()


@pytest.mark.slow
def test_networks_are_trained_and_exported(training_run: Path, tmp_path: Path) -> None:
    """In a process of their own, with TensorFlow; the same seed gives the same ONNX."""
    space = {"epochs": 3, "width": 16, "layers": 1, "batch_size": 512}
    setup_of(tmp_path, training_run, kind="keras", trials=1, space=space)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from agc_ml.training import job, trials\n"
        "fits, fit = [], trials.fit\n"
        "trials.fit = lambda task: fits.append(task) or fit(task)\n"
        f"assert job.main(Path({str(tmp_path)!r})) == 0\n"
        "name, again = fit(fits[0]).files['model']\n"
        f"assert again == (Path({str(tmp_path)!r}) / 'bundle' / name).read_bytes()\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    bundle = bundles.read_bundle(tmp_path / "bundle")
    assert {model.format for model in bundle.members} == {"onnx"}
    judged = Judged.model_validate_json((tmp_path / "bundle" / "gates.json").read_bytes())
    assert by_name(judged)["same_scores_here"].value < 1e-5
    assert (tmp_path / "bundle" / "even.keras").exists()
    code = (
        "import sys, agc_ml, numpy as np\n"
        f"b = agc_ml.load_model({str(tmp_path / 'bundle')!r})\n"
        "b(np.zeros((4, 20), np.float32), np.arange(4))\n"
        "print('tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False False"


def test_an_export_that_scores_otherwise_is_not_registered(
    training_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agc_ml.training import networks  # noqa: PLC0415 - as the job does

    class Network:
        def save(self, path: Path) -> None:
            path.write_bytes(b"")

        def export(self, path: str, **_: Any) -> None:
            Path(path).write_bytes(b"")

    learner = object.__new__(networks.Learner)
    learner.network = Network()
    learner._data = networks.Prepared(np.zeros((3, 2), np.float32), *[np.zeros(3)] * 3)

    class Models:
        @staticmethod
        def load_model(*_: Any, **__: Any) -> Any:
            return lambda rows, training: np.full((len(rows), 1), 0.5)

    class Keras:
        models = Models

    learner._keras = Keras
    learner._score = lambda rows: np.full((len(rows), 1), 0.5)
    monkeypatch.setattr(networks, "onnx_scores", lambda *_: np.full(3, 0.6))
    monkeypatch.setattr(networks, "_make_canonical", lambda _: None)
    with pytest.raises(TrainingError, match=r"even\.onnx: its ONNX scores otherwise"):
        learner.save(tmp_path, "even")


def test_trials_on_a_dask_cluster(done: Path, training_run: Path, tmp_path: Path) -> None:
    """The same bytes as in one process; workers get the training set, whatever disk they have."""
    with agc_ml.connect("local", workers=2) as client:
        (tmp_path / "job").mkdir()
        setup_of(tmp_path / "job", training_run, site=client.scheduler.address)
        assert job.main(tmp_path / "job") == 0
        kept = client.run(lambda: (len(hook._contents), trials.whole.cache_info().currsize))
        assert set(kept.values()) == {(0, 0)}  # nothing of it stays with the workers
    for name in ("even.json", "odd.json", "model.json"):
        assert (tmp_path / "job" / "bundle" / name).read_bytes() == (
            done / "bundle" / name
        ).read_bytes()


def test_scores_of_a_server_are_compared(triton: Triton, tmp_path: Path) -> None:
    """With a real one, that serves what the golden rows were scored with, or another version."""
    rows_of = np.random.default_rng(0).random((50, 20), np.float32)
    versions = {"even": 1, "odd": 2}
    models: dict[str, Any] = {}
    for parity, version in versions.items():
        scored = weighted(rows_of, version)
        np.savez(tmp_path / f"golden_{parity}.npz", rows=rows_of, scores=scored)
        address = f"grpc://{triton.main.address}/wide?version={version}"
        models[parity] = replace(load_model(address), trained_on=parity)
    bundle = Bundle("wide", "1", **models)
    addresses = {
        parity: f"grpc://{triton.main.address}/wide?version={version}"
        for parity, version in versions.items()
    }
    swapped = {"even": addresses["odd"], "odd": addresses["even"]}
    for remote, passed in ((addresses, True), (swapped, False)):
        here, there = gates._same_scores(tmp_path, bundle, remote, Limits())
        assert (here.name, here.passed) == ("same_scores_here", True)
        assert (there.name, there.passed) == ("same_scores_remote", passed)


@pytest.mark.parametrize("what", ["dataset", "variation", "kind"])
def test_models_that_make_no_bundle(
    done: Path, training_run: Path, tmp_path: Path, what: str
) -> None:
    """A bundle says once what it was trained on: that has to be true of both models."""
    other = tmp_path / "other"
    shutil.copytree(done / "bundle", other)
    trained = json.loads((other / bundles.TRAINED).read_text())
    (other / bundles.TRAINED).write_text(json.dumps({**trained, what: "another"}))
    members = {
        "even": Known(version="1", folder=str(done / "bundle")),
        "odd": Known(version="2", folder=str(other)),
    }
    versions = {"even": 1, "odd": 2}
    setup_of(
        *(tmp_path, training_run), kind="judge", space=None, versions=versions, members=members
    )
    with pytest.raises(TrainingError, match=f"trained with different {what} .*another"):
        job.run(tmp_path)


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (TrainingError("nothing can be learned"), True),
        (OSError(errno.ENOSPC, "full"), True),
        (ClusterError("no scheduler answers"), False),
        (RuntimeError("Nanny failed to start."), False),
    ],
)
def test_what_may_pass_is_no_end_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, *, is_final: bool
) -> None:
    """A job that leaves no word is started again, up to three times."""

    def fails(_: Path) -> None:
        raise error

    monkeypatch.setattr(job, "run", fails)
    assert job.main(tmp_path) == 1
    assert (tmp_path / job.ERROR).exists() == is_final
