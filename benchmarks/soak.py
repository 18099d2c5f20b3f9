"""A training service in use for half an hour, under floods, while it trains.

python benchmarks/soak.py [--minutes 30] [--clients 200] [-o RECORD.json]

A real service on a folder and ports of its own, on loopback. Good clients list, resolve, follow and
upload, each about once a second; a job is always at work. Beside them, from the same address: half
requests, 1,500 at a time, bodies that come byte by byte, bad tokens, large bodies and what is no
HTTP, all at bounded rates. Measured is how long /healthz takes over a new connection, which
requests of good clients were not answered as they should be, the service's memory and its log. Ends
with one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import platform
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import psutil

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]
os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

from services.training import TrainingService  # noqa: E402
from trained import SPEC  # noqa: E402

import agc_ml as agc  # noqa: E402
from agc_ml.execution.state import provenance  # noqa: E402
from agc_ml.inputs.loading import DEMO  # noqa: E402
from agc_ml.results import tables  # noqa: E402

RESULTS: Final = ROOT / "benchmarks" / "results" / "soak.json"
NAME: Final = "jet_assignment"
PROCESSES: Final = 2
HALVES: Final = 1500
UPLOAD_EVERY_S: Final = 60
EARLY: Final = 1 / 6
"""Part of the time after which memory is measured first: minute 5 of 30."""


@dataclass(frozen=True)
class Part:
    """What one of the processes needs to do its part; only good clients need the last three."""

    url: str
    token: str
    seconds: float
    clients: int = 0
    seed: int = 0
    sets: tuple[Path, ...] = ()


class LostError(Exception):
    """A good client's request was not answered as it should be."""


@dataclass
class Report:
    """What came of the requests of some clients; seconds each took, by what was asked."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)

    def add(self, other: Report) -> None:
        """Those of other clients, too."""
        for kind, found in other.seconds.items():
            self.seconds.setdefault(kind, []).extend(found)
        self.lost += other.lost


def main() -> None:
    """Parse, measure, print."""
    options = parsed()
    with tempfile.TemporaryDirectory(prefix="agc-ml-soak-") as scratch:
        record = soak(Path(scratch), options.minutes, options.clients)
    about = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": provenance.versions()
        | {name: version(name) for name in ("fastapi", "h11", "mlflow", "starlette", "uvicorn")},
        "minutes": options.minutes,
        "clients": options.clients,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**about, **record}, indent=1) + "\n")
    print(f"record: {options.output}", file=sys.stderr)
    keys = ("health_p99_ms", "requests", "lost", "rss_early_mb", "rss_late_mb", "log_bytes")
    print(json.dumps({key: record[key] for key in keys}))


def parsed() -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    return parser.parse_args()


def soak(folder: Path, minutes: float, clients: int) -> dict[str, Any]:
    """All of it."""
    seconds = 60 * minutes
    agc.run(NAME, DEMO, site="inline", output=folder / "features", quiet=True)
    sets = uploads(folder, int(seconds / UPLOAD_EVERY_S) + 1)
    service = TrainingService(folder / "training", "--max-queued", "10")
    service.start()
    try:
        remote = service.client()
        spec = {**SPEC, "dataset": remote.upload(folder / "features")}
        first = remote.submit(**spec)
        *_, last = remote.follow(first.id)
        if last.state != "succeeded":
            raise SystemExit(f"the first job {last.state}: {last.error}")
        remote.promote(NAME, str(last.result["versions"]["bundle"]))  # type: ignore[index]
        return measured(service, spec, clients, seconds, sets)
    finally:
        service.stop()


def uploads(folder: Path, number: int) -> list[Path]:
    """Training sets that differ: each without some events."""
    table = tables.read(folder / "features" / "training.parquet")
    n = len(table.columns["label"]) // 12
    found = []
    for one in range(number):
        keep = [i for i in range(12 * n) if i // 12 != one]
        path = folder / f"set{one}.parquet"
        part = {name: values[keep] for name, values in table.columns.items()}
        tables.write(path, tables.ColumnTable(part, table.about), {})
        found.append(path)
    return found


def measured(
    service: TrainingService, spec: dict[str, Any], clients: int, seconds: float, sets: list[Path]
) -> dict[str, Any]:
    """Have everyone at work for so long; the figures."""
    jobs: Counter[str] = Counter()
    over = threading.Event()
    training = threading.Thread(target=train, args=(service, spec, jobs, over))
    training.start()
    log_before = service.log.stat().st_size
    with ProcessPoolExecutor(PROCESSES + 3, multiprocessing.get_context("spawn")) as pool:
        part = Part(service.url, service.token, seconds)
        probing = pool.submit(run_probe, part)
        using = [
            pool.submit(
                run_clients,
                replace(part, clients=clients // PROCESSES, seed=seed, sets=tuple(sets)),
            )
            for seed in range(PROCESSES)
        ]
        flooding = [pool.submit(run_halves, part), pool.submit(run_harm, part)]
        memory = watched(service, seconds, [probing, *using, *flooding])
        report, harm = Report(), Counter[str]()
        for one in using:
            report.add(one.result())
        for other in flooding:
            harm += other.result()
        health = probing.result()
    over.set()
    training.join()
    return {
        **health,
        "requests": sum(map(len, report.seconds.values())) + report.lost.total(),
        "lost": report.lost.total(),
        "lost_why": dict(report.lost.most_common(10)),
        "by_kind": {
            kind: {"requests": len(found), "p50_ms": ms(found, 0.5), "p99_ms": ms(found, 0.99)}
            for kind, found in sorted(report.seconds.items())
        },
        "harm": dict(harm),
        "jobs": dict(jobs),
        **memory,
        "log_bytes": service.log.stat().st_size - log_before,
        "log_lines_left_out": left_out(service.log),
    }


def train(
    service: TrainingService, spec: dict[str, Any], jobs: Counter[str], over: threading.Event
) -> None:
    """Have a job at work, one after the other, until it is over."""
    remote = service.client()
    seed = 100
    while not over.is_set():
        job = remote.submit(**{**spec, "trials": 40}, seed=seed)
        while not (job := remote.job(job.id)).is_over and not over.wait(2):
            pass
        jobs[job.state] += 1
        seed += 1


def watched(
    service: TrainingService, seconds: float, at_work: list[Future[Any]]
) -> dict[str, float]:
    """Memory of the service, early and late; the most that it had."""
    process = psutil.Process(service.process.pid)  # type: ignore[union-attr] # it was started
    start, found = time.monotonic(), []
    while not all(one.done() for one in at_work):
        found.append((time.monotonic() - start, process.memory_info().rss / 1e6))
        time.sleep(1)
    width = seconds / 60
    early = [mb for t, mb in found if abs(t - EARLY * seconds) < width]
    late = [mb for t, mb in found if seconds - 2 * width < t < seconds]
    return {
        "rss_early_mb": round(statistics.median(early), 1),
        "rss_late_mb": round(statistics.median(late), 1),
        "rss_growth": round(statistics.median(late) / statistics.median(early) - 1, 4),
        "rss_most_mb": round(max(mb for _, mb in found), 1),
    }


def left_out(log: Path) -> int:
    """Lines that the service counted instead of writing them."""
    found = 0
    for line in log.read_text().splitlines():
        with contextlib.suppress(ValueError):
            found += json.loads(line).get("left_out", 0)
    return found


def ms(seconds: list[float], part: float) -> float:
    """A quantile, in milliseconds."""
    return round(1000 * sorted(seconds)[min(int(part * len(seconds)), len(seconds) - 1)], 1)


# /healthz, over a new connection each time


def run_probe(part: Part) -> dict[str, Any]:
    """Ask ten times a second."""
    return asyncio.run(probe(part.url, part.seconds))


async def probe(url: str, seconds: float) -> dict[str, Any]:
    """How long answers take; one that fails counts as if it took the 30 s it may."""
    found, failed = [], 0
    end = time.monotonic() + seconds
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout(30)) as session:
        while time.monotonic() < end:
            start = time.perf_counter()
            try:
                async with session.get(f"{url}/healthz") as answer:
                    await answer.read()
                    failed += answer.status != 200  # noqa: PLR2004 - HTTP's OK
                found.append(time.perf_counter() - start)
            except (aiohttp.ClientError, TimeoutError):
                failed += 1
                found.append(30.0)
            await asyncio.sleep(0.1)
    return {
        "health_requests": len(found),
        "health_failed": failed,
        "health_p50_ms": ms(found, 0.5),
        "health_p99_ms": ms(found, 0.99),
        "health_max_ms": ms(found, 1.0),
    }


def timeout(seconds: float) -> aiohttp.ClientTimeout:
    """Of a request."""
    return aiohttp.ClientTimeout(total=seconds)


# good clients


def run_clients(part: Part) -> Report:
    """Some of the good clients; the first of all uploads a training set each minute."""
    return asyncio.run(use(part))


async def use(part: Part) -> Report:
    """Each client asks for one thing after the other."""
    report = Report()
    headers = {"Authorization": f"Bearer {part.token}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(part.url, headers=headers, connector=connector) as session:
        end = time.monotonic() + part.seconds
        dice = [random.Random(f"{part.seed} {i}") for i in range(part.clients)]  # noqa: S311 - no secret
        clients = [client(session, report, end, one) for one in dice]
        if part.seed == 0:
            clients.append(uploader(session, report, end, part.sets))
        await asyncio.gather(*clients)
    return report


async def client(
    session: aiohttp.ClientSession, report: Report, end: float, dice: random.Random
) -> None:
    """About one request a second, now and then one that follows a job for some seconds."""
    asked = {
        "health": "/healthz",
        "jobs": "/v1/jobs?limit=20",
        "models": "/v1/models",
        "resolve": f"/v1/models/{NAME}/resolve",
        "file": f"/v1/models/{NAME}/versions/1/files/model.json",
        "page": "/",
    }
    await asyncio.sleep(dice.random())
    while time.monotonic() < end:
        if dice.random() < 0.03:  # noqa: PLR2004 - a few
            await one(report, "follow", lambda: follow(session, dice.uniform(1, 10)))
        else:
            kind = dice.choices(list(asked), weights=[4, 4, 1, 2, 2, 1])[0]
            await one(report, kind, lambda kind=kind: fetched(session, asked[kind]))  # type: ignore[misc]
        await asyncio.sleep(dice.uniform(0.5, 1.5))


async def one(report: Report, kind: str, ask: Callable[[], Awaitable[float]]) -> None:
    """Ask, and note how long it took, or why there was no answer."""
    try:
        found = await ask()
    except (aiohttp.ClientError, OSError, TimeoutError, LostError) as error:
        report.lost[f"{kind}: {type(error).__name__} {error}"[:150]] += 1
    else:
        report.seconds.setdefault(kind, []).append(found)


def expect(status: int, expected: int) -> None:
    """Have a request count as lost that is answered with something else."""
    if status != expected:
        raise LostError(str(status))


async def fetched(session: aiohttp.ClientSession, path: str) -> float:
    """Seconds of an answer that is as it should be."""
    start = time.perf_counter()
    async with session.get(path, timeout=timeout(60)) as answer:
        await answer.read()
        expect(answer.status, 200)
    return time.perf_counter() - start


async def follow(session: aiohttp.ClientSession, seconds: float) -> float:
    """Follow the newest job for so long, or until it is over; seconds until the first word."""
    async with session.get("/v1/jobs?limit=1", timeout=timeout(60)) as answer:
        job = (await answer.json())[-1]["id"]
    start, first = time.perf_counter(), None
    async with session.get(f"/v1/jobs/{job}/events", timeout=timeout(120)) as answer:
        expect(answer.status, 200)
        while await answer.content.readline():
            first = first or time.perf_counter() - start
            if time.perf_counter() - start > seconds:
                break
    if first is None:
        raise LostError("not a word")
    return first


async def uploader(
    session: aiohttp.ClientSession, report: Report, end: float, sets: Sequence[Path]
) -> None:
    """Upload a set that is not there yet, once a minute, and a known one more often."""
    for path in sets:
        digest, content = tables.digest_of(path), path.read_bytes()
        for expected in (201, 200, 200):
            if time.monotonic() > end:
                return
            await one(
                report,
                "upload" if expected == 201 else "upload again",  # noqa: PLR2004 - HTTP's Created
                lambda d=digest, c=content, e=expected: put(session, d, c, e),  # type: ignore[misc]
            )
            await asyncio.sleep(UPLOAD_EVERY_S / 3)


async def put(session: aiohttp.ClientSession, digest: str, content: bytes, expected: int) -> float:
    """Seconds of an upload."""
    start = time.perf_counter()
    async with session.put(f"/v1/datasets/{digest}", data=content, timeout=timeout(120)) as answer:
        await answer.read()
        expect(answer.status, expected)
    return time.perf_counter() - start


# those who mean harm


def run_halves(part: Part) -> Counter[str]:
    """Half requests, so many at a time; held for some seconds, and again."""
    done: Counter[str] = Counter()
    end, at = time.monotonic() + part.seconds, urlsplit(part.url)
    while time.monotonic() < end:
        held = []
        for number in range(HALVES):
            with contextlib.suppress(OSError):
                one = socket.create_connection((at.hostname, at.port), 2)
                held.append(one)
                one.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nX-a: ")
                done["half requests"] += 1
            if number % 50 == 0:
                time.sleep(0.01)
        time.sleep(min(5.0, max(end - time.monotonic(), 0)))
        for one in held:
            one.close()
    return done


def run_harm(part: Part) -> Counter[str]:
    """Everything else."""
    return asyncio.run(harm(part.url, part.token, part.seconds))


async def harm(url: str, token: str, seconds: float) -> Counter[str]:
    """Each kind of harm at a rate of its own; how often it was done."""
    done: Counter[str] = Counter()
    end = time.monotonic() + seconds
    at = urlsplit(url)
    put_head = b"PUT /v1/datasets/%s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n"
    good, bad = put_head % (b"0" * 64, token.encode()), put_head % (b"0" * 64, b"agcml_wrong")

    async def sent(kind: str, *parts: bytes, pause: float = 0.0) -> None:
        done[kind] += 1
        with contextlib.suppress(OSError, TimeoutError):
            reader, writer = await asyncio.open_connection(at.hostname, at.port)
            try:
                for part in parts:
                    writer.write(part)
                    await asyncio.wait_for(writer.drain(), 20)
                    await asyncio.sleep(pause)
                await asyncio.wait_for(reader.read(1 << 16), 1)
            finally:
                writer.close()

    async def again(every: float, make: Callable[[], Awaitable[None]]) -> None:
        under_way: set[asyncio.Task[None]] = set()
        while time.monotonic() < end:
            task = asyncio.ensure_future(make())
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            await asyncio.sleep(every)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    length = b"Content-Length: 20000000\r\n\r\n"
    dice = random.Random(1)  # noqa: S311 - no secret
    await asyncio.gather(
        again(0.5, lambda: sent("slow bodies", good + length, *[b"x"] * 60, pause=1)),
        again(
            0.5, lambda: sent("slow bodies without a token", bad + length, *[b"x"] * 60, pause=1)
        ),
        again(0.5, lambda: sent("large bodies without a token", bad + length, b"x" * 20_000_000)),
        again(0.02, lambda: sent("bad tokens", bad + b"Content-Length: 0\r\n\r\n")),
        again(0.02, lambda: sent("garbage", dice.randbytes(dice.randrange(1, 3000)) + b"\r\n\r\n")),
        again(1.0, lambda: sent("no Parquet", good + b"Content-Length: 9\r\n\r\nPAR1xPAR1")),
    )
    return done


if __name__ == "__main__":
    main()
