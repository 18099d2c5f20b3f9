"""Units of work: a number of events of a sample, the same on any worker."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from agc_ml.errors import AgcError, GenerateError
from agc_ml.execution.state.packing import pack
from agc_ml.execution.worker.job import Failure
from agc_ml.simulation import nanoaod
from agc_ml.simulation.detector.response import Response, understand
from agc_ml.simulation.events import Array, Events, concatenate
from agc_ml.simulation.kernel_cache import code_digest
from agc_ml.simulation.samples import Sample
from agc_ml.simulation.truth.pythia import Source
from agc_ml.simulation.truth.record import flatten

LEPTON_PT: Final = 28.0
JET_PT: Final = 25.0
N_JETS: Final = 4
"""Skim: an electron or muon, and four jets with tight lepton veto, above these pt [GeV].

Looser than the ttbar selection with any of its variations of the jets' pt.
"""

_LEPTON_ETA, _JET_ETA, _LEPTON_VETO = 2.5, 2.5, 4
_BATCH: Final = 100  # events of one request to Pythia: a few MB


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of work.

    Attributes
    ----------
    number
        Number of the unit in its dataset; decides its random numbers, and is its luminosity block
        minus 1.
    events
        Number of events to keep: the first ones of the unit.
    slim
        Keep only the branches of the slim content.
    constituents
        Add particles and secondary vertices of jets.
    code
        Digest of the code that has to make it; "" for any.
    """

    sample: Sample
    seed: int
    number: int
    events: int
    slim: bool = False
    constituents: bool = False
    emulate_cms2015_muon_id: bool = False
    code: str = ""

    def __str__(self) -> str:
        return f"{self.sample.name} unit {self.number}"


@dataclass(frozen=True, slots=True)
class Made:
    """A finished unit: its packed `Events`, and the number of hard events generated for it."""

    blob: bytes
    events: int
    generated: int


class SkimmedBatch(NamedTuple):
    """A batch of a unit: events that pass the skim, and the number of hard events up to each."""

    events: Events
    generated: Array


def make(unit: Unit) -> Made | Failure:
    """Make a unit; failures are returned as data, so that Dask does not retry."""
    try:
        events, generated = _make(unit)
    except AgcError as error:
        return Failure("definite", str(error))
    except Exception as error:  # noqa: BLE001 - from any library; reported
        trace = "".join(traceback.format_exception(error))[-6000:]
        return Failure("definite", f"{type(error).__name__}: {error}"[:300], trace)
    return Made(blob=pack(events.plain()), events=len(events), generated=generated)


def _make(unit: Unit) -> tuple[Events, int]:
    if unit.code not in {"", code_digest()}:
        raise GenerateError(
            "agc-ml or a library of the generator has another version on this worker than on the "
            "driver; install the same version, and restart the workers"
        )
    # Generate batches until enough events pass the skim, then keep the first ones: so the unit does
    # not depend on the size of the batches.
    source = Source(unit.sample, unit.seed, unit.number)
    parts: list[SkimmedBatch] = []
    kept = 0
    while kept < unit.events:
        parts.append(part(unit, source, _BATCH))
        kept += len(parts[-1].events)
    events = concatenate([p.events for p in parts])
    generated = np.concatenate([p.generated for p in parts])
    first = events.select(np.arange(len(events)) < unit.events)
    if unit.slim:
        extra = ("PFCand", "SV") if unit.constituents else ()
        truth = ("GenPart",) if needs_truth(unit.sample) else ()
        first = nanoaod.slim(first, also=(*truth, *extra))
    return nanoaod.stored(first), int(generated[unit.events - 1])


def needs_truth(sample: Sample) -> bool:
    """Return True for the sample that models are trained on: its slim content keeps GenPart."""
    return sample.process == "ttbar" and sample.variation == "nominal"


def part(unit: Unit, source: Source, n_events: int) -> SkimmedBatch:
    """Generate, measure and skim the next ``n_events`` of a source."""
    from agc_ml.simulation.truth.hooks import MAX_ATTEMPTS  # noqa: PLC0415 - it needs Pythia

    batch = source.batch(n_events)
    truth = understand(flatten(batch.particles, vertices=unit.constituents), batch.info)
    response = Response(
        seed=unit.seed,
        dataset=unit.sample.name,
        emulate_cms2015_muon_id=unit.emulate_cms2015_muon_id,
        only_matching=unit.slim,
        constituents=unit.constituents,
    )
    numbers = np.uint64(unit.number * MAX_ATTEMPTS + 1) + batch.attempts.astype(np.uint64)
    events = response.measure(truth, numbers, unit.number + 1)
    mask = skim(events, muons=unit.sample.vetoes.muons)
    return SkimmedBatch(events.select(mask), batch.attempts[mask] + 1)


def skim(events: Events, *, muons: bool) -> Array:
    """Mask of events with a lepton and four jets close to the selection, shape ``(n_events,)``.

    Without ``muons`` the lepton must be an electron.
    """
    jets = events.collections["Jet"]
    good = (
        (jets.fields["pt"] > JET_PT)
        & (np.abs(jets.fields["eta"]) < _JET_ETA)
        & ((jets.fields["jetId"] & _LEPTON_VETO) > 0)
    )
    leptons = np.zeros(len(events), np.int64)
    for name in ("Electron", "Muon") if muons else ("Electron",):
        candidates = events.collections[name]
        pt, eta = candidates.fields["pt"], candidates.fields["eta"]
        leptons += _count((pt > LEPTON_PT) & (np.abs(eta) < _LEPTON_ETA), candidates.counts)
    return (_count(good, jets.counts) >= N_JETS) & (leptons > 0)


def _count(mask: Array, counts: Array) -> Array:
    """Number of objects of each event in a flat ``mask``."""
    event = np.repeat(np.arange(len(counts)), counts)
    return np.bincount(event[mask], minlength=len(counts))
