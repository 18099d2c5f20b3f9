"""Writer of the registry: registers the models of a job, each once, and sets the champion."""

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
    VersionFacts,
    version_facts,
)
from agc_ml.training.service.database import Job

# Results on a page of MLflow's searches
_PAGE: Final = 1000


class Publisher(Registry):
    """Writes what `Registry` reads; each step can be repeated if its process died."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder
        self._creation = threading.Lock()

    @property
    def client(self) -> Any:
        """MLflow's client, for use within `errors`; creates the database if there is none."""
        with self._creation:
            if not self.database.exists():
                self._create_database()
        return super().client

    def _create_database(self) -> None:
        """Create the database under a temporary name, then rename it.

        MLflow creates its tables one by one, and can't use a database with half of them.
        """
        hidden = f".{self.database.name}"
        for stale in self.database.parent.glob(f"{hidden}*"):
            stale.unlink()
        scratch = self.database.with_name(f"{hidden}-{uuid.uuid4().hex}")  # MLflow keeps it open
        client_of(scratch).search_experiments(max_results=1)
        scratch.replace(self.database)

    def open(self) -> None:
        """Create MLflow's database, if there is none.

        Raises
        ------
        RegistryError
            It can't be created.
        """
        with self.errors("the registry"):
            self.client.search_experiments(max_results=1)

    def publish(self, job: Job, work: Path) -> dict[str, Any]:
        """Register the models in the folder ``work`` of a finished job, once; return its result.

        Raises
        ------
        RegistryError
            The registry can't be used now.
        ModelError
            The job's files are not those of its result.
        """
        result = json.loads((work / RESULT).read_text())
        with self.errors(f"job {job.id}"):
            # the run and its files first: versions refer to them
            run = self._run(job, result, work)
            source = self._store_files(job, run, work, result["files"])
            own = {JOB_TAG: job.id, FILES_TAG: json.dumps(result["files"])}
            versions: dict[str, str] = {}
            parities: list[Parity] = result["parities"]
            for parity in parities:
                if job.spec.versions is not None:
                    versions[parity] = str(job.spec.versions[parity])
                else:
                    name = member(job.spec.name, parity)
                    versions[parity] = self._version(name, run, source, {**own, PART_TAG: parity})
            # the bundle, with its quality and members as tags
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
        """Return MLflow's run of a job, with its trials as nested runs; create them if need be."""
        client, name = self.client, job.spec.name
        earlier = client.get_experiment_by_name(name)
        if earlier is None:
            experiment = client.create_experiment(name, artifact_location=f"{SCHEME}{name}")
        else:
            experiment = earlier.experiment_id
        runs = client.search_runs([experiment], f"tags.`{JOB_TAG}` = '{job.id}'", max_results=1)
        if runs:
            run = str(runs[0].info.run_id)
        else:
            tags = {JOB_TAG: job.id, "mlflow.user": job.owner}
            new = client.create_run(experiment, tags=tags, run_name=f"{job.spec.kind} {job.id}")
            run = str(new.info.run_id)
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
        """Create a nested run for each trial that has none yet."""
        from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415 - heavy

        trials = json.loads((work / BUNDLE / TRIALS).read_text())
        nested = _search_all(
            self.client.search_runs, [experiment], f"tags.`mlflow.parentRunId` = '{run}'"
        )
        children = {one.info.run_name: one for one in nested}
        at = int(1000 * job.created)
        for parity, attempts in trials.items():
            for one in attempts:
                name = f"{parity} {one['number']}"
                if name in children and children[name].info.status == "FINISHED":
                    continue
                below = {"mlflow.parentRunId": run, JOB_TAG: f"of {job.id}"}
                # a run that a crash left unfinished is completed
                child = children.get(name) or self.client.create_run(
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

    def _store_files(self, job: Job, run: str, work: Path, files: Mapping[str, str]) -> str:
        """Copy a job's files to the artifacts of its run, all or none; return their URI."""
        inside = f"{job.spec.name}/{run}/{ARTIFACTS}"
        target = self._folder / ARTIFACTS / inside / BUNDLE
        # complete, then renamed: artifacts are never partial
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
        """Return the version of a model that a run registered; register it if need be."""
        client = self.client
        earlier = client.search_model_versions(f"name = '{name}' and run_id = '{run}'")
        if earlier:
            return str(earlier[0].version)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        new = client.create_model_version(
            name, source, run_id=run, tags=dict(tags), await_creation_for=0
        )
        return str(new.version)

    def champion(self, name: str) -> Version | None:
        """Return the version of the champion, None if there is none.

        Raises
        ------
        RegistryError
            The registry can't be used now.
        """
        with self.errors(f"model {name}"):
            models = self.client.search_registered_models(f"name = '{name}'")
        aliases = dict(models[0].aliases) if models else {}
        if CHAMPION not in aliases:
            return None
        return self.find(name, str(aliases[CHAMPION]))

    def champion_version(self, name: str) -> str:
        """Return the number of the champion's version, '' if there is none.

        Raises
        ------
        RegistryError
            The registry can't be used now.
        """
        champion = self.champion(name)
        return "" if champion is None else champion.version

    def set_champion(self, name: str, version: str) -> None:
        """Set the alias of the champion to a version.

        Raises
        ------
        RegistryError
            The registry can't be used now.
        """
        with self.errors(f"model {name}@{version}"):
            self.client.set_registered_model_alias(name, CHAMPION, version)

    def versions(self, name: str) -> list[Version]:
        """Return the versions of a model, the oldest first.

        Raises
        ------
        RegistryError
            The registry can't be used now.
        """
        with self.errors(f"model {name}"):
            all_versions = _search_all(self.client.search_model_versions, f"name = '{name}'")
        ours = [one for one in all_versions if FILES_TAG in one.tags]
        return sorted((self.version_of(one) for one in ours), key=lambda one: int(one.version))

    def bundle_of(self, name: str, members: Mapping[Parity, int]) -> Version:
        """Return the newest bundle of two models.

        Raises
        ------
        ModelError
            The two were never judged together.
        """
        tags = {MEMBER_TAG.format(parity=p): str(number) for p, number in members.items()}
        bundles = [one for one in self.versions(name) if tags.items() <= one.tags.items()]
        if not bundles:
            pair = ", ".join(f"{p} {number}" for p, number in members.items())
            raise ModelError(
                f"model {name}: {pair} were never judged as a bundle; do so with 'agc-ml models "
                "judge'"
            )
        return bundles[-1]

    def names(self) -> list[str]:
        """Return the names of the models that have bundles.

        Raises
        ------
        RegistryError
            The registry can't be used now.
        """
        with self.errors("models"):
            models = _search_all(self.client.search_registered_models)
        # models of a single parity are members of bundles
        suffixes = tuple(f"-{parity}" for parity in PARITIES)
        return sorted(one.name for one in models if not one.name.endswith(suffixes))

    def bundles(self, name: str) -> list[VersionFacts]:
        """Return the bundles of a model, the oldest first.

        Raises
        ------
        RegistryError
            The registry can't be used now.
        """
        champion = self.champion_version(name)
        return [version_facts(one, champion) for one in self.versions(name)]

    def all_bundles(self) -> list[VersionFacts]:
        """Return the bundles of all models.

        Raises
        ------
        RegistryError
            The registry can't be used now.
        """
        return [bundle for name in self.names() for bundle in self.bundles(name)]

    def resolve(self, name: str, which: str) -> VersionFacts:
        """Return the bundle of a version or an alias, with all its files verified.

        Raises
        ------
        ModelError
            There is no such bundle, or a file was changed.
        RegistryError
            The registry can't be used now.
        """
        champion = self.champion_version(name)
        return version_facts(self.verified(name, which), champion)

    def verified(self, name: str, which: str | Mapping[Parity, int]) -> Version:
        """Return a version by its number, alias or members, with all its files verified.

        Raises
        ------
        ModelError
            There is no such version, or a file was changed.
        RegistryError
            The registry can't be used now.
        """
        version = self.find(name, which) if isinstance(which, str) else self.bundle_of(name, which)
        for file in version.files:
            self.content(version, file)
        return version

    def file(self, name: str, which: str, file: str) -> bytes:
        """Return a file of a version, verified.

        Raises
        ------
        ModelError
            There is no such file, or it was changed.
        RegistryError
            The registry can't be used now.
        """
        return self.content(self.find(name, which), file)

    def copy_files(self, version: Version, folder: Path) -> Path:
        """Copy a version's files, verified, into a folder; return the copy's folder.

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
    """Return the registered name of one of the two models of a bundle."""
    return f"{name}-{parity}"


def _search_all(search: Callable[..., Any], *query: Any) -> list[Any]:
    """Return all pages of a search of MLflow."""
    results: list[Any] = []
    token = None
    while True:
        page = search(*query, max_results=_PAGE, page_token=token)
        results += page
        if not (token := page.token):
            return results


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
