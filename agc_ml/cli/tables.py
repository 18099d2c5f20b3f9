"""Pages of the command line: printed as lines and tables, or as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agc_ml.errors import printable
from agc_ml.presentation import run_tables
from agc_ml.presentation.page import Amount, Page, Table
from agc_ml.presentation.run_tables import megabytes

if TYPE_CHECKING:
    from agc_ml.cli.validation import Verdict
    from agc_ml.execution.file_check import CheckedFile
    from agc_ml.execution.plan import Plan
    from agc_ml.inputs.fileset import Fileset
    from agc_ml.results.run_record import RunRecord
    from agc_ml.results.templates import Difference
    from agc_ml.simulation.manifest import Manifest
    from agc_ml.simulation.validation import Checked
    from agc_ml.statistics.fit_result import FitResult

PIPE_WIDTH: Final = 200
MAX_ROWS: Final = 20


def print_page(page: Page, *, as_json: bool = False) -> None:
    """Print on standard output, in the width of the terminal or wide on a pipe; or as JSON."""
    if as_json:
        click.echo(json.dumps(page.data, indent=1))
        return
    from rich.console import Console  # noqa: PLC0415 - only when something is printed

    console = Console(highlight=False, soft_wrap=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH, emoji=False)
    for line in page.lines:
        console.print(printable(line), markup=False)
    for table in (*page.tables, *page.details):
        console.print(_rendered(table), markup=False)
        for note in table.notes:
            console.print(printable(note), markup=False)


def _rendered(table: Table) -> Any:
    from rich import box  # noqa: PLC0415 - only when something is printed
    from rich.table import Table as RichTable  # noqa: PLC0415 - only when something is printed
    from rich.text import Text  # noqa: PLC0415 - only when something is printed

    rendered = RichTable(
        title=Text(printable(table.title)),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    for index, name in enumerate(table.columns):
        justify: Any = "left" if table.is_text(index) else "right"
        rendered.add_column(name, justify=justify, overflow="fold")
    for row in table.rows:
        rendered.add_row(*(Text(_shown(cell)) for cell in row))
    return rendered


def _shown(cell: object) -> str:
    value = cell.value if isinstance(cell, Amount) else cell
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return printable(str(value))


def plan(planned: Plan) -> Page:
    """Page of a plan: datasets, branches and the amount to read."""
    rows = [
        (d.name, d.files, d.events, d.chunks, d.columns, _size(d.bytes)) for d in planned.datasets
    ]
    total = (
        f"{planned.processor} on {planned.cluster} with {planned.workers} workers: "
        f"{sum(d.events for d in planned.datasets):,} events in "
        f"{sum(d.chunks for d in planned.datasets):,} chunks of at most {planned.chunk_size:,}, "
        f"{megabytes(sum(d.bytes or 0 for d in planned.datasets))} to read"
    )
    columns = (
        f"branches: {', '.join(planned.columns)}"
        if planned.columns
        else "branches: all, because the processor has no 'columns' that name what it needs"
    )
    header = ("dataset", "files", "events", "chunks", "branches", "to read")
    unreadable = [f"can't be opened: {line}" for line in planned.unreadable]
    notes = [columns, total, *unreadable]
    return Page(tables=[Table("plan", header, rows, notes)], data=asdict(planned))


def _size(number: int | None) -> str | None:
    return None if number is None else megabytes(number)


def fileset(fileset: Fileset) -> Page:
    """Page of a fileset with its datasets."""
    rows = [
        (d.name, d.process, d.variation, d.xsec, len(d.files), d.n_events) for d in fileset.datasets
    ]
    header = ("dataset", "process", "variation", "xsec [pb]", "files", "events")
    luminosity = f"{fileset.luminosity:g} /pb" if fileset.luminosity else "not stated"
    counted = [d.n_events for d in fileset.datasets]
    total = sum(n for n in counted if n is not None)
    events = f"{total:,} events" if None not in counted else "events not stated"
    facts = {
        "digest": fileset.digest,
        "luminosity": fileset.luminosity,
        "label": fileset.label,
        "datasets": [dict(zip(header, row, strict=True)) for row in rows],
        "notes": list(fileset.notes),
    }
    notes = [
        f"{len(rows)} datasets, {fileset.n_files:,} files, {events}; luminosity {luminosity}",
        *(
            [f"label on figures: {fileset.label}, unless files say otherwise"]
            if fileset.label
            else []
        ),
        *(f"note: {note}" for note in fileset.notes),
        f"digest {fileset.digest}",
    ]
    return Page(tables=[Table("fileset", header, rows, notes)], data=facts)


def generated(made: Manifest) -> Page:
    """Page of a generated set with its datasets."""
    rows = [
        (
            name,
            d.events,
            d.generated,
            d.factor,
            len(d.files),
            megabytes(sum(f.size for f in d.files)),
        )
        for name, d in made.datasets.items()
    ]
    header = ("dataset", "events", "generated", "factor", "files", "size")
    size = sum(file.size for d in made.datasets.values() for file in d.files)
    total = (
        f"{sum(d.events for d in made.datasets.values()):,} events, {megabytes(size)}, "
        f"seed {made.request.seed}"
    )
    table = Table("generated", header, rows, [total, f"kept: {made.skim}"])
    return Page(tables=[table], data=made.model_dump(mode="json", by_alias=True))


def comparison(checked: Checked) -> Page:
    """Page of the comparison of generated with published events."""
    rows = [
        (
            line.dataset,
            line.quantity,
            f"{line.found:+.3f}" if line.quantity != "selected" else f"{line.found:,.0f}",
            f"{line.uncertainty:.3f}" if line.uncertainty else "",
            f"{line.allowed:.3f}" if line.quantity != "selected" else f"{line.allowed:,.0f}",
            line.verdict,
            line.why,
        )
        for line in checked.lines
    ]
    header = ("dataset", "quantity", "found", "+-", "allowed", "verdict", "stated")
    selected = ", ".join(f"{c.dataset} {c.selected:,}" for c in checked.comparisons)
    notes = [f"selected events: {selected}"]
    table = Table("generated against published", header, rows, notes)
    return Page(tables=[table], data=checked.facts)


def filesets(listed: Sequence[tuple[Path, Fileset]]) -> Page:
    """Page of the filesets of a folder."""
    rows = [(str(path), len(f.datasets), f.n_files, f.digest[:12]) for path, f in listed]
    header = ("file", "datasets", "files", "digest")
    data = [dict(zip(header, row, strict=True)) for row in rows]
    return Page(tables=[Table("filesets", header, rows)], data=data)


def checked_files(checked: Sequence[CheckedFile]) -> Page:
    """Page of the files that were opened, with those that are bad."""
    bad = [file for file in checked if file.problem is not None]
    files = {(file.dataset, file.lfn): file.entries or 0 for file in checked}
    number = f"{len(checked)} files"
    if len(files) < len(checked):
        number = f"{len(checked)} replicas of {len(files)} files"
    good = f"{len(checked) - len(bad)} of {number}" if bad else f"all {number}"
    summary = f"{good} are good, {sum(files.values()):,} events"
    n_empty = sum(file.entries == 0 and file.problem is None for file in checked)
    if n_empty:
        summary += f"; {n_empty} without any"
    data = [asdict(file) for file in checked]
    if not bad:
        return Page(lines=[summary], data=data)
    rows = [(file.dataset, file.url, file.problem) for file in bad]
    table = Table("bad files", ("dataset", "file", "problem"), rows, [summary])
    return Page(tables=[table], data=data)


def run(record: RunRecord, fit: FitResult | None = None) -> Page:
    """Page of a run, and of its fit."""
    lines = [f"status: {record.status}"]
    if fit is not None:
        lines += [str(fit), *fit.facts, *(f"note on the fit: {note}" for note in fit.notes)]
    lines += [f"warning: {warning}" for warning in record.warnings]
    lines += [f"missing: {name}" for name in record.missing[:MAX_ROWS]]
    if len(record.missing) > MAX_ROWS:
        lines.append(f"missing: and {len(record.missing) - MAX_ROWS} more, in ledger.jsonl")
    details = [
        _yields(record),
        run_tables.cutflow(record),
        _parquet(record),
        run_tables.outputs(record, MAX_ROWS),
        run_tables.metrics(record),
        run_tables.provenance(record),
    ]
    data = record.model_dump(mode="json", by_alias=True)
    if fit is not None:
        name, value, beside = fit.measured
        data["fit"] = {"measured": f"{name} = {value}", "beside": beside, "poi": asdict(fit.poi)}
    return Page(lines=lines, details=[table for table in details if table.rows], data=data)


def _yields(record: RunRecord) -> Table:
    """Yields in a row each: a terminal is too narrow for the report's columns of regions."""
    rows = [
        (region, process, y.value, y.uncertainty)
        for region, processes in record.yields.items()
        for process, y in processes.items()
    ]
    is_unknown = any(uncertainty is None for *_, uncertainty in rows)
    note = "'-': filled with weights or scaled, in a storage that keeps no variances"
    columns = ("region", "process", "yield", "stat. uncertainty")
    return Table("yields", columns, rows, [note] if is_unknown else [])


def _parquet(record: RunRecord) -> Table:
    rows = [
        (f"{name}.parquet", table.rows, len(table.columns), table.digest)
        for name, table in record.tables.items()
    ]
    return Table("tables", ("file", "rows", "columns", "digest"), rows)


def differences(different: Sequence[Difference], shared: int, unknown: Sequence[str] = ()) -> Page:
    """Page of a comparison, the worst first; ``unknown`` are variances in both."""
    data = [{**difference._asdict(), "size": str(difference.size)} for difference in different]
    lines = [str(difference) for difference in different[:MAX_ROWS]]
    if len(different) > MAX_ROWS:
        lines.append(f"and {len(different) - MAX_ROWS} more")
    if unknown:
        more = ", ..." if len(unknown) > MAX_ROWS else ""
        lines.append(
            f"variances are unknown in both, and only contents were compared, of {len(unknown)} "
            f"histograms: {', '.join(unknown[:MAX_ROWS])}{more}"
        )
    lines.append(f"{shared} histograms in both, {len(different)} differences")
    return Page(lines=lines, data=data)


def verdicts(verdicts: Sequence[Verdict]) -> Page:
    """Page of validated files and folders, a line each."""
    lines = [
        f"{v.path}: {v.kind}, {'good' if v.problem is None else 'bad'}: {v.problem or v.summary}"
        for v in verdicts
    ]
    data = [{**asdict(verdict), "path": str(verdict.path)} for verdict in verdicts]
    return Page(lines=lines, data=data)
