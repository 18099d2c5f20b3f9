"""Record of a run, ``run.json``: status, metrics, yields, cutflow, provenance."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from agc_ml import documents
from agc_ml.errors import RunDirectoryError
from agc_ml.results import saved_outputs
from agc_ml.results.tables import is_name

SCHEMA: Final = 1
RECORD: Final = "run.json"
MAX_RECORD: Final = 1 << 30
"""Largest size of a ``run.json``, in bytes."""
MAX_LEVELS: Final = 240
NEW: Final = ".agc-ml-new"
MOVING: Final = ".agc-ml-moving"
"""Folders, in a run directory, of a run that replaces it: until it is complete, while it moves."""

logger = logging.getLogger(__name__)

Status = Literal["complete", "partial", "failed"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Metrics(_Record):
    """Cost of the run: times in s, rates in events/s; open, read and compute summed over workers.

    Events and chunks are those in the histograms; for a resumed run, all else is about the part
    after it resumed.
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
    """Dataset of the run, as selected."""

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
    """Processor of the run, with its parameters."""

    name: str = Field(description="as given by the user")
    parameters: dict[str, Any]
    code: str = Field(
        description="sha256 of its source and of the modules beside it that it imports"
    )


class ClusterSummary(_Record):
    """Cluster of the run."""

    kind: str = Field(description="inline, local, or the scheduler's address")
    workers: int


class GitState(_Record):
    """Commit of the checkout with the processor's code."""

    commit: str
    dirty: bool


class NamedModel(_Record):
    """Model of a registry: name as given, and its version when the run began."""

    asked: str = Field(description="NAME@champion")
    found: str = Field(description="NAME@3")


class OpenedFile(_Record):
    """File that the processor opened while it ran."""

    size: int = Field(description="bytes")
    modified: int = Field(description="time of modification, ns since 1970")
    sha256: str | None = Field(description="None of files above 64 MB")


class Provenance(_Record):
    """Inputs, code, versions and command that decide the result."""

    fileset: str = Field(description="digest of the fileset")
    luminosity: float | None = Field(description="integrated luminosity in 1/pb")
    label: str | None = Field(None, description="whose events these are, null if unknown")
    datasets: tuple[DatasetSummary, ...]
    processor: ProcessorSummary
    files: dict[str, str] = Field(
        default_factory=dict, description="files that the processor declares -> sha256"
    )
    opened: dict[str, OpenedFile] = Field(
        default_factory=dict, description="other files that it opened, by path"
    )
    models: dict[str, str] = Field(default_factory=dict, description="model -> sha256")
    model: NamedModel | None = Field(default=None, description="model given by name, if any")
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
    variance: float | None = Field(description="null if unknown")

    @property
    def uncertainty(self) -> float | None:
        """Square root of the variance, None if it is unknown."""
        if self.variance is None:
            return None
        return math.sqrt(self.variance) if self.variance >= 0 else math.nan

    def __str__(self) -> str:
        uncertainty = "?" if self.uncertainty is None else f"{self.uncertainty:,.1f}"
        return f"{self.value:,.1f} ± {uncertainty}"


class TableSummary(_Record):
    """Table of the run: ``{name}.parquet``."""

    rows: int
    columns: tuple[str, ...]
    digest: str = Field(description="sha256 of its description and values")


class RunRecord(_Record):
    """Content of ``run.json``."""

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
        "luminosity; null if it was not, and as a whole in runs of older versions",
    )
    outputs: dict[str, Any] = Field(
        description="other outputs of the processor, as of agc_ml.results.saved_outputs"
    )
    provenance: Provenance

    @field_validator("tables")
    @classmethod
    def _check_names(cls, tables: dict[str, TableSummary]) -> dict[str, TableSummary]:
        for name in tables:
            if not is_name(name):
                raise ValueError(f"{name!r:.80} is not a valid name of a table")
        return tables

    @property
    def luminosity(self) -> float | None:
        """Integrated luminosity in 1/pb, as of `RunResult`."""
        return luminosity_of(self.provenance, self.scales)


def luminosity_of(
    provenance: Provenance, scales: Mapping[str, float | None] | None
) -> float | None:
    """Return the luminosity in 1/pb of histograms scaled to it or recorded in it, else None."""
    is_recorded = all(dataset.is_data for dataset in provenance.datasets)
    return provenance.luminosity if is_scaled(provenance, scales) or is_recorded else None


def is_scaled(provenance: Provenance, scales: Mapping[str, float | None] | None) -> bool:
    """Return whether simulated datasets are scaled to cross-section x luminosity."""
    return provenance.luminosity is not None and (scales is None or any(scales.values()))


def load_record(directory: Path) -> RunRecord:
    """Read and check ``run.json`` of a run directory.

    Raises
    ------
    RunDirectoryError
        It is missing, can't be read, is cut off, or was written by another version.
    """
    path = directory / RECORD
    is_replaced = any((directory / name).is_dir() for name in (NEW, MOVING))
    try:
        raw = json.loads(documents.content(path, MAX_RECORD))
        if is_replaced:
            logger.warning(
                "%s: a run that replaces this one is unfinished, and these are the old results; "
                "continue it with its command and --resume",
                directory,
            )
    except (FileNotFoundError, NotADirectoryError) as error:
        if is_replaced:
            raise RunDirectoryError(
                f"{directory}: a run that replaces another one was stopped while it moved into "
                "place; continue it with its command and --resume"
            ) from error
        raise RunDirectoryError(
            f"{directory}: not a run directory (no run.json in it); 'agc-ml run' makes one"
        ) from error
    except OSError as error:
        raise RunDirectoryError(cannot_read(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise RunDirectoryError(
            f"{path}: cut off, or not a record ({error}); run again with --overwrite"
        ) from error
    # version first: the fields of another one would be reported as errors
    version = raw.get("schema") if isinstance(raw, dict) else None
    if version != SCHEMA:
        raise RunDirectoryError(
            f"{path}: schema {version!r}, this version reads schema {SCHEMA}; use the agc-ml "
            "version that wrote it, or run again"
        )
    if saved_outputs.is_deeper(raw, MAX_LEVELS):
        raise RunDirectoryError(f"{path}: nested more than {MAX_LEVELS} levels; run again")
    try:
        return RunRecord.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunDirectoryError(f"{path}: field {where}: {first['msg']}; run again") from error


def cannot_read(path: Path, error: OSError) -> str:
    """Return the message for a file of a run directory that can't be read."""
    return f"{path}: can't be read ({error.strerror or error}); check its permissions and try again"
