"""Tables of a run that its report and the command line have in common."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from agc_ml.presentation.page import Amount, Table
from agc_ml.results import saved_outputs

if TYPE_CHECKING:
    from agc_ml.results.run_record import RunRecord


def cutflow(record: RunRecord) -> Table:
    """Events of each dataset after each cut."""
    cuts = list(dict.fromkeys(cut for row in record.cutflow.values() for cut in row))
    rows = [(dataset, *map(row.get, cuts)) for dataset, row in record.cutflow.items()]
    return Table("cutflow (events, nominal)", ("dataset", *cuts), rows)


def metrics(record: RunRecord) -> Table:
    """Time, rates, data volume and memory of a run."""
    rows = []
    for name, field in type(record.metrics).model_fields.items():
        value = getattr(record.metrics, name)
        rows.append((name, Amount(value, _with_unit(name, value)), field.description or ""))
    return Table("metrics", ("metric", "value", "meaning"), rows)


def _with_unit(name: str, value: float) -> str:
    if name == "bytes_read":
        return megabytes(int(value))
    for suffix, unit in (("_per_s_per_core", "events/s"), ("_per_s", "events/s"), ("_s", "s")):
        if name.endswith(suffix):
            return f"{value:,.1f} {unit}"
    return f"{value:,.1f} MB" if name.endswith("_mb") else f"{value:,}"


def megabytes(number: int) -> str:
    """Bytes as MB, to a tenth."""
    return f"{number / 1e6:,.1f} MB"


def outputs(record: RunRecord, most: int) -> Table:
    """Other outputs of the processor, ``most`` of them."""
    rows = saved_outputs.lines(record.outputs, most)
    return Table("other outputs of the processor", ("output", "value"), rows)


def provenance(record: RunRecord) -> Table:
    """Processor, inputs, code and place of a run."""
    made = record.provenance
    processor, cluster, git = made.processor, made.cluster, made.git
    unused = "" if record.luminosity is not None else ", which nothing is scaled to"
    luminosity = "not stated" if made.luminosity is None else f"{made.luminosity:,.6g} /pb{unused}"
    rows = [
        ("processor", processor.name),
        ("parameters", ", ".join(f"{k}={v}" for k, v in processor.parameters.items())),
        *((f"model {name}", sha256) for name, sha256 in made.models.items()),
        ("code", processor.code),
        ("fileset", made.fileset),
        ("luminosity", luminosity),
        ("events of", made.label or "not known"),
        ("cluster", f"{cluster.kind}, {cluster.workers:,} workers"),
        ("chunk size", str(made.chunk_size)),
    ]
    if git is not None:
        rows.append(("git", git.commit + (" with uncommitted changes" if git.dirty else "")))
    rows += [
        ("versions", ", ".join(f"{name} {version}" for name, version in made.versions.items())),
        ("time", f"{made.start} to {made.stop}"),
        ("command", shlex.join(made.command) or "from Python"),
    ]
    return Table("provenance", ("what", "value"), rows)
