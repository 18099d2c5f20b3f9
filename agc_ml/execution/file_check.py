"""`fileset check`: open every replica of every file, and compare it with the fileset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agc_ml.delivery import routing
from agc_ml.errors import UsageError
from agc_ml.execution.cluster import clusters
from agc_ml.execution.cluster.connection import ClusterOptions, connect_executor
from agc_ml.execution.cluster.executors import WorkerDied
from agc_ml.execution.inspection import FileInfo, inspect_file, inspection_arguments
from agc_ml.execution.processor.declarations import select_datasets, wanted_of
from agc_ml.execution.processor.loading import LoadedProcessor, load_processor
from agc_ml.execution.progress import Progress, show_progress
from agc_ml.execution.worker.job import Failure
from agc_ml.inputs.columns import ColumnRequest
from agc_ml.inputs.datasets import Dataset, File, FileFacts, plain_tree
from agc_ml.inputs.fileset import Fileset
from agc_ml.transports.credentials import redacted

Outcome = FileInfo | Failure | WorkerDied


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A replica of a file as it is, and its problem, None if there is none."""

    dataset: str
    lfn: str
    url: str
    entries: int | None
    uuid: str | None
    size: int | None
    generated: int | None
    adler32: str | None
    problem: str | None


def check(
    fileset: Fileset,
    processor: str | None = None,
    *,
    settings: Mapping[str, str] | None = None,
    model: str | None = None,
    schema: str | None = None,
    via: str | None = None,
    checksums: bool = False,
    site: str = clusters.LOCAL,
    workers: int | None = None,
    quiet: bool = False,
) -> list[CheckedFile]:
    """Open every replica of every file, in parallel; compare with the fileset and each other.

    With a ``processor`` also check the columns that it needs, of the datasets that it takes;
    ``settings``, ``model``, ``schema`` and ``via`` are as of `agc_ml.run`. ``checksums`` reads each
    replica whole, for its adler32; ``quiet`` shows no progress. Files without events are good where
    others have some.

    Raises
    ------
    UsageError
        No such processor, route or site; or there are settings and no processor.
    FilesetError
        A file has no replica for the route.
    ClusterError
        No scheduler answers.
    """
    if processor is None and (settings or model or schema):
        raise UsageError(
            "--set, --model and --schema are for a processor; name it with --processor"
        )
    loaded = None if processor is None else load_processor(processor, settings, model, schema)
    if loaded is not None:
        fileset = select_datasets(loaded.name, loaded.instance, fileset)
    route = None if via is None else routing.parse(via)
    if route is not None and route.kind == routing.SERVICEX:
        raise UsageError(
            "--via servicex: files are checked at their place, not as ServiceX delivers them; omit "
            "the option"
        )
    replicas = list(_replicas(routing.deliver(fileset, route)))
    jobs = {
        str(number): inspection_arguments(file, _wanted(loaded, dataset), checksum=checksums)
        for number, (dataset, file) in enumerate(replicas)
    }
    cluster = ClusterOptions(site=site, workers=workers)
    outcomes = _inspect(jobs, cluster, quiet=quiet)
    # empty files are bad only if all are
    infos = [outcome for outcome in outcomes if isinstance(outcome, FileInfo)]
    has_events = len(infos) < len(outcomes) or any(info.entries for info in infos)
    owners: dict[tuple[str, ...], tuple[str, str]] = {}
    siblings: dict[tuple[str, str], CheckedFile] = {}
    checked = []
    for (dataset, file), outcome in zip(replicas, outcomes, strict=True):
        result = _checked(dataset, file, outcome, owners)
        if result.problem is None and not has_events:
            result = replace(result, problem="no events in it, nor in any other")
        if result.problem is None:
            first = siblings.setdefault((dataset.name, file.lfn), result)
            result = _compare_with_sibling(result, first)
        checked.append(result)
    return checked


def _inspect(
    jobs: Mapping[str, tuple[Any, ...]], cluster: ClusterOptions, *, quiet: bool
) -> list[Outcome]:
    """Inspect replicas in parallel."""
    outcomes: dict[str, Outcome] = {}
    bad = 0
    with (
        connect_executor(cluster) as (executor, _),
        show_progress(quiet=quiet, pieces="files") as show,
    ):
        for key, outcome in executor.outcomes(inspect_file, jobs):
            outcomes[key] = outcome
            bad += not isinstance(outcome, FileInfo)
            show(Progress(len(outcomes), len(jobs), failures=bad))
    return [outcomes[key] for key in jobs]


def _wanted(loaded: LoadedProcessor | None, dataset: Dataset) -> ColumnRequest:
    """Columns that `run` would need of the files of a dataset."""
    if loaded is None:
        return ColumnRequest()
    return wanted_of(loaded.instance, loaded.schema, is_data=dataset.is_data)


def _replicas(fileset: Fileset) -> Iterator[tuple[Dataset, File]]:
    for dataset in fileset.datasets:
        for file in dataset.files:
            for url in file.replicas:
                yield dataset, replace(file, replicas=(url,))


def _checked(
    dataset: Dataset, file: File, outcome: Outcome, owners: dict[tuple[str, ...], tuple[str, str]]
) -> CheckedFile:
    """Result for a replica; ``owners`` has the first place of each tree, and is added to."""
    info = outcome if isinstance(outcome, FileInfo) else None
    problem = outcome.reason if isinstance(outcome, Failure) else None
    if info is None and problem is None:
        problem = "the worker died while it opened the file"
    if info is not None:
        place = (dataset.name, file.lfn)
        events = (dataset.process, dataset.variation, info.uuid, plain_tree(file.tree))
        first = owners.setdefault(events, place)
        if first != place:
            where = "" if first[0] == dataset.name else f" in dataset {first[0]}"
            problem = f"the same file as {first[1]}{where} (UUID {info.uuid})"
        elif info.uneven:
            others = len(info.uneven) - 1
            problem = info.uneven[0] + (f" (and {others} more branches)" if others else "")
    return CheckedFile(
        dataset=dataset.name,
        lfn=file.lfn,
        url=redacted(file.url),
        entries=info.entries if info else None,
        uuid=info.uuid if info else None,
        size=info.size if info else None,
        generated=info.generated if info else None,
        adler32=info.adler32 if info else None,
        problem=problem,
    )


def _compare_with_sibling(result: CheckedFile, first: CheckedFile) -> CheckedFile:
    """Add a problem to a replica that differs from the first good one of its file."""
    for field in ("uuid", "entries", "size", "adler32"):
        value, other = getattr(result, field), getattr(first, field)
        if value != other:
            problem = f"its {field} is {value}, that of its replica {first.url} {other}: remove one"
            return replace(result, problem=problem)
    return result


def written_back(fileset: Fileset, checked: Iterable[CheckedFile]) -> Fileset:
    """Return the fileset with the facts of its good files.

    ``generated`` is added where a file states that a filter dropped events.
    """
    facts = {
        (file.dataset, file.lfn): FileFacts(
            uuid=file.uuid,
            entries=file.entries,
            size=file.size,
            adler32=file.adler32,
            generated=file.generated if (file.generated or 0) > file.entries else None,
        )
        for file in checked
        if file.problem is None
        and file.uuid is not None
        and file.entries is not None
        and file.size is not None
    }
    return fileset.with_facts(facts)
