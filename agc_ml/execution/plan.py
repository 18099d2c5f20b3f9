"""Looking before running: what a run would read, and whether the files are what they should be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agc_ml.delivery import routing
from agc_ml.execution import rounds
from agc_ml.execution.cluster import clusters as cluster
from agc_ml.execution.cluster import executors
from agc_ml.execution.processor.declarations import needs_of
from agc_ml.execution.processor.loading import prepare, taken
from agc_ml.execution.run import CHUNK_SIZE
from agc_ml.execution.state.checkpoints import Store
from agc_ml.execution.state.inspection_cache import FileCache
from agc_ml.execution.state.run_state import Account
from agc_ml.inputs import loading
from agc_ml.inputs.fileset import Fileset
from agc_ml.models.model import Bundle, Model


@dataclass(frozen=True, slots=True)
class PlannedDataset:
    """What a run would read of a dataset; ``bytes`` are compressed, None where not known."""

    name: str
    files: int
    events: int
    chunks: int
    columns: int
    bytes: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do; ``columns`` is () when the processor declares none and gets all."""

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
    site: str = cluster.LOCAL,
    workers: int | None = None,
) -> Plan:
    """Say what `run` would do; opens the files, processes nothing. Parameters as of `run`.

    Raises
    ------
    AgcError
        What is wrong with processor, fileset or files.
    """
    shipment = prepare(processor, settings, model, schema)
    loaded = fileset if isinstance(fileset, Fileset) else Fileset.load(fileset)
    loaded = taken(shipment, loaded)
    route = None if via is None else routing.parse(via)
    loaded = routing.deliver(
        loaded, route, lambda d: needs_of(shipment.processor, is_data=d.is_data)
    )
    account = Account(
        fileset=loaded,
        shipment=shipment,
        store=Store(Path(), {}),
        chunk_size=chunk_size or CHUNK_SIZE,
        on_tick=lambda _: None,
        cache=FileCache(),
    )
    with executors.connected(None, site, workers) as (executor, where):
        rounds.open_some(account, executor)
    return Plan(
        processor=shipment.name,
        chunk_size=account.chunk_size,
        datasets=tuple(_planned(account, dataset.name) for dataset in loaded.datasets),
        columns=account.wanted(loaded.datasets[0]).columns,
        cluster=where.kind,
        workers=where.workers,
        unreadable=tuple(reason for reason in account.reasons() if "not processed" not in reason),
    )


def _planned(account: Account, name: str) -> PlannedDataset:
    infos = [info for (dataset, _), info in account.files.items() if dataset == name]
    sizes = [info.column_bytes for info in infos]
    return PlannedDataset(
        name=name,
        files=len(account.dataset(name).files),
        events=sum(info.entries for info in infos),
        chunks=sum(1 for c in account.chunks if c.dataset == name and c.events),
        columns=max((info.n_columns for info in infos), default=0),
        bytes=None if None in sizes else sum(size for size in sizes if size is not None),
    )
