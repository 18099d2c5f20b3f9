"""Training from Python and from the command line: with a service, or on a folder of one's own.

::

    with agc_ml.connect_training() as training:
        digest = training.upload("runs/features")
        job = training.submit(name="jet_assignment", kind="xgboost", dataset=digest, trials=20)
        for job in training.follow(job.id):
            print(job.progress.message)
        training.promote("jet_assignment", job.result["versions"]["bundle"])
"""

from __future__ import annotations

import getpass
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import urllib3
from pydantic import TypeAdapter, ValidationError

from agc_ml import files
from agc_ml.errors import TrainingError, UsageError
from agc_ml.execution.cluster.clusters import check_site
from agc_ml.files import write
from agc_ml.models.model import Parity
from agc_ml.models.registry import check_path
from agc_ml.models.registry_access import (
    FOLDER,
    HEADER,
    TIMEOUT_S,
    VARIABLE,
    RegistryFolder,
    ServiceAddress,
    locate,
    not_a_service,
    problem,
)
from agc_ml.results import tables
from agc_ml.results.run_record import load_record
from agc_ml.training.job_spec import JobSpec, first_error
from agc_ml.training.registry.versions import VersionFacts
from agc_ml.training.service.database import Job, Promotion

Versions = str | Mapping[Parity, int]

_JOBS: Final = TypeAdapter(list[Job])
_VERSIONS: Final = TypeAdapter(list[VersionFacts])
_PROMOTIONS: Final = TypeAdapter(list[Promotion])
_UPLOAD_S: Final = 600.0
_QUIET_S: Final = 60.0
"""A service says something at least each quarter of a minute to who follows a job."""

# What only asks can be asked again, when the service is just being restarted.
_AGAIN: Final = urllib3.Retry(3, backoff_factor=0.5, redirect=0)

_OK: Final = range(200, 300)
_PROXY: Final = (502, 503, 504)
"""What a proxy says while there is no service behind it."""

_LOST: Final = 10
"""Times that a connection to a job's events is made anew, without a word in between."""

_PAUSE_S: Final = 5


class UnreachableError(TrainingError):
    """Nobody answers; a service that is restarted does so soon."""


class Training(Protocol):
    """What can be done, wherever it is done."""

    def upload(self, source: str | Path) -> str:
        """Bring a training set, a Parquet file or the run that extracted it; gives its digest."""

    def submit(self, **spec: Any) -> Job:
        """Take a job on: fields of `agc_ml.training.job_spec.JobSpec`."""

    def jobs(self) -> list[Job]:
        """Jobs, the oldest first."""

    def job(self, identity: str) -> Job:
        """A job as it stands."""

    def follow(self, identity: str) -> Iterator[Job]:
        """The job each time it changes, until it is over."""

    def cancel(self, identity: str) -> Job:
        """Stop a job."""

    def log(self, identity: str) -> list[str]:
        """Lines of a job's log."""

    def models(self, name: str | None = None) -> list[VersionFacts]:
        """Bundles of a model, or of all."""

    def resolve(self, name: str, which: str) -> VersionFacts:
        """What an alias or a version is now."""

    def content(self, name: str, version: str, file: str) -> bytes:
        """A file of a bundle."""

    def promotions(self, name: str) -> list[Promotion]:
        """Changes of the champion, the oldest first."""

    def promote(
        self, name: str, version: Versions, *, expected: str | None = None, reason: str = ""
    ) -> Promotion:
        """Make a bundle the champion; ``reason`` forces it although it fails a gate."""

    def rollback(self, name: str, *, expected: str | None = None) -> Promotion:
        """Make the champion before the champion again."""


def connect_training(
    where: str | None = None,
    *,
    local: bool = False,
    workers: int | None = None,
    site: str = "local",
) -> AbstractContextManager[Training]:
    """Connect to a training service, or train in a folder without one.

    Parameters
    ----------
    where
        As of `agc_ml.models.registry_access.locate`: a URL, a ``client.yaml``, or a folder.
    local
        Do without a service: ``where`` is a folder, by default ``training``.
    workers, site
        Where trials run, without a service: as of `agc_ml.run`.

    Raises
    ------
    UsageError
        There is none, or ``where`` is something else.
    """
    if local:
        named = where or os.environ.get(VARIABLE) or FOLDER
        if "://" in named:
            raise UsageError(f"{named}: a service; without one, name a folder")
        check_site(site, workers)
        return _in_folder(Path(named), workers, site)
    found = locate(where)
    if isinstance(found, RegistryFolder):
        raise UsageError(
            f"folder {found.folder}: no training service; start one with 'agc-ml service "
            "training', name one with --service or AGC_ML_TRAINING, or do without one: --local"
        )
    return Remote(found)


def table_of(source: str | Path) -> Path:
    """The file of a training set: itself, or that of the run that extracted it.

    Raises
    ------
    UsageError
        There is none.
    """
    path = Path(source)
    if not path.is_dir():
        if not path.is_file():
            raise UsageError(
                f"{path}: there is no such file or run; 'agc-ml run jet_assignment' extracts a "
                "training set"
            )
        return path
    record = load_record(path)
    if len(record.tables) != 1:
        raise UsageError(
            f"{path}: a run with {len(record.tables)} tables, not one; name the Parquet file, or "
            "extract a training set with 'agc-ml run jet_assignment'"
        )
    return path / f"{next(iter(record.tables))}.parquet"


def checked(spec: Mapping[str, Any]) -> JobSpec:
    """A job as it was asked for.

    Raises
    ------
    UsageError
        It makes no sense.
    """
    try:
        return JobSpec.model_validate(dict(spec))
    except ValidationError as error:
        raise UsageError(first_error(error)) from error


class Remote:
    """A training service."""

    def __init__(self, service: ServiceAddress) -> None:
        self._service = service
        self._pool = urllib3.PoolManager(retries=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.clear()

    def upload(self, source: str | Path) -> str:
        """Bring a training set there, unless it is there already."""
        path = table_of(source)
        digest = tables.read(path, TrainingError).digest
        if self._send("GET", f"/v1/datasets/{digest}", allow=(404,)).status == 404:  # noqa: PLR2004 - HTTP
            with path.open("rb") as file:
                self._send("PUT", f"/v1/datasets/{digest}", body=file, timeout=_UPLOAD_S)
        return digest

    def submit(self, **spec: Any) -> Job:
        """Take a job on."""
        known = checked(spec)
        body = known.model_dump_json(exclude_none=True)
        return Job.model_validate_json(self._send("POST", "/v1/jobs", body=body).data)

    def jobs(self) -> list[Job]:
        """Jobs, the oldest first."""
        return _JOBS.validate_json(self._send("GET", "/v1/jobs?limit=1000").data)

    def job(self, identity: str) -> Job:
        """A job as it stands."""
        return Job.model_validate_json(self._send("GET", f"/v1/jobs/{_safe(identity)}").data)

    def follow(self, identity: str) -> Iterator[Job]:
        """The job each time it changes, until it is over; a lost connection is made anew."""
        job, lost = self.job(identity), 0
        while not job.is_over:
            try:
                for job in self._events(identity):
                    lost = 0
                    yield job
            except (urllib3.exceptions.HTTPError, UnreachableError) as error:
                lost += 1
                if lost > _LOST:
                    raise self._unreachable(error) from error
                time.sleep(min(lost, _PAUSE_S))
        yield job

    def _events(self, identity: str) -> Iterator[Job]:
        path = f"/v1/jobs/{_safe(identity)}/events"
        answer = self._send("GET", path, timeout=_QUIET_S, stream=True)
        try:
            for line in _lines(answer):
                name, _, value = line.partition(b":")
                if name == b"data":
                    yield Job.model_validate_json(value)
        finally:
            answer.release_conn()

    def cancel(self, identity: str) -> Job:
        """Stop a job."""
        return Job.model_validate_json(
            self._send("POST", f"/v1/jobs/{_safe(identity)}/cancel").data
        )

    def log(self, identity: str) -> list[str]:
        """Lines of a job's log."""
        found = json.loads(self._send("GET", f"/v1/jobs/{_safe(identity)}/logs?tail=10000").data)
        return [str(line) for line in found["lines"]]

    def models(self, name: str | None = None) -> list[VersionFacts]:
        """Bundles of a model, or of all."""
        path = "/v1/models" if name is None else f"/v1/models/{_safe(name)}"
        return _VERSIONS.validate_json(self._send("GET", path).data)

    def resolve(self, name: str, which: str) -> VersionFacts:
        """What an alias or a version is now."""
        key = "version" if which.isdigit() else "alias"
        path = f"/v1/models/{_safe(name)}/resolve?{key}={_safe(which)}"
        return VersionFacts.model_validate_json(self._send("GET", path).data)

    def content(self, name: str, version: str, file: str) -> bytes:
        """A file of a bundle."""
        path = f"/v1/models/{_safe(name)}/versions/{_safe(version)}/files/{file}"
        return bytes(self._send("GET", path).data)

    def promotions(self, name: str) -> list[Promotion]:
        """Changes of the champion, the oldest first."""
        return _PROMOTIONS.validate_json(
            self._send("GET", f"/v1/models/{_safe(name)}/promotions").data
        )

    def promote(
        self, name: str, version: Versions, *, expected: str | None = None, reason: str = ""
    ) -> Promotion:
        """Make a bundle the champion."""
        which: dict[str, Any] = (
            {"version": int(version)} if isinstance(version, str) else {"versions": dict(version)}
        )
        body = {**which, "force": bool(reason), "reason": reason, **_expectation(expected)}
        answer = self._send("POST", f"/v1/models/{_safe(name)}/promote", body=json.dumps(body))
        return Promotion.model_validate_json(answer.data)

    def rollback(self, name: str, *, expected: str | None = None) -> Promotion:
        """Make the champion before the champion again."""
        body = json.dumps(_expectation(expected))
        answer = self._send("POST", f"/v1/models/{_safe(name)}/rollback", body=body)
        return Promotion.model_validate_json(answer.data)

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        timeout: float = TIMEOUT_S,
        stream: bool = False,
        allow: tuple[int, ...] = (),
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Authorization": f"Bearer {self._service.token}"}
        if isinstance(body, str):
            headers["Content-Type"] = "application/json"
        try:
            answer = self._pool.request(
                method,
                self._service.url + path,
                body=body,
                headers=headers,
                timeout=urllib3.Timeout(connect=5, read=timeout),
                preload_content=not stream,
                retries=_AGAIN if method == "GET" else False,
            )
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise self._unreachable(error) from error
        if HEADER not in answer.headers:
            kind = UnreachableError if answer.status in _PROXY else TrainingError
            raise kind(not_a_service(self._service.url, answer.status))
        if answer.status not in _OK and answer.status not in allow:
            raise TrainingError(f"{self._service.url}: {problem(answer.data)}")
        return answer

    def _unreachable(self, error: Exception) -> UnreachableError:
        if isinstance(error, UnreachableError):
            return error
        reason = str(getattr(error, "reason", None) or error).rpartition(": ")[2][:150]
        return UnreachableError(
            f"the training service {self._service.url} can't be reached ({reason}); is it running, "
            "and is that its address?"
        )


def _lines(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    rest = b""
    for part in answer.stream(1 << 16, decode_content=True):
        *whole, rest = (rest + part).split(b"\n")
        yield from whole


def _safe(name: str) -> str:
    """A part of a path that is just that."""
    if not name or not all(letter.isalnum() or letter in "_-" for letter in name):
        raise UsageError(f"{name!r}: a name of letters, digits, '_' and '-' is needed")
    return name


def _expectation(expected: str | None) -> dict[str, int]:
    return {} if expected is None else {"expect_current": int(expected or 0)}


@contextmanager
def _in_folder(folder: Path, workers: int | None, site: str) -> Iterator[Training]:
    from agc_ml.training.service import job_manager  # noqa: PLC0415 - a client needs none of it
    from agc_ml.training.service import local as unserved  # noqa: PLC0415 - likewise

    check_path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is no folder; name another one with --service")
    with files.store_errors(folder):
        is_ours = files.is_unused(folder) or (folder / job_manager.TABLE).exists()
    if not is_ours:
        raise UsageError(f"{folder}: holds other files; name a new folder with --service")
    with ExitStack() as stack:
        try:
            stack.enter_context(files.owned(folder))
        except UsageError as error:
            raise UsageError(
                f"{folder}: a training service, or another agc-ml, is at work in it; ask the "
                "service (without --local), or wait for the other one"
            ) from error
        yield stack.enter_context(unserved.opened(folder, workers, site, getpass.getuser()))


def pull(training: Training, name: str, which: str, folder: Path) -> VersionFacts:
    """Write a bundle into a folder, pinned: what ``--model FOLDER`` takes without any registry.

    Raises
    ------
    UsageError
        Something is in the folder.
    StoreError
        It can't be written.
    """
    if folder.is_file() or not files.is_unused(folder):
        raise UsageError(f"{folder}: there is something in it; name another folder with -o")
    found = training.resolve(name, which)
    with files.store_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for file in found.files:
        if "/" not in file:
            content = training.content(name, found.version, file)
            write(folder / file, lambda path, data=content: path.write_bytes(data))  # type: ignore[misc]
    return found
