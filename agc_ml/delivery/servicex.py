"""Columns through ServiceX: a service that reads files where they are, and delivers columns.

Each dataset is one request; all run at the same time. Every delivered file is checked, since the
service calls a request complete when some of its files failed, and kept for the next run.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import tempfile
import threading
import zlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from agc_ml import files
from agc_ml.delivery import servicex_client
from agc_ml.delivery.opening import open_file
from agc_ml.delivery.servicex_client import ServiceX, error_line
from agc_ml.errors import DeliveryError, FilesetError, UsageError
from agc_ml.inputs.columns import EVENT_ID, with_counters
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset
from agc_ml.transports.base import local_path
from agc_ml.transports.credentials import redacted

logger = logging.getLogger(__name__)

DROPPED: Final = "Dropped"  # the tree of the events that a preselection dropped
_INDEX: Final = "delivered.json"
_N_NAMED: Final = 3
_PIECE: Final = 1 << 22

Result = TypeVar("Result")


class Needs(NamedTuple):
    """Branches of a dataset that a processor reads, and of which events.

    ``preselection`` is an expression of branches, in uproot's language, that is true for all events
    that the processor selects; of the others it needs the branches ``counted``. Without a
    preselection it needs all events.
    """

    columns: tuple[str, ...] = ()
    preselection: str = ""
    counted: tuple[str, ...] = ()


@dataclass(frozen=True)
class _DatasetRequest:
    """A request: the dataset, its files by the URL that the service reads, and its query."""

    dataset: Dataset
    inputs: Mapping[str, File]
    query: str
    dropped: str | None

    def delivered(self, file: File, path: Path, *others: str) -> File:
        """Return a file as it was delivered; its name stays that of the original in all reports."""
        replicas = (str(path), *others)
        return replace(
            file, replicas=replicas, dropped=self.dropped, uuid=None, size=None, adler32=None
        )


class _KeptFile(NamedTuple):
    """A delivered file: its name in the folder, its checksum, and a digest of its events."""

    name: str
    checksum: str
    events: str


# A dataset as it was delivered, and the digest of each file's events.
_Delivered = tuple[Dataset, tuple[str, ...]]


def deliver_columns(
    fileset: Fileset, endpoint: str | None, needs_of: Callable[[Dataset], Needs]
) -> Fileset:
    """Return the same files, on this machine, with the needed columns only.

    Events that a preselection drops are in a tree of their own, with the branches that count them.

    Parameters
    ----------
    endpoint
        The name of an endpoint in ``servicex.yaml``, the path of such a file, or a URL; None is the
        first endpoint in the file that the client finds.
    needs_of
        Returns the needs of a dataset.

    Raises
    ------
    UsageError
        No columns are declared, or there is no such endpoint.
    FilesetError
        A file is listed twice, under different names or with two trees.
    DeliveryError
        The service can't be reached, is too old, or did not deliver every file; the message names
        dataset, file and reason.
    """
    try:
        import servicex  # noqa: F401, PLC0415 - an extra, and heavy
    except ImportError as error:
        raise UsageError(
            "--via servicex needs the ServiceX client: pip install 'agc-ml[servicex]'"
        ) from error
    requests = [_dataset_request(dataset, needs_of(dataset)) for dataset in fileset.datasets]
    service = servicex_client.find_service(endpoint)

    async def deliver_all() -> list[_Delivered]:
        await servicex_client.check_service(service)
        tasks = [asyncio.ensure_future(_deliver(service, request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    delivered = _run(deliver_all)
    _refuse_copies(delivered)
    return replace(fileset, datasets=tuple(dataset for dataset, _ in delivered))


def _refuse_copies(delivered: Sequence[_Delivered]) -> None:
    """Reject a file that would count twice; its delivered copies differ in their UUIDs."""
    seen: dict[tuple[str, ...], tuple[Dataset, File]] = {}
    for dataset, digests in delivered:
        for file, events in zip(dataset.files, digests, strict=True):
            key = (dataset.process, dataset.variation, file.tree, events)
            owner, twin = seen.setdefault(key, (dataset, file))
            if events and twin is not file:
                where = "" if owner is dataset else f" of dataset {owner.name}"
                raise FilesetError(
                    f"dataset {dataset.name}: {file.lfn} and {twin.lfn}{where} hold the same "
                    "events, which would count twice; remove one"
                )


def _run(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine in a thread, as this one may have an event loop: notebooks do."""
    stop = threading.Event()

    async def until_stopped() -> Result:
        task = asyncio.ensure_future(work())
        while not task.done() and not stop.is_set():
            await asyncio.wait([task], timeout=0.2)
        if not task.done():
            task.cancel()
        return await task

    with ThreadPoolExecutor(1, "servicex") as pool:
        future = pool.submit(asyncio.run, until_stopped())
        try:
            return future.result()
        finally:
            stop.set()  # Ctrl-C ends the other thread too


def _dataset_request(dataset: Dataset, needs: Needs) -> _DatasetRequest:
    if not needs.columns:
        raise UsageError(
            "--via servicex delivers the columns that a processor declares, and it declares none "
            "(columns = (...)); leave the option out"
        )
    inputs = {file.url: file for file in dataset.files}
    if len(inputs) < len(dataset.files):
        raise FilesetError(
            f"dataset {dataset.name}: a file is listed twice; --via servicex reads one tree of it"
        )
    trees = sorted({file.tree for file in dataset.files})
    cut = needs.preselection if len(trees) == 1 else ""
    columns = with_counters((*EVENT_ID, *needs.columns))
    queries = [_query(tree, tree, columns, cut) for tree in trees]
    if cut:
        counted = with_counters((*EVENT_ID, *needs.counted))
        queries.append(_query(trees[0], DROPPED, counted, f"({cut}) == 0"))
    if not dataset.is_data:  # the number of generated events, where a file has it
        queries.append(
            {"treename": "Runs", "filter_name": ["genEventCount*"], "fail_on_missing_trees": False}
        )
    return _DatasetRequest(dataset, inputs, json.dumps(queries), DROPPED if cut else None)


def _query(tree: str, target: str, columns: Sequence[str], cut: str) -> dict[str, Any]:
    branches = sorted(set(columns))
    query = {"treename": {tree: target}, "filter_name": branches, "fail_on_missing_trees": True}
    return {**query, "cut": cut} if cut else query


async def _deliver(service: ServiceX, request: _DatasetRequest) -> _Delivered:
    """Return the files of a dataset, from the cache if they are there."""
    from servicex.models import (  # noqa: PLC0415 - heavy
        ResultDestination,
        ResultFormat,
        TransformRequest,
    )

    name, inputs = request.dataset.name, request.inputs
    transform = TransformRequest(
        title=f"agc-ml: {name}",
        file_list=list(inputs),
        selection=request.query,
        codegen=servicex_client.CODEGEN,
        result_destination=ResultDestination.object_store,
        result_format=ResultFormat.root_ttree,
    )
    # The folder depends on the service, the query and the state of the inputs.
    states = [_input_state(file) for file in inputs.values()]
    content = repr([service.url, transform.compute_hash(), name, states])
    folder = service.folder / hashlib.sha256(content.encode()).hexdigest()[:40]
    index = _read_index(folder)
    delivered = _from_cache(request, folder, index)
    if delivered is None:
        request_id = await servicex_client.submit(service, name, transform, index.get("request"))
        _write_index(folder, {"request": request_id})
        await servicex_client.wait_until_finished(service, name, len(inputs), request_id)
        delivered = await _download(service, request, request_id, folder)
    return delivered


def _input_state(file: File) -> list[Any]:
    """Return what identifies the version of a file: as the fileset states it, and as it is."""
    stated = [file.uuid, file.size, file.adler32, file.entries]
    path = local_path(file.url)
    if path is None or not path.is_file():
        return stated
    status = path.stat()
    return [*stated, status.st_size, status.st_mtime_ns]


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / _INDEX).read_text())
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}


def _write_index(folder: Path, content: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.write_private(folder / _INDEX, json.dumps(content))


def _from_cache(
    request: _DatasetRequest, folder: Path, index: Mapping[str, Any]
) -> _Delivered | None:
    """Return files that were delivered before, if all are there and unchanged."""
    try:
        known = {key: _KeptFile(*values) for key, values in index["files"].items()}
        kept = {url: known[_key(url)] for url in request.inputs}
    except (KeyError, TypeError, AttributeError):
        return None
    for url, entry in kept.items():
        path = folder / entry.name
        if not path.is_file() or _checksum(path) != entry.checksum:
            logger.info(
                "%s: the delivered file of %s was changed; requesting it again",
                request.dataset.name,
                redacted(url),
            )
            return None
    delivered = tuple(
        request.delivered(file, folder / kept[url].name) for url, file in request.inputs.items()
    )
    events = tuple(entry.events for entry in kept.values())
    return replace(request.dataset, files=delivered), events


def _key(url: str) -> str:
    """Return the key of a URL in the index: there may be a token in the URL."""
    return hashlib.sha256(url.encode()).hexdigest()


def _checksum(path: Path) -> str:
    value = 1
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            value = zlib.adler32(piece, value)
    return f"{path.stat().st_size}:{value:08x}"


async def _download(
    service: ServiceX, request: _DatasetRequest, request_id: str, folder: Path
) -> _Delivered:
    """Download the results of a request, if there is one for every file."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - heavy
    from servicex.minio_adapter import MinioAdapter  # noqa: PLC0415 - heavy

    name = request.dataset.name
    status, listed = await servicex_client.fetch_results(service, name, request_id)
    results = {str(result["file-path"]): result for result in listed}
    failed = [
        f"{redacted(url)}: {servicex_client.reason_line(results.get(url, {}).get('error'))}"
        for url in request.inputs
        if results.get(url, {}).get("transform_status") != "success"
    ]
    if failed:
        more = f"; and {len(failed) - _N_NAMED} more" if len(failed) > _N_NAMED else ""
        raise DeliveryError(
            f"dataset {name}: ServiceX did not deliver {len(failed)} of {len(request.inputs)} "
            f"files: {'; '.join(failed[:_N_NAMED])}{more}; repair them, or remove them from the "
            "fileset"
        )
    store = MinioAdapter.for_transform(status)

    async def fetch(url: str, file: File) -> tuple[str, _KeptFile, str]:
        key = str(results[url]["s3-object-name"])
        try:
            path = Path(await store.download_file(key, temporary, shorten_filename=True))
            signed_url = await store.get_signed_url(key)
        except (BotoCoreError, ClientError, OSError, RuntimeError) as error:
            raise DeliveryError(
                f"dataset {name}: {redacted(url)}: its result can't be downloaded: "
                f"{error_line(error)}; run again"
            ) from error
        try:
            delivered = request.delivered(file, path)
            events = await asyncio.to_thread(_verify, name, redacted(url), delivered)
        except DeliveryError:
            _write_index(folder, {})  # the same request would give the same again
            raise
        kept = _KeptFile(f"{request_id}-{path.name}", _checksum(path), events)
        await asyncio.to_thread(path.replace, folder / kept.name)
        return url, kept, signed_url

    # Other runs may be reading the cache, and the client never overwrites a file.
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as temporary:
        fetched = await asyncio.gather(*(fetch(url, f) for url, f in request.inputs.items()))
    index = {"request": request_id, "files": {_key(url): kept for url, kept, _ in fetched}}
    _write_index(folder, index)
    delivered = tuple(
        request.delivered(request.inputs[url], folder / kept.name, signed_url)
        for url, kept, signed_url in fetched
    )
    events = tuple(kept.events for _, kept, _ in fetched)
    return replace(request.dataset, files=delivered), events


def _verify(dataset: str, origin: str, file: File) -> str:
    """Return a digest of the events of a delivered file, after checking that it is complete."""
    problem, digest = None, ""
    try:
        with open_file(File(file.lfn, file.replicas)) as directory:
            trees = [tree for tree in (file.tree, file.dropped) if tree is not None]
            missing = [tree for tree in trees if tree not in directory]
            n_events = sum(directory[tree].num_entries for tree in trees if tree in directory)
            if missing:
                problem = f"it has no tree {missing[0]}"
            elif file.entries not in {None, n_events}:
                problem = f"it has {n_events} events, the fileset says {file.entries}"
            elif n_events:
                digest = _event_digest([directory[tree] for tree in trees])
    except Exception as error:  # noqa: BLE001 - uproot raises anything on damaged input
        problem = error_line(error)
    if problem is not None:
        raise DeliveryError(
            f"dataset {dataset}: {origin}: its result from ServiceX is wrong: {problem}; run "
            "again, or leave out --via servicex"
        )
    return digest


def _event_digest(trees: Sequence[Any]) -> str:
    """Digest all numbers of each event, but no lists: event numbers may begin at 1 again."""
    digest = hashlib.sha256()
    for tree in trees:
        for name in sorted(tree.keys()):
            values = tree[name].array(library="np")
            if values.dtype != object:
                digest.update(f"{name} {len(values)} ".encode())
                digest.update(values.tobytes())
    return digest.hexdigest()
