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
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from agc_ml import files as folders
from agc_ml.errors import GenerateError, UsageError
from agc_ml.execution.cluster import clusters as cluster
from agc_ml.execution.cluster import executors, progress
from agc_ml.execution.cluster.executors import Lost
from agc_ml.execution.processing import Failure
from agc_ml.execution.state.checkpoints import seal, unseal
from agc_ml.execution.state.run_state import Tick
from agc_ml.files import write
from agc_ml.inputs import agc_published
from agc_ml.results.packing import is_code, is_too_large, unpack
from agc_ml.simulation import manifest as manifests
from agc_ml.simulation import plan
from agc_ml.simulation.detector.parameters import DETECTOR
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
from agc_ml.simulation.unit import Made, Unit, make

if TYPE_CHECKING:
    from distributed import Client

    from agc_ml.simulation.events import Events

logger = logging.getLogger(__name__)

ROUNDS: Final = 3
_UNITS: Final = "units"
_PACKAGES: Final = ("agc-ml", "pythia8mc", "fastjet", "numpy", "numba", "awkward", "uproot")


class OtherRequestError(UsageError):
    """A folder was begun with another request, or by another version."""


@dataclass
class _State:
    """How far a production has come."""

    folder: Path
    request: Request
    files: tuple[PlannedFile, ...]
    written: dict[str, FileRecord]
    on_tick: Callable[[Tick], None] = lambda _: None
    failures: int = 0
    have: set[Unit] = field(default_factory=set)
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
    dashboard: int | None = None,
    patience: float | None = None,
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
    client, site, workers, dashboard, patience
        As in `agc_ml.run`.
    resume
        Go on in a folder where the same request was begun.
    quiet
        Show no progress.

    Raises
    ------
    OtherRequestError
        The folder was begun with another request, or by another version.
    AgcError
        One line that says what is wrong and the way out. What is finished is kept.
    """
    cluster.stop_if_imported()
    _need_libraries()
    if isinstance(events, Mapping) and datasets is not None:
        raise UsageError("events of each dataset are given, so datasets can't be chosen beside")
    samples = choose(tuple(events) if isinstance(events, Mapping) else datasets)
    request = Request(
        seed=seed,
        events=plan.shared(samples, events),
        content=content,
        muons=muons,
        constituents=constituents,
        emulate_cms2015_muon_id=emulate_cms2015_muon_id,
        settings=plan.settings_digest(samples),
    )
    files = plan.planned(samples, request)
    folder = Path(output)
    _refuse(folder, resume=resume)
    with folders.owned(folder):
        written = _written(folder, request, files) if resume else {}
        state = _State(folder, request, files, written)
        if len(written) < len(files):
            with (
                executors.connected(
                    client, site, workers, dashboard=dashboard, patience=patience
                ) as (executor, _),
                progress.shown(quiet=quiet, pieces="units") as state.on_tick,
            ):
                _produce(state, executor)
        done = _manifest(state, "complete")
        manifests.save(done, folder)
        with folders.store_errors(folder):
            if (folder / _UNITS).exists():
                shutil.rmtree(folder / _UNITS)
    return done


def _need_libraries() -> None:
    """Fail early, and here, where an extra is missing."""
    from agc_ml.simulation.truth import pythia  # noqa: PLC0415 - heavy

    pythia.quiet_fastjet()


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
    folders.check_plain(folder / _UNITS)
    if not resume:
        raise UsageError(
            f"{folder}: there is a set in it; go on with it by --resume, or name another folder "
            "with -o"
        )


def _written(folder: Path, request: Request, files: Sequence[PlannedFile]) -> dict[str, FileRecord]:
    """Files that an interrupted production has finished; clears what it left half-done."""
    if folders.is_unused(folder):
        return {}
    from agc_ml.simulation import nanoaod  # noqa: PLC0415 - heavy

    earlier = manifests.load(folder)
    for name, asked in request:
        if getattr(earlier.request, name) != asked:
            raise _other(folder, _VERSIONS if name == "settings" else _FLAGS.get(name, name))
    with folders.store_errors(folder):
        for path in (*folder.glob(".*.root"), *folder.glob(".*.json")):
            path.unlink()  # of a process that was killed while it wrote
    uuids = {f.name: str(nanoaod.uuid_of(plan.origin(request, f), f.name)) for f in files}
    records = [r for dataset in earlier.datasets.values() for r in dataset.files]
    if any(uuids.get(record.name) != record.uuid for record in records):
        raise _other(folder, _VERSIONS)  # its files are cut otherwise
    return {
        record.name: record
        for record in records
        if manifests.problem_of(folder / record.name, record) is None
    }


def _other(folder: Path, what: str) -> OtherRequestError:
    return OtherRequestError(
        f"{folder}: begun with other {what}; ask for the same, or name another folder with -o"
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


def _produce(state: _State, executor: executors.Executor) -> None:
    """Make what is missing, in rounds over units whose worker died, and write files when whole."""
    with folders.store_errors(state.folder):
        (state.folder / manifests.FILESET).unlink(missing_ok=True)
    manifests.save(_manifest(state, "partial"), state.folder)
    with folders.store_errors(state.folder):
        (state.folder / _UNITS).mkdir(exist_ok=True)
    for file in state.files:
        for unit in file.units:
            if file.name in state.written:
                state.done(unit)
            elif _kept(state, unit) is not None:
                state.have.add(unit)
                state.done(unit)
        _write_if_whole(state, file)
    state.tick()
    for attempt in range(ROUNDS):
        missing = _missing(state)
        jobs = {key: (unit,) for key, (unit, _) in missing.items()}
        for key, outcome in executor.outcomes(make, jobs, alone=attempt > 0):
            _accept(state, *missing[key], outcome)
    for name in _missing(state):
        raise GenerateError(f"{name}: its worker dies each time; see its memory and log")


def _missing(state: _State) -> dict[str, tuple[Unit, PlannedFile]]:
    """Units that are still to be made, and the file of each."""
    return {
        str(unit): (unit, file)
        for file in state.files
        if file.name not in state.written
        for unit in file.units
        if unit not in state.have
    }


def _accept(state: _State, unit: Unit, file: PlannedFile, outcome: Made | Failure | Lost) -> None:
    if isinstance(outcome, Failure):
        logger.debug("%s\n%s", unit, outcome.details)
        raise GenerateError(f"{unit}: {outcome.reason}")
    if isinstance(outcome, Lost):
        state.failures += 1
        logger.info("%s: its worker died; it is made again", unit)
        return
    header = {"unit": str(unit), "events": outcome.events, "generated": outcome.generated}
    seal(state.path(unit), header, outcome.blob)
    state.have.add(unit)
    state.done(unit)
    _write_if_whole(state, file)
    state.tick()


def _write_if_whole(state: _State, file: PlannedFile) -> None:
    """Put a file together when all its units are there."""
    if file.name in state.written or any(unit not in state.have for unit in file.units):
        return
    from agc_ml.simulation import nanoaod  # noqa: PLC0415 - heavy

    generated = sum(_unit(state, unit)[0]["generated"] for unit in file.units)
    path = state.folder / file.name
    origin = plan.origin(state.request, file)
    clusters = _clusters(state, file)
    write(path, lambda hidden: nanoaod.write(hidden, clusters, generated, origin, file.name))
    with folders.store_errors(state.folder):
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
            state.have.remove(unit)
            state.path(unit).unlink()


def _unit(state: _State, unit: Unit) -> tuple[Mapping[str, Any], bytes]:
    found = _kept(state, unit)
    if found is None:
        raise GenerateError(f"{unit}: damaged on disk, made again when it is gone on with")
    return found


def _kept(state: _State, unit: Unit) -> tuple[Mapping[str, Any], bytes] | None:
    """Read a unit from disk; None where it is not there, not whole, or something else."""
    found = unseal(state.path(unit))
    if found is None or found.header.get("unit") != str(unit):
        return None
    if is_code(found.blob) or is_too_large(found.blob):
        return None
    is_whole = found.header.get("events") == unit.events and "generated" in found.header
    return (found.header, found.blob) if is_whole else None


def _clusters(state: _State, file: PlannedFile) -> Iterator[Events]:
    """The events of a file, in as many units at once as make a cluster."""
    from agc_ml.simulation.events import concatenate, of_plain  # noqa: PLC0415 - heavy
    from agc_ml.simulation.nanoaod import CLUSTER  # noqa: PLC0415 - heavy

    held: list[Events] = []
    for unit in file.units:
        blob = _unit(state, unit)[1]
        try:
            held.append(of_plain(unpack(blob)))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            state.path(unit).unlink()  # it is whole: something else wrote it
            raise GenerateError(
                f"{unit}: no events on disk ({error}); made again when it is gone on with"
            ) from error
        if sum(map(len, held)) >= CLUSTER:
            yield concatenate(held)
            held = []
    if held:
        yield concatenate(held)


def _manifest(state: _State, status: Literal["complete", "partial"]) -> Manifest:
    datasets = {}
    for sample in dict.fromkeys(file.sample for file in state.files):
        names = [file.name for file in state.files if file.sample is sample]
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
        skim=plan.skim_in_words(state.request),
        detector={name: part._asdict() for name, part in DETECTOR._asdict().items()},
        versions={name: version(name) for name in _PACKAGES},
        datasets=datasets,
    )
