"""Events/s of the ttbar measurement: ours against the way it is commonly written.

    make bench-speed                      # or: python benchmarks/speed.py [--quick] [--models FOLDER]

CPU time of one thread, in alternated pairs in one process, over files like CMS's (947 branches,
about 2 kB an event): 3 % of the events selected, 11 %, and W+jets, of which next to none are. The
baseline (`baselines/awkward_ttbar.py`) runs in two forms: ``runner`` opens the file and builds the
whole schema for each chunk, as the published analysis does; ``filtered`` has the file open and sets
up the branches it needs. Histograms of both are compared bin by bin. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from unittest import mock

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np
import uproot
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory

from agc_ml import catalogue, provenance, reading, worker
from agc_ml.checkpoints import Chunk
from agc_ml.generate.lookalike import Part, generate
from agc_ml.hists import materialised
from agc_ml.kernels import combinatorics, forest
from agc_ml.ml import cards, hook
from agc_ml.shipping import prepare
from agc_ml.worker import Job, process_chunk, unpack, with_counters
from benchmarks.baselines.awkward_ttbar import AwkwardTtbar
from processors.ttbar import TtbarProcessor, assignment

EVENTS: Final = 200_000
SEED: Final = 5
RESULTS: Final = ROOT / "benchmarks" / "results" / "speed.json"
DATA: Final = ROOT / "benchmarks" / "data"

Clock = Callable[[], float]
cpu: Clock = time.process_time


@dataclass(frozen=True)
class Sample:
    """A file to run over; ``selected`` is what its recipe aims at."""

    name: str
    dataset: str
    process: str
    selected: float
    mixed_with: tuple[Part, ...] = ()


SAMPLES: Final = (
    Sample("3%", "ttbar__nominal", "ttbar", 0.03, (Part("wjets__nominal", 0.54),)),
    Sample("11%", "ttbar__nominal", "ttbar", 0.11, (Part("ttbar__nominal", 0.36, vetoed=True),)),
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
    (dataset,) = catalogue.load(folder / "fileset.json").datasets
    return Path(dataset.files[0].url)


# -- the two ways -----------------------------------------------------------------------------------


class Ours:
    """What a worker does with a chunk, the file being open."""

    def __init__(self, path: Path, process: str, models: Any | None, *, compat: bool) -> None:
        self.processor = TtbarProcessor(compat=compat, model=models)
        shipment = prepare(self.processor)
        with uproot.open(path) as file:
            self.uuid = str(file.file.uuid)
        self.path = path
        self._job = Job(
            chunk=Chunk("d", path.name, "Events", self.uuid, EVENTS, 0, EVENTS),
            url=str(path),
            metadata=metadata(process),
            columns=(*self.processor.columns, *self.processor.simulation_columns),
            processor=shipment.blob,
            code=shipment.code,
            modules={},
            module=None,
            source=b"",
        )

    def __call__(self, start: int, stop: int) -> dict[str, Any]:
        chunk = Chunk("d", self.path.name, "Events", self.uuid, EVENTS, start, stop)
        job = Job(**{**{f: getattr(self._job, f) for f in Job.__slots__}, "chunk": chunk})
        outcome = process_chunk(job)
        if not isinstance(outcome, worker.Finished):
            raise SystemExit(f"{outcome.reason}\n{outcome.details}")
        return {"blob": outcome.blob}


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
    return {"dataset": "d", "process": process, "variation": "nominal", "filename": "f"}


# -- measuring --------------------------------------------------------------------------------------


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
    low, high = np.quantile(
        np.median(a[picks], axis=1) / np.median(b[picks], axis=1), [0.025, 0.975]
    )
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
    output = materialised(unpack(ours["blob"]))
    theirs = Theirs(path, sample.process, boosters, whole=False)(0, EVENTS)
    bins, bad = differing(output, theirs, sample.process)
    (cuts,) = output["cutflow"].values()
    return {"bins": bins, "differing": bad, "cutflow": cuts}


def floor(path: Path, names: tuple[str, ...]) -> Callable[[], Any]:
    """Read columns, and do nothing with them."""
    file = uproot.open({str(path): None}, array_cache=None)
    columns = reading.Columns(file, "Events", str(path), names)

    def work() -> None:
        cuts = columns.cuts(0, EVENTS)
        for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
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
            (worker, "_opened", "open"),
            (worker, "_columns", "open"),
            (reading.os, "pread", "read"),
            (reading, "_decompressed", "decompress"),
            (reading.Columns, "read", "flatten"),
            (TtbarProcessor, "process", "kernels"),
            (assignment, "permutations", "features"),
            (hook.Model, "__call__", "inference"),
            (assignment.DenseHist, "fill", "fill"),
            (worker, "pack", "pack"),
        )
        with contextlib.ExitStack() as stack:
            for owner, name, stage in watched:
                stack.enter_context(stopwatch(totals, owner, name, stage))
            outcome = way(0, EVENTS)
        start = cpu()
        iadd(unpack(outcome["blob"]), unpack(outcome["blob"]))
        totals["merge"] = (cpu() - start) / 2
        found.append(totals)
    return {stage: float(np.median([t[stage] for t in found])) / EVENTS * 1e6 for stage in STAGES}


# -- growth -----------------------------------------------------------------------------------------


def growth(models: Any, boosters: dict[str, Any], rounds: int) -> dict[str, Any]:
    """How the cost grows: with chunk size, with variations, and with jets."""
    sample = SAMPLES[0]
    path = file_of(sample)
    ours = Ours(path, sample.process, models, compat=False)
    theirs = Theirs(path, sample.process, boosters, whole=True)
    chunks = {}
    for size in (20_000, 40_000, 100_000, EVENTS):
        ways = {
            "ours": lambda size=size: ours(0, size),
            "runner": lambda size=size: theirs(0, size),
        }
        samples = alternated(ways, 2 if size > 40_000 else 3)
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
                times = [seconds(lambda: way(0, EVENTS)) for _ in range(rounds)]
            label = "ml" if with_model else "no_ml"
            variations.setdefault(name, {})[label] = float(np.median(times)) / EVENTS * 1e6
    return {"chunk_us_per_event": chunks, "variations_us_per_event": variations, "jets": jets()}


def rows_of(sample: Sample, models: Any) -> dict[int, Any]:
    """Features of the nominal events of the signal region, by their number of rows."""
    taken: dict[int, list[Any]] = {12: [], 60: [], 180: []}
    right = assignment.permutations

    def spy(candidates: Any, *, wraps: bool) -> Any:
        features, rows = right(candidates, wraps=wraps)
        for first, last in zip(rows[:-1], rows[1:], strict=True):
            taken[int(last - first)].append(features[first:last])
        return features, rows

    with mock.patch.object(assignment, "permutations", spy):
        way = Ours(file_of(sample), sample.process, models, compat=False)
        way(0, EVENTS)
    return {n: np.concatenate(parts) for n, parts in taken.items() if parts}


def forests(models: Any, booster: Any, rounds: int) -> dict[str, Any]:
    """Our forest kernel against xgboost, on the rows of the 11 % sample, as they come and by kind."""
    by_kind = rows_of(SAMPLES[1], models)
    trees = forest.read_xgboost(hook.contents([models.odd])[models.odd.sha256].data)
    kinds = {f"{n} rows an event": rows[:100_000] for n, rows in by_kind.items()}
    return {
        name: {
            **ratio(samples["xgboost"], samples["ours"]),
            "ns_per_row": float(np.median(samples["ours"])) / len(rows) * 1e9,
            "rows": len(rows),
            "equal": bool(
                np.array_equal(
                    forest.margins(trees, rows),
                    booster.inplace_predict(rows, predict_type="margin"),
                )
            ),
        }
        for name, rows in kinds.items()
        for samples in [
            alternated(
                {
                    "xgboost": lambda rows=rows: booster.inplace_predict(
                        rows, predict_type="margin"
                    ),
                    "ours": lambda rows=rows: forest.margins(trees, rows),
                },
                rounds,
            )
        ]
    }
