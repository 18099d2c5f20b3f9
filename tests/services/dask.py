"""A Dask cluster of processes of their own, as people start one by hand."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from places import HELPERS, TESTS

_FOLDERS = sorted({path.parent for path in TESTS.rglob("test_*.py")})


@dataclass
class DaskCluster:
    """A scheduler, at ``address``, and workers: the nanny of each, or without one itself."""

    folder: Path
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]
    address: str

    def add_worker(self, *more: str) -> subprocess.Popen[bytes]:
        """Start one more, with more arguments, and without a nanny if they say so."""
        contact = ("--scheduler-file", self.folder / "scheduler.json")
        worker = _start(self.folder, "worker", *contact, "--nthreads", "1", *more)
        self.workers.append(worker)
        return worker


@contextlib.contextmanager
def dask_cluster(folder: Path, workers: int = 2, *more: str) -> Iterator[DaskCluster]:
    """A scheduler and some workers, which find the modules of the tests."""
    folder.mkdir()
    contact = folder / "scheduler.json"
    scheduler = _start(
        folder, "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", contact
    )
    cluster = DaskCluster(folder, scheduler, [], "")
    try:
        for _ in range(workers):
            cluster.add_worker(*more)
        deadline = time.monotonic() + 60
        while not contact.exists() or not contact.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        cluster.address = json.loads(contact.read_text())["address"]
        yield cluster
    finally:
        for process in (scheduler, *cluster.workers):
            running = [] if process.poll() is not None else [psutil.Process(process.pid)]
            for child in (child for one in running for child in one.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.kill()
            process.wait()


def _start(folder: Path, what: str, *arguments: object) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(
        [*map(str, (HELPERS, TESTS, *_FOLDERS)), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    return subprocess.Popen(
        [sys.executable, "-m", "dask", what, "--no-dashboard", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
