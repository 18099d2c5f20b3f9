"""Files as large as the real ones: all their branches, any number of events.

The detector measures a few thousand generated events repeatedly, with new random numbers and event
numbers; other branches hold random numbers of their type, of about the entropy of the real ones.
Opening and reading such files costs as much as real ones; as their truth repeats, they are of no
use for measurements.
"""

from __future__ import annotations

import importlib.resources
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from agc_ml import files
from agc_ml.errors import UsageError
from agc_ml.inputs import agc_published, loading
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset
from agc_ml.simulation import manifest, nanoaod, plan, samples
from agc_ml.simulation.detector.response import Response, Truth, understand
from agc_ml.simulation.events import Array, Collection, Events, concatenate
from agc_ml.simulation.truth import record
from agc_ml.simulation.truth.pythia import Source

logger = logging.getLogger(__name__)

BASE_EVENTS: Final = 2_000
"""Generated events that are measured repeatedly."""

FILE_EVENTS: Final = 1_000_000
_BATCH: Final = 250  # events that Pythia is asked for at once
_REPEAT: Final = 1 << 32  # event numbers: repeat x this + the number of the generated event
_PART: Final = 1 << 29  # added to the numbers of each part of a mixture


@dataclass(frozen=True)
class Branches:
    """Branches of a real file.

    ``scalars`` have one value an event; ``collections`` are by counter, with the ``means`` of the
    counters. Types are numpy's codes.
    """

    scalars: Mapping[str, str]
    collections: Mapping[str, Mapping[str, str]]
    means: Mapping[str, float]

    @property
    def number(self) -> int:
        """Number of branches, with counters."""
        return len(self.scalars) + sum(1 + len(fields) for fields in self.collections.values())


@cache
def real_branches() -> Branches:
    """The 947 branches of CMS's 2015 Open Data files."""
    file = importlib.resources.files("agc_ml.simulation") / "nanoaod_2015_branches.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    branches = content["branches"]
    return Branches(branches.pop(""), branches, content["means"])


@dataclass(frozen=True)
class Admixture:
    """Events of another dataset among those of a file.

    ``share`` is their fraction; ``vetoed``: only events that pass the sample's vetoes, many of
    which are selected.
    """

    dataset: str
    share: float
    vetoed: bool = False


def generate(
    output: str | Path,
    *,
    events: int,
    seed: int,
    dataset: str = "ttbar__nominal",
    cluster_size: int = 20_000,
    mixed_with: tuple[Admixture, ...] = (),
) -> Fileset:
    """Write ``events`` events of a dataset into files with all branches of the real ones.

    The events are unfiltered: as in the real files, few are selected. ``mixed_with`` replaces some,
    to change that fraction. ``cluster_size`` is the number of events in a cluster of the file.

    Raises
    ------
    UsageError
        There is no such dataset, the folder is in use, or a number is out of range.
    StoreError
        The folder can't be written, or the disk is full.
    GenerateError
        A library is missing.
    """
    sample = samples.sample(dataset)
    folder = Path(output)
    if cluster_size < 1:
        raise UsageError(f"--cluster-size {cluster_size}: at least one event is needed")
    if not 1 <= events <= plan.MOST_EVENTS:
        raise UsageError(f"--events {events:,}: 1 to {plan.MOST_EVENTS:,} are allowed")
    with files.store_errors(folder):
        if folder.exists() and (not folder.is_dir() or not files.is_unused(folder)):
            raise UsageError(f"{folder}: not an empty folder; name another one with -o")
    n_files = -(-events // FILE_EVENTS)
    bounds = [events * index // n_files for index in range(n_files + 1)]
    with files.owned(folder):
        base = _mixture(sample, seed, min(events, BASE_EVENTS), mixed_with)
        written = tuple(
            _write(
                folder / f"{dataset}_{index}.root",
                _Repeated(base, sample.name, seed, bounds[index], bounds[index + 1], cluster_size),
            )
            for index in range(n_files)
        )
        fileset = _fileset(sample, written, seed, base.numbers.size)
        loading.save(fileset, folder / "fileset.json")
    return fileset


@dataclass(frozen=True)
class _Base:
    """Generated events in batches, with their event numbers."""

    batches: tuple[tuple[Truth, Array], ...]

    @property
    def numbers(self) -> Array:
        return np.concatenate([numbers for _, numbers in self.batches])


def _mixture(
    sample: samples.Sample, seed: int, events: int, mixed_with: tuple[Admixture, ...]
) -> _Base:
    others = [round(part.share * events) for part in mixed_with]
    batches = list(_base(sample, seed, events - sum(others), vetoed=False).batches)
    for place, (part, number) in enumerate(zip(mixed_with, others, strict=True), 1):
        added = _base(samples.sample(part.dataset), seed, number, vetoed=part.vetoed)
        batches += [(truth, numbers + np.uint64(place * _PART)) for truth, numbers in added.batches]
    return _Base(tuple(batches))


def _base(sample: samples.Sample, seed: int, events: int, *, vetoed: bool) -> _Base:
    source = Source(sample, seed, 0, enforced="own" if vetoed else None)
    batches = []
    for start in range(0, events, _BATCH):
        batch = source.batch(min(_BATCH, events - start))
        truth = understand(record.flatten(batch.particles), batch.info)
        batches.append((truth, batch.attempts.astype(np.uint64) + np.uint64(1)))
    return _Base(tuple(batches))


@dataclass(frozen=True)
class _Repeated:
    """Events [start, stop) of an endlessly repeated base."""

    base: _Base
    dataset: str
    seed: int
    start: int
    stop: int
    cluster_size: int

    def clusters(self) -> Iterator[Events]:
        """The events with all branches, in clusters; each has random numbers of its own."""
        held: list[Events] = []
        start = self.start
        for measured in self._measured():
            rest = measured
            while len(rest):
                room = self.cluster_size - sum(map(len, held))
                first = np.arange(len(rest)) < room
                held.append(rest.select(first))
                rest = rest.select(~first)
                if sum(map(len, held)) == self.cluster_size:
                    yield filled(concatenate(held), np.random.default_rng([self.seed, start]))
                    start += self.cluster_size
                    held = []
        if held:
            yield filled(concatenate(held), np.random.default_rng([self.seed, start]))

    def _measured(self) -> Iterator[Events]:
        response = Response(seed=self.seed, dataset=self.dataset)
        period = self.base.numbers.size
        for repeat in range(self.start // period, -(-self.stop // period)):
            place = repeat * period
            for truth, numbers in self.base.batches:
                inside = np.arange(place, place + len(numbers))
                wanted = (inside >= self.start) & (inside < self.stop)
                place += len(numbers)
                if not wanted.any():
                    continue
                # New event numbers in each repetition: new random numbers in the detector.
                shifted = numbers + np.uint64(repeat * _REPEAT)
                events = response.measure(truth, shifted, repeat + 1)
                yield nanoaod.stored(events if wanted.all() else events.select(wanted))


def filled(events: Events, rng: np.random.Generator) -> Events:
    """Give events exactly the branches of the real files, with their types."""
    real = real_branches()
    values = {
        name: _typed(events.values[name], code)
        if name in events.values
        else _random(name, code, len(events), rng)
        for name, code in real.scalars.items()
    }
    collections: dict[str, Collection] = {}
    for counter, fields in real.collections.items():
        name = counter.removeprefix("n")
        ours = events.collections.get(name)
        counts = rng.poisson(real.means[counter], len(events)) if ours is None else ours.counts
        total = int(counts.sum())
        columns = {}
        for branch, code in fields.items():
            field = branch.removeprefix(f"{name}_")  # LHEPdfWeight is its own field
            own = None if ours is None else ours.fields.get(field)
            columns[field] = _random(branch, code, total, rng) if own is None else _typed(own, code)
        collections[name] = Collection(counts, columns)
    return Events(values, collections)


def _typed(values: Array, code: str) -> Array:
    return values.astype(np.dtype(code), copy=False)


def _random(name: str, code: str, n: int, rng: np.random.Generator) -> Array:
    """Random numbers of a type; -1, for none, as indices to other collections."""
    dtype = np.dtype(code)
    if dtype.kind == "b":
        return rng.random(n, dtype=np.float32) < 0.05
    if dtype.kind == "f":
        return nanoaod.rounded(rng.standard_normal(n, dtype=np.float32))
    if "Idx" in name:
        return np.full(n, -1 if dtype.kind == "i" else 0, dtype)
    return rng.integers(0, 8, n).astype(dtype)


def _write(path: Path, part: _Repeated) -> File:
    n = part.stop - part.start
    origin = {
        "dataset": part.dataset,
        "settings": plan.settings_digest((samples.sample(part.dataset),)),
        "cluster_size": part.cluster_size,
        "seed": part.seed,
        "events": [part.start, part.stop],
        "generated": int(part.base.numbers.size),
        "like": "CMS 2015 Open Data",
    }
    files.write(path, lambda hidden: nanoaod.write(hidden, part.clusters(), n, origin, path.name))
    logger.info("%s: %s events", path.name, f"{n:,}")
    return File(
        lfn=path.name,
        replicas=(path.name,),
        uuid=str(nanoaod.uuid_of(origin, path.name)),
        entries=n,
        size=path.stat().st_size,
    )


def _fileset(
    sample: samples.Sample, written: tuple[File, ...], seed: int, generated: int
) -> Fileset:
    dataset = Dataset(
        name=sample.name,
        process=sample.process,
        variation=sample.variation,
        **manifest.over_factor(sample.xsec, agc_published.SOURCE, sample.factor),
        files=written,
    )
    note = (
        f"made to be as large as real files: {generated:,} generated events (seed {seed}) measured "
        "again and again, other branches random; nothing can be measured with them"
    )
    return manifest.labelled((dataset,), note)
