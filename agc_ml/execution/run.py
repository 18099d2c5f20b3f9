"""`run`: process a fileset into a run directory."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agc_ml import files
from agc_ml.delivery import routing
from agc_ml.errors import ProcessorError, UsageError
from agc_ml.execution import rounds
from agc_ml.execution.cluster.child_processes import stop_if_imported
from agc_ml.execution.cluster.clusters import LOCAL
from agc_ml.execution.cluster.connection import ClusterOptions, connect_executor
from agc_ml.execution.cluster.executors import Executor
from agc_ml.execution.outcome import RunContext, RunOptions, checked_ledger, make_result
from agc_ml.execution.processor.declarations import needs_of, select_datasets
from agc_ml.execution.processor.loading import (
    LoadedProcessor,
    load_processor,
    remember_changes,
)
from agc_ml.execution.processor.opened_files import FileState, changed_files, file_states
from agc_ml.execution.progress import show_progress
from agc_ml.execution.reduction import reduce
from agc_ml.execution.state import provenance
from agc_ml.execution.state.checkpoints import CheckpointStore
from agc_ml.execution.state.inspection_cache import InspectionCache
from agc_ml.execution.state.run_state import RunState
from agc_ml.execution.state.unchanged_inputs import changed_input
from agc_ml.inputs import loading
from agc_ml.inputs.fileset import Fileset
from agc_ml.models import naming
from agc_ml.models.model import Bundle, Model
from agc_ml.results import run_directories
from agc_ml.results.ledger import Ledger, merge_attempts
from agc_ml.results.run_record import NamedModel, RunRecord, Status, load_record
from agc_ml.results.run_result import RunResult

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

CHUNK_SIZE: Final = 100_000


def run(
    processor: Any,
    fileset: Fileset | str | Path = loading.DEMO,
    *,
    client: Client | None = None,
    site: str = LOCAL,
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
        A `Fileset`, or a source for `Fileset.load`; by default the embedded demo set.
    client
        A Dask client to use. Without it ``site`` is: ``local`` starts ``workers`` processes,
        ``inline`` stays in this process, an address names a scheduler.
    dashboard
        Port of this machine for the dashboard of local workers, 0 for 8787 or a free one; by
        default there is none. It has no login: other users of the machine can read it.
    patience
        Seconds after which the run stops if nothing finishes and no responding worker has a job; by
        default ten minutes, and five if there never was a worker. Finished chunks are kept.
    model
        Model for the processor, if it takes one: a source for `load_model`, or its result.
        ``name@champion`` is looked up once, at the begin; ``resume`` keeps that version.
    schema
        Schema by which coffea makes records of events: a class, or the name of one of coffea's;
        by default the processor's own (``schema``), or that of NanoAOD.
    via
        Route to the files: ``local``, ``https[=URL]``, ``xrootd[=URL]``, ``xcache=URL[,URL]``,
        ``servicex[=ENDPOINT]``; by default the replicas as they are listed, the first one first.
    output
        The run directory; default ``runs/<processor>-<UTC time>``. One that is not empty is refused
        without ``resume`` (continue the run in it) or ``overwrite`` (replace it, once the new
        results are complete).
    chunk_size
        Largest number of events of a chunk.
    allow_missing
        Fraction of each dataset's events that may be missing; the result says so.
    verify_checksums
        Read files whole before they are processed, and compare them with the ``adler32`` in the
        fileset: this finds damage that no checksum of a basket shows.
    trust
        With ``resume``: read checkpoints that are pickles although you did not write them on this
        machine. They can run any code.
    quiet
        Show no progress.

    Raises
    ------
    AgcError
        One line with the cause and the way out. Finished chunks are kept on disk.
    """
    stop_if_imported()
    options = RunOptions(
        output=None if output is None else Path(output),
        cluster=ClusterOptions(client, site, workers, dashboard, patience),
        chunk_size=chunk_size,
        resume=resume,
        overwrite=overwrite,
        allow_missing=allow_missing,
        verify_checksums=verify_checksums,
        trust=trust,
        quiet=quiet,
        command=tuple(command),
        model=_pin_model(model, output if resume else None),
    )
    model = model if options.model is None else options.model.found
    loaded = load_processor(processor, settings, model, schema)
    fileset = fileset if isinstance(fileset, Fileset) else Fileset.load(fileset)
    return _run_loaded(loaded, fileset, via, options)


def _run_loaded(
    loaded: LoadedProcessor, fileset: Fileset, via: str | None, options: RunOptions
) -> RunResult:
    """Check the options, choose the files and the directory, and run."""
    route = None if via is None else routing.parse(via)
    _check_options(options)
    instance = loaded.instance
    fileset = select_datasets(loaded.name, instance, fileset)
    if options.verify_checksums:
        _check_verifiable(fileset)
    folder = options.output or run_directories.new_folder(loaded.name)
    try:
        # refuse the directory before any service is asked
        run_directories.find(folder, resume=options.resume, overwrite=options.overwrite)
        fileset = routing.deliver(fileset, route, lambda d: needs_of(instance, is_data=d.is_data))
        complete = _complete_result(folder, options, loaded, fileset)
        return complete or _connect_and_run(folder, options, loaded, fileset)
    finally:
        if options.output is None:
            files.drop_if_empty(folder)


def _check_options(options: RunOptions) -> None:
    if options.resume and options.overwrite:
        raise UsageError("--resume continues a run, --overwrite replaces it: choose one")
    if options.trust and not options.resume:
        raise UsageError("--trust is for resuming a run that others wrote: add --resume")
    if not 0 <= options.allow_missing < 1:
        raise UsageError(
            f"--allow-missing {options.allow_missing:g}: a fraction from 0 up to 1 is needed"
        )
    if options.chunk_size is not None and options.chunk_size < 1:
        raise UsageError(f"--chunk-size {options.chunk_size}: at least one event is needed")


def _check_verifiable(fileset: Fileset) -> None:
    """Warn of files without a checksum; reject a fileset without any."""
    unstated = [f for d in fileset.datasets for f in d.files if f.adler32 is None]
    if not unstated:
        return
    advice = "'agc-ml fileset check FILESET --checksums --write NEW' adds it"
    if len(unstated) == fileset.n_files:
        raise UsageError(f"--verify-checksums: no file of the fileset states its adler32; {advice}")
    logger.warning(
        "%d of %d files state no adler32, so they are not verified; %s",
        len(unstated),
        fileset.n_files,
        advice,
    )


def _pin_model(model: Any, earlier: str | Path | None) -> NamedModel | None:
    """Look up a model given by name, once for a run: a resumed run keeps its own.

    ``earlier`` is the directory of the run to resume.
    """
    if not isinstance(model, str) or not naming.is_registered_name(model):
        return None
    folder = None if earlier is None else run_directories.work_of(Path(earlier))
    if folder is not None and (folder / "run.json").exists():
        before = load_record(folder).provenance.model
        # another model, or a path, would be the choice of the record's author
        name, _, version = before.found.partition("@") if before is not None else ("", "", "")
        is_version = version.isdigit() and name == model.partition("@")[0]
        if before is not None and before.asked == model and is_version:
            return before
    return NamedModel(asked=model, found=naming.pinned_name(model))


def _same_chunk_size(folder: Path, options: RunOptions, earlier: RunRecord) -> int:
    size = earlier.provenance.chunk_size
    if options.chunk_size not in {None, size}:
        raise UsageError(
            f"{folder}: its run has --chunk-size {size}, so with {options.chunk_size} none "
            "of its chunks could be used; omit the option, or name another folder with -o"
        )
    return size


def _complete_result(
    folder: Path, options: RunOptions, loaded: LoadedProcessor, fileset: Fileset
) -> RunResult | None:
    """Result of a complete run that ``--resume`` names; None if there is something to do.

    Raises
    ------
    UsageError
        The run is complete, but of another processor, parameters or inputs.
    """
    if not options.resume:
        return None
    if run_directories.stands(folder):  # stopped while it replaced an old one
        with files.owned(folder):
            run_directories.put_in_place(folder)
    earlier = run_directories.find(folder, resume=True, overwrite=False).earlier
    if earlier is None or earlier.status != "complete":
        return None
    _same_chunk_size(folder, options, earlier)
    advice = "replace it with --overwrite, or name another folder with -o"
    differences = provenance.differences(earlier.provenance, loaded, fileset)
    if differences:
        raise UsageError(
            f"{folder}: complete, but of another processor, parameters or fileset "
            f"({'; '.join(differences)}), so none of its {earlier.metrics.chunks} chunks can be "
            f"used; {advice}"
        )
    result = RunResult.load(folder)
    problem = changed_input(fileset, result.ledger)
    opened = {path: FileState(**vars(file)) for path, file in earlier.provenance.opened.items()}
    for path in changed_files(opened, file_states(opened)):
        problem = f"{path}: changed since the run, whose processor opened it"
    if problem is not None:
        raise UsageError(f"{folder}: complete, but its inputs have changed: {problem}; {advice}")
    if (folder / run_directories.CHUNKS).exists():  # stopped while it removed them
        with files.owned(folder):
            _remove(folder / run_directories.CHUNKS)
    logger.info("%s: complete already", folder)
    return result


def _connect_and_run(
    folder: Path, options: RunOptions, loaded: LoadedProcessor, fileset: Fileset
) -> RunResult:
    """Connect to the cluster, and run into the folder while nobody else does."""
    start = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(files.owned(folder))
        # again, as another run may have worked in it
        directory = run_directories.find(folder, resume=options.resume, overwrite=options.overwrite)
        if directory.earlier is not None:
            size = _same_chunk_size(folder, options, directory.earlier)
            options = replace(options, chunk_size=size)
        executor, summary = stack.enter_context(connect_executor(options.cluster))
        state = RunState(
            fileset=fileset,
            processor=loaded,
            store=CheckpointStore(
                directory.work / run_directories.CHUNKS,
                provenance.deciding(loaded),
                trusts_all=options.trust,
            ),
            chunk_size=options.chunk_size or CHUNK_SIZE,
            on_progress=stack.enter_context(show_progress(quiet=options.quiet)),
            started=executor.started,
            # a resumed run must notice a file that was replaced after its first chunks
            cache=None if options.resume else InspectionCache(),
            verifies=options.verify_checksums,
        )
        stack.callback(remember_changes, loaded)
        context = RunContext(datetime.now(UTC), start, summary, options, folder, directory)
        return _process(state, executor, context)


def _process(state: RunState, executor: Executor, context: RunContext) -> RunResult:
    """Open the files, process the chunks, add their outputs, and write the result."""
    options, work = context.options, context.directory.work
    rounds.open_with_retries(state, executor)
    run_directories.prepare(context.directory, resume=options.resume)
    ledger_path = work / "ledger.jsonl"
    earlier = Ledger.load(ledger_path) if ledger_path.exists() else Ledger(())
    try:
        _save_unfinished(state, context, earlier, "partial")
        with files.store_errors(work):
            state.store.folder.mkdir(exist_ok=True)
        unusable = rounds.recall_chunks(state, executor)
        if unusable:
            _warn_of_unusable(state, context, unusable)
        with executor.report(work / "performance.html"):
            rounds.process(state, executor)
        ledger = checked_ledger(state, options, earlier)
        reduced = reduce(state)
    except BaseException as error:
        failed = isinstance(error, ProcessorError)
        try:
            _save_unfinished(state, context, earlier, "failed" if failed else "partial")
        except Exception as another:  # noqa: BLE001 - the first error is the one to report
            logger.debug("%s: can't be written: %r", work, another)
        raise
    result = make_result(state, context, ledger, reduced)
    result.save(work)
    if result.status == "complete":
        _remove(state.store.folder)
    if work != context.folder:
        run_directories.put_in_place(context.folder)
    for warning in result.warnings:
        logger.warning("%s", warning)
    return result


def _save_unfinished(state: RunState, context: RunContext, earlier: Ledger, status: Status) -> None:
    """Write the ledger and the record so far, without histograms."""
    ledger = Ledger(merge_attempts(state.ledger().entries, earlier))
    make_result(state, context, ledger, status=status).save(context.directory.work)


def _warn_of_unusable(state: RunState, context: RunContext, unusable: int) -> None:
    """Warn that finished chunks of the earlier run can't be used, and why."""
    earlier = context.directory.earlier
    differences = []
    if earlier is not None:
        differences = provenance.differences(
            earlier.provenance, state.processor, state.fileset, of_chunks=True
        )
    logger.warning(
        "%s: %d of its %d finished chunks can't be used: %s; they are processed again",
        context.folder,
        unusable,
        unusable + len(state.recalled),
        "; ".join(differences) or "they are damaged, or their inputs have changed",
    )


def _remove(folder: Path) -> None:
    """Remove finished chunks, whose content is in the results; warn if that fails."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        logger.warning("%s: can't be removed, and is no longer needed (%s)", folder, error)
