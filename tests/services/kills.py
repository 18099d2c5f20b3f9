"""Killing a training service, its jobs and their trainers, at random points of a job."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agc_ml.errors import ModelError, TrainingError
from agc_ml.training.registry.publisher import Publisher
from services.training import TrainingService, processes_of

VICTIMS: Final = ("service", "worker", "trainer", "service and worker")
NAME: Final = "jet_assignment"
JOB_S: Final = 180


@dataclass
class Report:
    """What came of it; ``halves`` are bundles that could be resolved but were not whole."""

    rounds: int = 0
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    halves: list[str] = field(default_factory=list)
    resolved: int = 0
    other_bytes: list[str] = field(default_factory=list)


class Watcher:
    """Resolves every bundle that is listed, all the time: each has to be whole."""

    def __init__(self, service: TrainingService, report: Report) -> None:
        self._remote = service.client()
        self._report = report
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        seen: set[str] = set()
        while not self._stop.wait(0.1):
            with suppress(TrainingError, ModelError):  # it is being killed
                for one in self._remote.models(NAME):
                    if one.version not in seen:
                        self._check(one.version)
                        seen.add(one.version)

    def _check(self, version: str) -> None:
        try:
            found = self._remote.resolve(NAME, version)
        except TrainingError as error:
            if "can't be reached" in str(error):
                raise
            self._report.halves.append(f"{version}: {error}")
            return
        self._report.resolved += 1
        if not {"model.json", "even.json", "odd.json", "gates.json"} <= set(found.files):
            self._report.halves.append(version)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)


def kill_rounds(service: TrainingService, spec: dict[str, Any], rounds: int, seed: int) -> Report:
    """Submit a job, kill something at a random time of it, wait for it; and again.

    How long a job takes, from the queue to the registry, a first one tells that is left in peace.
    """
    report = Report()
    dice = random.Random(seed)
    remote = service.client()
    watcher = Watcher(service, report)
    start = time.monotonic()
    jobs = [remote.submit(**spec, idempotency_key=f"in peace {seed}").id]
    *_, last = remote.follow(jobs[0])
    assert last.state == "succeeded", last.error
    seconds = time.monotonic() - start
    for number in range(rounds):
        job = remote.submit(**spec, idempotency_key=f"round {seed} {number}")
        jobs.append(job.id)
        time.sleep(dice.uniform(0, seconds))
        _kill(service, job.id, dice.choice(VICTIMS), report)
        deadline = time.monotonic() + JOB_S
        while not remote.job(job.id).is_over and time.monotonic() < deadline:
            time.sleep(0.1)
        report.rounds += 1
        done = remote.job(job.id)
        if done.state != "succeeded":
            report.lost.append(f"round {number}: {done.state} {done.error or done.note}")
    watcher.stop()
    _check_registry(service.folder, jobs, report)
    return report


def _kill(service: TrainingService, job: str, victim: str, report: Report) -> None:
    folder = service.folder / "jobs" / job
    remote = service.client()
    state = remote.job(job).state
    pids: list[int] = []
    if "worker" in victim or victim == "trainer":
        pids = processes_of(folder)
    if victim == "trainer":
        pids = [child for pid in pids for child in _trainers(pid)][:1]
    if not pids and victim != "service":
        report.missed += 1  # it is not running now
        victim = "service"
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if "service" in victim:
        service.kill()
        service.start()
    report.kills[victim, state] += 1


def _trainers(pid: int) -> list[int]:
    """Dask's workers of a job: children that run multiprocessing's spawn."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == pid and b"spawn_main" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def _check_registry(folder: Path, jobs: list[str], report: Report) -> None:
    """Each job has one version of each model, and all of them are made of the same bytes."""
    made: Counter[tuple[str, str]] = Counter()
    digests: dict[str, set[str]] = {}
    publisher = Publisher(folder)
    for version in publisher.client.search_model_versions(max_results=1000):
        job = version.tags.get("agc_ml.job", "")
        if job in jobs:
            made[job, version.name] += 1
            files = publisher.version_of(version).files
            for parity in ("even", "odd"):
                digests.setdefault(parity, set()).add(files[f"{parity}.json"])
    names = (NAME, f"{NAME}-even", f"{NAME}-odd")
    for job in jobs:
        for name in names:
            if made[job, name] != 1:
                where = report.twice if made[job, name] > 1 else report.lost
                where.append(f"job {job}: {made[job, name]} versions of {name}")
    report.other_bytes = [parity for parity, found in digests.items() if len(found) != 1]
