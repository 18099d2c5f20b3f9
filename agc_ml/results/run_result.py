"""What a run gives, in memory and as a run directory."""

from __future__ import annotations

import html
import io
import json
import logging
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import boost_histogram as bh
import hist
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from agc_ml import documents
from agc_ml.errors import RunDirectoryError
from agc_ml.files import write
from agc_ml.results import histograms, saved_outputs, variances
from agc_ml.results import tables as rows
from agc_ml.results.ledger import Ledger
from agc_ml.results.tables import ColumnTable

SCHEMA: Final = 1
OUTPUTS: Final = "outputs.npz"
MOST_RECORD: Final = 1 << 30
"""Bytes of a ``run.json``."""
MOST_LEVELS: Final = 240
_MOST_OUTPUTS: Final = 1 << 35
NEW: Final = ".agc-ml-new"
MOVING: Final = ".agc-ml-moving"
"""Where in a run directory a run is that replaces it: until it stands, and while it moves."""

logger = logging.getLogger(__name__)

Status = Literal["complete", "partial", "failed"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Metrics(_Record):
    """What the run cost. Times in seconds, rates in events/s; the split is summed over workers.

    Events and chunks are those in the histograms; of a run that was resumed, all else is about the
    part after that.
    """

    events: int = Field(0, description="events in the histograms")
    chunks: int = Field(0, description="chunks in the histograms")
    wall_s: float = Field(0.0, description="wall time from start to the reduced histograms")
    cpu_s: float = Field(0.0, description="CPU time of the chunks, summed over workers")
    events_per_s: float = Field(0.0, description="events over wall time")
    events_per_s_per_core: float = Field(0.0, description="events over wall time and workers")
    bytes_read: int = Field(0, description="bytes requested from the files")
    open_s: float = Field(0.0, description="opening files and setting up columns")
    read_s: float = Field(0.0, description="decompressing and decoding columns")
    compute_s: float = Field(0.0, description="the processor, without reading")
    overhead_s: float = Field(0.0, description="wall time times workers less the time in chunks")
    peak_memory_mb: float = Field(0.0, description="largest resident size of a worker, in MB")
    workers: int = Field(0, description="worker processes at the start")
    retries: int = Field(0, description="attempts beyond the first of each chunk")


class DatasetSummary(_Record):
    """What the run was asked to read of a dataset."""

    name: str
    process: str
    variation: str
    is_data: bool
    xsec: float | None = Field(description="cross-section in pb that it is scaled to")
    process_xsec: float | None = Field(
        None, description="cross-section of the process in pb, if xsec is one over a factor"
    )
    files: int
    events: int = Field(description="entries of the files that could be opened")


class ProcessorSummary(_Record):
    """Which processor ran, with which parameters."""

    name: str = Field(description="as the user typed it")
    parameters: dict[str, Any]
    code: str = Field(description="sha256 of its source, with all that it imports of its own")


class ClusterSummary(_Record):
    """Where it ran."""

    kind: str = Field(description="inline, local, or the scheduler's address")
    workers: int


class GitState(_Record):
    """The commit of the checkout that the processor's code comes from."""

    commit: str
    dirty: bool


class NamedModel(_Record):
    """A model of a registry: as it was asked for, and what that was when the run began."""

    asked: str = Field(description="jet_assignment@champion")
    found: str = Field(description="jet_assignment@3")


class OpenedFile(_Record):
    """A file that the processor opened while it worked."""

    size: int = Field(description="bytes")
    modified: int = Field(description="time of modification, ns since 1970")
    sha256: str | None = Field(description="None of files above 64 MB")


class Provenance(_Record):
    """What decides the result: inputs, code, versions, and how it was asked for."""

    fileset: str = Field(description="digest of the fileset")
    luminosity: float | None = Field(description="integrated luminosity in 1/pb")
    label: str | None = Field(None, description="whose events they are, null if not known")
    datasets: tuple[DatasetSummary, ...]
    processor: ProcessorSummary
    files: dict[str, str] = Field(
        default_factory=dict, description="files that the processor declares -> sha256"
    )
    opened: dict[str, OpenedFile] = Field(
        default_factory=dict, description="other files that it opened, by path"
    )
    models: dict[str, str] = Field(default_factory=dict, description="model -> sha256")
    model: NamedModel | None = Field(
        default=None, description="what was asked for by name, if it was"
    )
    versions: dict[str, str] = Field(description="Python and the packages that decide results")
    git: GitState | None
    cluster: ClusterSummary
    chunk_size: int
    start: str = Field(description="UTC, ISO 8601")
    stop: str = Field(description="UTC, ISO 8601")
    command: tuple[str, ...] = Field(description="the command line, or () from Python")


class Yield(_Record):
    """Sum of a nominal template, flow included, and its variance."""

    value: float
    variance: float | None = Field(description="null where it is not known")

    @property
    def uncertainty(self) -> float | None:
        """Square root of the variance, None where it is not known."""
        if self.variance is None:
            return None
        return math.sqrt(self.variance) if self.variance >= 0 else math.nan

    def __str__(self) -> str:
        uncertainty = "?" if self.uncertainty is None else f"{self.uncertainty:,.1f}"
        return f"{self.value:,.1f} ± {uncertainty}"


class TableSummary(_Record):
    """A table of the run: ``{name}.parquet``."""

    rows: int
    columns: tuple[str, ...]
    digest: str = Field(description="sha256 of what it is about and of its values")


class RunRecord(_Record):
    """The content of ``run.json``."""

    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    status: Status
    metrics: Metrics
    yields: dict[str, dict[str, Yield]] = Field(description="region -> process -> nominal yield")
    cutflow: dict[str, dict[str, float]] = Field(description="dataset -> cut -> events")
    warnings: tuple[str, ...]
    missing: tuple[str, ...] = Field(description="ranges that are not in the histograms")
    templates: tuple[str, ...] = Field(
        description="names of the templates; those of up to three axes are in histograms.root"
    )
    tables: dict[str, TableSummary] = Field(
        default_factory=dict, description="tables, each in a Parquet file"
    )
    scales: dict[str, float | None] | None = Field(
        None,
        description="factor by which each simulated dataset was scaled to cross-section x "
        "luminosity; null where none was, and as a whole in runs of versions that did not say",
    )
    outputs: dict[str, Any] = Field(
        description="what else the processor gave, as agc_ml.results.saved_outputs describes it"
    )
    provenance: Provenance

    @field_validator("tables")
    @classmethod
    def _are_names(cls, tables: dict[str, TableSummary]) -> dict[str, TableSummary]:
        for name in tables:
            if not rows.is_name(name):
                raise ValueError(f"{name!r:.80} is no name of a table")
        return tables

    @property
    def luminosity(self) -> float | None:
        """Integrated luminosity as in `RunResult`."""
        return _luminosity(self.provenance, self.scales)


def _luminosity(provenance: Provenance, scales: Mapping[str, float | None] | None) -> float | None:
    is_recorded = all(dataset.is_data for dataset in provenance.datasets)
    return provenance.luminosity if _is_scaled(provenance, scales) or is_recorded else None


def _is_scaled(provenance: Provenance, scales: Mapping[str, float | None] | None) -> bool:
    return provenance.luminosity is not None and (scales is None or any(scales.values()))


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes
    ----------
    hists
        Histogram of each region or observable, with its category axes.
    templates
        The same taken apart: ``{region}_{process}[_{variation}]`` -> numeric histogram.
    cutflow
        Events that pass each cut, by dataset, nominal.
    ledger
        Every range of every file, with what became of it.
    tables
        Tables that the processor extracted.
    scales
        Factor that scaled each simulated dataset to cross-section x luminosity, None if none did;
        None as a whole if it is not known.
    """

    status: Status
    hists: Mapping[str, hist.Hist[Any]]
    templates: Mapping[str, hist.Hist[Any]]
    cutflow: Mapping[str, Mapping[str, float]]
    ledger: Ledger
    metrics: Metrics
    provenance: Provenance
    warnings: tuple[str, ...] = ()
    outputs: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, ColumnTable] = field(default_factory=dict)
    scales: Mapping[str, float | None] | None = None
    path: Path | None = None

    @property
    def luminosity(self) -> float | None:
        """Integrated luminosity in 1/pb that the histograms are scaled to or recorded in.

        None where it is not stated, or nothing was scaled to it.
        """
        return _luminosity(self.provenance, self.scales)

    @property
    def is_scaled(self) -> bool:
        """True if simulated datasets are scaled to cross-section x luminosity."""
        return _is_scaled(self.provenance, self.scales)

    def yields(self) -> dict[str, dict[str, Yield]]:
        """Nominal yield of each region and process, flow included; means have none."""
        found: dict[str, dict[str, Yield]] = {}
        for region, histogram in self.hists.items():
            names = [axis.name for axis in histogram.axes]
            if not {"process", "variation"} <= {*names} or histogram.kind is bh.Kind.MEAN:
                continue
            for process in histogram.axes["process"]:
                template = self.templates.get(f"{region}_{process}")
                if template is not None:
                    spread = variances.of(template, flow=True)
                    found.setdefault(region, {})[process] = Yield(
                        value=float(template.values(flow=True).sum()),
                        variance=None if spread is None else float(spread.sum()),
                    )
        return found

    def record(self) -> RunRecord:
        """What stands in ``run.json``."""
        return RunRecord(
            schema=SCHEMA,
            status=self.status,
            metrics=self.metrics,
            yields=self.yields(),
            cutflow={name: dict(cuts) for name, cuts in self.cutflow.items()},
            warnings=self.warnings,
            missing=tuple(str(entry) for entry in self.ledger.missing),
            templates=tuple(self.templates),
            tables={
                name: TableSummary(rows=len(table), columns=table.names, digest=table.digest)
                for name, table in self.tables.items()
            },
            scales=None if self.scales is None else dict(self.scales),
            outputs=saved_outputs.encode(self.outputs).content,
            provenance=self.provenance,
        )

    def save(self, directory: Path) -> None:
        """Write ``ledger.jsonl``, histograms as ROOT and zip, tables as Parquet, then ``run.json``.

        Raises
        ------
        StoreError
            The folder can't be written, or the disk is full.
        """
        write(directory / "ledger.jsonl", lambda path: path.write_text(self.ledger.to_jsonl()))
        if self.hists:
            write(
                directory / "histograms.root",
                lambda path: histograms.write_root(path, self.templates),
            )
            write(
                directory / "histograms.zip",
                lambda path: histograms.write_zip(path, self.hists, self.templates),
            )
        kept = saved_outputs.encode(self.outputs)
        if kept.arrays:
            write(directory / OUTPUTS, lambda path: _write_arrays(path, kept.arrays))
        if kept.histograms:
            write(
                directory / "outputs.zip",
                lambda path: histograms.write_zip(path, kept.histograms),
            )
        made_of = self.provenance.model_dump(mode="json")
        for name, table in self.tables.items():
            write(
                directory / f"{name}.parquet",
                lambda path, table=table: rows.write(path, table, made_of),  # type: ignore[misc]
            )
        text = self.record().model_dump_json(by_alias=True, indent=1)
        write(directory / "run.json", lambda path: path.write_text(text + "\n"))

    @classmethod
    def load(cls, directory: str | Path) -> RunResult:
        """Read a run directory.

        Raises
        ------
        RunDirectoryError
            It is no run directory, is cut off, or was written by another version.
        """
        path = Path(directory)
        record = load_record(path)
        ledger = Ledger.load(path / "ledger.jsonl")
        if record.status == "complete" and ledger.missing:
            raise RunDirectoryError(
                f"{path}: run.json says that it is complete, and ledger.jsonl that "
                f"{ledger.missing[0]} is missing; run again with --overwrite"
            )
        hists: dict[str, hist.Hist[Any]] = {}
        if record.templates or (path / "histograms.zip").exists():
            hists = histograms.read_zip(path / "histograms.zip")
        flat = histograms.flatten(hists)
        lacking = [name for name in record.templates if name not in flat]
        if lacking:
            raise RunDirectoryError(
                f"{path}: histograms.zip lacks {lacking[0]}, which run.json names; run again with "
                "--overwrite"
            )
        return cls(
            status=record.status,
            hists=hists,
            templates={name: flat[name] for name in record.templates},
            cutflow=record.cutflow,
            ledger=ledger,
            metrics=record.metrics,
            provenance=record.provenance,
            warnings=record.warnings,
            outputs=_outputs(path, record.outputs),
            tables={name: _table(path, name, stated) for name, stated in record.tables.items()},
            scales=record.scales,
            path=path,
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(region)}</td><td>{html.escape(process)}</td>"
            f"<td style='text-align:right'>{y}</td></tr>"
            for region, processes in self.yields().items()
            for process, y in processes.items()
        )
        return (
            f"<p><b>{self.status}</b>: {self.metrics.events:,} events in {self.metrics.chunks:,} "
            f"chunks, {self.metrics.events_per_s:,.0f} events/s; {html.escape(str(self.path))}</p>"
            f"<table><tr><th>region</th><th>process</th><th>yield</th></tr>{rows}</table>"
        )


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    import numpy as np  # noqa: PLC0415 - heavy

    with path.open("wb") as file:  # a name would get another ending
        np.savez(file, **arrays)


def _outputs(directory: Path, content: dict[str, Any]) -> Mapping[Any, Any]:
    import numpy as np  # noqa: PLC0415 - heavy

    arrays: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    try:
        if (directory / OUTPUTS).exists():
            packed = io.BytesIO(documents.content(directory / OUTPUTS, _MOST_OUTPUTS))
            with zipfile.ZipFile(packed) as archive:
                if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                    raise ValueError(f"{OUTPUTS} is compressed, which ours never is")
            with np.load(packed, allow_pickle=False) as file:
                arrays = dict(file)
        if (directory / "outputs.zip").exists():
            kept = histograms.read_zip(directory / "outputs.zip")
        found: Mapping[Any, Any] = saved_outputs.decode(
            saved_outputs.Encoded(content, arrays, kept)
        )
    except OSError as error:
        raise RunDirectoryError(_cannot_read(directory / OUTPUTS, error)) from error
    except histograms.DAMAGED as error:
        raise RunDirectoryError(
            f"{directory}: outputs of the processor are damaged ({error}); run again with "
            "--overwrite"
        ) from error
    return found


def _table(directory: Path, name: str, stated: TableSummary) -> ColumnTable:
    path = directory / f"{name}.parquet"
    found = rows.read(path)
    if found.digest != stated.digest:
        raise RunDirectoryError(
            f"{path}: its content is not what run.json says; run again with --overwrite"
        )
    return ColumnTable(found.columns, found.about)


def load_record(directory: Path) -> RunRecord:
    """Read and check ``run.json`` of a run directory.

    Raises
    ------
    RunDirectoryError
        It is missing, can't be read, is cut off, or was written by another version.
    """
    path = directory / "run.json"
    is_replaced = any((directory / name).is_dir() for name in (NEW, MOVING))
    try:
        raw = json.loads(documents.content(path, MOST_RECORD))
        if is_replaced:
            logger.warning(
                "%s: a run that replaces this one is unfinished, and here are the results before "
                "it; the command that began it goes on with --resume",
                directory,
            )
    except (FileNotFoundError, NotADirectoryError) as error:
        if is_replaced:
            raise RunDirectoryError(
                f"{directory}: a run that replaces another one was stopped while it was put in "
                "place; the command that began it goes on with --resume"
            ) from error
        raise RunDirectoryError(
            f"{directory}: not a run directory (no run.json in it); 'agc-ml run' makes one"
        ) from error
    except OSError as error:
        raise RunDirectoryError(_cannot_read(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise RunDirectoryError(
            f"{path}: cut off, or no record ({error}); run again with --overwrite"
        ) from error
    version = raw.get("schema") if isinstance(raw, dict) else None
    if version != SCHEMA:
        raise RunDirectoryError(
            f"{path}: schema {version!r}, this agc-ml reads schema {SCHEMA}; use the agc-ml that "
            "wrote it, or run again"
        )
    if saved_outputs.is_deeper(raw, MOST_LEVELS):
        raise RunDirectoryError(f"{path}: nested more than {MOST_LEVELS} levels; run again")
    try:
        return RunRecord.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunDirectoryError(f"{path}: field {where}: {first['msg']}; run again") from error


def _cannot_read(path: Path, error: OSError) -> str:
    return f"{path}: can't be read ({error.strerror or error}); see that it can, and try again"
