"""Facts as tables for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agc_ml.errors import printable
from agc_ml.results import saved_outputs

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


@dataclass(frozen=True)
class Table:
    """A title, column names and rows; what is not text is aligned right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Page:
    """The same facts twice: for JSON, and as lines and tables."""

    facts: Any
    parts: Sequence[Table | str]

    def print(self, *, as_json: bool = False) -> None:
        """Print on standard output, in the width of the terminal or wide on a pipe; or as JSON."""
        if as_json:
            click.echo(json.dumps(self.facts, indent=1))
            return
        from rich.console import Console  # noqa: PLC0415 - only when something is printed

        console = Console(highlight=False, soft_wrap=False, emoji=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=PIPE_WIDTH, emoji=False)
        for part in self.parts:
            shown = _rendered(part) if isinstance(part, Table) else printable(part)
            console.print(shown, markup=False)


def _rendered(table: Table) -> Any:
    from rich import box  # noqa: PLC0415 - only when something is printed
    from rich.table import Table as RichTable  # noqa: PLC0415 - only when something is printed
    from rich.text import Text  # noqa: PLC0415 - only when something is printed

    made = RichTable(
        title=Text(printable(table.title)),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    for index, name in enumerate(table.header):
        is_text = all(isinstance(row[index], str) for row in table.rows)
        made.add_column(name, justify="left" if is_text else "right", overflow="fold")
    for row in table.rows:
        made.add_row(*(Text(_shown(value)) for value in row))
    return made


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return printable(str(value))


def megabytes(number: int | None) -> str:
    """Bytes as MB, to a tenth."""
    return "-" if number is None else f"{number / 1e6:,.1f} MB"


def plan(found: Plan) -> Page:
    """What a run would do."""
    rows = [
        (d.name, d.files, d.events, d.chunks, d.columns, megabytes(d.bytes)) for d in found.datasets
    ]
    known = [d.bytes for d in found.datasets if d.bytes is not None]
    total = (
        f"{found.processor} on {found.cluster} with {found.workers} workers: "
        f"{sum(d.events for d in found.datasets):,} events in "
        f"{sum(d.chunks for d in found.datasets):,} chunks of at most {found.chunk_size:,}, "
        f"{megabytes(sum(known))} to read"
    )
    columns = (
        f"branches: {', '.join(found.columns)}"
        if found.columns
        else "branches: all, because the processor has no 'columns' that name what it needs"
    )
    header = ("dataset", "files", "events", "chunks", "branches", "to read")
    unreadable = [f"can't be opened: {line}" for line in found.unreadable]
    return Page(asdict(found), [Table("plan", header, rows), columns, total, *unreadable])


def fileset(found: Fileset) -> Page:
    """The datasets of a fileset."""
    rows = [
        (d.name, d.process, d.variation, d.xsec, len(d.files), d.n_events) for d in found.datasets
    ]
    header = ("dataset", "process", "variation", "xsec [pb]", "files", "events")
    luminosity = f"{found.luminosity:g} /pb" if found.luminosity else "not stated"
    counted = [d.n_events for d in found.datasets]
    total = sum(n for n in counted if n is not None)
    events = f"{total:,} events" if None not in counted else "events not stated"
    facts = {
        "digest": found.digest,
        "luminosity": found.luminosity,
        "label": found.label,
        "datasets": [dict(zip(header, row, strict=True)) for row in rows],
        "notes": list(found.notes),
    }
    lines = [
        f"{len(rows)} datasets, {found.n_files:,} files, {events}; luminosity {luminosity}",
        *([f"label on figures: {found.label}, unless files say otherwise"] if found.label else []),
        *(f"note: {note}" for note in found.notes),
        f"digest {found.digest}",
    ]
    return Page(facts, [Table("fileset", header, rows), *lines])


def generated(made: Manifest) -> Page:
    """The datasets of a generated set."""
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
    return Page(
        made.model_dump(mode="json", by_alias=True),
        [Table("generated", header, rows), total, f"kept: {made.skim}"],
    )


def comparison(found: Checked) -> Page:
    """Generated against published events."""
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
        for line in found.lines
    ]
    header = ("dataset", "quantity", "found", "+-", "allowed", "verdict", "stated")
    selected = ", ".join(f"{c.dataset} {c.selected:,}" for c in found.comparisons)
    return Page(
        found.facts,
        [Table("generated against published", header, rows), f"selected events: {selected}"],
    )


def filesets(found: Sequence[tuple[Path, Fileset]]) -> Page:
    """The filesets of a folder."""
    rows = [(str(path), len(f.datasets), f.n_files, f.digest[:12]) for path, f in found]
    header = ("file", "datasets", "files", "digest")
    facts = [dict(zip(header, row, strict=True)) for row in rows]
    return Page(facts, [Table("filesets", header, rows)])


def checked(found: Sequence[CheckedFile]) -> Page:
    """The outcome of opening every file."""
    bad = [file for file in found if file.problem is not None]
    files = {(file.dataset, file.lfn): file.entries or 0 for file in found}
    what = f"{len(found)} files"
    if len(files) < len(found):
        what = f"{len(found)} replicas of {len(files)} files"
    good = f"{len(found) - len(bad)} of {what}" if bad else f"all {what}"
    summary = f"{good} are good, {sum(files.values()):,} events"
    n_empty = sum(file.entries == 0 and file.problem is None for file in found)
    if n_empty:
        summary += f"; {n_empty} without any"
    table = Table(
        "bad files", ("dataset", "file", "problem"), [(f.dataset, f.url, f.problem) for f in bad]
    )
    return Page([asdict(file) for file in found], [table, summary] if bad else [summary])


def run(record: RunRecord, fit: FitResult | None = None) -> Page:
    """Tables that ``agc-ml show`` prints of a run, and of its fit."""
    parts: list[Table | str] = [f"status: {record.status}"]
    if fit is not None:
        parts += [str(fit), *fit.facts, *(f"note on the fit: {note}" for note in fit.notes)]
    parts += [f"warning: {warning}" for warning in record.warnings]
    parts += [f"missing: {name}" for name in record.missing[:MAX_ROWS]]
    if len(record.missing) > MAX_ROWS:
        parts.append(f"missing: and {len(record.missing) - MAX_ROWS} more, in ledger.jsonl")
    yields = [
        (region, process, y.value, y.uncertainty)
        for region, processes in record.yields.items()
        for process, y in processes.items()
    ]
    if yields:
        parts.append(Table("yields", ("region", "process", "yield", "stat. uncertainty"), yields))
    if any(row[-1] is None for row in yields):
        parts.append("'-': filled with weights or scaled, in a storage that keeps no variances")
    if record.cutflow:
        parts.append(_cutflow(record.cutflow))
    tables = [
        (f"{name}.parquet", table.rows, len(table.columns), table.digest)
        for name, table in record.tables.items()
    ]
    if tables:
        parts.append(Table("tables", ("file", "rows", "columns", "digest"), tables))
    if record.outputs:
        outputs = [*saved_outputs.lines(record.outputs, MAX_ROWS)]
        parts.append(Table("other outputs of the processor", ("output", "value"), outputs))
    metrics = [
        (name, value, type(record.metrics).model_fields[name].description or "")
        for name, value in record.metrics.model_dump().items()
    ]
    parts.append(Table("metrics", ("metric", "value", "meaning"), metrics))
    parts.append(Table("provenance", ("what", "value"), list(_provenance(record))))
    facts = record.model_dump(mode="json", by_alias=True)
    if fit is not None:
        name, value, beside = fit.measured
        facts["fit"] = {"measured": f"{name} = {value}", "beside": beside, "poi": fit.poi._asdict()}
    return Page(facts, parts)


def _cutflow(cutflow: dict[str, dict[str, float]]) -> Table:
    cuts = list(dict.fromkeys(cut for row in cutflow.values() for cut in row))
    rows = [(name, *(row.get(cut) for cut in cuts)) for name, row in cutflow.items()]
    return Table("cutflow (events, nominal)", ("dataset", *cuts), rows)


def _provenance(record: RunRecord) -> Iterable[tuple[str, str]]:
    made = record.provenance
    yield "processor", made.processor.name
    yield "parameters", ", ".join(f"{k}={v}" for k, v in made.processor.parameters.items())
    for name, sha256 in made.models.items():
        yield f"model {name}", sha256
    yield "code", made.processor.code
    yield "fileset", made.fileset
    unused = "" if record.luminosity is not None else ", which nothing is scaled to"
    stated = "not stated" if made.luminosity is None else f"{made.luminosity:g} /pb{unused}"
    yield "luminosity", stated
    yield "events of", "not known" if made.label is None else made.label
    yield "cluster", f"{made.cluster.kind}, {made.cluster.workers} workers"
    yield "chunk size", str(made.chunk_size)
    if made.git is not None:
        yield "git", made.git.commit + (" with changes" if made.git.dirty else "")
    yield "versions", ", ".join(f"{k} {v}" for k, v in made.versions.items())
    yield "time", f"{made.start} to {made.stop}"
    yield "command", " ".join(made.command)


def differences(found: Sequence[Difference], shared: int, unknown: Sequence[str] = ()) -> Page:
    """The outcome of a comparison, the worst first; ``unknown`` are variances in both."""
    facts = [{**difference._asdict(), "size": str(difference.size)} for difference in found]
    lines = [str(difference) for difference in found[:MAX_ROWS]]
    if len(found) > MAX_ROWS:
        lines.append(f"and {len(found) - MAX_ROWS} more")
    if unknown:
        more = ", ..." if len(unknown) > MAX_ROWS else ""
        lines.append(
            f"variances are unknown in both, and only contents were compared, of {len(unknown)} "
            f"histograms: {', '.join(unknown[:MAX_ROWS])}{more}"
        )
    summary = f"{shared} histograms in both, {len(found)} differences"
    return Page(facts, [*lines, summary])


def verdicts(found: Sequence[Verdict]) -> Page:
    """What files and folders are, a line each."""
    lines = [
        f"{v.path}: {v.kind}, {'good' if v.problem is None else 'bad'}: {v.problem or v.summary}"
        for v in found
    ]
    facts = [{**asdict(verdict), "path": str(verdict.path)} for verdict in found]
    return Page(facts, lines)
