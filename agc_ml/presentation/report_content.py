"""Content of the report of a run and its fit: headline, notices and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agc_ml.presentation import run_tables
from agc_ml.presentation.page import FigureInfo, Notice, Page, Table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from agc_ml.results.ledger import Entry
    from agc_ml.results.run_record import RunRecord
    from agc_ml.results.run_result import RunResult
    from agc_ml.statistics.fit_result import FitResult, GoodnessOfFit

NAMED_AT_ONCE: Final = 10  # missing ranges in the notice on top
ROWS: Final = 200  # of a table that grows with the number of chunks


def page(
    result: RunResult | None,
    fit: FitResult | None,
    figures: Sequence[FigureInfo] = (),
    large: Collection[str] | None = None,
) -> Page:
    """Collect the content of the report of a run, its fit, or a fit alone.

    ``large`` are the histograms whose yields are shown, None for all.
    """
    record = None if result is None else result.record()
    notices: list[Notice] = []
    tables, details = [], []
    # the fit comes first, then the run that it was made of
    if result is not None:
        notices += _run_notices(result)
    if fit is not None:
        notices += _fit_notices(fit)
        tables += [_fit_quality(fit), _carried_over(fit)]
        details.append(_parameters(fit))
    if result is not None and record is not None:
        (details if fit else tables).append(_yields(record, result.is_scaled, large))
        details += [run_tables.cutflow(record), *_completeness(result)]
        details += [run_tables.metrics(record), run_tables.outputs(record, ROWS)]
        details += [run_tables.provenance(record), _datasets(record)]
    if fit is not None:
        decides = [*fit.inputs.items(), *fit.versions.items()]
        columns = ("input or package", "digest or version")
        details.append(Table("What decides the fit", columns, decides))
    is_complete = result is None or result.status == "complete"
    return Page(
        title=result.provenance.processor.name if result else "Fit of histograms",
        status=", ".join(_status(result, fit)),
        good=is_complete and (fit is None or fit.converged),
        subtitle=_subtitle(result),
        notices=notices,
        headline=None if fit is None else _headline(fit),
        tables=[table for table in tables if table.rows],
        figures=figures,
        details=[table for table in details if table.rows],
    )


def _status(result: RunResult | None, fit: FitResult | None) -> Iterator[str]:
    if result is not None:
        yield f"{result.status} run"
    if fit is not None:
        yield "fit converged" if fit.converged else "fit did not converge"


def _subtitle(result: RunResult | None) -> str:
    if result is None:
        return ""
    events, chunks = result.metrics.events, result.metrics.chunks
    return f"{events:,} events in {chunks:,} chunks, {result.provenance.stop}"


def _run_notices(result: RunResult) -> Iterator[Notice]:
    missing = result.ledger.missing
    if result.status != "complete" or missing:
        named = tuple(str(entry) for entry in missing[:NAMED_AT_ONCE])
        more = len(missing) - len(named)
        last = (f"and {more:,} more: see “Missing”, or ledger.jsonl",) if more else ()
        title = f"The run is {result.status}: {len(missing):,} of {len(result.ledger.entries):,}"
        yield Notice(f"{title} ranges are not in the histograms", named + last)
    faults = tuple(result.ledger.faults())
    if faults:
        yield Notice("The account of events does not add up", faults)
    if result.warnings:
        yield Notice("Warnings", result.warnings)


def _fit_notices(fit: FitResult) -> Iterator[Notice]:
    if not fit.converged:
        yield Notice("The fit did not converge", ("Its values and uncertainties mean nothing.",))
    if fit.notes:
        yield Notice("Notes on the fit", fit.notes, bad=False)


def _headline(fit: FitResult) -> tuple[str, str, str]:
    name, value, beside = fit.measured
    lines = (beside, f"fitted to {fit.kind}")
    return (
        name.replace("sigma", "\N{GREEK SMALL LETTER SIGMA}"),
        value,
        "; ".join(line for line in lines if line),
    )


def _fit_quality(fit: FitResult) -> Table:
    test = fit.goodness_of_fit
    rows = [
        ("goodness of fit", f"χ² = {test.chi2:.2f} for {test.ndof} degrees of freedom"),
        ("p-value", _p_value(test)),
        ("twice the negative log-likelihood", f"{fit.twice_nll:.5f}"),
        ("minimizer", fit.minimizer),
        ("converged", "yes" if fit.converged else "no"),
        ("fitted to", fit.kind),
    ]
    notes = [line for line in (fit.closure, fit.definition) if line]
    return Table("Quality of the fit", ("", ""), rows, notes, words=2)


def _carried_over(fit: FitResult) -> Table:
    rows = [
        (
            carried.prefit.region,
            *(
                None if test.p_value is None else f"{test.chi2:.1f} / {test.ndof}"
                for test in (carried.prefit_test, carried.postfit_test)
            ),
            _p_value(carried.postfit_test, digits=2),
        )
        for carried in fit.carried_over
    ]
    note = (
        "χ² over degrees of freedom before and after the fit, and the p-value after it, with the "
        "uncertainty of the model and its correlations; bins with few events are merged."
    )
    if fit.points == "pseudodata":
        note += (
            " Pseudodata are mixed from templates that the model has as variations, and do not "
            "fluctuate as data do: χ² may be far below the degrees of freedom."
        )
    columns = ("observable", "χ² before", "χ² after", "p-value")
    return Table("Agreement in observables that were not fitted", columns, rows, [note], words=1)


def _p_value(test: GoodnessOfFit, digits: int = 4) -> str | None:
    return None if test.p_value is None else f"{test.p_value:.{digits}g}"


def _parameters(fit: FitResult) -> Table:
    rows = [
        (
            p.name,
            f"{p.value:.4f}",
            fit.states.get(p.name, f"{p.uncertainty:.4f}"),
            None if p.pull is None else f"{p.pull:.3f}",
        )
        for p in fit.parameters
    ]
    note = "A pull is (value − nominal value) / pre-fit uncertainty."  # noqa: RUF001 - a minus
    columns = ("parameter", "value", "uncertainty", "pull")
    return Table("Fitted parameters", columns, rows, [note], words=1)


def _yields(record: RunRecord, is_scaled: bool, large: Collection[str] | None) -> Table:
    yields = {name: row for name, row in record.yields.items() if large is None or name in large}
    processes = dict.fromkeys(process for row in yields.values() for process in row)
    rows = [(process, *(row.get(process) for row in yields.values())) for process in processes]
    unit = "expected events" if is_scaled else "sums of weights, not scaled to a luminosity"
    note = (
        f"Nominal, with underflow and overflow: {unit}, one for each entry of the histogram; "
        "uncertainties are those of the simulated numbers."
    )
    if any(y.variance is None for row in yields.values() for y in row.values()):
        note += " “?”: filled with weights or scaled, in a storage that keeps no variances."
    if len(yields) < len(record.yields):
        note += f" Those of {len(record.yields) - len(yields)} more histograms are in run.json."
    return Table("Yields", ("process", *yields), rows, [note], words=1)


def _completeness(result: RunResult) -> Iterator[Table]:
    entries = result.ledger.entries
    columns = ("dataset", "files", "chunks done", "chunks missing", "events done", "events missing")
    rows = []
    for dataset in dict.fromkeys(entry.dataset for entry in entries):
        own = [entry for entry in entries if entry.dataset == dataset]
        done = [entry for entry in own if entry.status == "done"]
        missing = [entry for entry in own if entry.status == "missing"]
        lost = f"{_events(missing):,}" + (" + ?" if any(e.stop is None for e in missing) else "")
        files = {entry.lfn for entry in own}
        rows.append((dataset, len(files), len(done), len(missing), _events(done), lost))
    notes = []
    if any("?" in lost for *_, lost in rows):
        notes.append("“?”: the events of a file that could not be opened are not known.")
    yield Table("Completeness", columns, rows, notes, words=1)
    yield _chunks("Missing", result.ledger.missing)
    retried = [entry for entry in entries if entry.status == "done" and entry.attempts > 1]
    yield _chunks("Retried with success", retried)


def _events(entries: Iterable[Entry]) -> int:
    return sum(entry.events for entry in entries)


def _chunks(title: str, entries: Sequence[Entry]) -> Table:
    rows = [
        (
            str(entry),
            "; ".join(dict.fromkeys(entry.errors)) or None,
            entry.attempts,
            f"{entry.seconds:.1f} s",
        )
        for entry in entries[:ROWS]
    ]
    more = len(entries) - len(rows)
    notes = [f"{more:,} more are in ledger.jsonl."] if more else []
    columns = ("entries of a file", "reasons", "attempts", "time")
    return Table(title, columns, rows, notes, words=2)


def _datasets(record: RunRecord) -> Table:
    columns = ("dataset", "process", "variation", "kind", "cross-section", "files", "events")
    rows = [
        (
            d.name,
            d.process,
            d.variation,
            "data" if d.is_data else "simulation",
            None if d.xsec is None else f"{d.xsec:,.8g} pb",
            d.files,
            d.events,
        )
        for d in record.provenance.datasets
    ]
    return Table("Datasets", columns, rows, words=4)
