"""Events/s of the ttbar measurement: ours against the way it is commonly written.

    make bench-speed            # or: python benchmarks/speed.py --models FOLDER [--rounds 7]
    python benchmarks/speed.py --models FOLDER --events 2000 --rounds 1    # does it work?

CPU time of one thread, in alternated pairs in one process, over files like CMS's (947 branches,
about 2 kB an event): 3 % of the events selected, 11 %, and W+jets, of which next to none are. The
baseline (`baselines/awkward_ttbar.py`) runs in two forms: ``runner`` opens the file and builds the
whole schema for each chunk, as the published analysis does; ``filtered`` has the file open and sets
up the branches that it needs. Histograms of both are compared bin by bin. The last line is JSON;
the record, with every sample, goes to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from unittest import mock

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# libraries read these when they are imported
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402 - after the settings above, as all that follows
import uproot  # noqa: E402
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory  # noqa: E402
from coffea.processor.accumulator import iadd  # noqa: E402
from numba import njit  # noqa: E402

from agc_ml.columnar import basket_records, baskets  # noqa: E402
from agc_ml.columnar import columns as reading  # noqa: E402
from agc_ml.delivery.opening import open_file  # noqa: E402
from agc_ml.execution import inspection  # noqa: E402
from agc_ml.execution.processor.loading import load_processor  # noqa: E402
from agc_ml.execution.state import packing, provenance  # noqa: E402
from agc_ml.execution.state.checkpoints import Chunk  # noqa: E402
from agc_ml.execution.state.packing import unpack  # noqa: E402
from agc_ml.execution.worker import processing  # noqa: E402
from agc_ml.execution.worker.job import Finished, Job  # noqa: E402
from agc_ml.execution.worker.processing import process_chunk  # noqa: E402
from agc_ml.inputs.columns import with_counters  # noqa: E402
from agc_ml.inputs.datasets import File  # noqa: E402
from agc_ml.inputs.fileset import Fileset  # noqa: E402
from agc_ml.inputs.variations import NOMINAL  # noqa: E402
from agc_ml.models import model  # noqa: E402
from agc_ml.models.backends import forest  # noqa: E402
from agc_ml.models.backends.xgboost_file import read_xgboost  # noqa: E402
from agc_ml.models.content import BATCH_ROWS  # noqa: E402
from agc_ml.models.loading import load_model  # noqa: E402
from agc_ml.results.histograms import materialised  # noqa: E402
from agc_ml.simulation.lookalike import Admixture, generate  # noqa: E402
from agc_ml.transports import local_file  # noqa: E402
from benchmarks.baselines.awkward_ttbar import AwkwardTtbar  # noqa: E402
from processors.ttbar import TtbarProcessor, assignment, systematics  # noqa: E402

EVENTS = 200_000
"""Events of each file; ``--events`` sets it, and all sizes of chunks are parts of it."""
SEED: Final = 5
RESULTS: Final = ROOT / "benchmarks" / "results" / "speed.json"
DATA = ROOT / "benchmarks" / "data"

Clock = Callable[[], float]
cpu: Clock = time.process_time


@dataclass(frozen=True)
class Sample:
    """A file to run over; ``selected`` is what its recipe aims at."""

    name: str
    dataset: str
    process: str
    selected: float
    mixed_with: tuple[Admixture, ...] = ()


SAMPLES: Final = (
    Sample("3%", "ttbar__nominal", "ttbar", 0.03, (Admixture("wjets__nominal", 0.525),)),
    Sample(
        "11%", "ttbar__nominal", "ttbar", 0.11, (Admixture("ttbar__nominal", 0.29, vetoed=True),)
    ),
    Sample("W", "wjets__nominal", "wjets", 0.0002),
)


def file_of(sample: Sample) -> Path:
    """The file of a sample, made where it is not there yet."""
    folder = DATA / f"speed-{sample.name.strip('%')}-{EVENTS}-{SEED}"
    if not (folder / "fileset.json").exists():
        print(f"making {folder.name}: about two minutes", file=sys.stderr)
        generate(
            folder,
            events=EVENTS,
            seed=SEED,
            dataset=sample.dataset,
            mixed_with=sample.mixed_with,
        )
    (dataset,) = Fileset.load(folder / "fileset.json").datasets
    return Path(dataset.files[0].url)


# -- the two ways ----------------------------------------------------------------------------------


@functools.cache
def looked_into(path: Path, columns: tuple[str, ...]) -> inspection.FileInfo:
    """Inspection of a file, made once: many ways read the same one."""
    info = inspection.inspect_file(File(path.name, (str(path),)), columns, flat=True)
    if not isinstance(info, inspection.FileInfo):
        raise SystemExit(info.reason)
    return info


class Ours:
    """What a worker does with a chunk, the file being open."""

    def __init__(self, path: Path, process: str, models: Any | None, *, compat: bool) -> None:
        self.processor = TtbarProcessor(compat=compat, model=models)
        loaded = load_processor(self.processor)
        columns = (*self.processor.columns, *self.processor.simulation_columns)
        info = looked_into(path, columns)
        self._job = Job(
            chunk=Chunk("d", path.name, "Events", info.uuid, EVENTS, 0, EVENTS),
            file=File(path.name, (str(path),)),
            known=info.known(is_remembered=False),
            place=info.place,
            metadata=metadata(process),
            columns=columns,
            directory=info.directory,
            key=f"{loaded.key} {models}",
            processor=loaded.blob,
            modules={},
            module=None,
            source=b"",
        )

    def __call__(self, start: int, stop: int) -> Finished:
        """Process the events [start, stop)."""
        chunk = replace(self._job.chunk, start=start, stop=stop)
        directory = baskets.part_of(self._job.directory or {}, start, stop)
        outcome = process_chunk(replace(self._job, chunk=chunk, directory=directory))
        if not isinstance(outcome, Finished):
            raise SystemExit(f"{outcome.reason}\n{outcome.details}")
        return outcome


class Theirs:
    """The baseline; ``whole``: opens the file and builds the whole schema each time."""

    def __init__(self, path: Path, process: str, models: dict[str, Any], *, whole: bool) -> None:
        self.processor = AwkwardTtbar(models=models)
        self.path, self.whole = path, whole
        self._metadata = metadata(process)
        wanted = ("pt", "eta", "phi", "mass", "charge")
        needed = {*TtbarProcessor(model=None).columns, *assignment.COLUMNS}
        needed |= {f"{kind}_{field}" for kind in ("Electron", "Muon") for field in wanted}
        self._needed = with_counters(tuple(sorted(needed)))
        self._file = None if whole else uproot.open({str(path): None}, array_cache=None)

    def __call__(self, start: int, stop: int) -> dict[str, Any]:
        """Process the events [start, stop)."""
        options = {} if self.whole else {"filter_name": self._needed}
        file = uproot.open({str(self.path): None}) if self.whole else self._file
        events = NanoEventsFactory.from_root(
            file,
            treepath="Events",
            mode="virtual",
            entry_start=start,
            entry_stop=stop,
            metadata=self._metadata,
            iteritems_options=options,
        ).events()
        output: dict[str, Any] = self.processor.process(events)
        if self.whole:
            file.close()
        return output


def metadata(process: str) -> dict[str, Any]:
    """What the processors are told of a dataset."""
    return {"dataset": "d", "process": process, "variation": "nominal", "filename": "f", "lfn": "f"}


# -- measuring -------------------------------------------------------------------------------------


def seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of a call, with nothing left to collect from earlier ones."""
    gc.collect()
    start = cpu()
    work()
    return cpu() - start


def alternated(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each way, in turn; a first round is left out."""
    for work in ways.values():
        work()
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        names = list(ways) if turn % 2 else list(ways)[::-1]
        for name in names:
            samples[name].append(seconds(ways[name]))
    return samples


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Ratio of medians, with the bootstrap's 95 % interval over rounds."""
    rng = np.random.default_rng(1)
    a, b = np.array(slow), np.array(fast)
    picks = rng.integers(len(a), size=(4000, len(a)))
    ratios = np.median(a[picks], axis=1) / np.median(b[picks], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return {
        "ratio": float(np.median(a) / np.median(b)),
        "low": float(low),
        "high": float(high),
    }


def in_chunks(way: Callable[[int, int], Any], size: int) -> Callable[[], Any]:
    """Run over all events, in chunks."""

    def work() -> None:
        for start in range(0, EVENTS, size):
            way(start, start + size)

    return work


def differing(ours: dict[str, Any], theirs: dict[str, Any], process: str) -> tuple[int, int]:
    """Number of bins of all histograms, and of those that differ by more than 1e-9."""
    bins = bad = 0
    for name, expected in theirs.items():
        for variation in expected.axes["variation"]:
            pair = [h[name][:, process, variation] for h in (ours, theirs)]
            for what in ("values", "variances"):
                a, b = (getattr(h, what)(flow=True) for h in pair)
                bins += len(a)
                bad += int(np.sum(~np.isclose(a, b, rtol=1e-9, atol=0)))
    return bins, bad


def equality(sample: Sample, models: Any, boosters: dict[str, Any]) -> dict[str, Any]:
    """Compare all histograms of ours, as the reference does it, with the baseline's."""
    path = file_of(sample)
    ours = Ours(path, sample.process, models, compat=True)(0, EVENTS)
    output = materialised(unpack(ours.blob))
    theirs = Theirs(path, sample.process, boosters, whole=False)(0, EVENTS)
    bins, bad = differing(output, theirs, sample.process)
    (cuts,) = output["cutflow"].values()
    return {"bins": bins, "differing": bad, "cutflow": cuts}


@contextmanager
def floor(path: Path, names: tuple[str, ...]) -> Iterator[Callable[[], Any]]:
    """Read columns, and do nothing with them; as long as the file is open."""
    with open_file(File(str(path), (str(path),))) as file:
        yield floor_of(file, names)


def floor_of(file: Any, names: tuple[str, ...]) -> Callable[[], Any]:
    """Read the columns of an open file, and do nothing with them."""
    found, _ = reading.directory(file, "Events", names)

    def work() -> None:
        columns = reading.Columns(file, "Events", found)
        for start, stop in itertools.pairwise(columns.cuts(0, EVENTS)):
            columns.ask(start, stop)
            columns.take()
            for name in names:
                columns.read(name, start, stop)

    work()
    return work


@contextmanager
def stopwatch(totals: dict[str, float], owner: Any, name: str, stage: str) -> Iterator[None]:
    """Add up the CPU time of a function under a stage, less that of stages inside of it."""
    right = getattr(owner, name)

    def timed(*arguments: Any, **named: Any) -> Any:
        inside = sum(totals.values())
        start = cpu()
        result = right(*arguments, **named)
        totals[stage] += cpu() - start - (sum(totals.values()) - inside)
        return result

    with mock.patch.object(owner, name, timed):
        yield


STAGES: Final = (
    *("open", "read", "decompress", "flatten", "kernels", "features", "inference", "fill", "pack"),
    "merge",
)


def stages(sample: Sample, models: Any, rounds: int) -> dict[str, float]:
    """Median CPU us an event of each stage of a chunk, with inference."""
    way = Ours(file_of(sample), sample.process, models, compat=False)
    way(0, EVENTS)
    found = []
    for _ in range(rounds):
        totals = dict.fromkeys(STAGES, 0.0)
        watched = (
            (processing, "open_file", "open"),
            (local_file.os, "pread", "read"),
            (basket_records, "_decompressed", "decompress"),
            (reading.Columns, "read", "flatten"),
            (TtbarProcessor, "process", "kernels"),
            (assignment, "permutations", "features"),
            (model.Model, "__call__", "inference"),
            (assignment.DenseHist, "fill", "fill"),
            (packing, "pack", "pack"),
        )
        with ExitStack() as stack:
            for owner, name, stage in watched:
                stack.enter_context(stopwatch(totals, owner, name, stage))
            outcome = way(0, EVENTS)
        start = cpu()
        iadd(unpack(outcome.blob), unpack(outcome.blob))
        totals["merge"] = (cpu() - start) / 2
        found.append(totals)
    return {stage: float(np.median([t[stage] for t in found])) / EVENTS * 1e6 for stage in STAGES}


# -- growth ----------------------------------------------------------------------------------------


def growth(models: Any, boosters: dict[str, Any], rounds: int) -> dict[str, Any]:
    """How the cost grows: with chunk size, with variations, and with jets."""
    sample = SAMPLES[0]
    path = file_of(sample)
    ours = Ours(path, sample.process, models, compat=False)
    theirs = Theirs(path, sample.process, boosters, whole=True)
    chunks = {}
    for size in (EVENTS // 10, EVENTS // 5, EVENTS // 2, EVENTS):
        ways = {
            "ours": lambda size=size: ours(0, size),
            "runner": lambda size=size: theirs(0, size),
        }
        samples = alternated(ways, 3)
        chunks[size] = {n: float(np.median(s)) / size * 1e6 for n, s in samples.items()}
    right, weights = systematics.kinematic, systematics.weights
    kinds = {
        "nominal": (lambda *a: {NOMINAL: right(*a)[NOMINAL]}, lambda *_: {}),
        "nominal, 8 weights": (lambda *a: {NOMINAL: right(*a)[NOMINAL]}, weights),
        "3 kinematic": (right, lambda *_: {}),
        "3 kinematic, 8 weights": (right, weights),
    }
    variations: dict[str, dict[str, float]] = {}
    for with_model in (False, True):
        way = Ours(path, sample.process, models if with_model else None, compat=False)
        for name, (kinematic, weighted) in kinds.items():
            with (
                mock.patch.object(systematics, "kinematic", kinematic),
                mock.patch.object(systematics, "weights", weighted),
            ):
                times = [seconds(lambda way=way: way(0, EVENTS)) for _ in range(rounds)]
            label = "ml" if with_model else "no_ml"
            variations.setdefault(name, {})[label] = float(np.median(times)) / EVENTS * 1e6
    return {
        "chunk_us_per_event": chunks,
        "variations_us_per_event": variations,
        "jets_us": jets(models, rounds),
    }


def rows_of(sample: Sample, models: Any) -> list[Any]:
    """Features of each nominal event of the signal region that one of the models scores."""
    taken: list[Any] = []
    right = assignment.permutations
    only_nominal = {NOMINAL: systematics.kinematic(NOMINAL, 0)[NOMINAL]}

    def spy(candidates: Any, *, wraps: bool) -> Any:
        features, rows = right(candidates, wraps=wraps)
        events = np.split(features, rows[1:-1])
        taken.extend(x for x, e in zip(events, candidates.event, strict=True) if e % 2 == 0)
        return features, rows

    with (
        mock.patch.object(assignment, "permutations", spy),
        mock.patch.object(systematics, "kinematic", return_value=only_nominal),
    ):
        Ours(file_of(sample), sample.process, models, compat=True)(0, EVENTS)
    return taken


def forests(models: Any, booster: Any, rounds: int) -> dict[str, Any]:
    """Our forest kernel against xgboost: rows as they come, and by rows an event."""
    events = rows_of(SAMPLES[1], models)
    content = model.contents([models.odd])[models.odd.sha256]
    trees = read_xgboost(content.data)
    kinds = {"as they come": events}
    kinds |= {f"{n} an event": [e for e in events if len(e) == n] for n in (12, 60, 180)}
    found = {}
    for name, chosen in kinds.items():
        rows = np.concatenate(chosen)[:BATCH_ROWS]

        def of_xgboost(rows: Any = rows) -> Any:
            return booster.inplace_predict(rows, predict_type="margin")

        def of_ours(rows: Any = rows) -> Any:
            return forest.margins(trees, rows)

        samples = alternated({"xgboost": of_xgboost, "ours": of_ours}, rounds)
        found[name] = {
            **ratio(samples["xgboost"], samples["ours"]),
            "ns_per_row": float(np.median(samples["ours"])) / len(rows) * 1e9,
            "rows": len(rows),
            "equal": bool(np.array_equal(of_ours(), of_xgboost())),
        }
    return found


def jets(models: Any, rounds: int) -> dict[str, float]:
    """CPU us of inference for an event of 4, 5 and 6 or more jets, features included."""
    events = rows_of(SAMPLES[1], models)
    found = {}
    for n_jets, n in ((4, 12), (5, 60), (6, 180)):
        chosen = [e for e in events if len(e) == n]
        rows = np.concatenate(chosen)
        times = [seconds(lambda rows=rows: models.odd(rows)) for _ in range(rounds)]
        found[str(n_jets)] = float(np.median(times)) / len(chosen) * 1e6
    return found


# -- processes of their own ------------------------------------------------------------------------


def fresh(task: str, *arguments: str, **environment: str) -> dict[str, float]:
    """Run one of the tasks below in a new process; what it prints last is JSON."""
    sizes = ("--events", str(EVENTS), "--data", str(DATA))
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, __file__, "--task", task, *arguments, *sizes],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    if done.returncode:
        raise SystemExit(f"{task} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compilation(folder: str) -> dict[str, float]:
    """CPU s of a process' first chunk beyond that of its second one, of the same events.

    What numba imports when its first function is called is left out, and given apart.
    """
    models = load_model(folder)
    way = Ours(file_of(SAMPLES[0]), "ttbar", models, compat=False)
    start = cpu()
    njit(lambda: None).compile(())
    imports = cpu() - start
    first = seconds(lambda: way(0, EVENTS // 10))
    second = seconds(lambda: way(0, EVENTS // 10))
    return {"seconds": first - second, "numba_s": imports}


def first_open(_: str) -> dict[str, float]:
    """CPU ms of a chunk of a file that is not open yet, beyond that of one that is.

    And of looking into a file, which is done once a file, and tells workers where its columns are.
    """
    ways = [Ours(file_of(sample), "ttbar", None, compat=False) for sample in SAMPLES[:2]]
    over = []
    for i in range(OPENED):
        way = ways[i % 2]  # which lets go of the other's file
        first, later = (seconds(lambda way=way: way(0, EVENTS // 100)) for _ in range(2))
        over.append(first - later)
    path, processor = file_of(SAMPLES[2]), ways[0].processor
    columns = (*processor.columns, *processor.simulation_columns)
    file = File(path.name, (str(path),))
    inspected = seconds(lambda: inspection.inspect_file(file, columns, flat=True))
    return {"milliseconds": float(np.median(over)) * 1e3, "inspect_ms": inspected * 1e3}


OPENED: Final = 20
"""So often a file is opened to see what that costs."""


def memory(folder: str) -> dict[str, float]:
    """Resident MB of a chunk of 200k events at 11 % with inference, over those before it."""
    models = load_model(folder)
    path = file_of(SAMPLES[1])
    way = Ours(path, "ttbar", models, compat=False)
    way(0, EVENTS // 10)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = resident("VmHWM")
    way(0, EVENTS)
    return {"over_base_mb": resident("VmHWM") - before, "base_mb": before}


def resident(field: str) -> float:
    """A size of this process in MB, from the kernel."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


TASKS: Final = {"compilation": compilation, "first_open": first_open, "memory": memory}


def chunk_overhead(rounds: int) -> float:
    """CPU ms of a chunk beside the processor and what it reads: it returns an output of before."""
    sample = SAMPLES[0]
    way = Ours(file_of(sample), sample.process, None, compat=False)
    for _ in range(FIRST):
        output = unpack(way(0, EVENTS // 10).blob)
    outputs = [copy.deepcopy(output) for _ in range(MANY * rounds)]
    with mock.patch.object(type(way.processor), "process", side_effect=outputs[:]):
        start = cpu()
        for _ in outputs:
            way(0, EVENTS // 10)
        return (cpu() - start) / len(outputs) * 1e3


FIRST: Final = 4
"""Chunks of a dataset in which a process looks for state that lasts, and one more."""
MANY: Final = 30
"""Chunks of which nothing is read, a round."""


# -- all of it -------------------------------------------------------------------------------------


def boosters(folder: Path) -> dict[str, Any]:
    """Published models as xgboost has them, by the parity of the events that they score."""
    import xgboost  # noqa: PLC0415 - heavy

    found = {}
    for scored, trained in (("even", "odd"), ("odd", "even")):
        found[scored] = xgboost.Booster()
        found[scored].load_model(folder / f"model_{trained}.json")
        found[scored].set_param({"nthread": 1})
    return found


def pairs(models: Any, theirs: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Samples and ratios of ours against both forms of the baseline, for each file."""
    found: dict[str, Any] = {}
    for sample, with_ml in itertools.product(SAMPLES, (False, True)):
        path, used = file_of(sample), theirs if with_ml else {}
        ours = Ours(path, sample.process, models if with_ml else None, compat=False)
        forms = {
            "runner": Theirs(path, sample.process, used, whole=True),
            "filtered": Theirs(path, sample.process, used, whole=False),
        }
        for size in (EVENTS, EVENTS // 4) if sample is SAMPLES[0] else (EVENTS,):
            ways = {"ours": in_chunks(ours, size)}
            ways |= {name: in_chunks(form, size) for name, form in forms.items()}
            samples = alternated(ways, rounds)
            part = "" if size == EVENTS else ", quarters"
            label = f"{sample.name}{' ml' if with_ml else ''}{part}"
            found[label] = {
                "samples": samples,
                "us_per_event": {n: float(np.median(x)) / EVENTS * 1e6 for n, x in samples.items()},
                **{name: ratio(samples[name], samples["ours"]) for name in forms},
            }
            print_pair(label, found[label])
    return found


def print_pair(label: str, pair: dict[str, Any]) -> None:
    """A line of the table."""
    cost = pair["us_per_event"]
    against = "".join(
        f"{pair[n]['ratio']:8.1f} [{pair[n]['low']:.1f}, {pair[n]['high']:.1f}]"
        for n in ("runner", "filtered")
    )
    print(
        f"{label:14}{cost['ours']:9.3f}{cost['runner']:9.2f}{cost['filtered']:10.2f}{against}",
        flush=True,
    )


def read_fractions(rounds: int) -> dict[str, float]:
    """Reading the columns and nothing else, over all without inference, in alternated pairs."""
    found = {}
    for sample in SAMPLES[:2]:
        path = file_of(sample)
        ours = Ours(path, sample.process, None, compat=False)
        columns = (*ours.processor.columns, *ours.processor.simulation_columns)
        with floor(path, tuple(with_counters(columns))) as read:
            samples = alternated({"floor": read, "ours": in_chunks(ours, EVENTS)}, 2 * rounds)
        found[sample.name] = float(np.median(samples["floor"]) / np.median(samples["ours"]))
    return found


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Everything, as a record."""
    models, theirs = load_model(folder), boosters(folder)
    print(f"{'':14}{'ours':>9}{'runner':>9}{'filtered':>10}   us/event; ratios to runner, filtered")
    measured = pairs(models, theirs, rounds)
    equal = {sample.name: equality(sample, models, theirs) for sample in SAMPLES}
    with tempfile.TemporaryDirectory() as cache:
        cold = fresh("compilation", str(folder), NUMBA_CACHE_DIR=cache)["seconds"]
        warm = [
            fresh("compilation", str(folder), NUMBA_CACHE_DIR=cache)["seconds"]
            for _ in range(min(3, rounds))
        ]
    opened = [fresh("first_open", str(folder)) for _ in range(min(3, rounds))]
    return {
        "schema": 1,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": provenance.versions(models.members),
        "git": vars(provenance.git_state(__file__) or object()) or None,
        "hardware": {
            "machine": platform.machine(),
            "cpu": processor_name(),
            "load": os.getloadavg(),
        },
        "pairs": measured,
        "equality": equal,
        "read_fractions": read_fractions(rounds),
        "chunk_overhead_ms": chunk_overhead(rounds),
        "first_open_ms": [one["milliseconds"] for one in opened],
        "inspect_ms": [one["inspect_ms"] for one in opened],
        "memory": fresh("memory", str(folder)),
        "jit_cold_s": cold,
        "jit_warm_s": warm,
        "forest": forests(models, theirs["even"], 3 * rounds),
        "stages_us_per_event": {s.name: stages(s, models, rounds) for s in SAMPLES},
        "growth": growth(models, theirs, rounds),
    }


def processor_name() -> str:
    """What the kernel calls the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "")


def summary(record: dict[str, Any]) -> dict[str, float]:
    """The figures that are compared between versions."""
    of = record["pairs"]
    return {
        "no_ml": of["3%"]["runner"]["ratio"],
        "no_ml_filtered": of["3%"]["filtered"]["ratio"],
        "ml": of["3% ml"]["runner"]["ratio"],
        "ml_filtered": of["3% ml"]["filtered"]["ratio"],
        "wjets": of["W"]["runner"]["ratio"],
        "wjets_ml": of["W ml"]["runner"]["ratio"],
        "differing_bins": sum(one["differing"] for one in record["equality"].values()),
        "read_fraction": record["read_fractions"]["3%"],
        "read_fraction_11": record["read_fractions"]["11%"],
        "chunk_overhead_ms": record["chunk_overhead_ms"],
        "first_open_ms": float(np.median(record["first_open_ms"])),
        "inspect_ms": float(np.median(record["inspect_ms"])),
        "rss_over_base_mb": record["memory"]["over_base_mb"],
        "jit_warm_s": float(np.median(record["jit_warm_s"])),
        "forest_vs_xgboost": record["forest"]["as they come"]["ratio"],
    }


def main() -> None:
    """Measure, write the record, print the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, help="folder of the published models")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of each comparison")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the record goes")
    parser.add_argument("--events", type=int, default=EVENTS, help="of each file")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the files")
    parser.add_argument("--task", nargs=2, metavar=("TASK", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    globals().update(EVENTS=given.events, DATA=given.data)
    NanoAODSchema.warn_missing_crossrefs = False
    if given.task:
        print(json.dumps(TASKS[given.task[0]](given.task[1])))
        return
    if given.models is None:
        parser.error("--models FOLDER is needed: model_even.json and model_odd.json, as published")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of what coffea's schema leaves out
        record = measure(given.models, given.rounds)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: round(v, 4) for k, v in summary(record).items()}))


if __name__ == "__main__":
    main()
