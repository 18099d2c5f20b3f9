"""`generate`: a set of events in files; workers make units, this process writes the files.

The folder holds ``manifest.json`` from the start, files under their final names once they are
complete, and finished units in ``units/`` until their file is written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from agc_ml import files
from agc_ml.errors import GenerateError, UsageError
from agc_ml.execution import progress
from agc_ml.execution.cluster import clusters, executors
from agc_ml.execution.cluster.child_processes import stop_if_imported
from agc_ml.execution.cluster.connection import ClusterOptions, connect_executor
from agc_ml.execution.cluster.executors import WorkerDied
from agc_ml.execution.progress import Progress
from agc_ml.execution.state.checkpoints import seal, unseal
from agc_ml.execution.state.packing import is_code, is_too_large, unpack
from agc_ml.execution.worker.job import Failure
from agc_ml.inputs import agc_published
from agc_ml.simulation import manifest as manifests
from agc_ml.simulation import nanoaod, plan
from agc_ml.simulation.detector.parameters import DETECTOR
from agc_ml.simulation.events import Events, concatenate, of_plain
from agc_ml.simulation.manifest import (
    Content,
    DatasetRecord,
    FileRecord,
    Manifest,
    Request,
    ShortfallRecord,
)
from agc_ml.simulation.plan import PlannedFile
from agc_ml.simulation.samples import COMMON, choose
from agc_ml.simulation.truth import pythia
from agc_ml.simulation.unit import Made, Unit, make

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

ROUNDS: Final = 3
_UNITS: Final = "units"
_PACKAGES: Final = ("agc-ml", "pythia8mc", "fastjet", "numpy", "numba", "awkward", "uproot")


class OtherRequestError(UsageError):
    """A folder holds a set of another request, or of another version."""


@dataclass
class _Progress:
    """Progress of a production: written files, finished units on disk, counts."""

    folder: Path
    request: Request
    planned: tuple[PlannedFile, ...]
    written: dict[str, FileRecord]
    on_progress: Callable[[Progress], None] = lambda _: None
    failures: int = 0
    on_disk: set[Unit] = field(default_factory=set)
    units_done: int = 0
    events_done: int = 0

    def path(self, unit: Unit) -> Path:
        """Path of a finished unit, named by all that decides its content."""
        deciding = {**asdict(unit), "sample": unit.sample.name, "muons": unit.sample.vetoes.muons}
        content = json.dumps([deciding, self.request.settings], sort_keys=True)
        return self.folder / _UNITS / hashlib.sha256(content.encode()).hexdigest()[:40]

    def done(self, unit: Unit) -> None:
        """Count a finished unit."""
        self.units_done += 1
        self.events_done += unit.events

    def tick(self) -> None:
        """Report the progress."""
        self.on_progress(
            Progress(
                self.units_done,
                sum(len(file.units) for file in self.planned),
                self.events_done,
                sum(file.events for file in self.planned),
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
    site: str = clusters.LOCAL,
    workers: int | None = None,
    dashboard: int | None = None,
    patience: float | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Manifest:
    """Generate events of the datasets of the ttbar measurement into a folder.

    Parameters
    ----------
    output
        The folder; it must be empty, except to ``resume`` the same request.
    events
        Events of the whole set, shared among datasets by `Sample.share`; or of each dataset.
    seed
        The same seed gives the same events.
    datasets
        Names or shell patterns; default: all nine.
    content
        ``full``, or ``slim``: the branches of the measurement, with the truth for training models
        in nominal ttbar events.
    muons
        True if the lepton may be a muon. Without muons, only events selected by electrons are
        made: half the work for comparisons with the published histograms.
    constituents
        Add particles of jets with impact parameters, and secondary vertices.
    emulate_cms2015_muon_id
        Set all identification flags of muons to zero, as they are in CMS's 2015 files.
    client, site, workers, dashboard, patience
        As for `agc_ml.run`.
    resume
        Continue the same request in its folder.
    quiet
        Show no progress.

    Raises
    ------
    OtherRequestError
        The folder holds a set of another request, or of another version.
    AgcError
        One line with the problem and the way out. Finished units are kept.
    """
    stop_if_imported()
    pythia.quiet_fastjet()  # fails early if a library of the extra is missing
    if isinstance(events, Mapping) and datasets is not None:
        raise UsageError("events are given for each dataset: leave out datasets")
    samples = choose(tuple(events) if isinstance(events, Mapping) else datasets)
    request = Request(
        seed=seed,
        events=plan.events_per_sample(samples, events),
        content=content,
        muons=muons,
        constituents=constituents,
        emulate_cms2015_muon_id=emulate_cms2015_muon_id,
        settings=plan.settings_digest(samples),
    )
    planned = plan.plan_files(samples, request)
    folder = Path(output)
    _refuse(folder, resume=resume)
    with files.owned(folder):
        written = _written(folder, request, planned) if resume else {}
        state = _Progress(folder, request, planned, written)
        if len(written) < len(planned):
            with (
                connect_executor(ClusterOptions(client, site, workers, dashboard, patience)) as (
                    executor,
                    _,
                ),
                progress.show_progress(quiet=quiet, pieces="units") as state.on_progress,
            ):
                _produce(state, executor)
        done = _manifest(state, "complete")
        manifests.save(done, folder)
        with files.store_errors(folder):
            if (folder / _UNITS).exists():
                shutil.rmtree(folder / _UNITS)
    return done


def _refuse(folder: Path, *, resume: bool) -> None:
    """Reject a folder with other content, or with a set that is not to be resumed."""
    with files.store_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: a file is in the way; name another folder with -o")
        if files.is_unused(folder):
            return
        is_begun = (folder / manifests.MANIFEST).exists()
    if not is_begun:
        raise UsageError(
            f"{folder}: the folder holds something else than a generated set; name another one "
            "with -o"
        )
    files.check_plain(folder / _UNITS)
    if not resume:
        raise UsageError(
            f"{folder}: the folder holds a generated set; add --resume to continue it, or name "
            "another folder with -o"
        )


def _written(
    folder: Path, request: Request, planned: Sequence[PlannedFile]
) -> dict[str, FileRecord]:
    """Finished files of an interrupted production; deletes its unfinished ones."""
    if files.is_unused(folder):
        return {}
    earlier = manifests.load(folder)
    for name, value in request:
        if getattr(earlier.request, name) != value:
            raise _other(folder, _VERSIONS if name == "settings" else _FLAGS.get(name, name))
    with files.store_errors(folder):
        for path in (*folder.glob(".*.root"), *folder.glob(".*.json")):
            path.unlink()  # left by a process that was killed while writing
    uuids = {f.name: str(nanoaod.uuid_of(plan.origin(request, f), f.name)) for f in planned}
    records = [r for dataset in earlier.datasets.values() for r in dataset.files]
    if any(uuids.get(record.name) != record.uuid for record in records):
        raise _other(folder, _VERSIONS)  # it has other files
    return {
        record.name: record
        for record in records
        if manifests.problem_of(folder / record.name, record) is None
    }


def _other(folder: Path, difference: str) -> OtherRequestError:
    return OtherRequestError(
        f"{folder}: it was begun with other {difference}; use the same, or name another folder "
        "with -o"
    )


_VERSIONS: Final = "settings, code or versions"
_FLAGS: Final = {
    "events": "--events or --datasets",
    "muons": "leptons",
    **{
        name: f"--{name.replace('_', '-')}"
        for name in ("seed", "content", "constituents", "emulate_cms2015_muon_id")
    },
}


def _produce(state: _Progress, executor: executors.Executor) -> None:
    """Make missing units, again if their worker dies, and write each file when it is complete."""
    with files.store_errors(state.folder):
        (state.folder / manifests.FILESET).unlink(missing_ok=True)
    manifests.save(_manifest(state, "partial"), state.folder)
    with files.store_errors(state.folder):
        (state.folder / _UNITS).mkdir(exist_ok=True)
    # Count finished units of an earlier attempt, on disk or in files.
    for file in state.planned:
        for unit in file.units:
            if file.name in state.written:
                state.done(unit)
            elif _kept(state, unit) is not None:
                state.on_disk.add(unit)
                state.done(unit)
        _write_if_complete(state, file)
    state.tick()
    # The first round makes all units; later ones retry those whose worker died, each alone.
    for attempt in range(ROUNDS):
        missing = _missing(state)
        jobs = {key: (unit,) for key, (unit, _) in missing.items()}
        for key, outcome in executor.outcomes(make, jobs, alone=attempt > 0):
            _accept(state, *missing[key], outcome)
    for name in _missing(state):
        raise GenerateError(f"{name}: its worker dies each time; check its memory and log")


def _missing(state: _Progress) -> dict[str, tuple[Unit, PlannedFile]]:
    """Missing units, and the file of each."""
    return {
        str(unit): (unit, file)
        for file in state.planned
        if file.name not in state.written
        for unit in file.units
        if unit not in state.on_disk
    }


def _accept(
    state: _Progress, unit: Unit, file: PlannedFile, outcome: Made | Failure | WorkerDied
) -> None:
    if isinstance(outcome, Failure):
        logger.debug("%s\n%s", unit, outcome.details)
        raise GenerateError(f"{unit}: {outcome.reason}")
    if isinstance(outcome, WorkerDied):
        state.failures += 1
        logger.info("%s: its worker died; retry", unit)
        return
    header = {"unit": str(unit), "events": outcome.events, "generated": outcome.generated}
    seal(state.path(unit), header, outcome.blob)
    state.on_disk.add(unit)
    state.done(unit)
    _write_if_complete(state, file)
    state.tick()


def _write_if_complete(state: _Progress, file: PlannedFile) -> None:
    """Write a file once all its units are on disk."""
    if file.name in state.written or any(unit not in state.on_disk for unit in file.units):
        return
    generated = sum(_unit(state, unit)[0]["generated"] for unit in file.units)
    path = state.folder / file.name
    origin = plan.origin(state.request, file)
    clusters = _clusters(state, file)
    files.write(path, lambda hidden: nanoaod.write(hidden, clusters, generated, origin, file.name))
    with files.store_errors(state.folder):
        state.written[file.name] = FileRecord(
            name=file.name,
            sha256=manifests.sha256(path),
            size=path.stat().st_size,
            uuid=str(nanoaod.uuid_of(origin, file.name)),
            entries=file.events,
            generated=generated,
            sumw=float(generated),
        )
        manifests.save(_manifest(state, "partial"), state.folder)
        for unit in file.units:
            state.on_disk.remove(unit)
            state.path(unit).unlink()


def _unit(state: _Progress, unit: Unit) -> tuple[Mapping[str, Any], bytes]:
    stored = _kept(state, unit)
    if stored is None:
        raise GenerateError(f"{unit}: damaged on disk; run again with --resume to regenerate it")
    return stored


def _kept(state: _Progress, unit: Unit) -> tuple[Mapping[str, Any], bytes] | None:
    """Header and content of a unit on disk; None if missing, incomplete or something else."""
    stored = unseal(state.path(unit))
    if stored is None or stored.header.get("unit") != str(unit):
        return None
    if is_code(stored.blob) or is_too_large(stored.blob):
        return None
    is_complete = stored.header.get("events") == unit.events and "generated" in stored.header
    return (stored.header, stored.blob) if is_complete else None


def _clusters(state: _Progress, file: PlannedFile) -> Iterator[Events]:
    """The events of a file, in clusters of whole units."""
    held: list[Events] = []
    for unit in file.units:
        blob = _unit(state, unit)[1]
        try:
            held.append(of_plain(unpack(blob)))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            state.path(unit).unlink()  # intact, but written by something else
            raise GenerateError(
                f"{unit}: no events on disk ({error}); run again with --resume to regenerate it"
            ) from error
        if sum(map(len, held)) >= nanoaod.CLUSTER:
            yield concatenate(held)
            held = []
    if held:
        yield concatenate(held)


def _manifest(state: _Progress, status: Literal["complete", "partial"]) -> Manifest:
    datasets = {}
    for sample in dict.fromkeys(file.sample for file in state.planned):
        names = [file.name for file in state.planned if file.sample is sample]
        records = tuple(state.written[name] for name in names if name in state.written)
        datasets[sample.name] = DatasetRecord(
            process=sample.process,
            variation=sample.variation,
            xsec=sample.xsec,
            xsec_source=agc_published.SOURCE,
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
        skim=plan.skim_description(state.request),
        detector={name: part._asdict() for name, part in DETECTOR._asdict().items()},
        versions={name: version(name) for name in _PACKAGES},
        datasets=datasets,
    )
