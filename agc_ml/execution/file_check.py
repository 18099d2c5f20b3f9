"""Whether the files of a fileset are what it says, in every replica."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from agc_ml.delivery import routing
from agc_ml.errors import UsageError
from agc_ml.execution.cluster import clusters, executors, progress
from agc_ml.execution.cluster.executors import Lost
from agc_ml.execution.inspection import FileInfo, inspect_file, look
from agc_ml.execution.processing import Failure
from agc_ml.execution.processor.declarations import wanted_of
from agc_ml.execution.processor.loading import Shipment, prepare, taken
from agc_ml.execution.state.run_state import Tick
from agc_ml.inputs.columns import ColumnRequest
from agc_ml.inputs.datasets import Dataset, File, FileFacts, plain_tree
from agc_ml.inputs.fileset import Fileset
from agc_ml.transports.credentials import redacted

Outcome = FileInfo | Failure | Lost


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A replica of a file as it is, and what is wrong with it, None if nothing."""

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

    ``processor`` asks for the branches that it needs, too, of the datasets that it takes;
    ``settings``, ``model`` and ``schema`` are for it, and they and ``via``, the route to the files,
    are as of `agc_ml.run`. ``checksums`` reads each replica whole, for its adler32; ``quiet`` shows
    no progress. Files without events are good where others have some.

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
    made = None if processor is None else prepare(processor, settings, model, schema)
    if made is not None:
        fileset = taken(made, fileset)
    route = None if via is None else routing.parse(via)
    if route is not None and route.kind == routing.SERVICEX:
        raise UsageError(
            "--via servicex: files are checked where they are, and ServiceX makes others of them; "
            "leave the option out"
        )
    delivered = routing.deliver(fileset, route)
    replicas = list(_replicas(delivered))
    jobs = {
        str(number): look(one, _wanted(made, dataset), checksum=checksums)
        for number, (dataset, one) in enumerate(replicas)
    }
    outcomes: dict[str, Outcome] = {}
    with (
        executors.connected(None, site, workers) as (executor, _),
        progress.shown(quiet=quiet, pieces="files") as show,
    ):
        bad = 0
        for key, outcome in executor.outcomes(inspect_file, jobs):
            outcomes[key] = outcome
            bad += not isinstance(outcome, FileInfo)
            show(Tick(len(outcomes), len(jobs), 0, 0, bad))
    infos = [found for found in outcomes.values() if isinstance(found, FileInfo)]
    has_events = len(infos) < len(outcomes) or any(info.entries for info in infos)
    owners: dict[tuple[str, ...], tuple[str, str]] = {}
    siblings: dict[tuple[str, str], CheckedFile] = {}
    checked = []
    for number, (dataset, one) in enumerate(replicas):
        found = _checked(dataset, one, outcomes[str(number)], owners)
        if found.problem is None and not has_events:
            found = replace(found, problem="no events in it, nor in any other")
        if found.problem is None:
            found = _compared(found, siblings.setdefault((dataset.name, one.lfn), found))
        checked.append(found)
    return checked


def _wanted(made: Shipment | None, dataset: Dataset) -> ColumnRequest:
    """What `run` would want of the files of a dataset."""
    if made is None:
        return ColumnRequest()
    return wanted_of(made.processor, made.schema, is_data=dataset.is_data)


def _replicas(fileset: Fileset) -> Iterator[tuple[Dataset, File]]:
    for dataset in fileset.datasets:
        for file in dataset.files:
            for url in file.replicas:
                yield dataset, replace(file, replicas=(url,))


def _checked(
    dataset: Dataset, file: File, outcome: Outcome, owners: dict[tuple[str, ...], tuple[str, str]]
) -> CheckedFile:
    """What became of a replica; ``owners`` holds where each tree was seen, and is added to."""
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


def _compared(found: CheckedFile, first: CheckedFile) -> CheckedFile:
    """The same, with a problem if it is another file than the first good replica."""
    for field in ("uuid", "entries", "size", "adler32"):
        is_, was = getattr(found, field), getattr(first, field)
        if is_ != was:
            problem = f"its {field} is {is_}, that of its replica {first.url} {was}: remove one"
            return replace(found, problem=problem)
    return found


def written_back(fileset: Fileset, checked: Iterable[CheckedFile]) -> Fileset:
    """The fileset with what its check has found, for files that are good.

    Events that a filter dropped are stated where a file tells that there are any.
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
