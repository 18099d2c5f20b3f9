"""Random mixtures of faults, and whether any event is lost, counted twice, or waited for for ever.

python benchmarks/faults.py SEED N MINUTES [-o RECORD.json]

Each of N mixtures is drawn from SEED and its number: files on disk and on a web server, a processor
of records or of flat columns, a cluster of its own or none, and up to five faults while it runs:
workers, schedulers and drivers that are killed or freeze, servers that answer wrongly, a full disk,
damaged chunks of what was finished. After each end of the driver the command that it names goes on,
until the run is complete. Then each event has to be there once. What is done is kept: the same
command goes on, for MINUTES at most. Exit code 1 if anything is wrong.

A worker counts as frozen after seconds here, and not after a minute: LIMITS.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import fault_parts as parts  # noqa: E402

RESULTS: Final = ROOT / "benchmarks" / "results" / "faults.json"
LIMITS: Final = {"CHECK_S": 1.0, "REPORT_S": 5.0, "SILENT_S": 5.0, "ANSWER_S": 2.0,
                 "PATIENCE_S": 40.0, "NO_WORKERS_S": 30.0}  # fmt: skip
"""Of `agc_ml.execution.cluster.monitor`, in seconds."""

HUNG_S: Final = 150
"""A driver that takes longer hangs: the longest honest wait is 40 s, for a scheduler."""

MOST_STARTS: Final = 12
BEGIN_S: Final = 0.2  # before the first fault
AS_OFTEN_AS_NOT, MOSTLY, N_WORKERS = 0.5, 0.75, 2
KINDS: Final = ("kill worker", "freeze worker", "kill driver", "interrupt driver", "kill scheduler",
                "freeze scheduler", "web", "full disk", "damage")  # fmt: skip


@dataclass
class Mixture:
    """What is drawn: the run, and its faults with the number of chunks after which they come.

    ``files`` with whether each is read from the web server.
    """

    number: int
    rng: random.Random
    files: list[tuple[parts.Part, bool]]
    processor: str
    on_cluster: bool
    chunk_size: int
    faults: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def drawn(cls, seed: int, number: int, files: list[parts.Part], *, can_mount: bool) -> Mixture:
        """Draw one."""
        rng = random.Random(f"{seed}-{number}")  # noqa: S311 - no secret
        chosen = rng.sample(files, rng.randint(2, 6))
        made = cls(
            number,
            rng,
            [(part, rng.random() < AS_OFTEN_AS_NOT) for part in chosen],
            rng.choice(("Records", "Flat")),
            rng.random() < MOSTLY,
            rng.randint(60, 300),
        )
        kinds = [
            kind
            for kind in KINDS
            if (made.on_cluster or kind.split()[-1] not in {"worker", "scheduler"})
            and (can_mount or kind != "full disk")
        ]
        n_chunks = sum(-(-part.events // made.chunk_size) for part in chosen)
        made.faults = sorted(
            (rng.randint(0, max(1, n_chunks * 3 // 4)), rng.choice(kinds))
            for _ in range(rng.randint(1, 5))
        )
        return made


class Machines:
    """A scheduler and two workers, forked from this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "cluster.log"
        self.scheduler = 0
        self.workers: list[int] = []
        self.port = _free_port()
        self.mend()

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return f"tcp://127.0.0.1:{self.port}"

    def mend(self) -> None:
        """Start what is not there, and wake up what sleeps."""
        for number in (self.scheduler, *self.workers):
            _send(number, signal.SIGCONT)
        if not _is_alive(self.scheduler):
            for worker in self.workers:
                _send(worker, signal.SIGKILL)
            self.port = _free_port()
            self.scheduler = parts.forked(self._log, self._schedule)
            self.workers = []
            time.sleep(0.5)
        self.workers = [number for number in self.workers if _is_alive(number)]
        while len(self.workers) < N_WORKERS:
            self.workers.append(parts.forked(self._log, self._work))

    def close(self) -> None:
        """End all."""
        for number in (self.scheduler, *self.workers):
            _send(number, signal.SIGKILL)
            _is_alive(number)

    def _schedule(self) -> None:
        from distributed import Scheduler  # noqa: PLC0415 - in the fork

        async def serve() -> None:
            async with Scheduler(host="127.0.0.1", port=self.port, dashboard=False) as scheduler:
                await scheduler.finished()

        asyncio.run(serve())

    def _work(self) -> None:
        from distributed import Worker  # noqa: PLC0415 - in the fork

        folder = tempfile.mkdtemp(dir=self._folder)

        async def serve() -> None:
            async with Worker(
                self.address, nthreads=1, memory_limit=0, dashboard=False, local_directory=folder
            ) as worker:
                await worker.finished()

        asyncio.run(serve())


class Bench:
    """Files, a web server and a folder, for one mixture after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "files").mkdir()
        self.files = parts.write_files(folder / "files")
        self.web = parts.Web(folder / "files")
        (folder / "processors.py").write_text(parts.PROCESSORS)
        self.can_mount = _can_mount(folder)

    def run(self, mixture: Mixture) -> dict[str, Any]:
        """Run one to its end; says what came of it."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        begun = time.monotonic()
        self.web.rules.clear()
        machines = Machines(folder) if mixture.on_cluster else None
        try:
            with _disk(folder / "disk", mounted=self.can_mount) as disk:
                trial = Trial(self, mixture, folder, disk, machines, list(mixture.faults))
                starts = trial.to_the_end()
        finally:
            if machines is not None:
                machines.close()
            shutil.rmtree(folder, ignore_errors=True)
        return {
            "number": mixture.number,
            "processor": mixture.processor,
            "cluster": mixture.on_cluster,
            "files": len(mixture.files),
            "faults": trial.told,
            "starts": starts,
            "seconds": round(time.monotonic() - begun, 1),
            "problems": trial.problems,
        }


@dataclass
class Trial:
    """A mixture on its way: what is ``left`` to happen, what was ``told``, what is wrong."""

    bench: Bench
    mixture: Mixture
    folder: Path
    disk: Path
    machines: Machines | None
    left: list[tuple[int, str]]
    told: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    later: list[tuple[float, Callable[[], object]]] = field(default_factory=list)

    @property
    def output(self) -> Path:
        """The run directory."""
        return self.disk / "run"

    def to_the_end(self) -> int:
        """Start the driver until the run is complete; returns how often."""
        log = self.folder / "log"
        self._write_fileset()
        for start in range(1, MOST_STARTS + 1):
            if start > MOST_STARTS // 2:  # enough: now everything works
                self.left.clear()
                self.bench.web.rules.clear()
                _free(self.disk)
            if self.machines is not None:
                self.machines.mend()
            words = self._command(start)
            log.write_text("")
            driver = parts.forked(log, lambda words=words: _drive(words))  # type: ignore[misc]
            code = self._watch(driver)
            if code is None:
                self.problems.append(f"hung: start {start} took more than {HUNG_S} s")
                return start
            self.problems += _complaints(code, log.read_text(errors="replace"), self.told)
            self.problems += _wrong(self.output, self.mixture, must_be_complete=code == 0)
            if code == 0 or self.problems:
                return start
        self.problems.append(f"not complete after {MOST_STARTS} starts: {log.read_text()[-300:]}")
        return MOST_STARTS

    def _command(self, start: int) -> list[str]:
        mixture, machines = self.mixture, self.machines
        return [
            *("run", f"{self.bench.folder / 'processors.py'}:{mixture.processor}"),
            *(str(self.folder / "fileset.json"), "-o", str(self.output), "--set", "sleep=0.05"),
            *("--cluster", "inline" if machines is None else machines.address),
            *(["--resume"] if start > 1 else ["--chunk-size", str(mixture.chunk_size)]),
        ]

    def _write_fileset(self) -> None:
        datasets: dict[str, Any] = {}
        for index, (part, on_web) in enumerate(self.mixture.files):
            url = f"http://127.0.0.1:{self.bench.web.port}/{part.path.name}"
            datasets.setdefault(f"d{index % 2}", {"process": f"p{index % 2}", "files": []})[
                "files"
            ].append(url if on_web else str(part.path))
        text = json.dumps({"schema": 1, "datasets": datasets})
        (self.folder / "fileset.json").write_text(text)

    def _watch(self, driver: int) -> int | None:
        """Wait for the driver, and have faults happen; its exit code, None if it hangs."""
        begun = time.monotonic()
        while time.monotonic() - begun < HUNG_S:
            ended, status = os.waitpid(driver, os.WNOHANG)
            if ended:
                self._do_what_is_due(float("inf"))
                return os.waitstatus_to_exitcode(status)
            self._do_what_is_due(time.monotonic())
            is_there = time.monotonic() - begun > BEGIN_S
            if self.left and is_there and _n_chunks(self.output) >= self.left[0][0]:
                _, kind = self.left.pop(0)
                self.told.append(self._happen(kind, driver))
            time.sleep(0.02)
        os.kill(driver, signal.SIGKILL)
        os.waitpid(driver, 0)
        return None

    def _do_what_is_due(self, now: float) -> None:
        for when, action in list(self.later):
            if now > when:
                self.later.remove((when, action))
                action()

    def _happen(self, kind: str, driver: int) -> str:
        """Let a fault happen; says what it was."""
        rng, now = self.mixture.rng, time.monotonic()
        if kind in {"kill driver", "interrupt driver"}:
            _send(driver, signal.SIGKILL if kind == "kill driver" else signal.SIGINT)
        elif kind == "damage":
            return parts.damaged_checkpoint(self.output, rng)
        elif kind == "full disk":
            _fill(self.disk)
            self.later.append((now + rng.uniform(0.2, 2), lambda: _free(self.disk)))
        elif kind == "web":
            return self._web_goes_wrong(rng)
        elif self.machines is not None:
            self._cluster_goes_wrong(kind, rng, self.machines)
        return kind

    def _web_goes_wrong(self, rng: random.Random) -> str:
        names = [part.path.name for part, on_web in self.mixture.files if on_web]
        mode, times = rng.choice(parts.MODES), rng.choice((1, 2, 3, 10, 40))
        for name in names[: rng.randint(1, 3)]:
            self.bench.web.rules[name] = (times, mode)
        return f"web {mode} x{times}" if names else "web, of which no file is"

    def _cluster_goes_wrong(self, kind: str, rng: random.Random, machines: Machines) -> None:
        now = time.monotonic()
        if kind == "kill scheduler":
            _send(machines.scheduler, signal.SIGKILL)
            return
        if kind == "freeze scheduler":
            number, wakes = machines.scheduler, now + rng.choice((1, 5, HUNG_S))
        else:
            number, wakes = rng.choice(machines.workers), now + rng.choice((0.5, 3, 20))
        if kind == "kill worker":
            _send(number, signal.SIGKILL)
            self.later.append((wakes, machines.mend))
            return
        _send(number, signal.SIGSTOP)
        self.later.append((wakes, lambda: _send(number, signal.SIGCONT)))


def _drive(words: list[str]) -> None:
    """Be the command line."""
    from agc_ml.cli import main as cli  # noqa: PLC0415 - in the fork
    from agc_ml.execution import rounds  # noqa: PLC0415 - in the fork
    from agc_ml.execution.cluster import monitor  # noqa: PLC0415 - in the fork

    for name, value in LIMITS.items():
        setattr(monitor, name, value)
    rounds.FIRST_WAIT_S = 0.1  # type: ignore[misc]
    sys.argv = ["agc-ml", *words]
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        cli.main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _complaints(code: int, said: str, told: list[str]) -> list[str]:
    """What is wrong with how the driver ended: it has to say so in a line, unless it was killed."""
    if code == -signal.SIGKILL and "kill driver" in told:
        return []
    lines = [line for line in said.splitlines() if line.startswith("agc-ml: ")]
    wrong = []
    if "Traceback" in said or "fault of agc-ml" in said:
        wrong.append(f"a traceback: {said[-500:]}")
    if code not in {0, 1, 2, 130} or len(lines) != (code != 0):
        wrong.append(f"exit code {code} with {len(lines)} lines: {said[-500:]}")
    return wrong


def _wrong(output: Path, mixture: Mixture, *, must_be_complete: bool) -> list[str]:
    """What is wrong with a run that is complete, or says so."""
    import numpy as np  # noqa: PLC0415 - heavy

    from agc_ml.errors import AgcError  # noqa: PLC0415 - heavy
    from agc_ml.results.run_result import RunResult  # noqa: PLC0415 - heavy

    try:
        result = RunResult.load(output)
    except AgcError as error:
        return [f"no result: {error}"] if must_be_complete else []
    if result.status != "complete":
        return [f"it ended well, and is {result.status}"] if must_be_complete else []
    kind = "" if must_be_complete else "falsely complete: "
    found = np.asarray(result.hists["numbers"].values()).astype(int)
    expected = np.zeros_like(found)
    for part, _ in mixture.files:
        expected[part.first : part.first + part.events] += 1
    n = int(expected.sum())
    lost, doubled = int((found < expected).sum()), int((found > expected).sum())
    wrong = [f"{kind}lost {lost}"] * bool(lost) + [f"{kind}doubled {doubled}"] * bool(doubled)
    counts = {result.outputs["n"], result.metrics.events, result.ledger.events}
    if counts != {n} or sum(cuts["all"] for cuts in result.cutflow.values()) != n:
        wrong.append(f"{kind}{counts} events are stated, and there are {n}")
    if result.ledger.faults():
        wrong.append(f"{kind}the account is wrong: {result.ledger.faults()[0]}")
    return wrong


def _n_chunks(output: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(name[0] != "." for name in os.listdir(output / "chunks"))  # noqa: PTH208 - often
    return 0


def _send(number: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        if number:
            os.kill(number, what)


def _is_alive(number: int) -> bool:
    try:
        return bool(number) and os.waitpid(number, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


def _free_port() -> int:
    import socket  # noqa: PLC0415 - only here

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def _disk(folder: Path, *, mounted: bool) -> Iterator[Path]:
    """A folder, on a small file system of its own where that can be."""
    folder.mkdir()
    if mounted:
        _call("mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", folder)
    try:
        yield folder
    finally:
        if mounted:
            _call("umount", "-l", folder)


def _call(*words: object) -> None:
    subprocess.run(list(map(str, words)), check=True, capture_output=True)  # noqa: S603 - ours


def _can_mount(folder: Path) -> bool:
    try:
        with _disk(folder / "trial", mounted=True):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb") as filler:
        while True:
            filler.write(bytes(4096))
            filler.flush()


def _free(disk: Path) -> None:
    (disk / "filler").unlink(missing_ok=True)


def summary(seed: int, done: list[dict[str, Any]]) -> dict[str, Any]:
    """What came of all mixtures."""
    from importlib.metadata import version  # noqa: PLC0415 - only here

    problems = [problem for one in done for problem in one["problems"]]
    kinds = Counter(fault.partition(" x")[0] for one in done for fault in one["faults"])
    return {
        "seed": seed,
        "mixtures": len(done),
        "starts": sum(one["starts"] for one in done),
        "faults": sum(kinds.values()),
        **{what: sum(what in problem for problem in problems)
           for what in ("lost", "doubled", "hung", "falsely complete")},
        "problems": len(problems),
        "limits_s": LIMITS,
        "by_kind": dict(sorted(kinds.items())),
        "versions": {name: version(name) for name in ("agc-ml", "distributed", "uproot", "coffea")},
        "each": done,
    }  # fmt: skip


def main() -> int:
    """Run mixtures; exit code 1 if anything was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seed", type=int)
    parser.add_argument("n", type=int, help="how many mixtures, with those that are done")
    parser.add_argument("minutes", type=float, help="most minutes; the same command goes on")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    done: list[dict[str, Any]] = []
    if given.output.exists():
        before = json.loads(given.output.read_text())
        done = before["each"] if before["seed"] == given.seed else []
    deadline = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        os.environ |= {"XDG_CACHE_HOME": f"{folder}/cache", "XDG_STATE_HOME": f"{folder}/state"}
        bench = Bench(Path(folder))
        _preload()
        bench.web.start()
        for number in range(given.n):
            if any(one["number"] == number for one in done):
                continue
            if time.monotonic() > deadline:
                break
            drawn = Mixture.drawn(given.seed, number, bench.files, can_mount=bench.can_mount)
            one = bench.run(drawn)
            done = sorted([*done, one], key=lambda one: one["number"])
            text = json.dumps(summary(given.seed, done), indent=1)
            given.output.write_text(text + "\n")
            print(
                f"{number}: {one['starts']} starts, {one['seconds']} s, {', '.join(one['faults'])}"
                f" {one['problems'] or 'right'}",
                flush=True,
            )
    found = summary(given.seed, done)
    print({key: value for key, value in found.items() if key != "each"})
    return int(found["problems"] > 0)


def _preload() -> None:
    """Import what all forks need, once."""
    for name in ("coffea.nanoevents", "distributed", "bokeh.plotting", "agc_ml.cli.main",
                 "agc_ml.columnar.records", "agc_ml.execution.run",
                 "agc_ml.execution.worker.processing"):  # fmt: skip
        importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(main())
