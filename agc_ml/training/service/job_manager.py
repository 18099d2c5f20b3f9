"""Manager of the jobs, models and promotions in a training folder, with or without a service.

::

    training/
      jobs.sqlite       jobs, promotions, tokens
      datasets/         training sets, by digest
      jobs/ID/          a job: setup.json, log.txt, study.db, bundle/, result.json
      mlflow.db         MLflow's database: runs, versions, aliases
      artifacts/        files of the versions

A job is alive while its process holds the lock of its folder, whoever started it: so a service
that was killed finds its jobs again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agc_ml import files
from agc_ml.errors import ModelError, StoreError, TrainingError, UsageError, chain
from agc_ml.execution.cluster.clusters import LOCAL
from agc_ml.files import write
from agc_ml.models.model import Parity
from agc_ml.models.registry import RegistryError, Version, check_path
from agc_ml.training import job_process
from agc_ml.training.http import logs
from agc_ml.training.job_spec import JobSpec, Limits, RegisteredModel, Setup
from agc_ml.training.registry.promotion import Champions
from agc_ml.training.registry.publisher import Publisher, member
from agc_ml.training.service.database import Database, Job, Progress, State

logger = logging.getLogger(__name__)

DATABASE: Final = "jobs.sqlite"
DATASETS: Final = "datasets"
JOBS: Final = "jobs"
INPUTS: Final = "given"
LOG: Final = "log.txt"
# Prefix of files that are being uploaded
UPLOAD: Final = ".upload"

MAX_ATTEMPTS: Final = 3
# Between SIGTERM and SIGKILL of a process
GRACE_S: Final = 10.0

_LAST_LINES: Final = 3


# Of preparing a job, of publishing it, or the error of either
Outcome = Setup | dict[str, Any] | Exception


@dataclass(frozen=True)
class Settings:
    """Limits of jobs: ``slots`` run at once, each with trials on ``workers`` of ``site``.

    ``timeout`` limits the seconds of a job's process, each time it is started; ``most_queued`` the
    jobs that wait.
    """

    folder: Path
    site: str = LOCAL
    workers: int = 1
    slots: int = 1
    timeout: float = 4 * 3600
    most_queued: int = 100
    limits: Limits = field(default_factory=Limits)


@contextlib.contextmanager
def owned_folder(folder: Path, option: str) -> Iterator[None]:
    """Lock a training folder, a new one or an earlier one; ``option`` is the one that names it.

    Raises
    ------
    UsageError
        The folder holds something else, or is in use.
    StoreError
        It can't be written.
    """
    check_path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is not a folder; name another one with {option}")
    with files.store_errors(folder):
        is_ours = files.is_unused(folder) or (folder / DATABASE).exists()
    if not is_ours:
        raise UsageError(f"{folder}: holds other files; name a new folder with {option}")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.owned(folder))
        except UsageError as error:
            raise UsageError(
                f"{folder}: a training service, or another agc-ml, is at work in it; connect to "
                "the service (without --local), or wait for the other one"
            ) from error
        for abandoned in folder.glob(f"{UPLOAD}*"):  # by a process that was killed
            abandoned.unlink()
        yield


class JobManager:
    """Jobs, models and promotions of a training folder; one manager at a time.

    `step`, `start` and queries of the database are quick. The others use the registry: they may
    run in another thread, one at a time.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.folder
        with files.store_errors(self.folder):
            for name in (DATASETS, JOBS):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.database = Database(self.folder / DATABASE)
        self.registry = Publisher(self.folder)
        self.champions = Champions(self.registry, self.database)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stopped_at: dict[str, float] = {}

    def close(self) -> None:
        """Stop the processes of jobs, which resume with the next start; close the database."""
        # signal all of them before waiting for the first
        running = {id_: one for id_, one in self._processes.items() if one.poll() is None}
        for process in running.values():
            _signal(process.pid, signal.SIGTERM)
        for job_id, process in running.items():
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                _signal(process.pid, signal.SIGKILL)
                process.wait()
            logger.info("job %s: stopped, it resumes with the next start", job_id)
            job = self.database.job(job_id)
            # a stop on purpose is not an attempt that died
            if job.state == "running" and not job.cancelled:
                self.database.move(job, "queued", attempt=job.attempt - 1, note="was stopped")
        self.database.close()

    def dataset_path(self, digest: str) -> Path:
        """Path of the training set of a digest, whether it is there or not."""
        return self.folder / DATASETS / f"{digest}.parquet"

    def store_dataset(self, path: Path, digest: str) -> None:
        """Copy a validated training set into the folder.

        Raises
        ------
        StoreError
            There is no space.
        """
        target = self.dataset_path(digest)
        if not target.exists():
            write(target, lambda scratch: shutil.copyfile(path, scratch))

    def submit(self, spec: JobSpec, owner: str) -> tuple[Job, bool]:
        """Queue a job; return it and whether it is new.

        Raises
        ------
        TrainingError
            Its training set was not uploaded, or the queue is full.
        """
        if not self.dataset_path(spec.dataset).exists():
            raise TrainingError(
                f"there is no training set {spec.dataset[:12]} here; upload it first"
            )
        return self.database.submit(spec, owner, self.settings.most_queued)

    def job_folder(self, job: Job) -> Path:
        """Folder of a job."""
        return self.folder / JOBS / job.id

    def log(self, job: Job, tail: int = 200) -> list[str]:
        """Return the last lines of a job's log."""
        return logs.last_lines(self.job_folder(job) / LOG, tail)

    def step(self) -> list[Job]:
        """Supervise running jobs; return those to publish, and queued ones to prepare."""
        for job in self.database.jobs(("running",)):
            self._supervise(job)
        publishing = self.database.jobs(("publishing",))
        free = self.settings.slots - len(self.database.jobs(("running",)))
        return [*publishing, *self.database.queue(max(free, 0))]

    def _supervise(self, job: Job) -> None:
        """Note the progress of a running job, or why its process ended."""
        folder = self.job_folder(job)
        process = self._processes.get(job.id)
        if (process is not None and process.poll() is None) or _is_locked(folder):
            progress = _read_json(folder / job_process.PROGRESS)
            if Progress.model_validate(progress) != job.progress:
                self.database.note(job, progress=progress)
            self._stop_if_due(job, folder)
            logs.rotate(folder / LOG)
            return
        # the process has ended: its files say how
        code = None if process is None else process.poll()
        self._processes.pop(job.id, None)
        was_late = self._stopped_at.pop(job.id, None) is not None and self._is_late(job)
        error = _read_json(folder / job_process.ERROR).get("error")
        if (folder / job_process.RESULT).exists():
            progress = _read_json(folder / job_process.PROGRESS)
            self.database.move(job, "publishing", progress=progress, note="")
        elif job.cancelled:
            self._end(job, "cancelled")
        elif error is not None:
            self._end(job, "failed", error=str(error))
        elif was_late:
            limit = f"not done after {self.settings.timeout:g} s; the job's limit"
            self._end(job, "failed", error=limit)
        elif job.attempt < MAX_ATTEMPTS:
            logger.warning("job %s: its process died (%s); it is restarted", job.id, code)
            self.database.move(job, "queued", note="its process died, and is restarted")
        else:
            self._end(job, "failed", error=self._death(job, code))

    def _end(self, job: Job, state: State, **fields: Any) -> None:
        """Note that a job has ended, and remove files that nobody needs: the registry has them."""
        if self.database.move(job, state, **fields):
            self._remove_copies(job)

    def _remove_copies(self, job: Job) -> None:
        for name in (INPUTS, job_process.BUNDLE):
            shutil.rmtree(self.job_folder(job) / name, ignore_errors=True)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job, as `Database.cancel`."""
        job = self.database.cancel(job_id)
        if job.is_over:
            self._remove_copies(job)
        return job

    def _is_late(self, job: Job) -> bool:
        return job.started is not None and time.time() - job.started > self.settings.timeout

    def _stop_if_due(self, job: Job, folder: Path) -> None:
        """Stop a process that was cancelled or takes too long; kill it if it does not stop."""
        if not (job.cancelled or self._is_late(job)) or (pid := _pid(folder)) is None:
            return
        first = self._stopped_at.setdefault(job.id, time.monotonic())
        is_overdue = time.monotonic() - first > GRACE_S
        _signal(pid, signal.SIGKILL if is_overdue else signal.SIGTERM)

    def _death(self, job: Job, code: int | None) -> str:
        lines = " ".join(self.log(job, _LAST_LINES))[-300:]
        how = f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
        return f"its process died {MAX_ATTEMPTS} times ({how}); the last lines: {lines or 'none'}"

    def use_registry(self, job: Job) -> Outcome:
        """Prepare a queued job, or publish a finished one; expected errors are returned."""
        try:
            return self.prepare(job) if job.state == "queued" else self.publish(job)
        except (ModelError, StoreError, OSError) as error:
            return error

    def settle(self, job: Job, outcome: Outcome) -> None:
        """Start a job that was prepared, end one that was published, and note errors."""
        if isinstance(outcome, Setup):
            self.start(job, outcome)
        elif isinstance(outcome, RegistryError) or _is_disk_full(outcome):
            if job.note != f"waits: {outcome}":
                self.database.note(job, note=f"waits: {outcome}")
        elif isinstance(outcome, Exception):
            self._end(job, "failed", error=" ".join(str(outcome).split())[:500])
        else:
            self._end(job, "succeeded", result=outcome, note="")

    def prepare(self, job: Job) -> Setup:
        """Collect the inputs of a job's process; it talks to nobody.

        Raises
        ------
        RegistryError
            The registry can't be used now: try again later.
        ModelError
            The champion or a model to judge can't be used.
        """
        inputs = self.job_folder(job) / INPUTS
        inputs.parent.mkdir(exist_ok=True)
        shutil.rmtree(inputs, ignore_errors=True)

        def copied(version: Version) -> RegisteredModel:
            path = self.registry.copy_files(version, inputs)
            return RegisteredModel(version=version.version, folder=str(path.absolute()))

        # the champion to compare with, and the members of a bundle to validate
        champion = self.registry.champion(job.spec.name)
        members: dict[Parity, RegisteredModel] = {}
        for parity, number in (job.spec.versions or {}).items():
            version = self.registry.find(member(job.spec.name, parity), str(number))
            members[parity] = copied(version)
        return Setup(
            job=job.id,
            spec=job.spec,
            dataset=str(self.dataset_path(job.spec.dataset).absolute()),
            site=self.settings.site,
            workers=self.settings.workers,
            limits=self.settings.limits,
            champion=None if champion is None else copied(champion),
            members=members,
        )

    def start(self, job: Job, setup: Setup) -> None:
        """Start the process of a job that waits."""
        folder = self.job_folder(job)
        text = setup.model_dump_json()
        write(folder / job_process.SETUP, lambda path: path.write_text(text))
        for stale in (job_process.ERROR, job_process.RESULT):
            (folder / stale).unlink(missing_ok=True)
        # unless it was cancelled in the meantime
        if not self.database.move(job, "running", attempt=job.attempt + 1, note=""):
            return
        with (folder / LOG).open("ab") as log:
            self._processes[job.id] = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-P", "-m", "agc_ml.training.job_process", str(folder.absolute())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def publish(self, job: Job) -> dict[str, Any]:
        """Register the models of a finished job, once.

        Raises
        ------
        RegistryError
            The registry can't be used now: try again later.
        """
        return self.registry.publish(job, self.job_folder(job))


def _is_disk_full(outcome: Outcome) -> bool:
    """Return whether something failed for want of space, which may be there later."""
    errors = chain(outcome) if isinstance(outcome, Exception) else ()
    return any(getattr(one, "errno", None) in {errno.ENOSPC, errno.EDQUOT} for one in errors)


def _is_locked(folder: Path) -> bool:
    """Return whether a job's process is alive."""
    try:
        with (folder / files.LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _pid(folder: Path) -> int | None:
    """Return the process that holds the lock of a job's folder, if one does."""
    if not _is_locked(folder):
        return None
    try:
        return int((folder / files.LOCK).read_text())
    except (OSError, ValueError):
        return None


def _signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a job's process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _read_json(path: Path) -> dict[str, Any]:
    """Content of a file of a job's process, {} if there is none yet."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content
