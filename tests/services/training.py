"""A real training service, in a process of its own with MLflow beside it, on free ports."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import urllib3
import yaml

from agc_ml.models.registry_access import ServiceAddress
from agc_ml.results import tables
from agc_ml.training.client import TrainingClient, validated_spec
from agc_ml.training.service.database import Job
from agc_ml.training.service.job_manager import JobManager, Settings
from agc_ml.training.transports import HttpTransport

READY_S = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TrainingService:
    """Started on a folder; `kill` is SIGKILL, `stop` is what Ctrl-C does."""

    def __init__(self, folder: Path, *options: str, workers: int = 1) -> None:
        self.folder = folder
        self.port, self.mlflow_port = free_port(), free_port()
        self.log = folder.with_name(f"{folder.name}.log")
        self._options = ("--workers", str(workers), *options)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "agc_ml", "service", "training", "-o", str(self.folder)),
            *("--port", str(self.port), "--mlflow-port", str(self.mlflow_port)),
            *self._options,
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        deadline = time.monotonic() + READY_S
        while True:
            with suppress(urllib3.exceptions.HTTPError):
                if urllib3.request("GET", f"{self.url}/healthz", retries=False).status == 200:
                    return
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.05)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        return str(yaml.safe_load((self.folder / "client.yaml").read_text())["token"])

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def client(self) -> TrainingClient:
        return TrainingClient(HttpTransport(ServiceAddress(self.url, self.token)))

    def ask(
        self, method: str, path: str, *, token: str | None = None, json: Any = None, **more: Any
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        return urllib3.request(
            method, self.url + path, headers=headers, json=json, retries=False, timeout=30, **more
        )


async def polled(service: TrainingService, path: str, clients: int, times: int) -> list[float]:
    """Have clients ask so often, once a second each; seconds of each answer."""
    latencies: list[float] = []

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        await asyncio.sleep(number / clients)
        for _ in range(times):
            start = time.perf_counter()
            async with session.get(service.url + path) as answer:
                assert answer.status == 200
                await answer.read()
            latencies.append(time.perf_counter() - start)
            await asyncio.sleep(1)

    headers = {"Authorization": f"Bearer {service.token}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        await asyncio.gather(*(one(session, number) for number in range(clients)))
    return latencies


def advance(manager: JobManager, job: Job) -> None:
    """Prepare and start a queued job, or publish a finished one."""
    manager.settle(job, manager.use_registry(job))


def run_until_over(manager: JobManager, job: Job) -> Job:
    """Run a job, and those before it."""
    while not (now := manager.database.job(job.id)).is_over:
        for waiting in manager.step():
            advance(manager, waiting)
        time.sleep(0.1)
    return now


def add_dataset(manager: JobManager, path: Path) -> str:
    """Have a folder keep a training set; its digest."""
    digest = tables.digest_of(path)
    manager.store_dataset(path, digest)
    return digest


def registered(folder: Path, run: Path, trained: Path, **change: Any) -> tuple[Job, JobManager]:
    """Have a folder register a job as if it had done what was done in ``trained``."""
    from trained import SPEC  # noqa: PLC0415 - beside this package

    manager = JobManager(Settings(folder))
    digest = add_dataset(manager, run / "training.parquet")
    spec = validated_spec({**SPEC, "dataset": digest, **change})
    job, _ = manager.submit(spec, "tests")
    work = manager.job_folder(job)
    shutil.copytree(trained, work, ignore=shutil.ignore_patterns(".lock"))
    manager.database.move(job, "running", attempt=1)
    manager.database.move(manager.database.job(job.id), "publishing")
    return manager.database.job(job.id), manager


@pytest.fixture(scope="session")
def champions(
    training_run: Path, trained_job: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A training folder with two bundles alike, of which the first one is the champion."""
    folder = tmp_path_factory.mktemp("champions") / "training"
    for number in range(2):
        job, training = registered(folder, training_run, trained_job, seed=number)
        advance(training, job)
        assert training.database.job(job.id).state == "succeeded"
        if number == 0:
            training.champions.promote("jet_assignment", "1", expected=None, who="tests")
        training.close()
    return folder


@pytest.fixture
def own_champions(champions: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(champions, tmp_path / "training")
    return tmp_path / "training"


@pytest.fixture(scope="session")
def training_service(
    champions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TrainingService]:
    """A service on such a folder."""
    folder = tmp_path_factory.mktemp("service") / "training"
    shutil.copytree(champions, folder)
    service = TrainingService(folder, "--max-upload", "20", "--max-queued", "6")
    service.start()
    yield service
    service.stop()


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names a folder: services, jobs and what they started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if str(folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found
