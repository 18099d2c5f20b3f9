"""Measurement of a cross-section in one go: run, figures, fit, report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agc_ml.analysis import DEFAULT, analysis_of
from agc_ml.errors import ClusterError, FitError, HistogramError, UsageError
from agc_ml.execution.cluster import child_processes
from agc_ml.execution.run import run
from agc_ml.inputs import loading
from agc_ml.measurement.fitting import fit
from agc_ml.measurement.plotting import plot
from agc_ml.measurement.reporting import report
from agc_ml.results import pseudodata_choice, run_directories
from agc_ml.results.run_result import RunResult

if TYPE_CHECKING:
    from agc_ml.statistics.fit import FitResult


class Measurement(NamedTuple):
    """The outcome of `measure`; ``report`` is the path of its page."""

    run: RunResult
    fit: FitResult
    report: Path


def measure(
    fileset: Any = loading.DEMO, *, pseudodata: str | None = None, **options: Any
) -> Measurement:
    """Measure a cross-section with the default processor: run, figures, fit, report.

    Without ``fileset`` it is the embedded demo set. ``pseudodata`` are of a kind that the analysis
    declares; the default is that of the run that is resumed, else the first one. ``options`` are
    those of `run`.

    Raises
    ------
    AgcError
        What went wrong. Without a fit there is still a report of the run.
    """
    # what was chosen is kept from the beginning, for a resume
    folder = Path(options["output"]) if options.get("output") else None
    resumed = folder if options.get("resume") else None
    before = (
        pseudodata_choice.load(run_directories.work_of(resumed))
        if resumed
        else pseudodata_choice.Choices(schema=1)
    )
    kind = analysis_of().recipe(pseudodata or before.pseudodata).kind
    try:
        result = run(DEFAULT, fileset, **options)
    except BaseException:
        work = run_directories.work_of(folder) if folder else None
        if work and (work / run_directories.CHUNKS).is_dir():
            pseudodata_choice.change(work, pseudodata=kind)
        raise
    if result.path is None:
        raise UsageError("the run has no directory to report in")
    pseudodata_choice.change(result.path, pseudodata=kind)
    # Figures and fit take about as long, and one core each.
    with _beside(plot, result.path, pseudodata=kind) as drawn:
        try:
            fitted = fit(result.path, pseudodata=kind, quiet=bool(options.get("quiet", False)))
        except (FitError, HistogramError) as error:
            drawn()
            page = report(result.path)
            raise type(error)(f"{error} (the run without a fit is reported in {page})") from error
        drawn()
    return Measurement(result, fitted, report(result.path))


@contextmanager
def _beside(function: Any, *arguments: Any, **options: Any) -> Iterator[Callable[[], Any]]:
    """Call a function in another process; yield a function that waits for its result.

    It raises `ClusterError` where the process can't be started, or is killed.
    """
    child_processes.import_nothing_from_here()
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        call = pool.submit(function, *arguments, **options)

        def wait() -> Any:
            try:
                return call.result()
            except BrokenProcessPool as error:
                raise ClusterError(child_processes.start_problem(error)) from error

        yield wait
