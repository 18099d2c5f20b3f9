"""Result of a run, in memory and as a run directory."""

from __future__ import annotations

import html
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import boost_histogram as bh
import hist
import numpy as np

from agc_ml import documents
from agc_ml.errors import RunDirectoryError
from agc_ml.files import write
from agc_ml.results import histogram_files, saved_outputs, tables, variances
from agc_ml.results.categories import flatten
from agc_ml.results.ledger import Ledger
from agc_ml.results.run_record import (
    RECORD,
    SCHEMA,
    Metrics,
    Provenance,
    RunRecord,
    Status,
    TableSummary,
    Yield,
    cannot_read,
    is_scaled,
    load_record,
    luminosity_of,
)
from agc_ml.results.tables import ColumnTable

OUTPUTS: Final = "outputs.npz"
OUTPUT_HISTOGRAMS: Final = "outputs.zip"
_MAX_OUTPUTS: Final = 1 << 35


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes
    ----------
    hists
        Histogram of each region or observable, with its category axes.
    templates
        Numeric histograms ``{region}_{process}[_{variation}]`` of their categories.
    cutflow
        Number of events after each cut, by dataset, nominal.
    ledger
        Every range of every file, with its status.
    tables
        Tables that the processor extracted.
    scales
        Factor that scaled each simulated dataset to cross-section x luminosity, None if it was not
        scaled; None as a whole if unknown.
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
        """Integrated luminosity in 1/pb to which histograms are scaled, or in which recorded.

        None if it is not stated, or nothing was scaled to it.
        """
        return luminosity_of(self.provenance, self.scales)

    @property
    def is_scaled(self) -> bool:
        """True if simulated datasets are scaled to cross-section x luminosity."""
        return is_scaled(self.provenance, self.scales)

    def yields(self) -> dict[str, dict[str, Yield]]:
        """Return the nominal yield of each region and process, flow included; means have none."""
        yields: dict[str, dict[str, Yield]] = {}
        for region, histogram in self.hists.items():
            names = [axis.name for axis in histogram.axes]
            if not {"process", "variation"} <= {*names} or histogram.kind is bh.Kind.MEAN:
                continue
            for process in histogram.axes["process"]:
                template = self.templates.get(f"{region}_{process}")
                if template is not None:
                    variance = variances.of(template, flow=True)
                    yields.setdefault(region, {})[process] = Yield(
                        value=float(template.values(flow=True).sum()),
                        variance=None if variance is None else float(variance.sum()),
                    )
        return yields

    def record(self) -> RunRecord:
        """Return the content of ``run.json``."""
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
        """Write ledger, histograms as ROOT and zip, outputs, tables as Parquet, then ``run.json``.

        Raises
        ------
        StoreError
            The folder can't be written, or the disk is full.
        """
        write(directory / "ledger.jsonl", lambda path: path.write_text(self.ledger.to_jsonl()))
        if self.hists:
            write(
                directory / "histograms.root",
                lambda path: histogram_files.write_root(path, self.templates),
            )
            write(
                directory / "histograms.zip",
                lambda path: histogram_files.write_zip(path, self.hists, self.templates),
            )
        outputs = saved_outputs.encode(self.outputs)
        if outputs.arrays:
            write(directory / OUTPUTS, lambda path: _write_arrays(path, outputs.arrays))
        if outputs.histograms:
            write(
                directory / OUTPUT_HISTOGRAMS,
                lambda path: histogram_files.write_zip(path, outputs.histograms),
            )
        provenance = self.provenance.model_dump(mode="json")
        for name, table in self.tables.items():
            writer = partial(tables.write, table=table, provenance=provenance)
            write(directory / f"{name}.parquet", writer)
        # the record comes last: it says that the rest is there
        text = self.record().model_dump_json(by_alias=True, indent=1)
        write(directory / RECORD, lambda path: path.write_text(text + "\n"))

    @classmethod
    def load(cls, directory: str | Path) -> RunResult:
        """Read a run directory.

        Raises
        ------
        RunDirectoryError
            It is no run directory, is cut off, or was written by another version.
        """
        path = Path(directory)
        # record and ledger must agree on missing chunks
        record = load_record(path)
        ledger = Ledger.load(path / "ledger.jsonl")
        if record.status == "complete" and ledger.missing:
            raise RunDirectoryError(
                f"{path}: run.json says that it is complete, and ledger.jsonl that "
                f"{ledger.missing[0]} is missing; run again with --overwrite"
            )
        hists: dict[str, hist.Hist[Any]] = {}
        if record.templates or (path / "histograms.zip").exists():
            hists = histogram_files.read_zip(path / "histograms.zip")
        # the record names the templates that exist
        flat = flatten(hists)
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
    with path.open("wb") as file:  # numpy would add an ending to a name
        np.savez(file, **arrays)


def _outputs(directory: Path, content: dict[str, Any]) -> Mapping[Any, Any]:
    arrays: dict[str, Any] = {}
    hists: dict[str, Any] = {}
    try:
        if (directory / OUTPUTS).exists():
            packed = io.BytesIO(documents.content(directory / OUTPUTS, _MAX_OUTPUTS))
            with zipfile.ZipFile(packed) as archive:
                members = archive.infolist()
                if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                    raise ValueError(f"{OUTPUTS} is compressed, which ours never is")
            with np.load(packed, allow_pickle=False) as file:
                arrays = dict(file)
        if (directory / OUTPUT_HISTOGRAMS).exists():
            hists = histogram_files.read_zip(directory / OUTPUT_HISTOGRAMS)
        outputs: Mapping[Any, Any] = saved_outputs.decode(
            saved_outputs.Encoded(content, arrays, hists)
        )
    except OSError as error:
        raise RunDirectoryError(cannot_read(directory / OUTPUTS, error)) from error
    except histogram_files.DAMAGED as error:
        raise RunDirectoryError(
            f"{directory}: outputs of the processor are damaged ({error}); run again with "
            "--overwrite"
        ) from error
    return outputs


def _table(directory: Path, name: str, stated: TableSummary) -> ColumnTable:
    path = directory / f"{name}.parquet"
    stored = tables.read(path)
    if stored.digest != stated.digest:
        raise RunDirectoryError(
            f"{path}: its content is not what run.json states; run again with --overwrite"
        )
    return ColumnTable(stored.columns, stored.about)
