"""Training as a whole, on a folder: what the service does, and what is done without one.

::

    training/
      jobs.sqlite       jobs, promotions, tokens
      datasets/         training sets, by digest
      jobs/ID/          a job: setup.json, log.txt, study.db, bundle/, result.json
      mlflow.db         MLflow's database: runs, versions, aliases
      artifacts/        files of the versions

`step` moves jobs on. A job is alive while its process holds the lock of its folder, whoever
started it: so a service that was killed finds its jobs again.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agc_ml import files
from agc_ml.errors import ModelError, StoreError, TrainingError, chain
from agc_ml.execution.cluster.clusters import LOCAL
from agc_ml.files import write
from agc_ml.models.model import PARITIES, Parity
from agc_ml.models.registry import RegistryError, Version
from agc_ml.results import tables
from agc_ml.training import job_process as work
from agc_ml.training import training_set
from agc_ml.training.http import logs
from agc_ml.training.job_spec import JobSpec, Known, Limits, Setup
from agc_ml.training.registry.promotion import Promoting
from agc_ml.training.registry.publisher import Publisher, member
from agc_ml.training.service.database import Job, Progress, State, Table

logger = logging.getLogger(__name__)

TABLE: Final = "jobs.sqlite"
DATASETS: Final = "datasets"
JOBS: Final = "jobs"
LOG: Final = "log.txt"

MAX_ATTEMPTS: Final = 3
GRACE_S: Final = 10.0
"""Between asking a process to stop and killing it."""

_LAST_LINES: Final = 3


@dataclass(frozen=True)
class Settings:
    """How jobs are done: ``slots`` of them at once, each with trials on ``workers`` of ``site``.

    ``timeout`` seconds are the most that a job's process may take, each time it is started;
    ``most_queued`` jobs may wait.
    """

    folder: Path
    site: str = LOCAL
    workers: int = 1
    slots: int = 1
    timeout: float = 4 * 3600
    most_queued: int = 100
    limits: Limits = field(default_factory=Limits)


class Training:
    """Jobs, models and promotions of a folder; only one of it at a time.

    `step`, `start` and what is asked of the table are quick, the others use the registry: they may
    run in another thread, one at a time.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.folder
        with files.store_errors(self.folder):
            for name in (DATASETS, JOBS):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.table = Table(self.folder / TABLE)
        self.registry = Publisher(self.folder)
        self.promoting = Promoting(self.registry, self.table)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._asked: dict[str, float] = {}

    def close(self) -> None:
        """Stop the processes of jobs, which go on when it is opened again; close the database."""
        stopped = [one for one, process in self._processes.items() if process.poll() is None]
        for identity in stopped:
            _signal(self._processes[identity].pid, signal.SIGTERM)
        for identity in stopped:
            process = self._processes[identity]
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                _signal(process.pid, signal.SIGKILL)
                process.wait()
            logger.info("job %s: stopped, it goes on with the next start", identity)
            job = self.table.job(identity)
            # it was stopped on purpose, which is no death
            if job.state == "running" and not job.cancelled:
                self.table.move(job, "queued", attempt=job.attempt - 1, note="was stopped")
        self.table.close()

    # training sets

    def dataset_path(self, digest: str) -> Path:
        """Where the training set of a digest is, or would be."""
        return self.folder / DATASETS / f"{digest}.parquet"

    def add_dataset(self, path: Path) -> str:
        """Take a training set in; its digest.

        Raises
        ------
        TrainingError
            It is not what it should be, or nothing can be learned from it.
        StoreError
            There is no space.
        """
        table = tables.read(path, TrainingError)
        training_set.of_table(table)
        self.keep_dataset(path, table.digest)
        return table.digest

    def keep_dataset(self, path: Path, digest: str) -> None:
        """Keep a training set that was checked.

        Raises
        ------
        StoreError
            There is no space.
        """
        target = self.dataset_path(digest)
        if not target.exists():
            write(target, lambda scratch: shutil.copyfile(path, scratch))

    # jobs

    def submit(self, spec: JobSpec, owner: str) -> tuple[Job, bool]:
        """Take a job on; whether it is new.

        Raises
        ------
        TrainingError
            Its training set is not here, or the queue is full.
        """
        if not self.dataset_path(spec.dataset).exists():
            raise TrainingError(
                f"there is no training set {spec.dataset[:12]} here; upload it first"
            )
        return self.table.submit(spec, owner, self.settings.most_queued)

    def job_folder(self, job: Job) -> Path:
        """Where a job's process works."""
        return self.folder / JOBS / job.id

    def log(self, job: Job, tail: int = 200) -> list[str]:
        """The last lines of what a job's process said."""
        return logs.last_lines(self.job_folder(job) / LOG, tail)

    def step(self) -> list[Job]:
        """Look after all jobs; returns those that wait for the registry: to prepare, to publish."""
        for job in self.table.jobs(("running",)):
            self._look_after(job)
        publishing = self.table.jobs(("publishing",))
        free = self.settings.slots - len(self.table.jobs(("running",)))
        return [*publishing, *self.table.queue(max(free, 0))]

    def _look_after(self, job: Job) -> None:
        folder = self.job_folder(job)
        process = self._processes.get(job.id)
        if (process is not None and process.poll() is None) or _is_locked(folder):
            progress = _progress(folder)
            if Progress.model_validate(progress) != job.progress:
                self.table.note(job, progress=progress)
            self._limit(job, folder)
            logs.rotate(folder / LOG)
            return
        code = None if process is None else process.poll()
        self._processes.pop(job.id, None)
        was_late = self._asked.pop(job.id, None) is not None and self._is_late(job)
        if (folder / work.RESULT).exists():
            self.table.move(job, "publishing", progress=_progress(folder), note="")
        elif job.cancelled:
            self._end(job, "cancelled")
        elif (error := _error(folder)) is not None:
            self._end(job, "failed", error=error)
        elif was_late:
            self._end(
                job, "failed", error=f"not done after {self.settings.timeout:g} s; the job's limit"
            )
        elif job.attempt < MAX_ATTEMPTS:
            logger.warning("job %s: its process died (%s); it goes on", job.id, code)
            self.table.move(job, "queued", note="its process died, and is started again")
        else:
            self._end(job, "failed", error=self._died(job, code))

    def _end(self, job: Job, state: State, **fields: Any) -> None:
        """Note that a job is over."""
        if self.table.move(job, state, **fields):
            self.tidy(job)

    def tidy(self, job: Job) -> None:
        """Drop what nobody needs of a job that is over: the registry has what is to be kept."""
        for copied in ("given", work.BUNDLE):
            shutil.rmtree(self.job_folder(job) / copied, ignore_errors=True)

    def cancel(self, identity: str) -> Job:
        """Stop a job, as `Table.cancel`."""
        job = self.table.cancel(identity)
        if job.is_over:
            self.tidy(job)
        return job

    def _is_late(self, job: Job) -> bool:
        return job.started is not None and time.time() - job.started > self.settings.timeout

    def _limit(self, job: Job, folder: Path) -> None:
        """Stop a process that was cancelled or takes too long."""
        if not (job.cancelled or self._is_late(job)):
            return
        pid = _pid(folder)
        if pid is None:
            return
        first = self._asked.setdefault(job.id, time.monotonic())
        overdue = time.monotonic() - first > GRACE_S
        _signal(pid, signal.SIGKILL if overdue else signal.SIGTERM)

    def _died(self, job: Job, code: int | None) -> str:
        said = " ".join(self.log(job, _LAST_LINES))[-300:]
        how = f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
        return f"its process died {MAX_ATTEMPTS} times ({how}); the last lines: {said or 'none'}"

    def prepare(self, job: Job) -> Setup:
        """What a job's process is given.

        Raises
        ------
        RegistryError
            The registry can't be used now: try again later.
        ModelError
            The champion or a model to judge can't be used.
        """
        folder = self.job_folder(job)
        folder.mkdir(exist_ok=True)
        given = folder / "given"
        shutil.rmtree(given, ignore_errors=True)
        champion = self.registry.champion(job.spec.name)
        members: dict[Parity, Known] = {}
        if job.spec.versions is not None:
            for parity in PARITIES:
                name = member(job.spec.name, parity)
                members[parity] = self._known(
                    self.registry.find(name, str(job.spec.versions[parity])), given
                )
        return Setup(
            job=job.id,
            spec=job.spec,
            dataset=str(self.dataset_path(job.spec.dataset).absolute()),
            site=self.settings.site,
            workers=self.settings.workers,
            limits=self.settings.limits,
            champion=None if champion is None else self._known(champion, given),
            members=members,
        )

    def _known(self, version: Version, folder: Path) -> Known:
        path = self.registry.materialised(version, folder)
        return Known(version=version.version, folder=str(path.absolute()))

    def start(self, job: Job, setup: Setup) -> None:
        """Start the process of a job that waits."""
        folder = self.job_folder(job)
        text = setup.model_dump_json()
        write(folder / work.SETUP, lambda path: path.write_text(text))
        for stale in (work.ERROR, work.RESULT):
            (folder / stale).unlink(missing_ok=True)
        if not self.table.move(job, "running", attempt=job.attempt + 1, note=""):
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
        """Register what a job made, once.

        Raises
        ------
        RegistryError
            The registry can't be used now: try again later.
        """
        return self.registry.publish(job, self.job_folder(job))

    def run_until_over(self, job: Job, pause: float = 0.2) -> Job:
        """Do all that is to be done until a job is over: training without a service."""
        while not (found := self.table.job(job.id)).is_over:
            for waiting in self.step():
                advance(self, waiting)
            time.sleep(pause)
        return found


def advance(training: Training, job: Job) -> None:
    """Prepare and start a job that waits, or publish what it made; what fails is noted."""
    try:
        if job.state == "queued":
            settle(training, job, training.prepare(job))
        else:
            settle(training, job, training.publish(job))
    except (ModelError, StoreError, OSError) as error:
        settle(training, job, error)


Outcome = Setup | dict[str, Any] | Exception


def is_full(outcome: Any) -> bool:
    """Return whether something failed for want of space, which may be there later."""
    errors = chain(outcome) if isinstance(outcome, Exception) else ()
    return any(getattr(one, "errno", None) in {errno.ENOSPC, errno.EDQUOT} for one in errors)


def settle(training: Training, job: Job, outcome: Outcome) -> None:
    """Note what came of preparing or publishing a job."""
    if isinstance(outcome, Setup):
        training.start(job, outcome)
    elif isinstance(outcome, RegistryError) or is_full(outcome):
        if job.note != f"waits: {outcome}":
            training.table.note(job, note=f"waits: {outcome}")
    elif isinstance(outcome, Exception):
        if training.table.move(job, "failed", error=" ".join(str(outcome).split())[:500]):
            training.tidy(job)
    else:
        training.table.move(job, "succeeded", result=outcome, note="")
        training.tidy(job)


def _is_locked(folder: Path) -> bool:
    """Return whether a process is at work in a job's folder."""
    try:
        with (folder / files.LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _pid(folder: Path) -> int | None:
    """The process that holds the lock of a job's folder."""
    if not _is_locked(folder):
        return None
    try:
        return int((folder / files.LOCK).read_text())
    except (OSError, ValueError):
        return None


def _signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a job's process and to all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _progress(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / work.PROGRESS).read_text())
    except (OSError, ValueError):
        return {}
    return found


def _error(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / work.ERROR).read_text())["error"])
    except (OSError, ValueError, KeyError):
        return None
