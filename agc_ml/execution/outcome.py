"""Result of a run: its checked ledger, metrics and provenance, with the reduced outputs."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from agc_ml.errors import IncompleteError
from agc_ml.execution.cluster.connection import ClusterOptions
from agc_ml.execution.input_warnings import input_warnings
from agc_ml.execution.reduction import Reduced
from agc_ml.execution.state import provenance
from agc_ml.execution.state.run_state import RunState
from agc_ml.results.ledger import Ledger, merge_attempts
from agc_ml.results.run_directories import RunFolder
from agc_ml.results.run_record import ClusterSummary, Metrics, NamedModel, Status
from agc_ml.results.run_result import RunResult

_MOST_NAMED: Final = 3


@dataclass(frozen=True)
class RunOptions:
    """Options of a run; none changes the result, but ``allow_missing`` may leave events out.

    Attributes
    ----------
    output
        The run directory, None for a new one.
    chunk_size
        Largest number of events of a chunk; None: of the interrupted run, else 100,000.
    allow_missing
        Largest fraction of each dataset's events that may be missing from the result.
    trust
        Read pickles of an interrupted run, whoever wrote them.
    """

    output: Path | None
    cluster: ClusterOptions
    chunk_size: int | None = None
    resume: bool = False
    overwrite: bool = False
    allow_missing: float = 0.0
    verify_checksums: bool = False
    trust: bool = False
    quiet: bool = False
    command: tuple[str, ...] = ()
    model: NamedModel | None = None


@dataclass(frozen=True)
class RunContext:
    """Start of a run, as date and by `time.perf_counter`, its cluster, options and folder."""

    start: datetime
    clock: float
    cluster: ClusterSummary
    options: RunOptions
    folder: Path
    directory: RunFolder


def checked_ledger(state: RunState, options: RunOptions, earlier: Ledger) -> Ledger:
    """Return the ledger of all events, proven complete or within ``allow_missing``.

    Raises
    ------
    IncompleteError
        More events are missing, or the ledger has gaps or overlaps.
    """
    ledger = Ledger(merge_attempts(state.ledger().entries, earlier))
    faults = ledger.faults()
    if faults:
        raise IncompleteError(f"the ledger of events is wrong: {faults[0]}; run again")
    reasons = state.reasons()
    if not reasons:
        return ledger
    dataset, fraction = max(state.missing_fractions().items(), key=lambda item: item[1])
    if fraction > options.allow_missing:
        named = "; ".join(reasons[:_MOST_NAMED])
        more = f"; and {len(reasons) - _MOST_NAMED} more" if len(reasons) > _MOST_NAMED else ""
        acceptable = min(1.0, math.ceil(fraction * 1000) / 1000)
        accept = f", or accept the loss with --resume --allow-missing {acceptable:g}"
        raise IncompleteError(
            f"{len(reasons)} of {len(ledger.entries)} chunks and files are missing: {named}{more}. "
            "Finished chunks are kept: fix the cause and rerun with --resume"
            f"{accept if acceptable < 1 else ''} ({dataset} lacks {fraction:.2%})"
        )
    return ledger


def make_result(
    state: RunState,
    context: RunContext,
    ledger: Ledger,
    reduced: Reduced | None = None,
    status: Status | None = None,
) -> RunResult:
    """Return the result of a run as of now; without ``reduced`` it has no histograms."""
    reduced = reduced or Reduced(hists={}, templates={}, cutflow={}, warnings=())
    record = provenance.collect(state, context.cluster, context.start, context.options.command)
    return RunResult(
        status=status or ("partial" if ledger.missing else "complete"),
        hists=reduced.hists,
        templates=reduced.templates,
        cutflow=reduced.cutflow,
        ledger=ledger,
        metrics=_metrics(state, context, ledger),
        provenance=record.model_copy(update={"model": context.options.model}),
        warnings=(*input_warnings(state), *reduced.warnings),
        outputs=reduced.outputs,
        tables=reduced.tables,
        scales=reduced.scales,
        path=context.folder,
    )


def _metrics(state: RunState, context: RunContext, ledger: Ledger) -> Metrics:
    receipts = [r for chunk, r in state.done.items() if chunk not in state.recalled]
    wall, workers = time.perf_counter() - context.clock, context.cluster.workers
    events = sum(receipt.events for receipt in receipts)
    inside = sum(receipt.seconds for receipt in receipts)
    opening = sum(receipt.open_s for receipt in receipts)
    reading = sum(receipt.read_s for receipt in receipts)
    return Metrics(
        events=ledger.events,
        chunks=len(state.done),
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
