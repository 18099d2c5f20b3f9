"""Plan of a generated set: events of each dataset, in units of work and files."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, SupportsIndex

from agc_ml.errors import UsageError
from agc_ml.simulation.kernel_cache import code_digest
from agc_ml.simulation.manifest import Request
from agc_ml.simulation.samples import COMMON, Sample
from agc_ml.simulation.unit import JET_PT, LEPTON_PT, N_JETS, Unit

FILE_EVENTS: Final = 100_000
"""Approximate number of events in a file of whole units."""

MOST_EVENTS: Final = 1_000_000_000
"""Most events of a set: more, some 200 TB and core-years of work, is a typing error."""


@dataclass(frozen=True)
class PlannedFile:
    """A file, and its units in order."""

    name: str
    units: tuple[Unit, ...]

    @property
    def sample(self) -> Sample:
        """Sample of all its events."""
        return self.units[0].sample

    @property
    def events(self) -> int:
        """Number of events."""
        return sum(unit.events for unit in self.units)


def events_per_sample(samples: Sequence[Sample], events: int | Mapping[str, int]) -> dict[str, int]:
    """Number of events of each sample: as given, or shared by `Sample.share`, at least one each.

    Raises
    ------
    UsageError
        There are too few or too many events.
    """
    if isinstance(events, Mapping):
        without = [sample.name for sample in samples if sample.name not in events]
        if without:
            raise UsageError(
                f"{without[0]}: no number of events; give one for each dataset, by name"
            )
        numbers = {sample.name: _whole(sample.name, events[sample.name]) for sample in samples}
    else:
        numbers = _shares(samples, events)
    if sum(numbers.values()) > MOST_EVENTS:
        raise UsageError(f"{sum(numbers.values()):,} events; at most {MOST_EVENTS:,} are allowed")
    return numbers


def _whole(name: str, number: object) -> int:
    if not isinstance(number, SupportsIndex) or (whole := operator.index(number)) < 1:
        raise UsageError(f"{name}: {number!r} events; a number of one or more is needed")
    return whole


def _shares(samples: Sequence[Sample], events: int) -> dict[str, int]:
    if not len(samples) <= events <= MOST_EVENTS:
        raise UsageError(
            f"--events {events:,}: at least {len(samples)} (one a dataset) and at most "
            f"{MOST_EVENTS:,} are allowed"
        )
    # One event each, and the rest by share; rounded ends of ranges add up to all events.
    total, spare = sum(sample.share for sample in samples), events - len(samples)
    ends, so_far = [0], 0.0
    for sample in samples:
        so_far += sample.share
        ends.append(round(spare * so_far / total))
    return {s.name: 1 + ends[i + 1] - ends[i] for i, s in enumerate(samples)}


def plan_files(samples: Sequence[Sample], request: Request) -> tuple[PlannedFile, ...]:
    """Cut the events of each sample into units and files."""
    files: list[PlannedFile] = []
    for sample in samples:
        vetoes = replace(sample.vetoes, muons=request.muons)
        files += _files_of(replace(sample, vetoes=vetoes), request.events[sample.name], request)
    return tuple(files)


def _files_of(sample: Sample, events: int, request: Request) -> Iterator[PlannedFile]:
    code = code_digest()
    units = [
        Unit(
            sample=sample,
            seed=request.seed,
            number=number,
            events=min(sample.unit, events - number * sample.unit),
            slim=request.content == "slim",
            constituents=request.constituents,
            emulate_cms2015_muon_id=request.emulate_cms2015_muon_id,
            code=code,
        )
        for number in range(-(-events // sample.unit))
    ]
    # Files hold whole units, of as equal numbers as possible.
    n_files = max(1, round(events / FILE_EVENTS))
    for index in range(n_files):
        suffix = f"_{index}" if n_files > 1 else ""
        inside = units[len(units) * index // n_files : len(units) * (index + 1) // n_files]
        yield PlannedFile(f"{sample.name}{suffix}.root", tuple(inside))


def settings_digest(samples: Sequence[Sample]) -> str:
    """Sha256 of all that decides events besides the request: settings, code and versions."""
    content = {"samples": [_deciding(sample) for sample in samples], "code": code_digest()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _deciding(sample: Sample) -> dict[str, Any]:
    content = asdict(sample)
    for name in ("share", "factor", "absorbs", "veto_loss", "selected", "shortfalls"):
        del content[name]
    content["settings"] = [setting.line for setting in sample.settings]
    return content


def skim_description(request: Request) -> str:
    """Requirements of the skim, in words."""
    leptons = "electron or muon" if request.muons else "electron"
    return (
        f"at least one {leptons} with pt > {LEPTON_PT:g} GeV and {N_JETS} jets with tight lepton "
        f"veto and pt > {JET_PT:g} GeV"
    )


def origin(request: Request, file: PlannedFile) -> dict[str, Any]:
    """Origin of a file, stored in the file itself."""
    return {
        "dataset": file.sample.name,
        "seed": request.seed,
        "content": request.content,
        "constituents": request.constituents,
        "emulate_cms2015_muon_id": request.emulate_cms2015_muon_id,
        "muons": request.muons,
        "units": [file.units[0].number, file.units[-1].number],
        "events": file.events,
        "pythia": [setting.line for setting in (*COMMON, *file.sample.settings)],
        "skim": skim_description(request),
        "settings": request.settings,
    }
