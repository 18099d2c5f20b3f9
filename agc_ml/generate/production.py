"""`generate`: a set of events, in files, made in units anywhere and put together here.

The folder holds ``manifest.json`` from the first file on, the files under their final names only
when they are whole, and finished units in ``units/`` until their file is written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agc_ml import agc, cluster, execution, folders, progress
from agc_ml.account import Tick
from agc_ml.checkpoints import seal, unseal
from agc_ml.errors import GenerateError, UsageError
from agc_ml.generate import manifest as manifests
from agc_ml.generate.manifest import (
    Content,
    DatasetRecord,
    FileRecord,
    Manifest,
    Request,
    ShortfallRecord,
)
from agc_ml.generate.parameters import DETECTOR
from agc_ml.generate.samples import COMMON, SAMPLES, Sample
from agc_ml.generate.unit import JET_PT, LEPTON_PT, N_JETS, Made, Unit, make
from agc_ml.results import write
from agc_ml.worker import Failure, unpack

if TYPE_CHECKING:
    from distributed import Client

    from agc_ml.generate.events import Events

logger = logging.getLogger(__name__)

FILE_EVENTS: Final = 100_000
"""About how many events are in a file: whole units."""

MOST_EVENTS: Final = 1_000_000_000
ROUNDS: Final = 3
_UNITS: Final = "units"
_PACKAGES: Final = ("agc-ml", "pythia8mc", "fastjet", "numpy", "numba", "awkward", "uproot")
_KEPT: Final = (manifests.MANIFEST, manifests.FILESET, _UNITS)


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


@dataclass
class _State:
    """How far a production has come."""

    folder: Path
    request: Request
    files: tuple[PlannedFile, ...]
    written: dict[str, FileRecord]
    on_tick: Callable[[Tick], None]
    failures: int = 0
    have: dict[Unit, Path] = field(default_factory=dict)
    units_done: int = 0
    events_done: int = 0

    def path(self, unit: Unit) -> Path:
        """Where a finished unit is or will be, named by all that decides its content."""
        deciding = {**asdict(unit), "sample": unit.sample.name, "muons": unit.sample.vetoes.muons}
        content = json.dumps([deciding, self.request.settings], sort_keys=True)
        return self.folder / _UNITS / hashlib.sha256(content.encode()).hexdigest()[:40]

    def done(self, unit: Unit) -> None:
        """Count a finished unit."""
        self.units_done += 1
        self.events_done += unit.events

    def tick(self) -> None:
        """Tell how far it is."""
        self.on_tick(
            Tick(
                self.units_done,
                sum(len(file.units) for file in self.files),
                self.events_done,
                sum(file.events for file in self.files),
                self.failures,
            )
        )


def generate(
    output: str | Path,
    *,
    events: int | Mapping[str, int],
    seed: int,
    datasets: Sequence[str] | None = None,
    content: Content = "full",
    muons: bool = True,
    constituents: bool = False,
    emulate_cms2015_muon_id: bool = False,
    client: Client | None = None,
    site: str = cluster.LOCAL,
    workers: int | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Manifest:
    """Generate events of the datasets of the ttbar measurement into a folder.

    Parameters
    ----------
    output
        The folder; one with something in it is refused, but for ``resume``, which goes on with the
        same request.
    events
        Of the whole set, shared among the datasets as `Sample.share` says; or of each dataset.
    seed
        The same seed gives the same events.
    datasets
        Names or shell patterns; default: all nine.
    content
        ``full``, or ``slim``: the branches that the measurement reads, with the truth that models
        are trained on in the nominal ttbar events.
    muons
        Whether a muon will do as the lepton. Without, no event is made that electrons alone do not
        select: half the work where the published histograms are compared with.
    constituents
        Add the particles of jets, their impact parameters and secondary vertices.
    emulate_cms2015_muon_id
        Set all identification flags of muons to zero, as they are in CMS's 2015 files.
    client, site, workers
        As in `agc_ml.run`.

    Raises
    ------
    AgcError
        One line that says what is wrong and the way out. What is finished is kept.
    """
    _need_libraries()
    if isinstance(events, Mapping) and datasets is not None:
        raise UsageError("events of each dataset are given, so datasets can't be chosen beside")
    samples = choose(tuple(events) if isinstance(events, Mapping) else datasets)
    request = Request(
        seed=seed,
        events=shared(samples, events),
        content=content,
        muons=muons,
        constituents=constituents,
        emulate_cms2015_muon_id=emulate_cms2015_muon_id,
        settings=settings_digest(samples),
    )
    files = plan(samples, request)
    folder = Path(output)
    _refuse(folder, resume=resume)
    with ExitStack() as stack:
        stack.enter_context(folders.owned(folder))
        written = _written(folder, request, files) if resume else {}
        executor, _ = stack.enter_context(execution.connected(client, site, workers))
        on_tick = stack.enter_context(progress.shown(quiet=quiet, pieces="units"))
        state = _State(folder, request, files, written, on_tick)
        if len(written) < len(files):
            _produce(state, executor)
        done = _manifest(state, "complete")
        manifests.save(done, folder)
        with folders.store_errors(folder):
            if (folder / _UNITS).exists():
                shutil.rmtree(folder / _UNITS)
    return done


def _need_libraries() -> None:
    """Fail early, and here, where an extra is missing."""
    from agc_ml.generate import pythia  # noqa: PLC0415 - heavy

    pythia.quiet_fastjet()


def choose(patterns: Sequence[str] | None) -> tuple[Sample, ...]:
    """The samples whose dataset matches one of the patterns; None: all.

    Raises
    ------
    UsageError
        A pattern matches none.
    """
    if patterns is None:
        return SAMPLES
    for pattern in patterns:
        if not any(fnmatchcase(sample.name, pattern) for sample in SAMPLES):
            names = ", ".join(sample.name for sample in SAMPLES)
            raise UsageError(f"no dataset matches {pattern!r}; there are: {names}")
    return tuple(s for s in SAMPLES if any(fnmatchcase(s.name, p) for p in patterns))


def shared(samples: Sequence[Sample], events: int | Mapping[str, int]) -> dict[str, int]:
    """Events of each sample: as given, or shared among them, at least one each.

    Raises
    ------
    UsageError
        There are too few or too many events.
    """
    if isinstance(events, Mapping):
        numbers = {sample.name: events.get(sample.name, 0) for sample in samples}
        for name, number in numbers.items():
            if int(number) != number or number < 1:
                raise UsageError(f"{name}: {number!r} events; a number of one or more is needed")
    else:
        numbers = _shares(samples, events)
    if sum(numbers.values()) > MOST_EVENTS:
        raise UsageError(f"{sum(numbers.values()):,} events; up to {MOST_EVENTS:,} make sense")
    return numbers


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


def plan(samples: Sequence[Sample], request: Request) -> tuple[PlannedFile, ...]:
    """Cut the events of each sample into units and files."""
    files: list[PlannedFile] = []
    for sample in samples:
        vetoes = replace(sample.vetoes, muons=request.muons)
        files += _files_of(replace(sample, vetoes=vetoes), request.events[sample.name], request)
    return tuple(files)


def _files_of(sample: Sample, events: int, request: Request) -> Iterator[PlannedFile]:
    from agc_ml.generate.compiled import code_digest  # noqa: PLC0415 - heavy

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
    from agc_ml.generate.compiled import code_digest  # noqa: PLC0415 - heavy

    content = {
        "samples": [_deciding(sample) for sample in samples],
        "common": [setting.line for setting in COMMON],
        "code": code_digest(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _deciding(sample: Sample) -> dict[str, Any]:
    content = asdict(sample)
    for name in ("share", "factor", "absorbs", "veto_loss", "selected", "shortfalls"):
        del content[name]
    content["settings"] = [setting.line for setting in sample.settings]
    return content


def _refuse(folder: Path, *, resume: bool) -> None:
    """Leave a folder alone that holds other things, or a set that was not asked to go on with."""
    with folders.store_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: a file is in the way; name another folder with -o")
        if folders.is_unused(folder):
            return
        is_begun = (folder / manifests.MANIFEST).exists()
    if not is_begun:
        raise UsageError(
            f"{folder}: there is something in it that is no generated set; name another folder "
            "with -o"
        )
    if not resume:
        raise UsageError(
            f"{folder}: there is a set in it; go on with it by --resume, or name another folder "
            "with -o"
        )


def _written(folder: Path, request: Request, files: Sequence[PlannedFile]) -> dict[str, FileRecord]:
    """Files that an interrupted production has finished; clears what it left half-done."""
    if folders.is_unused(folder):
        return {}
    earlier = manifests.load(folder)
    for name, asked in request:
        if getattr(earlier.request, name) != asked:
            told = "settings, code or versions" if name == "settings" else _FLAGS.get(name, name)
            raise UsageError(
                f"{folder}: begun with other {told}; ask for the same, or name another folder "
                "with -o"
            )
    with folders.store_errors(folder):
        for path in folder.glob(".*.root"):  # of a process that was killed while it wrote
            path.unlink()
    names = {file.name for file in files}
    records = [r for dataset in earlier.datasets.values() for r in dataset.files]
    return {
        record.name: record
        for record in records
        if record.name in names and manifests.problem_of(folder / record.name, record) is None
    }


_FLAGS: Final = {
    "events": "--events or --datasets",
    "muons": "leptons",
    **{
        name: f"--{name.replace('_', '-')}"
        for name in ("seed", "content", "constituents", "emulate_cms2015_muon_id")
    },
}


def _produce(state: _State, executor: execution.Executor) -> None:
    """Make what is missing, in rounds over units whose worker died, and write files when whole."""
    manifests.save(_manifest(state, "partial"), state.folder)
    with folders.store_errors(state.folder):
        (state.folder / manifests.FILESET).unlink(missing_ok=True)
        (state.folder / _UNITS).mkdir(exist_ok=True)
    for file in state.files:
        for unit in file.units:
            if file.name in state.written:
                state.done(unit)
            elif unseal(state.path(unit)) is not None:
                state.have[unit] = state.path(unit)
                state.done(unit)
        _write_if_whole(state, file)
    state.tick()
    for _ in range(ROUNDS):
        missing = _missing(state)
        jobs = {key: (unit,) for key, (unit, _) in missing.items()}
        for key, outcome in executor.outcomes(make, jobs):
            _accept(state, *missing[key], outcome)
    for name in _missing(state):
        raise GenerateError(
            f"{name}: its worker dies each time; see its memory and log, and go on with --resume"
        )


def _missing(state: _State) -> dict[str, tuple[Unit, PlannedFile]]:
    """Units that are still to be made, and the file of each."""
    return {
        str(unit): (unit, file)
        for file in state.files
        if file.name not in state.written
        for unit in file.units
        if unit not in state.have
    }


def _accept(state: _State, unit: Unit, file: PlannedFile, outcome: Made | Failure | Any) -> None:
    if isinstance(outcome, Failure):
        raise GenerateError(f"{unit}: {outcome.reason}")
    if not isinstance(outcome, Made):
        state.failures += 1
        logger.info("%s: its worker died; it is made again", unit)
        return
    header = {"events": outcome.events, "generated": outcome.generated}
    seal(state.path(unit), header, outcome.blob)
    state.have[unit] = state.path(unit)
    state.done(unit)
    _write_if_whole(state, file)
    state.tick()


def _write_if_whole(state: _State, file: PlannedFile) -> None:
    """Put a file together when all its units are there."""
    if file.name in state.written or any(unit not in state.have for unit in file.units):
        return
    from agc_ml.generate import nanoaod  # noqa: PLC0415 - heavy

    generated = sum(_unit(state, unit)[0]["generated"] for unit in file.units)
    counts = nanoaod.Counts(events=generated, sumw=float(generated), sumw2=float(generated))
    path = state.folder / file.name
    identity = {}

    def writer(temporary: Path) -> None:
        identity["uuid"] = nanoaod.write(
            temporary, _clusters(state, file), counts, origin(state.request, file), file.name
        )

    write(path, writer)
    with folders.store_errors(state.folder):
        state.written[file.name] = FileRecord(
            name=file.name,
            sha256=manifests.sha256(path),
            size=path.stat().st_size,
            uuid=str(identity["uuid"]),
            entries=file.events,
            generated=generated,
            sumw=float(generated),
        )
        manifests.save(_manifest(state, "partial"), state.folder)
        for unit in file.units:
            state.have.pop(unit).unlink()


def _unit(state: _State, unit: Unit) -> tuple[Mapping[str, Any], bytes]:
    found = unseal(state.have[unit])
    if found is None or found[0]["events"] != unit.events:
        raise GenerateError(f"{unit}: damaged on disk; go on with --resume")
    return found


def _clusters(state: _State, file: PlannedFile) -> Iterator[Events]:
    """The events of a file, in as many units at once as make a cluster."""
    from agc_ml.generate.events import concatenate  # noqa: PLC0415 - heavy
    from agc_ml.generate.nanoaod import CLUSTER  # noqa: PLC0415 - heavy

    held: list[Events] = []
    for unit in file.units:
        held.append(unpack(_unit(state, unit)[1]))
        if sum(map(len, held)) >= CLUSTER:
            yield concatenate(held)
            held = []
    if held:
        yield concatenate(held)


def _skim(request: Request) -> str:
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
        "skim": _skim(request),
        "settings": request.settings,
    }


def _manifest(state: _State, status: Any) -> Manifest:
    datasets = {}
    for sample in dict.fromkeys(file.sample for file in state.files):
        names = [file.name for file in state.files if file.sample is sample]
        records = tuple(state.written[name] for name in names if name in state.written)
        datasets[sample.name] = DatasetRecord(
            process=sample.process,
            variation=sample.variation,
            xsec=sample.xsec,
            xsec_source=agc.SOURCE,
            factor=sample.factor,
            absorbs=sample.absorbs,
            veto_loss=sample.veto_loss,
            shortfalls=tuple(ShortfallRecord(**s._asdict()) for s in sample.shortfalls),
            settings=tuple(setting.line for setting in (*COMMON, *sample.settings)),
            events=sum(record.entries for record in records),
            generated=sum(record.generated for record in records),
            sumw=sum(record.sumw for record in records),
            files=records,
        )
    return Manifest(
        schema=manifests.SCHEMA,
        status=status,
        request=state.request,
        skim=_skim(state.request),
        detector={name: part._asdict() for name, part in DETECTOR._asdict().items()},
        versions={name: version(name) for name in _PACKAGES},
        datasets=datasets,
    )
