"""Writing to the registry: what a job made becomes versions, each once; aliases change at once."""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from agc_ml.errors import ModelError
from agc_ml.models.model import PARITIES, Parity
from agc_ml.models.registry import (
    ARTIFACTS,
    CHAMPION,
    FILES_TAG,
    PART_TAG,
    SCHEME,
    WHOLE,
    Registry,
    Version,
    client_of,
)
from agc_ml.training.job_process import BUNDLE, RESULT, TRIALS
from agc_ml.training.registry.versions import (
    AGAINST_TAG,
    JOB_TAG,
    MEMBER_TAG,
    PASSED_TAG,
    QUALITY_TAG,
)
from agc_ml.training.service.database import Job

_PAGE: Final = 1000
"""What MLflow is asked for at once."""


class Publisher(Registry):
    """Writes what `Registry` reads. Everything can be done again after a death in the middle."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder
        self._making = threading.Lock()

    @property
    def client(self) -> Any:
        """MLflow's client, to be used within `errors`; its database is made if it is not there."""
        with self._making:
            if not self.database.exists():
                self._make()
        return super().client

    def _make(self) -> None:
        """Make the database, under another name at first.

        MLflow makes its tables one by one, and can do nothing with half of them.
        """
        hidden = f".{self.database.name}"
        for stale in self.database.parent.glob(f"{hidden}*"):
            stale.unlink()
        scratch = self.database.with_name(f"{hidden}-{uuid.uuid4().hex}")  # MLflow keeps it open
        client_of(scratch).search_experiments(max_results=1)
        scratch.replace(self.database)

    def open(self) -> None:
        """Make MLflow's database, if it is not there.

        Raises
        ------
        RegistryError
            It can't be made.
        """
        with self.errors("the registry"):
            self.client.search_experiments(max_results=1)

    def publish(self, job: Job, work: Path) -> dict[str, Any]:
        """Make versions of what a finished job left in its folder ``work``; those it has by now.

        Raises
        ------
        RegistryError
            The registry can't be used now.
        ModelError
            The job's files are not what it said.
        """
        result = json.loads((work / RESULT).read_text())
        with self.errors(f"job {job.id}"):
            run = self._run(job, result, work)
            source = self._copied(job, run, work, result["files"])
            own = {JOB_TAG: job.id, FILES_TAG: json.dumps(result["files"])}
            versions: dict[str, str] = {}
            parities: list[Parity] = result["parities"]
            for parity in parities:
                if job.spec.versions is not None:
                    versions[parity] = str(job.spec.versions[parity])
                else:
                    name = member(job.spec.name, parity)
                    versions[parity] = self._version(name, run, source, {**own, PART_TAG: parity})
            if len(parities) == len(PARITIES):
                tags = {
                    **own,
                    PART_TAG: WHOLE,
                    PASSED_TAG: str(bool(result["passed"])).lower(),
                    AGAINST_TAG: result["against"],
                    **{MEMBER_TAG.format(parity=p): versions[p] for p in parities},
                    **{f"{QUALITY_TAG}{k}": f"{v:.6f}" for k, v in result["quality"].items()},
                }
                versions[WHOLE] = self._version(job.spec.name, run, source, tags)
            self.client.set_terminated(run)
        kept = ("quality", "passed", "against", "validation", "params")
        return {"versions": versions, **{key: result[key] for key in kept}}

    def _run(self, job: Job, result: Mapping[str, Any], work: Path) -> str:
        """MLflow's run of a job, with its trials below it; made if it is not there."""
        client, name = self.client, job.spec.name
        found = client.get_experiment_by_name(name)
        if found is None:
            experiment = client.create_experiment(name, artifact_location=f"{SCHEME}{name}")
        else:
            experiment = found.experiment_id
        runs = client.search_runs([experiment], f"tags.`{JOB_TAG}` = '{job.id}'", max_results=1)
        if runs:
            run = str(runs[0].info.run_id)
        else:
            tags = {JOB_TAG: job.id, "mlflow.user": job.owner}
            made = client.create_run(experiment, tags=tags, run_name=f"{job.spec.kind} {job.id}")
            run = str(made.info.run_id)
        self._log(run, job, result)
        self._log_trials(experiment, run, job, work)
        return run

    def _log(self, run: str, job: Job, result: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric, Param  # noqa: PLC0415 - heavy

        spec = job.spec
        facts = {"kind": spec.kind, "dataset": spec.dataset, "seed": spec.seed, "fold": spec.fold,
                 "variation": spec.variation, "trials": spec.trials}  # fmt: skip
        params = [Param(key, str(value)) for key, value in facts.items()]
        params += [
            Param(f"{parity}.{key}", str(value))
            for parity, chosen in result["params"].items()
            for key, value in chosen.items()
        ]
        numbers = {f"{p}.validation.{k}": v for p, q in result["validation"].items()
                   for k, v in q.items()}  # fmt: skip
        numbers |= result["quality"] or {}
        at = int(1000 * job.created)
        metrics = [Metric(key, float(value), at, 0) for key, value in numbers.items()]
        self.client.log_batch(run, metrics=metrics, params=params)

    def _log_trials(self, experiment: str, run: str, job: Job, work: Path) -> None:
        """A run of MLflow's for each trial, those that are not there yet."""
        from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415 - heavy

        trials = json.loads((work / BUNDLE / TRIALS).read_text())
        there = _all(self.client.search_runs, [experiment], f"tags.`mlflow.parentRunId` = '{run}'")
        known = {one.info.run_name: one for one in there}
        at = int(1000 * job.created)
        for parity, attempts in trials.items():
            for one in attempts:
                name = f"{parity} {one['number']}"
                if name in known and known[name].info.status == "FINISHED":
                    continue
                below = {"mlflow.parentRunId": run, JOB_TAG: f"of {job.id}"}
                child = known.get(name) or self.client.create_run(
                    experiment, run_name=name, tags=below
                )
                metrics = [Metric("jet_score", v, at, s) for s, v in one["history"]]
                metrics += [Metric(k, one[k], at, 0) for k in ("auc", "fully_right", "seconds")]
                self.client.log_batch(
                    child.info.run_id,
                    metrics=metrics,
                    params=[Param(k, str(v)) for k, v in one["params"].items()],
                    tags=[RunTag("pruned", str(one["pruned"]).lower())],
                )
                self.client.set_terminated(child.info.run_id)

    def _copied(self, job: Job, run: str, work: Path, files: Mapping[str, str]) -> str:
        """Put a job's files where MLflow looks for those of its run: all of them, or none."""
        inside = f"{job.spec.name}/{run}/{ARTIFACTS}"
        target = self._folder / ARTIFACTS / inside / BUNDLE
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = target.with_name(f".{BUNDLE}")
            shutil.rmtree(scratch, ignore_errors=True)
            for file in files:
                (scratch / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(work / BUNDLE / file, scratch / file)
                _sync(scratch / file)
            scratch.replace(target)
        return f"{SCHEME}{inside}/{BUNDLE}"

    def _version(self, name: str, run: str, source: str, tags: Mapping[str, str]) -> str:
        """Number of the version that a run made of a model; made with all its tags if not there."""
        client = self.client
        there = client.search_model_versions(f"name = '{name}' and run_id = '{run}'")
        if there:
            return str(there[0].version)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        made = client.create_model_version(
            name, source, run_id=run, tags=dict(tags), await_creation_for=0
        )
        return str(made.version)

    def champion(self, name: str) -> Version | None:
        """The version that is the champion now, None if there is none.

        Raises
        ------
        RegistryError
            The registry can't be used now.
        """
        with self.errors(f"model {name}"):
            found = self.client.search_registered_models(f"name = '{name}'")
        aliases = dict(found[0].aliases) if found else {}
        if CHAMPION not in aliases:
            return None
        return self.find(name, str(aliases[CHAMPION]))

    def crown(self, name: str, version: str) -> None:
        """Make a version the champion.

        Raises
        ------
        RegistryError
            The registry can't be used now.
        """
        with self.errors(f"model {name}@{version}"):
            self.client.set_registered_model_alias(name, CHAMPION, version)

    def versions(self, name: str) -> list[Version]:
        """Versions of a model, the oldest first.

        Raises
        ------
        RegistryError
            The registry can't be used now.
        """
        with self.errors(f"model {name}"):
            found = _all(self.client.search_model_versions, f"name = '{name}'")
        ours = [one for one in found if FILES_TAG in one.tags]
        return sorted((self.version_of(one) for one in ours), key=lambda one: int(one.version))

    def bundle_of(self, name: str, members: Mapping[Parity, int]) -> Version:
        """The newest judged bundle of two models.

        Raises
        ------
        ModelError
            The two were not judged together.
        """
        wanted = {MEMBER_TAG.format(parity=p): str(number) for p, number in members.items()}
        found = [one for one in self.versions(name) if wanted.items() <= one.tags.items()]
        if not found:
            pair = ", ".join(f"{p} {number}" for p, number in members.items())
            raise ModelError(
                f"model {name}: {pair} were never judged as a bundle; do so with 'agc-ml models "
                "judge'"
            )
        return found[-1]

    def names(self) -> list[str]:
        """Names of the models that have bundles.

        Raises
        ------
        RegistryError
            The registry can't be used now.
        """
        with self.errors("models"):
            found = _all(self.client.search_registered_models)
        suffixes = tuple(f"-{parity}" for parity in PARITIES)
        return sorted(one.name for one in found if not one.name.endswith(suffixes))

    def materialised(self, version: Version, folder: Path) -> Path:
        """A checked copy of a version's files in a folder, which it names.

        Raises
        ------
        ModelError
            A file was changed.
        """
        target = folder / f"{version.name}-{version.version}"
        shutil.rmtree(target, ignore_errors=True)
        for file in version.files:
            if "/" not in file:
                target.mkdir(parents=True, exist_ok=True)
                (target / file).write_bytes(self.content(version, file))
        return target


def member(name: str, parity: Parity) -> str:
    """What the registry calls one of the two models of a bundle."""
    return f"{name}-{parity}"


def _all(search: Callable[..., Any], *about: Any) -> list[Any]:
    """What a search of MLflow's finds, all its pages."""
    found: list[Any] = []
    token = None
    while True:
        page = search(*about, max_results=_PAGE, page_token=token)
        found += page
        if not (token := page.token):
            return found


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
