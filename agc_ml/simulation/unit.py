"""Units of work: a number of events of a sample, the same wherever and whenever they are made."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from agc_ml.errors import AgcError, GenerateError
from agc_ml.execution.processing import Failure
from agc_ml.results.packing import pack
from agc_ml.simulation.events import Array, Events, concatenate
from agc_ml.simulation.samples import Sample

if TYPE_CHECKING:
    from agc_ml.simulation.truth.pythia import Source

LEPTON_PT: Final = 28.0
JET_PT: Final = 25.0
N_JETS: Final = 4
"""The skim: an electron or muon, and four jets with tight lepton veto, above these pt [GeV].

Looser than the ttbar selection by more than its variations of the jets' pt reach.
"""

_LEPTON_ETA, _JET_ETA, _LEPTON_VETO = 2.5, 2.5, 4
_BATCH: Final = 100  # events that Pythia is asked for at once: a few MB


@dataclass(frozen=True, slots=True)
class Unit:
    """What to make.

    Attributes
    ----------
    number
        Of the unit in its dataset; decides its random numbers, and is the luminosity block less 1.
    events
        How many to keep: the first ones of the unit.
    slim
        Keep only the branches of the slim content.
    constituents
        Add particles and secondary vertices of jets.
    code
        Digest of the code that is meant to make it; "" for whatever is here.
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
    """A unit: its packed `Events`, and how many hard events were generated for it."""

    blob: bytes
    events: int
    generated: int


class Part(NamedTuple):
    """A batch of a unit: events that the skim keeps, and the number of hard events up to each."""

    events: Events
    generated: Array


def make(unit: Unit) -> Made | Failure:
    """Make a unit. Never raises: an outcome is data, and Dask has nothing to retry."""
    try:
        events, generated = _make(unit)
    except AgcError as error:
        return Failure("definite", str(error))
    except Exception as error:  # noqa: BLE001 - of Pythia, FastJet or ours; it is told
        trace = "".join(traceback.format_exception(error))[-6000:]
        return Failure("definite", f"{type(error).__name__}: {error}"[:300], trace)
    return Made(blob=pack(events.plain()), events=len(events), generated=generated)


def _make(unit: Unit) -> tuple[Events, int]:
    from agc_ml.simulation import nanoaod  # noqa: PLC0415 - heavy
    from agc_ml.simulation.kernel_cache import code_digest  # noqa: PLC0415 - heavy
    from agc_ml.simulation.truth.pythia import Source  # noqa: PLC0415 - heavy

    if unit.code not in {"", code_digest()}:
        raise GenerateError(
            "agc-ml or a library that it generates with is another version on this worker than on "
            "the driver; install the same, and start the workers anew"
        )
    source = Source(unit.sample, unit.seed, unit.number)
    parts: list[Part] = []
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
    """Whether models are trained on the sample, so that its slim content keeps GenPart."""
    return sample.process == "ttbar" and sample.variation == "nominal"


def part(unit: Unit, source: Source, n_events: int) -> Part:
    """Generate, measure and skim the next ``n_events`` of a source."""
    from agc_ml.simulation.detector import response as detector  # noqa: PLC0415 - heavy
    from agc_ml.simulation.truth import hooks, record  # noqa: PLC0415 - heavy

    batch = source.batch(n_events)
    truth = detector.understand(
        record.flatten(batch.particles, vertices=unit.constituents), batch.info
    )
    response = detector.Response(
        seed=unit.seed,
        dataset=unit.sample.name,
        emulate_cms2015_muon_id=unit.emulate_cms2015_muon_id,
        only_matching=unit.slim,
        constituents=unit.constituents,
    )
    numbers = np.uint64(unit.number * hooks.MAX_ATTEMPTS + 1) + batch.attempts.astype(np.uint64)
    events = response.measure(truth, numbers, unit.number + 1)
    mask = skim(events, muons=unit.sample.vetoes.muons)
    return Part(events.select(mask), batch.attempts[mask] + 1)


def skim(events: Events, *, muons: bool) -> Array:
    """Events with a lepton and four jets that come near the selection, shape ``(n_events,)``.

    Without ``muons`` the lepton has to be an electron.
    """
    jets = events.collections["Jet"]
    good = (
        (jets.fields["pt"] > JET_PT)
        & (np.abs(jets.fields["eta"]) < _JET_ETA)
        & ((jets.fields["jetId"] & _LEPTON_VETO) > 0)
    )
    leptons = np.zeros(len(events), np.int64)
    for name in ("Electron", "Muon") if muons else ("Electron",):
        found = events.collections[name]
        near = (found.fields["pt"] > LEPTON_PT) & (np.abs(found.fields["eta"]) < _LEPTON_ETA)
        leptons += _count(near, found.counts)
    return (_count(good, jets.counts) >= N_JETS) & (leptons > 0)


def _count(mask: Array, counts: Array) -> Array:
    """How many objects of each event ``mask``, flat, picks."""
    event = np.repeat(np.arange(len(counts)), counts)
    return np.bincount(event[mask], minlength=len(counts))
