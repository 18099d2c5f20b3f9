"""Client for training, from Python and for the command line: with a service or in a folder.

::

    with agc_ml.connect_training() as training:
        digest = training.upload("runs/features")
        job = training.submit(name="mine", kind="xgboost", dataset=digest, trials=20)
        for job in training.follow(job.id):
            print(job.progress.message)
        training.promote("mine", job.result["versions"]["bundle"])
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from agc_ml import files
from agc_ml.errors import TrainingError, UsageError
from agc_ml.execution.cluster.clusters import check_site
from agc_ml.files import write
from agc_ml.models.model import Parity
from agc_ml.models.registry_access import (
    FOLDER,
    TIMEOUT_S,
    VARIABLE,
    RegistryFolder,
    locate,
    problem,
)
from agc_ml.results import tables
from agc_ml.results.run_record import load_record
from agc_ml.training.job_spec import JobSpec, first_error
from agc_ml.training.registry.versions import VersionFacts
from agc_ml.training.service.database import Job, Promotion
from agc_ml.training.transports import Answer, HttpTransport, Transport, UnreachableError

_JOBS: Final = TypeAdapter(list[Job])
_VERSIONS: Final = TypeAdapter(list[VersionFacts])
_PROMOTIONS: Final = TypeAdapter(list[Promotion])
_UPLOAD_S: Final = 600.0
# Longest silence of a followed job; a service writes every quarter of a minute
_SILENCE_S: Final = 60.0

_OK: Final = range(200, 300)
_NOT_FOUND: Final = 404

# Attempts in a row to reconnect to a followed job
_MAX_RECONNECTS: Final = 10

_PAUSE_S: Final = 5


@contextmanager
def connect_training(
    where: str | None = None,
    *,
    local: bool = False,
    workers: int | None = None,
    site: str = "local",
) -> Iterator[TrainingClient]:
    """Connect to a training service, or train in a folder without one.

    Parameters
    ----------
    where
        URL, ``client.yaml`` or folder, as in `agc_ml.models.registry_access.locate`.
    local
        Train without a service: ``where`` is a folder, by default ``training``. Jobs run while
        they are followed.
    workers, site
        Where trials run without a service, as in `agc_ml.run`.

    Raises
    ------
    UsageError
        There is no such service, or the folder can't be used.
    """
    if local:
        folder = where or os.environ.get(VARIABLE) or FOLDER
        if "://" in folder:
            raise UsageError(f"{folder}: is a service; name a folder to train without one")
        check_site(site, workers)
        from agc_ml.training.service.in_process import local_transport  # noqa: PLC0415 - an extra

        with local_transport(Path(folder), workers, site) as transport:
            yield TrainingClient(transport)
        return
    service = locate(where)
    if isinstance(service, RegistryFolder):
        raise UsageError(
            f"folder {service.folder}: no training service; start one with 'agc-ml service "
            "training', name one with --service or AGC_ML_TRAINING, or train without one: --local"
        )
    with closing(HttpTransport(service)) as connection:
        yield TrainingClient(connection)


def training_set_file(source: str | Path) -> Path:
    """Return the Parquet file of a training set, given itself or the run that extracted it.

    Raises
    ------
    UsageError
        There is no such file or run, or the run has no single table.
    """
    path = Path(source)
    if not path.is_dir():
        if not path.is_file():
            raise UsageError(
                f"{path}: there is no such file or run; name the run of a processor that "
                "extracts a training set"
            )
        return path
    # a run: the table that its processor extracted
    record = load_record(path)
    if len(record.tables) != 1:
        raise UsageError(
            f"{path}: a run with {len(record.tables)} tables, not one; name the Parquet file, or "
            "the run of a processor that extracts a training set"
        )
    return path / f"{next(iter(record.tables))}.parquet"


def validated_spec(spec: Mapping[str, Any]) -> JobSpec:
    """Validate the fields of a job.

    Raises
    ------
    UsageError
        A field is unknown or has a wrong value.
    """
    try:
        return JobSpec.model_validate(dict(spec))
    except ValidationError as error:
        raise UsageError(first_error(error)) from error


class TrainingClient:
    """Client of a training service, or of its application on a folder in this process."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(self, source: str | Path) -> str:
        """Upload a training set (Parquet file, or the run that extracted it); return its digest."""
        path = training_set_file(source)
        digest = tables.read(path, TrainingError).digest
        address = f"/v1/datasets/{digest}"
        if self._send("GET", address, allow=_NOT_FOUND).status == _NOT_FOUND:
            with path.open("rb") as file:
                self._send("PUT", address, body=file, timeout=_UPLOAD_S)
        return digest

    def submit(self, **spec: Any) -> Job:
        """Submit a job: fields of `agc_ml.training.job_spec.JobSpec`."""
        body = validated_spec(spec).model_dump_json(exclude_none=True)
        return Job.model_validate_json(self._send("POST", "/v1/jobs", body=body).read())

    def jobs(self) -> list[Job]:
        """Return all jobs, the oldest first."""
        return _JOBS.validate_json(self._send("GET", "/v1/jobs?limit=1000").read())

    def job(self, job_id: str) -> Job:
        """Return a job as it is now."""
        return Job.model_validate_json(self._send("GET", f"/v1/jobs/{_name(job_id)}").read())

    def follow(self, job_id: str) -> Iterator[Job]:
        """Yield the job each time it changes, until it has ended; reconnect if need be.

        Without a service, this runs the job, and those queued before it.
        """
        # reconnect while the service restarts
        job, failures = self.job(job_id), 0
        while not job.is_over:
            try:
                for job in self._events(job_id):
                    failures = 0
                    yield job
            except UnreachableError:
                failures += 1
                if failures > _MAX_RECONNECTS:
                    raise
                time.sleep(min(failures, _PAUSE_S))
        yield job

    def _events(self, job_id: str) -> Iterator[Job]:
        path = f"/v1/jobs/{_name(job_id)}/events"
        answer = self._send("GET", path, timeout=_SILENCE_S, stream=True)
        with closing(answer.parts):
            for line in answer.lines():
                field, _, value = line.partition(b":")
                if field == b"data":
                    yield Job.model_validate_json(value)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job."""
        answer = self._send("POST", f"/v1/jobs/{_name(job_id)}/cancel")
        return Job.model_validate_json(answer.read())

    def log(self, job_id: str) -> list[str]:
        """Return the last lines of a job's log."""
        answer = self._send("GET", f"/v1/jobs/{_name(job_id)}/logs?tail=10000")
        lines: list[str] = json.loads(answer.read())["lines"]
        return lines

    def models(self, name: str | None = None) -> list[VersionFacts]:
        """Return the bundles of a model, or of all models."""
        path = "/v1/models" if name is None else f"/v1/models/{_name(name)}"
        return _VERSIONS.validate_json(self._send("GET", path).read())

    def resolve(self, name: str, which: str) -> VersionFacts:
        """Return the bundle of an alias or a version."""
        key = "version" if which.isdigit() else "alias"
        path = f"/v1/models/{_name(name)}/resolve?{key}={_name(which)}"
        return VersionFacts.model_validate_json(self._send("GET", path).read())

    def content(self, name: str, version: str, file: str) -> bytes:
        """Return a file of a bundle."""
        path = f"/v1/models/{_name(name)}/versions/{_name(version)}/files/{file}"
        return self._send("GET", path).read()

    def promotions(self, name: str) -> list[Promotion]:
        """Return all changes of the champion, the oldest first."""
        answer = self._send("GET", f"/v1/models/{_name(name)}/promotions")
        return _PROMOTIONS.validate_json(answer.read())

    def promote(
        self,
        name: str,
        version: str | Mapping[Parity, int],
        *,
        expected: str | None = None,
        reason: str = "",
    ) -> Promotion:
        """Make a bundle the champion; with a ``reason`` even if it fails a gate."""
        body: dict[str, Any] = {"force": bool(reason), "reason": reason, **_expectation(expected)}
        if isinstance(version, str):
            body["version"] = int(version)
        else:
            body["versions"] = dict(version)
        answer = self._send("POST", f"/v1/models/{_name(name)}/promote", body=json.dumps(body))
        return Promotion.model_validate_json(answer.read())

    def rollback(self, name: str, *, expected: str | None = None) -> Promotion:
        """Make the previous champion the champion again."""
        body = json.dumps(_expectation(expected))
        answer = self._send("POST", f"/v1/models/{_name(name)}/rollback", body=body)
        return Promotion.model_validate_json(answer.read())

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        timeout: float = TIMEOUT_S,
        stream: bool = False,
        allow: int | None = None,
    ) -> Answer:
        """Send a request; reject answers that are no success, except the status ``allow``."""
        headers = {"Content-Type": "application/json"} if isinstance(body, str) else {}
        answer = self._transport.request(
            method, path, headers, body, stream=stream, timeout=timeout
        )
        if answer.status not in _OK and answer.status != allow:
            raise TrainingError(f"{self._transport.name}{problem(answer.read())}")
        return answer


def _name(text: str) -> str:
    """Return a name that may be a part of a path."""
    if not text or not all(letter.isalnum() or letter in "_-" for letter in text):
        raise UsageError(f"{text!r}: a name of letters, digits, '_' and '-' is needed")
    return text


def _expectation(expected: str | None) -> dict[str, int]:
    return {} if expected is None else {"expect_current": int(expected or 0)}


def pull(training: TrainingClient, name: str, which: str, folder: Path) -> VersionFacts:
    """Copy a bundle into a folder, pinned: ``--model FOLDER`` takes it without any registry.

    Raises
    ------
    UsageError
        The folder is not empty.
    StoreError
        It can't be written.
    """
    if folder.is_file() or not files.is_unused(folder):
        raise UsageError(f"{folder}: is not empty; name another folder with -o")
    bundle = training.resolve(name, which)
    with files.store_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for file in bundle.files:
        if "/" not in file:
            content = training.content(name, bundle.version, file)
            write(folder / file, lambda path, data=content: path.write_bytes(data))  # type: ignore[misc]
    return bundle
