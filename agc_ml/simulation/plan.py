"""What a set consists of: events shared among datasets, cut into units and files."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, SupportsIndex

from agc_ml.errors import UsageError
from agc_ml.simulation.manifest import Request
from agc_ml.simulation.samples import COMMON, Sample
from agc_ml.simulation.unit import JET_PT, LEPTON_PT, N_JETS, Unit

FILE_EVENTS: Final = 100_000
"""About how many events are in a file: whole units."""

MOST_EVENTS: Final = 1_000_000_000
"""Most events of a set: some 200 TB and years of a core's work are a slip of the hand."""


@dataclass(frozen=True)
class PlannedFile:
    """A file, and the units whose events it will hold, in their order."""

    name: str
    units: tuple[Unit, ...]

    @property
    def sample(self) -> Sample:
        """The sample that all its events are of."""
        return self.units[0].sample

    @property
    def events(self) -> int:
        """Number of events."""
        return sum(unit.events for unit in self.units)


def shared(samples: Sequence[Sample], events: int | Mapping[str, int]) -> dict[str, int]:
    """Events of each sample: as given, or shared among them, at least one each.

    Raises
    ------
    UsageError
        There are too few or too many events.
    """
    if isinstance(events, Mapping):
        without = [sample.name for sample in samples if sample.name not in events]
        if without:
            raise UsageError(
                f"{without[0]}: no number of events; each dataset's own goes by its name"
            )
        numbers = {sample.name: _whole(sample.name, events[sample.name]) for sample in samples}
    else:
        numbers = _shares(samples, events)
    if sum(numbers.values()) > MOST_EVENTS:
        raise UsageError(f"{sum(numbers.values()):,} events; up to {MOST_EVENTS:,} make sense")
    return numbers


def _whole(name: str, number: object) -> int:
    if not isinstance(number, SupportsIndex) or (whole := operator.index(number)) < 1:
        raise UsageError(f"{name}: {number!r} events; a number of one or more is needed")
    return whole


def _shares(samples: Sequence[Sample], events: int) -> dict[str, int]:
    if not len(samples) <= events <= MOST_EVENTS:
        raise UsageError(
            f"--events {events:,}: from {len(samples)} (one a dataset) up to {MOST_EVENTS:,} make "
            "sense"
        )
    total, spare = sum(sample.share for sample in samples), events - len(samples)
    ends, so_far = [0], 0.0
    for sample in samples:
        so_far += sample.share
        ends.append(round(spare * so_far / total))
    return {s.name: 1 + ends[i + 1] - ends[i] for i, s in enumerate(samples)}


def planned(samples: Sequence[Sample], request: Request) -> tuple[PlannedFile, ...]:
    """Cut the events of each sample into units and files."""
    files: list[PlannedFile] = []
    for sample in samples:
        vetoes = replace(sample.vetoes, muons=request.muons)
        files += _files_of(replace(sample, vetoes=vetoes), request.events[sample.name], request)
    return tuple(files)


def _files_of(sample: Sample, events: int, request: Request) -> Iterator[PlannedFile]:
    from agc_ml.simulation.kernel_cache import code_digest  # noqa: PLC0415 - heavy

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
    n_files = max(1, round(events / FILE_EVENTS))
    for index in range(n_files):
        suffix = f"_{index}" if n_files > 1 else ""
        inside = units[len(units) * index // n_files : len(units) * (index + 1) // n_files]
        yield PlannedFile(f"{sample.name}{suffix}.root", tuple(inside))


def settings_digest(samples: Sequence[Sample]) -> str:
    """Sha256 of settings, detector, code and versions: all that decides events, but the request."""
    from agc_ml.simulation.kernel_cache import code_digest  # noqa: PLC0415 - heavy

    content = {
        "samples": [_deciding(sample) for sample in samples],
        "code": code_digest(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _deciding(sample: Sample) -> dict[str, Any]:
    content = asdict(sample)
    for name in ("share", "factor", "absorbs", "veto_loss", "selected", "shortfalls"):
        del content[name]
    content["settings"] = [setting.line for setting in sample.settings]
    return content


def skim_in_words(request: Request) -> str:
    """What an event needs to be kept, in words."""
    leptons = "electron or muon" if request.muons else "electron"
    return (
        f"at least one {leptons} with pt > {LEPTON_PT:g} GeV and {N_JETS} jets with tight lepton "
        f"veto and pt > {JET_PT:g} GeV"
    )


def origin(request: Request, file: PlannedFile) -> dict[str, Any]:
    """What made a file, for the file itself."""
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
        "skim": skim_in_words(request),
        "settings": request.settings,
    }
