"""Registry and promotions without a service: each version once, one champion, bytes that count."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import shutil
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from services.training import add_dataset, advance, registered, run_until_over
from trained import SPEC

import agc_ml
from agc_ml.errors import ModelError, StoreError, TrainingError, UsageError
from agc_ml.inputs import loading
from agc_ml.models import naming, registry
from agc_ml.models.loading import load_registered
from agc_ml.models.model import Bundle
from agc_ml.models.registry import ChangedError, RegistryError
from agc_ml.training import client
from agc_ml.training.job_spec import JobSpec
from agc_ml.training.registry import publisher as publishing
from agc_ml.training.registry.promotion import ConflictError
from agc_ml.training.registry.publisher import Publisher
from agc_ml.training.service import job_manager
from agc_ml.training.service.database import Database
from agc_ml.training.service.job_manager import Settings

NAME = "jet_assignment"


class DiedError(Exception):
    """The process, in the middle of it."""


class Mortal:
    """MLflow's client, that dies with its n-th call: before it, or after it has had its effect."""

    def __init__(self, client: Any, calls: int, *, after: bool) -> None:
        self._client = client
        self.left = calls
        self._after = after

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left < 0 and not self._after:
                raise DiedError
            result = method(*args, **kwargs)
            if self.left < 0:
                raise DiedError
            return result

        return call


def versions_of(folder: Path) -> dict[str, list[str]]:
    """All versions of all models that MLflow knows."""
    found: dict[str, list[str]] = {}
    for version in Publisher(folder).client.search_model_versions(max_results=1000):
        found.setdefault(version.name, []).append(str(version.version))
    return found


def check_nothing_by_half(folder: Path) -> None:
    """What can be resolved is whole."""
    publisher = Publisher(folder)
    try:
        found = publisher.find(NAME, "1")
    except ModelError:
        return
    for file in found.files:
        publisher.content(found, file)
    assert found.tags["agc_ml.passed"] == "true"


@pytest.mark.parametrize("after", [False, True])
def test_a_death_at_any_call_registers_once(
    training_run: Path, trained_job: Path, tmp_path: Path, *, after: bool
) -> None:
    """Publishing dies at one call, is started again, dies at a later one, and so on."""
    job, training = registered(tmp_path / "training", training_run, trained_job)
    calls, lives = 0, 0
    while True:
        mortal = Mortal(Publisher(tmp_path / "training").client, calls, after=after)
        training.registry._client = mortal
        try:
            result = training.publish(job)
            break
        except DiedError:
            lives += 1
            calls += 1
            check_nothing_by_half(tmp_path / "training")
    assert lives > 8
    assert result["versions"] == {"even": "1", "odd": "1", "bundle": "1"}
    assert versions_of(tmp_path / "training") == {
        NAME: ["1"], f"{NAME}-even": ["1"], f"{NAME}-odd": ["1"]
    }  # fmt: skip
    runs = Publisher(tmp_path / "training").client.search_runs(
        [Publisher(tmp_path / "training").client.get_experiment_by_name(NAME).experiment_id]
    )
    assert len(runs) == 1 + 4  # the job, and its trials
    assert {run.info.status for run in runs} == {"FINISHED"}
    training.close()


def test_what_is_in_mlflow(champions: Path) -> None:
    found = Publisher(champions).client
    experiment = found.get_experiment_by_name(NAME).experiment_id
    run = found.search_runs([experiment], "params.kind = 'xgboost'")[0]
    assert run.data.metrics["auc"] > 0.95
    assert run.data.params["dataset"]
    version = found.get_model_version_by_alias(NAME, "champion")
    assert str(version.version) == "1"
    assert version.tags["agc_ml.passed"] == "true"


def test_a_named_model_is_the_bundle(own_champions: Path, trained_job: Path) -> None:
    where = str(own_champions)
    found = load_registered(f"{NAME}@champion", where)
    assert isinstance(found, Bundle)
    assert (found.name, found.version) == (NAME, "1")
    assert [model.version for model in found.members] == ["1", "1"]
    rows, event = np.random.default_rng(1).random((40, 20), np.float32), np.arange(40)
    direct = agc_ml.load_model(trained_job / "bundle")
    assert isinstance(direct, Bundle)
    assert np.array_equal(found(rows, event), direct(rows, event))
    assert naming.pinned_name(f"{NAME}@champion", where) == f"{NAME}@1"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (f"{NAME}@99", "no such model, version or alias"),
        (f"{NAME}@99999999999999999999", "there is no version 99999999999999999999"),
        (f"{NAME}@challenger", "no such model, version or alias"),
        ("muons@champion", "no such model, version or alias"),
    ],
)
def test_names_of_nothing(own_champions: Path, spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_registered(spec, str(own_champions))


def test_a_registry_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGC_ML_TRAINING", raising=False)
    with pytest.raises(ModelError, match=r"there is no registry in training"):
        agc_ml.load_model(f"{NAME}@champion")
    with pytest.raises(UsageError, match="no training service and no folder of one"):
        load_registered(f"{NAME}@champion", "nowhere")
    monkeypatch.setenv("AGC_ML_TRAINING", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"127\.0\.0\.1:9 can't be reached"):
        agc_ml.load_model(f"{NAME}@champion")


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b"])
def test_a_folder_that_databases_can_not_be_in(tmp_path: Path, name: str) -> None:
    """They are named by URLs: one would be made elsewhere."""
    folder = str(tmp_path / name)
    with (
        pytest.raises(UsageError, match="in its path, which MLflow's databases can't have"),
        client.connect_training(folder, local=True),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_database_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow makes its tables one by one, and can never use a database with half of them."""

    def dies(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as half:
            half.execute("create table scorers (a)")
        raise DiedError

    with monkeypatch.context() as patched:
        patched.setattr(publishing, "client_of", dies)
        with pytest.raises(DiedError):
            Publisher(tmp_path).open()
    assert not (tmp_path / registry.DATABASE).exists()
    made: list[Path] = []

    def counted(path: Path) -> Any:
        made.append(path)
        return registry.client_of(path)

    monkeypatch.setattr(publishing, "client_of", counted)
    publisher = Publisher(tmp_path)
    with ThreadPoolExecutor(8) as many:
        assert list(many.map(lambda _: publisher.names(), range(8))) == [[]] * 8
    assert len(made) == 1
    assert [path.name for path in tmp_path.iterdir()] == [registry.DATABASE]


def test_a_file_called_like_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model@champion").write_text("")
    with pytest.raises(ModelError, match="not a format"):
        agc_ml.load_model("model@champion")


def test_a_changed_artefact_is_refused(own_champions: Path) -> None:
    """For scoring, and for promotion: even one that only people look at."""
    training = job_manager.JobManager(Settings(own_champions))
    found = training.registry.find(NAME, "2")
    for file in ("even.json", "report.html"):
        path = found.folder / file
        good = path.read_bytes()
        path.write_bytes(good.replace(b"0", b"1", 1))
        with pytest.raises(ChangedError, match=f"{file} was changed on disk"):
            training.champions.promote(NAME, "2", expected=None, who="me", force="I like it")
        if file == "even.json":
            with pytest.raises(ChangedError, match=r"even\.json was changed on disk"):
                load_registered(f"{NAME}@2", str(own_champions))
        path.unlink()
        with pytest.raises(ModelError, match=f"{file} can't be read"):
            training.champions.promote(NAME, "2", expected=None, who="me", force="I like it")
        path.write_bytes(good)
    assert training.registry.champion(NAME).version == "1"  # type: ignore[union-attr]
    training.close()


def test_a_version_of_someone_else(own_champions: Path) -> None:
    """Registered by hand in MLflow: nothing says what its files must be."""
    publisher = Publisher(own_champions)
    publisher.client.create_model_version(NAME, "mlflow-artifacts:/x", await_creation_for=0)
    with pytest.raises(ModelError, match="was not registered by agc-ml"):
        publisher.find(NAME, "3")
    assert [one.version for one in publisher.versions(NAME)] == ["1", "2"]


def test_champions(own_champions: Path) -> None:
    training = job_manager.JobManager(Settings(own_champions))
    promote = training.champions.promote
    with pytest.raises(ConflictError, match="version 1 is the champion already"):
        promote(NAME, "1", expected=None, who="me")
    with pytest.raises(ConflictError, match="the champion is version 1, not version 5"):
        promote(NAME, "2", expected="5", who="me")
    with pytest.raises(ConflictError, match="the champion is version 1, not none"):
        promote(NAME, "2", expected="", who="me")
    # judged when there was no champion
    with pytest.raises(ConflictError, match="judged against none, but the champion is version 1"):
        promote(NAME, "2", expected="1", who="me")
    done = promote(NAME, {"even": 2, "odd": 2}, expected="1", who="me", force="same as 1")
    assert (done.version, done.previous, done.reason) == ("2", "1", "same as 1")
    with pytest.raises(ModelError, match="were never judged as a bundle"):
        promote(NAME, {"even": 1, "odd": 2}, expected=None, who="me")
    back = training.champions.rollback(NAME, expected="2", who="you")
    assert (back.version, back.previous) == ("1", "2")
    with pytest.raises(ConflictError, match="there was no champion before"):
        training.champions.rollback(NAME, expected=None, who="you")
    assert [one.version for one in training.database.promotions(NAME)] == ["1", "2", "1"]
    assert {one.state for one in (done, back)} == {"done"}
    # whoever calls it one has not gone back
    promote(NAME, "2", expected=None, who="me", force="again")
    promote(NAME, "1", expected=None, who="me", force="rollback from version 2 by hand")
    assert training.champions.rollback(NAME, expected=None, who="you").version == "2"
    training.close()


def test_a_bundle_that_fails_needs_a_reason(own_champions: Path) -> None:
    training = job_manager.JobManager(Settings(own_champions))
    training.registry.client.set_model_version_tag(NAME, "2", "agc_ml.passed", "false")
    with pytest.raises(ConflictError, match="does not pass all gates"):
        training.champions.promote(NAME, "2", expected=None, who="me")
    training.champions.promote(NAME, "2", expected=None, who="me", force="the only one we have")
    assert training.database.promotions(NAME)[-1].reason == "the only one we have"
    training.close()


def test_of_two_promotions_at_once_one_wins(own_champions: Path) -> None:
    """In a service they come one after the other; both expect the same champion."""
    training = job_manager.JobManager(Settings(own_champions))
    barrier = threading.Barrier(2)

    def promote(version: str, talker: ThreadPoolExecutor) -> str:
        barrier.wait()
        try:
            talker.submit(
                training.champions.promote, NAME, version, expected="1", who="me", force="race"
            ).result()
        except ConflictError as error:
            return str(error)
        return "won"

    job, other = registered_again(training)
    with ThreadPoolExecutor(1) as talker, ThreadPoolExecutor(2) as both:
        outcomes = list(both.map(promote, (job, other), (talker, talker)))
    assert sorted(outcome == "won" for outcome in outcomes) == [False, True]
    loser = next(outcome for outcome in outcomes if outcome != "won")
    assert "not version 1; look again" in loser
    training.close()


def registered_again(training: job_manager.JobManager) -> tuple[str, str]:
    """Two versions that are not the champion."""
    source = training.registry.find(NAME, "2")
    made = training.registry.client.create_model_version(
        NAME,
        training.registry.client.get_model_version(NAME, "2").source,
        tags=dict(source.tags),
        await_creation_for=0,
    )
    return "2", str(made.version)


@pytest.mark.parametrize("is_champion_set", [False, True])
def test_a_death_in_a_promotion(own_champions: Path, *, is_champion_set: bool) -> None:
    """Before or after the alias was changed: the history says what the registry says."""
    training = job_manager.JobManager(Settings(own_champions))
    training.database.begin_promotion(NAME, "2", "1", "", "me", is_rollback=False)
    if is_champion_set:
        training.registry.set_champion(NAME, "2")
    training.close()
    again = job_manager.JobManager(Settings(own_champions))
    again.champions.settle()
    assert not again.database.unfinished_promotions()
    assert [one.version for one in again.database.promotions(NAME)] == ["1", "2"][
        : 1 + is_champion_set
    ]
    again.close()


def test_the_registry_is_locked(own_champions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By someone else, for long: a job waits, and is not failed."""
    training = job_manager.JobManager(Settings(own_champions))

    def fails(_: str) -> Any:
        raise RegistryError("mlflow.db: can't be used now (database is locked)")

    monkeypatch.setattr(training.registry, "champion", fails)
    spec = training.database.jobs()[0].spec.model_copy(update={"idempotency_key": "new"})
    job, _ = training.submit(spec, "me")
    advance(training, job)
    found = training.database.job(job.id)
    assert found.state == "queued"
    assert "database is locked" in found.note
    training.close()


@pytest.mark.parametrize("tiny_disk", ["6m"], indirect=True)
def test_a_full_disk_while_it_is_registered(
    training_run: Path, trained_job: Path, tiny_disk: Path
) -> None:
    """The job waits with what it made, and is registered when there is space."""
    job, training = registered(tiny_disk / "training", training_run, trained_job)
    training.registry.open()
    ballast = tiny_disk / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 65536)
            file.flush()
    with pytest.raises(StoreError, match="database or disk is full"):
        advance(training, job)  # not even that it waits can be noted
    assert training.database.job(job.id).state == "publishing"
    with pytest.raises(ModelError):
        training.registry.find(NAME, "1")
    ballast.unlink()
    advance(training, training.database.job(job.id))
    assert training.database.job(job.id).state == "succeeded"
    check_nothing_by_half(tiny_disk / "training")
    training.close()
    dispose()


def dispose() -> None:
    """Have SQLAlchemy let go of the database, so that its disk can be unmounted."""
    import gc  # noqa: PLC0415 - only here

    from sqlalchemy.engine import Engine  # noqa: PLC0415 - heavy

    for left in gc.get_objects():
        if type(left) is Engine:
            left.dispose()


def run_ttbar(output: Path, model: str, **how: Any) -> Any:
    fileset = agc_ml.Fileset.load(loading.DEMO).select(["ttbar__nominal"])
    return agc_ml.run(
        "ttbar", fileset, model=model, site="inline", output=output, quiet=True, **how
    )


def test_a_promotion_changes_the_next_run_only(
    own_champions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that is resumed goes on with the model that it began with."""
    monkeypatch.setenv("AGC_ML_TRAINING", str(own_champions))
    first = run_ttbar(tmp_path / "first", f"{NAME}@champion", chunk_size=4_000)
    assert set(first.provenance.models) == {f"{NAME}-even@1", f"{NAME}-odd@1"}
    assert first.provenance.model.found == f"{NAME}@1"
    shutil.copytree(tmp_path / "first", tmp_path / "resumed")
    record = json.loads((tmp_path / "resumed" / "run.json").read_text())
    record["status"] = "partial"
    (tmp_path / "resumed" / "run.json").write_text(json.dumps(record))
    training = job_manager.JobManager(Settings(own_champions))
    training.champions.promote(NAME, "2", expected="1", who="me", force="for the test")
    training.close()
    second = run_ttbar(tmp_path / "second", f"{NAME}@champion", chunk_size=4_000)
    assert set(second.provenance.models) == {f"{NAME}-even@2", f"{NAME}-odd@2"}
    resumed = run_ttbar(tmp_path / "resumed", f"{NAME}@champion", resume=True)
    assert resumed.provenance.models == first.provenance.models
    # asked for something else, it gets that
    other = run_ttbar(tmp_path / "other", f"{NAME}@1")
    assert other.provenance.models == first.provenance.models


def test_a_pulled_bundle_needs_no_registry(own_champions: Path, tmp_path: Path) -> None:
    with client.connect_training(str(own_champions), local=True) as training:
        found = client.pull(training, NAME, "champion", tmp_path / "bundle")
        assert found.version == "1"
        with pytest.raises(UsageError, match="is not empty"):
            client.pull(training, NAME, "champion", tmp_path / "bundle")
    shutil.rmtree(own_champions)
    result = run_ttbar(tmp_path / "run", str(tmp_path / "bundle"))
    assert result.status == "complete"


def test_a_notebook_trains_without_a_service(own_champions: Path) -> None:
    """There an event loop runs already; errors come as from a service, without an address."""

    async def notebook() -> list[str]:
        with client.connect_training(str(own_champions), local=True) as training:
            with pytest.raises(TrainingError, match=r"^there is no job abc; see"):
                training.job("abc")
            with pytest.raises(TrainingError, match=r"^model jet_assignment: there was no"):
                training.rollback(NAME)
            done = training.promote(NAME, "2", expected="1", reason="to see who")
            assert done.who == getpass.getuser()
            return [one.version for one in training.models(NAME)]

    assert asyncio.run(notebook()) == ["1", "2"]


def test_who_stops_following_without_a_service_stops_the_job(
    training_run: Path, tmp_path: Path
) -> None:
    """It is queued, as if it had not been started, and resumed by who follows it again."""
    folder = str(tmp_path / "training")
    with client.connect_training(folder, local=True, workers=1) as training:
        digest = training.upload(training_run)
        job = training.submit(**{**SPEC, "dataset": digest, "trials": 500})
        for now in training.follow(job.id):
            if now.progress.done >= 2:
                break
    (tmp_path / "training" / ".upload-abandoned").write_text("")
    with client.connect_training(folder, local=True, workers=1) as training:
        found = training.job(job.id)
        assert (found.state, found.attempt, found.note) == ("queued", 0, "was stopped")
        training.cancel(job.id)
        assert [one.state for one in training.follow(job.id)] == ["cancelled"]
    assert not list((tmp_path / "training").glob(".upload*"))


def test_two_can_not_train_in_a_folder(own_champions: Path) -> None:
    with (
        client.connect_training(str(own_champions), local=True),
        pytest.raises(UsageError, match="is at work in it"),
        client.connect_training(str(own_champions), local=True),
    ):
        pass


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with (
        pytest.raises(UsageError, match="holds other files"),
        client.connect_training(str(tmp_path), local=True),
    ):
        pass


def test_a_stop_on_purpose_is_no_death(training_run: Path, tmp_path: Path) -> None:
    """The job waits for the next start, as if it had never been begun, and goes on there."""
    training = job_manager.JobManager(Settings(tmp_path))
    digest = add_dataset(training, training_run / "training.parquet")
    spec = client.validated_spec({**SPEC, "dataset": digest, "trials": 500})
    job, _ = training.submit(spec, "me")
    advance(training, job)
    while training.database.job(job.id).progress.done < 3:
        time.sleep(0.05)
        training.step()
    training.close()
    with sqlite3.connect(tmp_path / job_manager.DATABASE) as table:
        table.execute("update jobs set started = 1")  # the night is no time of the job
    table.close()
    again = job_manager.JobManager(Settings(tmp_path, timeout=300))
    found = again.database.job(job.id)
    assert (found.state, found.attempt) == ("queued", 0)
    advance(again, found)
    while again.database.job(job.id).progress.done < found.progress.done + 1:
        time.sleep(0.05)
        again.step()
    log = again.log(found)
    assert sum("trial 0 on even events" in line for line in log) == 2  # told again, not tried again
    again.cancel(job.id)
    while not again.database.job(job.id).is_over:
        time.sleep(0.05)
        again.step()
    assert again.database.job(job.id).state == "cancelled"
    assert not (again.job_folder(job) / "bundle").exists()
    again.close()


def test_a_job_takes_too_long(training_run: Path, tmp_path: Path) -> None:
    training = job_manager.JobManager(Settings(tmp_path, timeout=4))
    digest = add_dataset(training, training_run / "training.parquet")
    spec = client.validated_spec({**SPEC, "dataset": digest, "trials": 500})
    job, _ = training.submit(spec, "me")
    found = run_until_over(training, job)
    assert found.state == "failed"
    assert "not done after 4 s" in str(found.error)
    training.close()


def test_a_process_that_always_dies(training_run: Path, tmp_path: Path) -> None:
    """As one that runs out of memory: three times, and the last lines of its log are told."""
    training = job_manager.JobManager(Settings(tmp_path))
    digest = add_dataset(training, training_run / "training.parquet")
    job, _ = training.submit(
        client.validated_spec({**SPEC, "dataset": digest, "trials": 500}), "me"
    )
    deaths = 0
    while not (found := training.database.job(job.id)).is_over:
        for waiting in training.step():
            advance(training, waiting)
        if found.state == "running" and found.progress.done >= 2 + deaths:
            process = training._processes[job.id]
            process.kill()
            process.wait()
            deaths += 1
        time.sleep(0.02)
    assert deaths == job_manager.MAX_ATTEMPTS == found.attempt
    assert found.state == "failed"
    assert "its process died 3 times (SIGKILL); the last lines" in str(found.error)
    training.close()


def test_what_a_finished_job_leaves(champions: Path) -> None:
    """Its log and its study; the models are in the registry."""
    table = Database(champions / job_manager.DATABASE)
    for job in table.jobs():
        left = {path.name for path in (champions / "jobs" / job.id).iterdir()}
        assert "bundle" not in left
        assert {"result.json", "study.db"} <= left
    table.close()


def test_jobs_wait_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    table = Database(tmp_path / job_manager.DATABASE)
    spec = JobSpec(**{**SPEC, "dataset": "0" * 64})
    jobs = [table.submit(spec, "somebody", most_queued=9)[0] for _ in range(3)]
    assert table.queue(0) == []
    assert [job.id for job in table.queue(2)] == [job.id for job in jobs[:2]]
    assert table.changed(jobs[0].id) == jobs[0].changed
    table.move(jobs[0], "running")
    assert table.changed(jobs[0].id) > jobs[0].changed
    assert [job.id for job in table.queue(9)] == [job.id for job in jobs[1:]]
    assert table.changed("none") == 0
    table.close()


def test_a_database_whose_text_is_damaged(tmp_path: Path) -> None:
    sound, damaged = tmp_path / "sound", tmp_path / "damaged"
    for folder in (sound, damaged):
        folder.mkdir()
    Publisher(sound).open()
    content = (sound / registry.DATABASE).read_bytes()
    (damaged / registry.DATABASE).write_bytes(content.replace(b"(request_id)", b"(request\xa0id)"))
    with pytest.raises(RegistryError, match="can't be used now"):
        Publisher(damaged).names()
