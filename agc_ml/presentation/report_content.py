"""What stands in a report: headline, notices and tables, as plain text."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Final, NamedTuple

from agc_ml.results import saved_outputs
from agc_ml.results.run_record import Metrics

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from agc_ml.results.ledger import Entry
    from agc_ml.results.run_record import Provenance
    from agc_ml.results.run_result import RunResult
    from agc_ml.statistics.fit import FitResult, GoodnessOfFit

NAMED_AT_ONCE: Final = 10  # missing ranges in the notice on top
ROWS: Final = 200  # of a table that grows with the number of chunks
LONG_WORD: Final = 40
NONE: Final = "–"  # noqa: RUF001 - a dash in a table


class Notice(NamedTuple):
    """Something the reader must not miss; ``bad`` when it casts doubt on the result."""

    title: str
    lines: tuple[str, ...]
    bad: bool = True


class Table(NamedTuple):
    """A table; the first cell of a row is its heading, ``text`` counts the columns of words."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    text: int = 1
    note: str = ""

    @property
    def long(self) -> bool:
        """Whether a word, such as the path of a file, is too long for a line of a phone."""
        words = (word for row in self.rows for cell in row for word in cell.split())
        return any(len(word) > LONG_WORD for word in words)


class Page(NamedTuple):
    """A report without its figures; ``headline`` is (name, value, what the value is)."""

    title: str
    status: str
    good: bool
    subtitle: str
    notices: list[Notice]
    headline: tuple[str, str, str] | None
    result: list[Table]
    details: list[Table]


def page(
    result: RunResult | None, fit: FitResult | None, large: Collection[str] | None = None
) -> Page:
    """Collect the content of the report of a run, its fit, or a fit alone.

    ``large`` are the histograms whose yields are shown, None for all.
    """
    notices: list[Notice] = []
    main, details = [], []
    if result is not None:
        notices += _run_notices(result)
    if fit is not None:
        notices += _fit_notices(fit)
        main += [_fit_quality(fit), _carried_over(fit)]
        details.append(_parameters(fit))
    if result is not None:
        (details if fit else main).append(_yields(result, large))
        details += [*_cutflow(result), *_completeness(result), _metrics(result), *_outputs(result)]
        details += _provenance(result)
    if fit is not None:
        made_of = [*fit.inputs.items(), *fit.versions.items()]
        details.append(
            Table("What decides the fit", ("input or package", "digest or version"), made_of, 2)
        )
    complete = result is None or result.status == "complete"
    converged = fit is None or fit.converged
    return Page(
        title=result.provenance.processor.name if result else "Fit of histograms",
        status=", ".join(_status(result, fit)),
        good=complete and converged,
        subtitle=_subtitle(result),
        notices=notices,
        headline=None if fit is None else _headline(fit),
        result=[table for table in main if table.rows],
        details=[table for table in details if table.rows],
    )


def _status(result: RunResult | None, fit: FitResult | None) -> Iterable[str]:
    if result is not None:
        yield f"{result.status} run"
    if fit is not None:
        yield "fit converged" if fit.converged else "fit did not converge"


def _subtitle(result: RunResult | None) -> str:
    if result is None:
        return ""
    events, chunks = result.metrics.events, result.metrics.chunks
    return f"{events:,} events in {chunks:,} chunks, {result.provenance.stop}"


def _run_notices(result: RunResult) -> Iterable[Notice]:
    missing = result.ledger.missing
    if result.status != "complete" or missing:
        named = tuple(str(entry) for entry in missing[:NAMED_AT_ONCE])
        more = len(missing) - len(named)
        last = (f"and {more:,} more: see “Missing”, or ledger.jsonl",) if more else ()
        title = f"The run is {result.status}: {len(missing):,} of {len(result.ledger.entries):,}"
        yield Notice(f"{title} ranges are not in the histograms", named + last)
    faults = result.ledger.faults()
    if faults:
        yield Notice("The account of events does not add up", tuple(faults))
    if result.warnings:
        yield Notice("Warnings", result.warnings)


def _fit_notices(fit: FitResult) -> Iterable[Notice]:
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
    note = " ".join(line for line in (fit.closure, fit.definition) if line)
    return Table("Quality of the fit", ("", ""), rows, text=2, note=note)


def _carried_over(fit: FitResult) -> Table:
    rows = [
        (
            carried.prefit.region,
            *(
                NONE if test.p_value is None else f"{test.chi2:.1f} / {test.ndof}"
                for test in (carried.prefit_test, carried.postfit_test)
            ),
            _p_value(carried.postfit_test, digits=2),
        )
        for carried in fit.carried_over
    ]
    note = (
        "χ² over degrees of freedom before and after the fit, and the p-value after it, with the "
        "uncertainty of the model and its correlations; bins with few events are taken together."
    )
    if fit.points == "pseudodata":
        note += (
            " Pseudodata are mixed from templates that the model has as variations, and do not "
            "fluctuate as data do: χ² may be far below the degrees of freedom."
        )
    columns = ("observable", "χ² before", "χ² after", "p-value")
    return Table("Agreement in observables that were not fitted", columns, rows, note=note)


def _p_value(test: GoodnessOfFit, digits: int = 4) -> str:
    return NONE if test.p_value is None else f"{test.p_value:.{digits}g}"


def _parameters(fit: FitResult) -> Table:
    rows = [
        (
            p.name,
            f"{p.value:.4f}",
            fit.states.get(p.name, f"{p.uncertainty:.4f}"),
            NONE if p.pull is None else f"{p.pull:.3f}",
        )
        for p in fit.parameters
    ]
    note = "A pull is (value − nominal value) / pre-fit uncertainty."  # noqa: RUF001 - a minus
    return Table(
        "Fitted parameters", ("parameter", "value", "uncertainty", "pull"), rows, note=note
    )


def _yields(result: RunResult, large: Collection[str] | None) -> Table:
    found = result.yields()
    yields = {name: row for name, row in found.items() if large is None or name in large}
    processes = dict.fromkeys(process for row in yields.values() for process in row)
    rows = [
        (
            process,
            *(str(row[process]) if process in row else NONE for row in yields.values()),
        )
        for process in processes
    ]
    what = "expected events" if result.is_scaled else "sums of weights, not scaled to a luminosity"
    note = (
        f"Nominal, with underflow and overflow: {what}, one for each entry of the histogram; "
        "uncertainties are those of the simulated numbers."
    )
    if any(y.variance is None for row in yields.values() for y in row.values()):
        note += " “?”: filled with weights or scaled, in a storage that keeps no variances."
    if len(yields) < len(found):
        note += f" Those of {len(found) - len(yields)} more histograms are in run.json."
    return Table("Yields", ("process", *yields), rows, note=note)


def _cutflow(result: RunResult) -> Iterable[Table]:
    cuts = dict.fromkeys(cut for row in result.cutflow.values() for cut in row)
    if cuts:
        rows = [
            (dataset, *(_count(row[cut]) if cut in row else NONE for cut in cuts))
            for dataset, row in result.cutflow.items()
        ]
        yield Table(
            "Cutflow", ("dataset", *cuts), rows, note="Events left after each cut, nominal."
        )


def _count(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"


def _completeness(result: RunResult) -> Iterable[Table]:
    entries = result.ledger.entries
    columns = ("dataset", "files", "chunks done", "chunks missing", "events done", "events missing")
    rows = []
    for dataset in dict.fromkeys(entry.dataset for entry in entries):
        own = [entry for entry in entries if entry.dataset == dataset]
        done = [entry for entry in own if entry.status == "done"]
        missing = [entry for entry in own if entry.status == "missing"]
        numbers = (len({entry.lfn for entry in own}), len(done), len(missing))
        lost = f"{_events(missing):,}" + (" + ?" if any(e.stop is None for e in missing) else "")
        rows.append((dataset, *(f"{n:,}" for n in numbers), f"{_events(done):,}", lost))
    note = "“?”: a file that could not be opened never told how many events it has."
    yield Table("Completeness", columns, rows, note=note if any("?" in r[-1] for r in rows) else "")
    yield _chunks("Missing", result.ledger.missing)
    retried = [entry for entry in entries if entry.status == "done" and entry.attempts > 1]
    yield _chunks("Retried with success", retried)


def _events(entries: Iterable[Entry]) -> int:
    return sum(entry.events for entry in entries)


def _chunks(title: str, entries: Sequence[Entry]) -> Table:
    rows = [
        (
            str(entry),
            "; ".join(dict.fromkeys(entry.errors)) or NONE,
            f"{entry.attempts}",
            f"{entry.seconds:.1f} s",
        )
        for entry in entries[:ROWS]
    ]
    more = len(entries) - len(rows)
    note = f"{more:,} more are in ledger.jsonl." if more else ""
    return Table(title, ("entries of a file", "reasons", "attempts", "time"), rows, 2, note)


def _metrics(result: RunResult) -> Table:
    rows = [
        (name, _with_unit(name, getattr(result.metrics, name)), str(field.description))
        for name, field in Metrics.model_fields.items()
    ]
    return Table("Metrics", ("metric", "value", "what it is"), rows, text=3)


def _with_unit(name: str, value: float) -> str:
    if name == "bytes_read":
        return f"{value / 1e6:,.1f} MB"
    for suffix, unit in (("_per_s_per_core", "events/s"), ("_per_s", "events/s"), ("_s", "s")):
        if name.endswith(suffix):
            return f"{value:,.1f} {unit}"
    return f"{value:,.1f} MB" if name.endswith("_mb") else f"{value:,}"


def _outputs(result: RunResult) -> Iterable[Table]:
    rows = [
        (name, _shortened(text))
        for name, text in saved_outputs.lines(result.record().outputs, ROWS)
    ]
    yield Table("Other outputs of the processor", ("output", "value"), rows, text=2)


def _shortened(value: object, length: int = 300) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= length else f"{text[:length]} …"


def _provenance(result: RunResult) -> Iterable[Table]:
    provenance = result.provenance
    unused = "" if result.luminosity is not None else ", which nothing is scaled to"
    git = provenance.git
    dirty = " with uncommitted changes" if git and git.dirty else ""
    luminosity = provenance.luminosity
    cluster = provenance.cluster
    rows = [
        ("processor", provenance.processor.name),
        *(
            (f"processor parameter {name}", json.dumps(value, default=str))
            for name, value in provenance.processor.parameters.items()
        ),
        ("digest of the processor's code", provenance.processor.code),
        ("digest of the fileset", provenance.fileset),
        *((f"digest of model {name}", digest) for name, digest in provenance.models.items()),
        ("luminosity", NONE if luminosity is None else f"{luminosity:,.6g} /pb{unused}"),
        ("events of", provenance.label or "not known"),
        ("git commit", f"{git.commit}{dirty}" if git else NONE),
        ("cluster", f"{cluster.kind}, {cluster.workers:,} workers"),
        ("chunk size", f"{provenance.chunk_size:,} events"),
        ("start", provenance.start),
        ("stop", provenance.stop),
        ("command", shlex.join(provenance.command) or "from Python"),
    ]
    yield Table("Provenance", ("", ""), rows, text=2)
    yield _datasets(provenance)
    yield Table("Versions", ("package", "version"), list(provenance.versions.items()), text=2)


def _datasets(provenance: Provenance) -> Table:
    columns = ("dataset", "process", "variation", "kind", "cross-section", "files", "events")
    rows = [
        (
            d.name,
            d.process,
            d.variation,
            "data" if d.is_data else "simulation",
            NONE if d.xsec is None else f"{d.xsec:,.8g} pb",
            f"{d.files:,}",
            f"{d.events:,}",
        )
        for d in provenance.datasets
    ]
    return Table("Datasets", columns, rows, text=4)
