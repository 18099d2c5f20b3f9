"""What a chunk costs Dask's scheduler, and the driver.

    python benchmarks/scheduler.py [--chunks 2000]

The ttbar measurement of the embedded events in many small chunks, on a scheduler and two workers
that are processes of their own; CPU time a chunk, between a run of a tenth of them and one of all.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

import agc_ml as agc
from agc_ml.inputs import loading
from agc_ml.inputs.fileset import Fileset

PATIENCE_S = 60


@contextmanager
def cluster() -> Iterator[tuple[str, psutil.Process]]:
    """Address and process of a scheduler with two workers."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        dask = [sys.executable, "-m", "dask"]
        silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        here = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
        scheduler = subprocess.Popen(  # noqa: S603 - ourselves
            [*dask, "scheduler", *here, "--scheduler-file", str(file)], **silent
        )
        alone = ["--nthreads", "1", "--no-dashboard", "--no-nanny"]
        workers = [
            subprocess.Popen(  # noqa: S603 - ourselves
                [*dask, "worker", "--scheduler-file", str(file), *alone], **silent
            )
            for _ in range(2)
        ]
        try:
            start = time.monotonic()
            while not file.exists():
                if time.monotonic() - start > PATIENCE_S:
                    sys.exit("the scheduler does not start")
                time.sleep(0.1)
            yield json.loads(file.read_text())["address"], psutil.Process(scheduler.pid)
        finally:
            for process in (*workers, scheduler):
                process.kill()
                process.wait()


def cost(client: Any, scheduler: psutil.Process, chunks: int) -> tuple[int, float, float]:
    """Number of chunks, and CPU s of the scheduler and of the driver."""
    fileset = Fileset.load(loading.DEMO)
    events = sum(file.entries or 0 for dataset in fileset.datasets for file in dataset.files)
    before, driver = sum(scheduler.cpu_times()[:2]), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = agc.run(
            *("ttbar", fileset),
            client=client,
            chunk_size=max(1, events // chunks),
            output=Path(folder) / "run",
            quiet=True,
        )
    spent = sum(scheduler.cpu_times()[:2]) - before
    return result.metrics.chunks, spent, time.process_time() - driver


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=2000)
    given = parser.parse_args()
    with cluster() as (address, scheduler), agc.connect(address) as client:
        client.wait_for_workers(2, timeout=PATIENCE_S)
        cost(client, scheduler, 20)
        few, many = (cost(client, scheduler, n) for n in (given.chunks // 10, given.chunks))
    n = many[0] - few[0]
    found = {
        "chunks": many[0],
        "scheduler_ms": (many[1] - few[1]) / n * 1e3,
        "scheduler_ms_start_included": many[1] / many[0] * 1e3,
        "driver_ms": (many[2] - few[2]) / n * 1e3,
    }
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
