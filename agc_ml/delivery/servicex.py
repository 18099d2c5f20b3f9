"""Columns through ServiceX: a service that reads files where they are, and delivers what is needed.

One request a dataset, all at the same time. What comes back is checked file by file, because the
service calls a request complete when some of its files failed, and then kept for the next run.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from agc_ml.delivery import opening
from agc_ml.delivery import servicex_client as talk
from agc_ml.delivery.routing import Needs
from agc_ml.errors import DeliveryError, FilesetError, UsageError
from agc_ml.inputs.columns import EVENT_ID, with_counters
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset
from agc_ml.transports.base import local_path
from agc_ml.transports.credentials import redacted

logger = logging.getLogger(__name__)

DROPPED: Final = "Dropped"
"""Tree of the events that a preselection dropped."""
_NOTE: Final = "delivered.json"
_NAMED: Final = 3
_PIECE: Final = 1 << 22

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Wanted:
    """A request: the dataset, what the service is to read, by which name, and its query."""

    dataset: Dataset
    inputs: Mapping[str, File]
    query: str
    dropped: str | None


class _Kept(NamedTuple):
    """A delivered file: its name in the folder, its checksum, and a digest of its events."""

    name: str
    checksum: str
    events: str


@dataclass(frozen=True)
class _Delivered:
    """A dataset as it was delivered, and the digest of each file's events."""

    dataset: Dataset
    events: tuple[str, ...]


def delivered(fileset: Fileset, where: str | None, needs_of: Callable[[Dataset], Needs]) -> Fileset:
    """The same files, on this machine, with what is needed only.

    Where there is a preselection, the events that it drops are in a tree of their own, with the
    branches by which they count.

    Parameters
    ----------
    where
        The name of an endpoint in ``servicex.yaml``, the path of such a file, or a URL; None: the
        first endpoint in the file that the client finds.
    needs_of
        What is needed of a dataset.

    Raises
    ------
    UsageError
        No columns are declared, or there is no such endpoint.
    FilesetError
        A file is there twice, under different names or with two trees.
    DeliveryError
        The service can't be reached, is too old, or could not deliver every file; the message names
        dataset, file and reason.
    """
    try:
        import servicex  # noqa: F401, PLC0415 - an extra, and heavy
    except ImportError as error:
        raise UsageError(
            "--via servicex needs the ServiceX client: pip install 'agc-ml[servicex]'"
        ) from error
    wanted = [_wanted(dataset, needs_of(dataset)) for dataset in fileset.datasets]
    service = talk.find(where)

    async def all_datasets() -> list[_Delivered]:
        await talk.greet(service)
        work = [asyncio.ensure_future(_one_dataset(service, one)) for one in wanted]
        try:
            return await asyncio.gather(*work)
        finally:
            for task in work:
                task.cancel()

    found = _run(all_datasets)
    _refuse_copies(found)
    return replace(fileset, datasets=tuple(one.dataset for one in found))


def _refuse_copies(found: Sequence[_Delivered]) -> None:
    """Refuse a file that is twice in what adds up; delivered, each copy has its own UUID."""
    seen: dict[tuple[str, ...], tuple[Dataset, File]] = {}
    for one in found:
        dataset = one.dataset
        for file, events in zip(dataset.files, one.events, strict=True):
            key = (dataset.process, dataset.variation, file.tree, events)
            owner, twin = seen.setdefault(key, (dataset, file))
            if events and twin is not file:
                where = "" if owner is dataset else f" of dataset {owner.name}"
                raise FilesetError(
                    f"dataset {dataset.name}: {file.lfn} and {twin.lfn}{where} hold the same "
                    "events, which would count twice; remove one"
                )


def _run(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine in a thread, as there may be a loop in this one: notebooks have one."""
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


def _wanted(dataset: Dataset, needs: Needs) -> _Wanted:
    if not needs.columns:
        raise UsageError(
            "--via servicex delivers the columns that a processor declares, and it declares none "
            "(columns = (...)); leave the option out"
        )
    inputs = {file.url: file for file in dataset.files}
    if len(inputs) < len(dataset.files):
        raise FilesetError(
            f"dataset {dataset.name}: a file is listed twice; --via servicex takes one tree of it"
        )
    trees = sorted({file.tree for file in dataset.files})
    cut = needs.preselection if len(trees) == 1 else ""
    names = with_counters((*EVENT_ID, *needs.columns))
    queries = [_query(tree, tree, names, cut) for tree in trees]
    if cut:
        names = with_counters((*EVENT_ID, *needs.counted))
        queries.append(_query(trees[0], DROPPED, names, f"({cut}) == 0"))
    if not dataset.is_data:  # how many events a filter dropped, where a file says so
        queries.append(
            {"treename": "Runs", "filter_name": ["genEventCount*"], "fail_on_missing_trees": False}
        )
    return _Wanted(dataset, inputs, json.dumps(queries), DROPPED if cut else None)


def _query(tree: str, target: str, names: Sequence[str], cut: str) -> dict[str, Any]:
    branches = sorted(set(names))
    query = {"treename": {tree: target}, "filter_name": branches, "fail_on_missing_trees": True}
    return {**query, "cut": cut} if cut else query


async def _one_dataset(service: talk.Service, wanted: _Wanted) -> _Delivered:
    """The files of a dataset as they were delivered now, or before."""
    request = _request(wanted)
    dataset, inputs = wanted.dataset, [_state(file) for file in wanted.inputs.values()]
    content = repr([service.url, request.compute_hash(), dataset.name, inputs])
    folder = service.folder / hashlib.sha256(content.encode()).hexdigest()[:40]
    kept = _kept(folder)
    found = _from_kept(wanted, folder, kept)
    if found is None:
        request_id = await talk.submitted(
            service, wanted.dataset.name, request, kept.get("request")
        )
        _note(folder, {"request": request_id})
        await talk.finished(service, wanted.dataset.name, len(wanted.inputs), request_id)
        found = await _fetched(service, wanted, request_id, folder)
    return found


def _state(file: File) -> list[Any]:
    """What tells whether a file is the one that was delivered: what is stated, and what is seen."""
    stated = [file.uuid, file.size, file.adler32, file.entries]
    path = local_path(file.url)
    if path is None or not path.is_file():
        return stated
    status = path.stat()
    return [*stated, status.st_size, status.st_mtime_ns]


def _request(wanted: _Wanted) -> Any:
    from servicex.models import (  # noqa: PLC0415 - heavy
        ResultDestination,
        ResultFormat,
        TransformRequest,
    )

    return TransformRequest(
        title=f"agc-ml: {wanted.dataset.name}",
        file_list=list(wanted.inputs),
        selection=wanted.query,
        codegen=talk.CODEGEN,
        result_destination=ResultDestination.object_store,
        result_format=ResultFormat.root_ttree,
    )


def _kept(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _NOTE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _note(folder: Path, content: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = folder / f".{os.getpid()}.json"
    temporary.write_text(json.dumps(content))
    temporary.replace(folder / _NOTE)


def _from_kept(wanted: _Wanted, folder: Path, kept: Mapping[str, Any]) -> _Delivered | None:
    """Files that were delivered before, if each one is there and as it was."""
    try:
        known = {key: _Kept(*values) for key, values in kept["files"].items()}
        of_file = {url: known[_key(url)] for url in wanted.inputs}
    except (KeyError, TypeError, AttributeError):
        return None
    for url, one in of_file.items():
        path = folder / one.name
        if not path.is_file() or _checksum(path) != one.checksum:
            logger.info(
                "%s: what was made of %s was changed since; it is asked for again",
                wanted.dataset.name,
                redacted(url),
            )
            return None
    files = [
        _as_delivered(file, folder / of_file[url].name, wanted.dropped)
        for url, file in wanted.inputs.items()
    ]
    return _Delivered(
        replace(wanted.dataset, files=tuple(files)), tuple(one.events for one in of_file.values())
    )


def _key(url: str) -> str:
    """What a URL is noted as: there may be a token in it."""
    return hashlib.sha256(url.encode()).hexdigest()


def _checksum(path: Path) -> str:
    value = 1
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            value = zlib.adler32(piece, value)
    return f"{path.stat().st_size}:{value:08x}"


def _as_delivered(file: File, path: Path, dropped: str | None, *others: str) -> File:
    """The file as it is read: its name stays, so that the account speaks of the one it is from."""
    replicas = (str(path), *others)
    return replace(file, replicas=replicas, dropped=dropped, uuid=None, size=None, adler32=None)


async def _fetched(
    service: talk.Service, wanted: _Wanted, request_id: str, folder: Path
) -> _Delivered:
    """Download what was delivered, after every file is accounted for."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - heavy
    from servicex.minio_adapter import MinioAdapter  # noqa: PLC0415 - heavy

    name = wanted.dataset.name
    status, listed = await talk.outcome(service, name, request_id)
    results = {str(result["file-path"]): result for result in listed}
    failed = [
        f"{redacted(url)}: {talk.first_line(results.get(url, {}).get('error'))}"
        for url in wanted.inputs
        if results.get(url, {}).get("transform_status") != "success"
    ]
    if failed:
        more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        raise DeliveryError(
            f"dataset {name}: ServiceX did not deliver {len(failed)} of {len(wanted.inputs)} "
            f"files: {'; '.join(failed[:_NAMED])}{more}; mend them, or take them out of the fileset"
        )
    store = MinioAdapter.for_transform(status)

    async def fetch(url: str, file: File) -> tuple[str, _Kept, str]:
        key = str(results[url]["s3-object-name"])
        try:
            path = await store.download_file(key, own, shorten_filename=True)
            signed = await store.get_signed_url(key)
        except (BotoCoreError, ClientError, OSError, RuntimeError) as error:
            raise DeliveryError(
                f"dataset {name}: {redacted(url)}: what ServiceX made of it can't be fetched: "
                f"{talk.said(error)}; run again"
            ) from error
        path = Path(path)
        delivered = _as_delivered(file, path, wanted.dropped)
        try:
            events = await asyncio.to_thread(_verified, name, redacted(url), delivered)
        except DeliveryError:
            _note(folder, {})  # the same request would give the same again
            raise
        kept = _Kept(f"{request_id}-{path.name}", _checksum(path), events)
        path.replace(folder / kept.name)
        return url, kept, signed

    # other runs may be reading what is kept; the client leaves what is there as it is
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as own:
        fetched = await asyncio.gather(*(fetch(url, file) for url, file in wanted.inputs.items()))
    _note(folder, {"request": request_id, "files": {_key(url): one for url, one, _ in fetched}})
    files = [
        _as_delivered(wanted.inputs[url], folder / one.name, wanted.dropped, signed)
        for url, one, signed in fetched
    ]
    return _Delivered(
        replace(wanted.dataset, files=tuple(files)), tuple(one.events for _, one, _ in fetched)
    )


def _verified(name: str, origin: str, file: File) -> str:
    """See that a delivered file is whole, and has all events of its origin; a digest of them."""
    problem, digest = None, ""
    try:
        with opening.opened(File(file.lfn, file.replicas)) as opened:
            trees = [tree for tree in (file.tree, file.dropped) if tree is not None]
            missing = [tree for tree in trees if tree not in opened]
            found = sum(opened[tree].num_entries for tree in trees if tree in opened)
            if missing:
                problem = f"there is no tree {missing[0]} in it"
            elif file.entries not in {None, found}:
                problem = f"it has {found} events, the fileset says {file.entries}"
            elif found:
                digest = _digest_of([opened[tree] for tree in trees])
    except Exception as error:  # noqa: BLE001 - uproot raises anything on damaged input; it is told
        problem = talk.said(error)
    if problem is not None:
        raise DeliveryError(
            f"dataset {name}: {origin}: what ServiceX made of it is not right: "
            f"{problem}; run again, or leave out --via servicex"
        )
    return digest


def _digest_of(trees: Sequence[Any]) -> str:
    """Of all numbers of each event, not of its lists: numbers of events may begin at 1 again."""
    digest = hashlib.sha256()
    for tree in trees:
        for name in sorted(tree.keys()):
            values = tree[name].array(library="np")
            if values.dtype != object:
                digest.update(f"{name} {len(values)} ".encode())
                digest.update(values.tobytes())
    return digest.hexdigest()
