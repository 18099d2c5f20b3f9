"""Looking before running: what a run would read, and whether the files are what they should be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agc_ml import catalogue, cluster, execution, executors, progress
from agc_ml.account import Account, Tick
from agc_ml.catalogue import Facts
from agc_ml.checkpoints import Store
from agc_ml.datasets import Dataset, File, Fileset
from agc_ml.executors import Lost
from agc_ml.inspection import FileInfo, inspect_file
from agc_ml.ml.hook import Bundle, Model
from agc_ml.running import CHUNK_SIZE
from agc_ml.shipping import declared_columns, prepare
from agc_ml.worker import Failure


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


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A file as it is, and what is wrong with it, None if nothing."""

    dataset: str
    lfn: str
    url: str
    entries: int | None
    uuid: str | None
    size: int | None
    generated: int | None
    problem: str | None


def plan(
    processor: Any,
    fileset: Fileset | str | Path = catalogue.DEMO,
    *,
    settings: Mapping[str, str] | None = None,
    model: str | Path | Model | Bundle | None = None,
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
    shipment = prepare(processor, settings, model)
    loaded = fileset if isinstance(fileset, Fileset) else Fileset.load(fileset)
    account = Account(
        fileset=loaded,
        shipment=shipment,
        store=Store(Path(), {}),
        chunk_size=chunk_size or CHUNK_SIZE,
        on_tick=lambda _: None,
    )
    with executors.connected(None, site, workers) as (executor, where):
        execution.open_some(account, executor)
    return Plan(
        processor=shipment.name,
        chunk_size=account.chunk_size,
        datasets=tuple(_planned(account, dataset.name) for dataset in loaded.datasets),
        columns=account.columns(loaded.datasets[0]),
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


def check(
    fileset: Fileset,
    processor: str | None = None,
    *,
    site: str = cluster.LOCAL,
    workers: int | None = None,
    quiet: bool = False,
) -> list[CheckedFile]:
    """Open every file, in parallel, and compare it with what the fileset says.

    ``processor`` asks for the branches that it needs, too; ``quiet`` shows no progress.

    Raises
    ------
    UsageError
        No such processor or site.
    ClusterError
        No scheduler answers.
    """
    made = prepare(processor).processor if processor is not None else None
    jobs = {
        _key(dataset, file): (file, declared_columns(made, is_data=dataset.is_data))
        for dataset in fileset.datasets
        for file in dataset.files
    }
    outcomes: dict[str, FileInfo | Failure | Lost] = {}
    with (
        executors.connected(None, site, workers) as (executor, _),
        progress.shown(quiet=quiet, pieces="files") as show,
    ):
        bad = 0
        for key, outcome in executor.outcomes(inspect_file, jobs):
            outcomes[key] = outcome
            bad += not isinstance(outcome, FileInfo)
            show(Tick(len(outcomes), len(jobs), 0, 0, bad))
    owners: dict[tuple[str, ...], tuple[str, str]] = {}
    return [
        _checked(dataset, file, outcomes[_key(dataset, file)], owners)
        for dataset in fileset.datasets
        for file in dataset.files
    ]


def _key(dataset: Dataset, file: File) -> str:
    return f"{dataset.name}: {file.lfn}"


def _checked(
    dataset: Dataset,
    file: File,
    outcome: FileInfo | Failure | Lost,
    owners: dict[tuple[str, ...], tuple[str, str]],
) -> CheckedFile:
    """What became of a file; ``owners`` holds where each UUID was seen, and is added to."""
    info = outcome if isinstance(outcome, FileInfo) else None
    problem = outcome.reason if isinstance(outcome, Failure) else None
    if info is None and problem is None:
        problem = "the worker died while it opened the file"
    if info is not None:
        place = (dataset.name, file.lfn)
        first = owners.setdefault((dataset.process, dataset.variation, info.uuid), place)
        if first != place:
            where = "" if first[0] == dataset.name else f" in dataset {first[0]}"
            problem = f"the same file as {first[1]}{where} (UUID {info.uuid})"
        elif not info.entries:
            problem = "no events in it"
    return CheckedFile(
        dataset=dataset.name,
        lfn=file.lfn,
        url=file.url,
        entries=info.entries if info else None,
        uuid=info.uuid if info else None,
        size=info.size if info else None,
        generated=info.generated if info else None,
        problem=problem,
    )


def written_back(fileset: Fileset, checked: Iterable[CheckedFile]) -> Fileset:
    """The fileset with what its check has found, for files that are good.

    Events that a filter dropped are stated where a file tells that there are any.
    """
    facts = {
        (file.dataset, file.lfn): Facts(
            uuid=file.uuid,
            entries=file.entries,
            size=file.size,
            generated=file.generated if (file.generated or 0) > file.entries else None,
        )
        for file in checked
        if file.problem is None
        and file.uuid is not None
        and file.entries is not None
        and file.size is not None
    }
    return catalogue.with_facts(fileset, facts)
