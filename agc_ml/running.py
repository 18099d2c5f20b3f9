"""`run`: a processor over a fileset, from names to a run directory."""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agc_ml import catalogue, cluster, execution, executors, folders, progress, provenance
from agc_ml.account import Account
from agc_ml.checkpoints import Store
from agc_ml.datasets import Fileset
from agc_ml.declarations import needs_of
from agc_ml.delivery import ways
from agc_ml.errors import IncompleteError, ProcessorError, UsageError
from agc_ml.filecache import FileCache
from agc_ml.ledger import Ledger, merge_attempts
from agc_ml.ml import registry
from agc_ml.ml.hook import Bundle, Model
from agc_ml.opened_files import Seen, changed, seen
from agc_ml.reduction import Reduced, reduce
from agc_ml.remarks import remarks
from agc_ml.results import (
    ClusterSummary,
    Metrics,
    NamedModel,
    RunRecord,
    RunResult,
    Status,
    load_record,
)
from agc_ml.shipping import Shipment, prepare, settle, taken
from agc_ml.unchanged import changed_input

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

CHUNK_SIZE: Final = 100_000
MAX_NAMED: Final = 3
KEPT: Final = ("chunks", "ledger.jsonl", "run.json", "measurement.json")


@dataclass(frozen=True)
class Settings:
    """How a run is done; none of it changes the result, but for what ``allow_missing`` leaves out.

    Attributes
    ----------
    chunk_size
        Most events of a chunk; None: what an interrupted run had, else 100,000.
    allow_missing
        Largest fraction of each dataset's events that may be missing from the result.
    """

    output: Path
    chunk_size: int | None = None
    resume: bool = False
    overwrite: bool = False
    allow_missing: float = 0.0
    quiet: bool = False
    command: tuple[str, ...] = ()
    model: NamedModel | None = None


def run(
    processor: Any,
    fileset: Fileset | str | Path = catalogue.DEMO,
    *,
    client: Client | None = None,
    site: str = cluster.LOCAL,
    workers: int | None = None,
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
        without ``resume`` (go on where it stopped) or ``overwrite``.
    chunk_size
        Most events of a chunk.
    allow_missing
        Fraction of each dataset's events that may be missing; the result says so.
    verify_checksums
        Read files whole before they are processed, and compare them with the ``adler32`` that the
        fileset states: this finds damage that no checksum of a basket shows.
    quiet
        Show no progress.

    Raises
    ------
    AgcError
        One line that says what is wrong and the way out. What is finished is kept on disk.
    """
    named = _named_model(model, output if resume else None)
    shipment = prepare(processor, settings, model if named is None else named.found, schema)
    loaded = fileset if isinstance(fileset, Fileset) else Fileset.load(fileset)
    way = None if via is None else ways.parse(via)
    if resume and overwrite:
        raise UsageError("--resume goes on with a run, --overwrite replaces it: choose one")
    if not 0 <= allow_missing < 1:
        raise UsageError(f"--allow-missing {allow_missing:g}: a fraction from 0 up to 1 is needed")
    if chunk_size is not None and chunk_size < 1:
        raise UsageError(f"--chunk-size {chunk_size}: at least one event is needed")
    how = Settings(
        output=Path(output) if output is not None else default_output(shipment.name),
        chunk_size=chunk_size,
        resume=resume,
        overwrite=overwrite,
        allow_missing=allow_missing,
        quiet=quiet,
        command=tuple(command),
        model=named,
    )
    start = time.perf_counter()
    earlier = _earlier(how)
    if earlier is not None:
        how = replace(how, chunk_size=_same_chunk_size(how, earlier))
    loaded = taken(shipment, loaded)
    if verify_checksums:
        _check_verifiable(loaded)
    loaded = ways.deliver(loaded, way, lambda d: needs_of(shipment.processor, is_data=d.is_data))
    if earlier is not None and earlier.status == "complete":
        return _completed(how.output, earlier, shipment, loaded)
    with ExitStack() as stack:
        executor, where = stack.enter_context(executors.connected(client, site, workers))
        on_tick = stack.enter_context(progress.shown(quiet=how.quiet))
        account = Account(
            fileset=loaded,
            shipment=shipment,
            store=Store(how.output / "chunks", provenance.deciding(shipment)),
            chunk_size=how.chunk_size or CHUNK_SIZE,
            on_tick=on_tick,
            started=executor.started,
            # what was finished before a file was replaced would be taken for a part of the new one
            cache=None if how.resume else FileCache(),
            verifies=verify_checksums,
        )
        try:
            return _run(account, executor, _Begun(datetime.now(UTC), start, where, how))
        finally:
            settle(shipment)


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
    if not isinstance(model, str) or not registry.is_named(model):
        return None
    if earlier is not None and (Path(earlier) / "run.json").exists():
        known = load_record(Path(earlier)).provenance.model
        if known is not None and known.asked == model:
            return known
    return NamedModel(asked=model, found=registry.pinned(model))


def default_output(name: str) -> Path:
    """``runs/<processor>-<UTC time>``, with a number behind it if that is taken."""
    stem = Path(name.rpartition(":")[2] or name).name
    first = Path("runs") / f"{stem}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    others = (first.with_name(f"{first.name}-{n}") for n in itertools.count(2))
    return next(path for path in itertools.chain([first], others) if not path.exists())


def _earlier(how: Settings) -> RunRecord | None:
    """Record of the run that ``--resume`` goes on with; refuses to touch what it must not."""
    folder = how.output
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a file is in the way; name another folder with -o")
    if folders.is_unused(folder):
        return None
    if how.overwrite:
        if not (folder / "run.json").exists():
            raise UsageError(
                f"{folder}: not a run directory, so --overwrite leaves it alone; name another"
            )
        return None
    if not how.resume:
        raise UsageError(
            f"{folder}: there is something in it; go on with --resume, replace it with "
            "--overwrite, or name another folder with -o"
        )
    return load_record(folder)


def _same_chunk_size(how: Settings, earlier: RunRecord) -> int:
    size = earlier.provenance.chunk_size
    if how.chunk_size not in {None, size}:
        raise UsageError(
            f"{how.output}: begun with --chunk-size {size}, so with {how.chunk_size} nothing of it "
            "could be used; leave the option out, or name another folder with -o"
        )
    return size


def _completed(folder: Path, earlier: RunRecord, shipment: Shipment, fileset: Fileset) -> RunResult:
    made_by, asked = earlier.provenance.processor, provenance.processor_summary(shipment)
    # as text, in which 1 is not 1.0, and the order of dictionaries counts
    texts = [json.dumps([one.code, one.parameters]) for one in (made_by, asked)]
    if texts[0] != texts[1] or earlier.provenance.fileset != fileset.digest:
        raise UsageError(
            f"{folder}: complete, but made with another processor, parameters or fileset; replace "
            "it with --overwrite, or name another folder with -o"
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
    logger.info("%s: complete already", folder)
    return result


def _run(account: Account, executor: executors.Executor, begun: _Begun) -> RunResult:
    how = begun.how
    execution.open_some(account, executor)
    with _sole_owner(how):
        return _run_in_directory(account, executor, begun)


def _run_in_directory(account: Account, executor: executors.Executor, begun: _Begun) -> RunResult:
    how = begun.how
    earlier = _earlier_ledger(how.output)
    try:
        _leave(account, begun, earlier, "partial")
        with executor.report(how.output / "performance.html"):
            execution.process(account, executor)
        ledger = _checked_ledger(account, how, earlier)
        reduced = reduce(account)
    except BaseException as error:
        failed = isinstance(error, ProcessorError)
        try:
            _leave(account, begun, earlier, "failed" if failed else "partial")
        except Exception as another:  # noqa: BLE001 - the first error is the one to tell
            logger.debug("%s: can't be written: %r", how.output, another)
        raise
    result = _result(account, begun, ledger, reduced)
    result.save(how.output)
    if result.status == "complete":
        shutil.rmtree(account.store.folder)
    for warning in result.warnings:
        logger.warning("%s", warning)
    return result


@dataclass(frozen=True)
class _Begun:
    """When, where and how a run began."""

    at: datetime
    clock: float
    where: ClusterSummary
    how: Settings


@contextmanager
def _sole_owner(how: Settings) -> Iterator[None]:
    """Make the run directory, clear it of old results, and keep others out while at work."""
    folder = how.output
    with folders.owned(folder):
        with folders.store_errors(folder):
            # what goes on from an earlier run makes its own results
            folders.clear(folder, keep=() if how.overwrite else KEPT)
            (folder / "chunks").mkdir(exist_ok=True)
        yield


def _earlier_ledger(folder: Path) -> Ledger:
    path = folder / "ledger.jsonl"
    return Ledger.load(path) if path.exists() else Ledger(())


def _leave(account: Account, begun: _Begun, earlier: Ledger, status: Status) -> None:
    """Write down how far it came, without any histogram."""
    ledger = Ledger(merge_attempts(account.ledger().entries, earlier))
    empty = Reduced(hists={}, templates={}, cutflow={}, warnings=())
    _result(account, begun, ledger, empty, status).save(begun.how.output)


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
