"""`run`: a processor over a fileset, from names to a run directory."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agc_ml import files
from agc_ml.delivery import routing
from agc_ml.errors import IncompleteError, ProcessorError, UsageError
from agc_ml.execution import rounds
from agc_ml.execution.cluster import clusters, executors, progress
from agc_ml.execution.input_warnings import remarks
from agc_ml.execution.processor.declarations import needs_of
from agc_ml.execution.processor.loading import Shipment, prepare, settle, taken
from agc_ml.execution.processor.opened_files import Seen, changed, seen
from agc_ml.execution.reduction import Reduced, reduce
from agc_ml.execution.state import provenance
from agc_ml.execution.state.checkpoints import Store
from agc_ml.execution.state.inspection_cache import FileCache
from agc_ml.execution.state.run_state import Account
from agc_ml.execution.state.unchanged_inputs import changed_input
from agc_ml.inputs import loading
from agc_ml.inputs.fileset import Fileset
from agc_ml.models import naming
from agc_ml.models.model import Bundle, Model
from agc_ml.results import run_directories
from agc_ml.results.ledger import Ledger, merge_attempts
from agc_ml.results.run_record import (
    ClusterSummary,
    Metrics,
    NamedModel,
    RunRecord,
    Status,
    load_record,
)
from agc_ml.results.run_result import RunResult

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

CHUNK_SIZE: Final = 100_000
MAX_NAMED: Final = 3


@dataclass(frozen=True)
class Settings:
    """How a run is done; none of it changes the result, but for what ``allow_missing`` leaves out.

    Attributes
    ----------
    chunk_size
        Most events of a chunk; None: what an interrupted run had, else 100,000.
    allow_missing
        Largest fraction of each dataset's events that may be missing from the result.
    trust
        Read what an interrupted run left as pickles, whoever wrote them.
    """

    output: Path
    chunk_size: int | None = None
    resume: bool = False
    overwrite: bool = False
    allow_missing: float = 0.0
    trust: bool = False
    quiet: bool = False
    command: tuple[str, ...] = ()
    model: NamedModel | None = None


def run(
    processor: Any,
    fileset: Fileset | str | Path = loading.DEMO,
    *,
    client: Client | None = None,
    site: str = clusters.LOCAL,
    workers: int | None = None,
    dashboard: int | None = None,
    patience: float | None = None,
    output: str | Path | None = None,
    settings: Mapping[str, str] | None = None,
    model: str | Path | Model | Bundle | None = None,
    schema: str | type | None = None,
    via: str | None = None,
    chunk_size: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_missing: float = 0.0,
    verify_checksums: bool = False,
    trust: bool = False,
    quiet: bool = False,
    command: Sequence[str] = (),
) -> RunResult:
    """Process a fileset into a run directory.

    Parameters
    ----------
    processor
        A coffea processor, or where to find one: a registered name, ``module:Class`` or
        ``path/to/file.py:Class``; ``settings`` are then values of its parameters, as text.
    fileset
        A `Fileset`, or what `Fileset.load` takes; by default the embedded demo set.
    client
        A Dask client to use. Without it ``site`` is: ``local`` starts ``workers`` processes,
        ``inline`` stays in this process, an address names a scheduler.
    dashboard
        Port of this machine for the dashboard of local workers, 0 for 8787 or a free one; by
        default there is none. It has no login: other users of the machine can read it.
    patience
        Seconds after which the run stops if nothing finishes and no worker that answers is at work;
        by default ten minutes, and five if there never was a worker. What is finished is kept.
    model
        What the processor scores with, if it takes a model: where `load_model` finds one, or what
        it gives. ``name@champion`` is looked up once, when the run begins; ``resume`` goes on with
        the version that it was then.
    schema
        Schema by which coffea makes records of events: a class, or the name of one of coffea's;
        by default the processor's own (``schema``), or that of NanoAOD.
    via
        How files are reached: ``local``, ``https[=URL]``, ``xrootd[=URL]``, ``xcache=URL[,URL]``,
        ``servicex[=ENDPOINT]``; by default replicas are read as they are listed, the first one
        first.
    output
        The run directory; default ``runs/<processor>-<UTC time>``. One that is not empty is refused
        without ``resume`` (go on where it stopped) or ``overwrite`` (replace it, once the new
        results stand).
    chunk_size
        Most events of a chunk.
    allow_missing
        Fraction of each dataset's events that may be missing; the result says so.
    verify_checksums
        Read files whole before they are processed, and compare them with the ``adler32`` that the
        fileset states: this finds damage that no checksum of a basket shows.
    trust
        With ``resume``: read what was kept as pickles although you did not write it on this
        machine. They can run any code.
    quiet
        Show no progress.

    Raises
    ------
    AgcError
        One line that says what is wrong and the way out. What is finished is kept on disk.
    """
    clusters.stop_if_imported()
    named = _named_model(model, output if resume else None)
    shipment = prepare(processor, settings, model if named is None else named.found, schema)
    loaded = fileset if isinstance(fileset, Fileset) else Fileset.load(fileset)
    route = None if via is None else routing.parse(via)
    if resume and overwrite:
        raise UsageError("--resume goes on with a run, --overwrite replaces it: choose one")
    if trust and not resume:
        raise UsageError("--trust is for going on with a run that others wrote: add --resume")
    if not 0 <= allow_missing < 1:
        raise UsageError(f"--allow-missing {allow_missing:g}: a fraction from 0 up to 1 is needed")
    if chunk_size is not None and chunk_size < 1:
        raise UsageError(f"--chunk-size {chunk_size}: at least one event is needed")
    how = Settings(
        output=Path(output) if output is not None else run_directories.new_folder(shipment.name),
        chunk_size=chunk_size,
        resume=resume,
        overwrite=overwrite,
        allow_missing=allow_missing,
        trust=trust,
        quiet=quiet,
        command=tuple(command),
        model=named,
    )
    loaded = taken(shipment, loaded)
    if verify_checksums:
        _check_verifiable(loaded)
    _find(how)  # told before anything is asked of a service
    loaded = routing.deliver(
        loaded, route, lambda d: needs_of(shipment.processor, is_data=d.is_data)
    )
    start = time.perf_counter()
    try:
        done = _completed(how, shipment, loaded)
        if done is not None:
            return done
        with ExitStack() as stack:
            stack.enter_context(files.owned(how.output))
            found = _find(how)  # again: another run may have been at work in it
            if found.earlier is not None:
                how = replace(how, chunk_size=_same_chunk_size(how, found.earlier))
            executor, where = stack.enter_context(
                executors.connected(client, site, workers, dashboard=dashboard, patience=patience)
            )
            on_tick = stack.enter_context(progress.shown(quiet=how.quiet))
            account = Account(
                fileset=loaded,
                shipment=shipment,
                store=Store(
                    found.work / run_directories.CHUNKS,
                    provenance.deciding(shipment),
                    trusts_all=how.trust,
                ),
                chunk_size=how.chunk_size or CHUNK_SIZE,
                on_tick=on_tick,
                started=executor.started,
                # what was finished before a file was replaced would be taken for a part of the new
                cache=None if how.resume else FileCache(),
                verifies=verify_checksums,
            )
            stack.callback(settle, shipment)
            return _run(account, executor, _Begun(datetime.now(UTC), start, where, how, found))
    finally:
        if output is None:
            files.drop_if_empty(how.output)


def _find(how: Settings) -> run_directories.RunFolder:
    return run_directories.find(how.output, resume=how.resume, overwrite=how.overwrite)


def _check_verifiable(fileset: Fileset) -> None:
    """Say of how many files there is nothing to compare with; refuse if of none."""
    silent = [f for d in fileset.datasets for f in d.files if f.adler32 is None]
    if not silent:
        return
    advice = "'agc-ml fileset check FILESET --checksums --write NEW' adds it"
    if len(silent) == fileset.n_files:
        raise UsageError(f"--verify-checksums: no file of the fileset states its adler32; {advice}")
    logger.warning(
        "%d of %d files state no adler32, so they are not verified; %s",
        *(len(silent), fileset.n_files, advice),
    )


def _named_model(model: Any, earlier: str | Path | None) -> NamedModel | None:
    """Pin a model that is asked for by its name, once for a run: one that is resumed keeps its own.

    ``earlier`` is the folder of the run to go on with.
    """
    if not isinstance(model, str) or not naming.is_registered_name(model):
        return None
    folder = None if earlier is None else run_directories.work_of(Path(earlier))
    if folder is not None and (folder / "run.json").exists():
        known = load_record(folder).provenance.model
        # another model, or a path, would be the choice of whoever wrote the record
        name, _, version = known.found.partition("@") if known is not None else ("", "", "")
        is_of_it = version.isdigit() and name == model.partition("@")[0]
        if known is not None and known.asked == model and is_of_it:
            return known
    return NamedModel(asked=model, found=naming.pinned_name(model))


def _same_chunk_size(how: Settings, earlier: RunRecord) -> int:
    size = earlier.provenance.chunk_size
    if how.chunk_size not in {None, size}:
        raise UsageError(
            f"{how.output}: begun with --chunk-size {size}, so with {how.chunk_size} nothing of it "
            "could be used; leave the option out, or name another folder with -o"
        )
    return size


def _completed(how: Settings, shipment: Shipment, fileset: Fileset) -> RunResult | None:
    """The result of a run that is complete already; None if there is something to do.

    Raises
    ------
    UsageError
        It is complete, but something else than what is asked for.
    """
    folder = how.output
    if not how.resume:
        return None
    if run_directories.stands(folder):  # stopped while it took the place of an old one
        with files.owned(folder):
            run_directories.put_in_place(folder)
    earlier = _find(how).earlier
    if earlier is None or earlier.status != "complete":
        return None
    _same_chunk_size(how, earlier)
    differences = provenance.differences(earlier.provenance, shipment, fileset)
    if differences:
        raise UsageError(
            f"{folder}: complete, but made with another processor, parameters or fileset "
            f"({'; '.join(differences)}), so none of its {earlier.metrics.chunks} chunks can be "
            "used; replace it with --overwrite, or name another folder with -o"
        )
    result = RunResult.load(folder)
    problem = changed_input(fileset, result.ledger)
    opened = {path: Seen(**vars(one)) for path, one in earlier.provenance.opened.items()}
    for path in changed(opened, seen(opened)):
        problem = f"{path}: changed since the run, whose processor opened it"
    if problem is not None:
        raise UsageError(
            f"{folder}: complete, but of other inputs than there are now: {problem}; replace it "
            "with --overwrite, or name another folder with -o"
        )
    if (folder / run_directories.CHUNKS).exists():  # stopped while it removed them
        with files.owned(folder):
            _remove(folder / run_directories.CHUNKS)
    logger.info("%s: complete already", folder)
    return result


def _run(account: Account, executor: executors.Executor, begun: _Begun) -> RunResult:
    how, work = begun.how, begun.found.work
    rounds.open_some(account, executor)
    run_directories.prepare(begun.found, resume=how.resume)
    earlier = _earlier_ledger(work)
    try:
        _leave(account, begun, earlier, "partial")
        with files.store_errors(work):
            account.store.folder.mkdir(exist_ok=True)
        left = rounds.recall(account, executor)
        if left:
            _tell_useless(account, begun, left)
        with executor.report(work / "performance.html"):
            rounds.process(account, executor)
        ledger = _checked_ledger(account, how, earlier)
        reduced = reduce(account)
    except BaseException as error:
        failed = isinstance(error, ProcessorError)
        try:
            _leave(account, begun, earlier, "failed" if failed else "partial")
        except Exception as another:  # noqa: BLE001 - the first error is the one to tell
            logger.debug("%s: can't be written: %r", work, another)
        raise
    result = _result(account, begun, ledger, reduced)
    result.save(work)
    if result.status == "complete":
        _remove(account.store.folder)
    if work != how.output:
        run_directories.put_in_place(how.output)
    for warning in result.warnings:
        logger.warning("%s", warning)
    return result


def _tell_useless(account: Account, begun: _Begun, left: int) -> None:
    """Say that finished chunks of the earlier run can't be used, and why."""
    earlier = begun.found.earlier
    differences = []
    if earlier is not None:
        differences = provenance.differences(
            earlier.provenance, account.shipment, account.fileset, of_chunks=True
        )
    logger.warning(
        "%s: %d of its %d finished chunks can't be used: %s",
        *(begun.how.output, left, left + len(account.recalled)),
        "; ".join(differences) or "they are damaged, or of inputs that have changed",
    )


def _remove(folder: Path) -> None:
    """Remove finished chunks, which are in the results; that none can be is no reason to fail."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        logger.warning("%s: can't be removed, and is not needed any more (%s)", folder, error)


@dataclass(frozen=True)
class _Begun:
    """When, where and how a run began, and what it goes on with."""

    at: datetime
    clock: float
    where: ClusterSummary
    how: Settings
    found: run_directories.RunFolder


def _earlier_ledger(folder: Path) -> Ledger:
    path = folder / "ledger.jsonl"
    return Ledger.load(path) if path.exists() else Ledger(())


def _leave(account: Account, begun: _Begun, earlier: Ledger, status: Status) -> None:
    """Write down how far it came, without any histogram."""
    ledger = Ledger(merge_attempts(account.ledger().entries, earlier))
    empty = Reduced(hists={}, templates={}, cutflow={}, warnings=())
    _result(account, begun, ledger, empty, status).save(begun.found.work)


def _checked_ledger(account: Account, how: Settings, earlier: Ledger) -> Ledger:
    """Return the account of all events, proven to be whole, or within what may be missing."""
    ledger = Ledger(merge_attempts(account.ledger().entries, earlier))
    faults = ledger.faults()
    if faults:
        raise IncompleteError(f"the account of events is wrong: {faults[0]}; run again")
    reasons = account.reasons()
    if not reasons:
        return ledger
    worst, fraction = max(account.missing_fractions().items(), key=lambda item: item[1])
    named = "; ".join(reasons[:MAX_NAMED])
    more = f"; and {len(reasons) - MAX_NAMED} more" if len(reasons) > MAX_NAMED else ""
    if fraction > how.allow_missing:
        acceptable = _rounded_up(fraction)
        accept = f", or accept it with --resume --allow-missing {acceptable:g}"
        raise IncompleteError(
            f"{len(reasons)} of {len(ledger.entries)} chunks and files are missing: {named}{more}. "
            "What is finished is kept: mend it and use --resume"
            f"{accept if acceptable < 1 else ''} ({worst} lacks {fraction:.2%})"
        )
    return ledger


def _rounded_up(fraction: float) -> float:
    return min(1.0, math.ceil(fraction * 1000) / 1000)


def _result(
    account: Account,
    begun: _Begun,
    ledger: Ledger,
    reduced: Reduced,
    status: Status | None = None,
) -> RunResult:
    return RunResult(
        status=status or ("partial" if ledger.missing else "complete"),
        hists=reduced.hists,
        templates=reduced.templates,
        cutflow=reduced.cutflow,
        ledger=ledger,
        metrics=_metrics(account, begun, ledger),
        provenance=provenance.collect(account, begun.where, begun.at, begun.how.command).model_copy(
            update={"model": begun.how.model}
        ),
        warnings=(*remarks(account), *reduced.warnings),
        outputs=reduced.outputs,
        tables=reduced.tables,
        scales=reduced.scales,
        path=begun.how.output,
    )


def _metrics(account: Account, begun: _Begun, ledger: Ledger) -> Metrics:
    receipts = [r for chunk, r in account.done.items() if chunk not in account.recalled]
    wall, workers = time.perf_counter() - begun.clock, begun.where.workers
    events = sum(receipt.events for receipt in receipts)
    inside, opening, reading = (
        sum(getattr(receipt, name) for receipt in receipts)
        for name in ("seconds", "open_s", "read_s")
    )
    return Metrics(
        events=ledger.events,
        chunks=len(account.done),
        wall_s=wall,
        cpu_s=sum(receipt.cpu_s for receipt in receipts),
        events_per_s=events / wall,
        events_per_s_per_core=events / wall / max(workers, 1),
        bytes_read=sum(receipt.bytes for receipt in receipts),
        open_s=opening,
        read_s=reading,
        compute_s=inside - opening - reading,
        overhead_s=max(0.0, wall * workers - inside),
        peak_memory_mb=max((receipt.memory_mb for receipt in receipts), default=0.0),
        workers=workers,
        retries=ledger.retries,
    )
