"""What it costs to read from a server instead of a disk, on one machine.

python benchmarks/delivery.py [--pairs 15] [--seconds 2.5] [-o RECORD.json]

Readers of several ways take turns with one that reads from disk, each in a process of its own that
stays: as workers do, it opens the file, and streams the columns of the ttbar measurement out of it,
as often as fills the time. Servers are those of deploy/xrootd. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]

# libraries read these when they are imported
os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

from services.proxy import Proxy  # noqa: E402
from services.servicex import endpoint  # noqa: E402
from services.xrootd import Server, Storage  # noqa: E402
from services.xrootd import opened as servers  # noqa: E402

import agc_ml as agc  # noqa: E402 - after the settings above, as all that follows
from agc_ml.columnar.baskets import part_of  # noqa: E402
from agc_ml.columnar.columns import Columns  # noqa: E402
from agc_ml.columnar.stream import Stream  # noqa: E402
from agc_ml.delivery.opening import open_file  # noqa: E402
from agc_ml.errors import AgcError  # noqa: E402
from agc_ml.execution.inspection import FileInfo, inspect_file  # noqa: E402
from agc_ml.execution.state import provenance  # noqa: E402
from agc_ml.inputs.datasets import Dataset, File  # noqa: E402
from agc_ml.inputs.fileset import Fileset  # noqa: E402
from agc_ml.inputs.loading import DEMO  # noqa: E402
from agc_ml.results.templates import compare  # noqa: E402
from benchmarks.speed import SAMPLES, file_of  # noqa: E402
from processors.ttbar import TtbarProcessor  # noqa: E402

RESULTS: Final = ROOT / "benchmarks" / "results" / "delivery.json"
CHUNK: Final = 100_000
OTHER_ORDER: Final = 1e-12
"""Relative difference of sums whose events come in another order."""
COLUMNS: Final = (*TtbarProcessor().columns, *TtbarProcessor.simulation_columns)


# -- a reader, in a process of its own -------------------------------------------------------------


def looked_into(file: File) -> FileInfo:
    """Inspection of a file."""
    info = inspect_file(file, COLUMNS, flat=True)
    if not isinstance(info, FileInfo) or info.directory is None:
        raise SystemExit(f"{file.url}: {getattr(info, 'reason', 'no columns')}")
    return info


def one_pass(file: File, info: FileInfo) -> int:
    """Stream all columns of a file, chunk by chunk; how many bytes they take in it."""
    directory = info.directory or {}
    n_bytes = 0
    with open_file(file) as handle:
        for start in range(0, info.entries, CHUNK):
            stop = min(start + CHUNK, info.entries)
            columns = Columns(handle, file.tree, part_of(directory, start, stop))
            for block in Stream(columns, start, stop, {}).blocks():
                for name in directory:
                    block._column(name)  # noqa: SLF001 - each one once, whatever it is used for
            n_bytes += columns.bytes
    return n_bytes


def reader(pipe: Connection, url: str) -> None:
    """Read as often as it is told to; answer with what that took."""
    import resource  # noqa: PLC0415 - not on all systems

    file = File("bench.root", (url,))
    info = looked_into(file)
    file = File("bench.root", (url,), uuid=info.uuid, size=info.size)
    n_bytes = one_pass(file, info)
    pipe.send(n_bytes)
    while (passes := pipe.recv()) is not None:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(passes):
            one_pass(file, info)
        took = time.perf_counter() - wall, time.process_time() - cpu
        pipe.send((*took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


class Reader:
    """A process that reads one URL."""

    def __init__(self, url: str) -> None:
        context = get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=reader, args=(other, url), daemon=True)
        self._process.start()
        self.n_bytes: int = self._pipe.recv()

    def read(self, passes: int) -> tuple[float, float, float]:
        """Wall and CPU seconds, and the highest memory so far in MB."""
        self._pipe.send(passes)
        took: tuple[float, float, float] = self._pipe.recv()
        return took

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


# -- what is measured ------------------------------------------------------------------------------


def paired(url: str, local: str, pairs: int, seconds: float) -> dict[str, Any]:
    """Reads of a URL and of the local file in turn."""
    ours, theirs = Reader(url), Reader(local)
    passes = max(1, round(seconds / min(theirs.read(1)[0], theirs.read(1)[0])))
    samples = []
    for number in range(pairs):
        order = (ours, theirs) if number % 2 else (theirs, ours)
        took = {one: one.read(passes) for one in order}
        samples.append([*took[ours], *took[theirs]])
    ours.close()
    theirs.close()
    return {
        "passes": passes,
        "samples": samples,
        "wall": statistics.median(s[0] / s[3] for s in samples),
        "cpu": statistics.median(s[1] / s[4] for s in samples),
        "memory": statistics.median(s[2] / s[5] for s in samples),
    }


def cold(storage: Storage, origin: Server, path: Path, local: str, pairs: int) -> dict[str, Any]:
    """First reads through a cache that knows nothing, against the same from disk."""
    samples = []
    for _ in range(pairs):
        cache = storage.cache(origin.address)
        begun = time.perf_counter()
        Reader(cache.url(path.name)).close()
        took = time.perf_counter() - begun
        begun = time.perf_counter()
        Reader(local).close()
        samples.append([took, time.perf_counter() - begun])
        cache.kill()
    return {"samples": samples, "wall": statistics.median(a / b for a, b in samples)}


def wire(server: Server, path: Path) -> float:
    """Bytes that come from a server over those that are needed, without the file's metadata."""
    proxy = Proxy(server.port)
    file = File("bench.root", (f"root://127.0.0.1:{proxy.port}//{path.name}",))
    info = looked_into(file)
    before = proxy.sent
    needed = one_pass(file, info)
    sent = proxy.sent - before
    proxy.close()
    return sent / needed


def seconds_of(action: Callable[[], Any], *, fails: bool = False) -> float:
    """How long something takes, until it is done or fails."""
    begun = time.perf_counter()
    try:
        action()
    except AgcError as error:
        if not fails:
            raise
        print(f"  {error}", file=sys.stderr)
    return time.perf_counter() - begun


def faults(storage: Storage, path: Path) -> dict[str, float]:
    """Seconds that a lost replica costs, and until the loss of all is told."""
    first, second = (storage.data(storage.folder(path)) for _ in range(2))
    urls = (first.url(path.name), second.url(path.name))
    info = looked_into(File("bench.root", urls))
    with open_file(File("bench.root", urls)) as file:
        part = part_of(info.directory or {}, 0, CHUNK)

        def read() -> None:
            for block in Stream(Columns(file, "Events", part), 0, CHUNK, {}).blocks():
                for name in part:
                    block._column(name)  # noqa: SLF001 - as above

        plain = seconds_of(read)
        first.kill()
        lost = seconds_of(read)
        second.kill()
        gone = seconds_of(read, fails=True)
    return {"failover_extra_s": lost - plain, "all_gone_error_s": gone}


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder, and a cache of files that nothing else uses."""
    with tempfile.TemporaryDirectory(prefix="agc-bench-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        yield Path(folder)


def run(what: Fileset, folder: Path, via: str | None = None) -> Any:
    """The ttbar measurement's run."""
    return agc.run("ttbar", what, via=via, site="inline", output=folder, quiet=True)


def bins(storage: Storage, path: Path, folder: Path) -> dict[str, Any]:
    """Bins that differ between ways, and the seconds of ServiceX for the demo."""
    server = storage.data(storage.folder(path))
    cache = storage.cache(server.address)

    def listed(url: str) -> Fileset:
        return Fileset(
            (Dataset("ttbar__nominal", "ttbar", (File("bench.root", (url,)),), xsec=729.84),),
            3378.0,
            "made up",
        )

    direct = run(listed(str(path)), folder / "direct")
    urls = (server.url(path.name), server.http(path.name), cache.url(path.name))
    ways = [run(listed(url), folder / str(n)) for n, url in enumerate(urls)]
    differing = sum(len(compare(way.templates, direct.templates, 0.0)) for way in ways)
    demo = Fileset.load(DEMO)
    expected = run(demo, folder / "demo")
    with endpoint(folder / "endpoint", "--workers", os.cpu_count() or 1) as service:
        begun = time.perf_counter()
        through = run(demo, folder / "servicex", f"servicex={service.config}")
        took = time.perf_counter() - begun
    differing += len(compare(through.templates, expected.templates, OTHER_ORDER))
    return {"differing_bins": differing, "servicex_s": took}


def measured(path: Path, pairs: int, seconds: float) -> dict[str, Any]:
    """All of it."""
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        storage = stack.enter_context(servers())
        origin = storage.data(storage.folder(path))
        cache = storage.cache(origin.address)
        local = str(path)
        ways: Mapping[str, str] = {
            "local": local,
            "xrootd": origin.url(path.name),
            "https": origin.http(path.name),
            "xcache_warm": cache.url(path.name),
        }
        record: dict[str, Any] = {"ways": {}}
        for name, url in ways.items():
            record["ways"][name] = paired(url, local, pairs, seconds)
            told = {key: round(record["ways"][name][key], 3) for key in ("wall", "cpu", "memory")}
            print(f"{name}: {told}", file=sys.stderr)
        record["ways"]["xcache_cold"] = cold(storage, origin, path, local, 3)
        record["wire_over_needed"] = wire(origin, path)
        record |= bins(storage, path, folder)
        record |= faults(storage, path)
    return record


def summary(record: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the last line."""
    ways = record["ways"]
    return {
        "xrootd_cpu_over_local": ways["xrootd"]["cpu"],
        "xrootd_over_local": ways["xrootd"]["wall"],
        "https_over_local": ways["https"]["wall"],
        "xcache_warm_over_local": ways["xcache_warm"]["wall"],
        "local_over_local": ways["local"]["wall"],
        "servicex_s": record["servicex_s"],
        "failover_extra_s": record["failover_extra_s"],
        "all_gone_error_s": record["all_gone_error_s"],
        "differing_bins": record["differing_bins"],
        "wire_over_needed": record["wire_over_needed"],
    }


def main() -> None:
    """Measure, write the record, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=2.5, help="least time of a read")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    path = file_of(SAMPLES[0])
    record = {
        "schema": 1,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"],  # noqa: S607 - the user's git
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip(),
        "hardware": {"cores": os.cpu_count(), "machine": platform.machine()},
        "versions": provenance.versions(),
        "file": {"name": path.parent.name, "bytes": path.stat().st_size},
        **measured(path, given.pairs, given.seconds),
    }
    given.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: round(value, 4) for key, value in summary(record).items()}))


if __name__ == "__main__":
    main()
