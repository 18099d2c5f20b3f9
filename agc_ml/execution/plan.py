"""`plan`: what a run would read, without processing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agc_ml.delivery import routing
from agc_ml.execution import rounds
from agc_ml.execution.cluster import clusters
from agc_ml.execution.cluster.connection import ClusterOptions, connect_executor
from agc_ml.execution.processor.declarations import needs_of, select_datasets
from agc_ml.execution.processor.loading import load_processor
from agc_ml.execution.run import CHUNK_SIZE
from agc_ml.execution.state.checkpoints import CheckpointStore
from agc_ml.execution.state.inspection_cache import InspectionCache
from agc_ml.execution.state.run_state import RunState
from agc_ml.inputs import loading
from agc_ml.inputs.fileset import Fileset
from agc_ml.models.model import Bundle, Model


@dataclass(frozen=True, slots=True)
class PlannedDataset:
    """Files, events, chunks and columns of a dataset; ``bytes`` are compressed, None if unknown."""

    name: str
    files: int
    events: int
    chunks: int
    columns: int
    bytes: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Work of a run; ``columns`` is () when the processor declares none and gets all."""

    processor: str
    chunk_size: int
    datasets: tuple[PlannedDataset, ...]
    columns: tuple[str, ...]
    cluster: str
    workers: int
    unreadable: tuple[str, ...]


def plan(
    processor: Any,
    fileset: Fileset | str | Path = loading.DEMO,
    *,
    settings: Mapping[str, str] | None = None,
    model: str | Path | Model | Bundle | None = None,
    schema: str | type | None = None,
    via: str | None = None,
    chunk_size: int | None = None,
    site: str = clusters.LOCAL,
    workers: int | None = None,
) -> Plan:
    """Return the plan of a `run` with the same parameters; open the files, process nothing.

    Raises
    ------
    AgcError
        Processor, fileset or files have a fault.
    """
    loaded = load_processor(processor, settings, model, schema)
    instance = loaded.instance
    inputs = fileset if isinstance(fileset, Fileset) else Fileset.load(fileset)
    inputs = select_datasets(loaded.name, instance, inputs)
    route = None if via is None else routing.parse(via)
    inputs = routing.deliver(inputs, route, lambda d: needs_of(instance, is_data=d.is_data))
    state = RunState(
        fileset=inputs,
        processor=loaded,
        store=CheckpointStore(Path(), {}),
        chunk_size=chunk_size or CHUNK_SIZE,
        on_progress=lambda _: None,
        cache=InspectionCache(),
    )
    with connect_executor(ClusterOptions(site=site, workers=workers)) as (executor, cluster):
        rounds.open_with_retries(state, executor)
    return Plan(
        processor=loaded.name,
        chunk_size=state.chunk_size,
        datasets=tuple(_planned(state, dataset.name) for dataset in inputs.datasets),
        columns=state.wanted(inputs.datasets[0]).columns,
        cluster=cluster.kind,
        workers=cluster.workers,
        unreadable=tuple(reason for reason in state.reasons() if "not processed" not in reason),
    )


def _planned(state: RunState, name: str) -> PlannedDataset:
    infos = [info for (dataset, _), info in state.files.items() if dataset == name]
    sizes = [info.column_bytes for info in infos]
    return PlannedDataset(
        name=name,
        files=len(state.dataset(name).files),
        events=sum(info.entries for info in infos),
        chunks=sum(1 for c in state.chunks if c.dataset == name and c.events),
        columns=max((info.n_columns for info in infos), default=0),
        bytes=None if None in sizes else sum(size for size in sizes if size is not None),
    )
