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
import threading
import zlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from agc_ml.datasets import Dataset, File, Fileset
from agc_ml.delivery import opening
from agc_ml.delivery import service as talk
from agc_ml.delivery.credentials import redacted
from agc_ml.delivery.ways import Needs
from agc_ml.errors import DeliveryError, UsageError

logger = logging.getLogger(__name__)

EVENT_ID: Final = ("run", "luminosityBlock", "event")
DROPPED: Final = "Dropped"
"""Tree of the events that a preselection dropped."""
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

    async def all_datasets() -> list[Dataset]:
        await talk.greet(service)
        work = [asyncio.ensure_future(_one_dataset(service, one)) for one in wanted]
        try:
            return await asyncio.gather(*work)
        finally:
            for task in work:
                task.cancel()

    return replace(fileset, datasets=tuple(_run(all_datasets)))


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
    trees = sorted({file.tree for file in dataset.files})
    cut = needs.preselection if len(trees) == 1 else ""
    names = _with_counters((*EVENT_ID, *needs.columns))
    queries = [_query(tree, tree, names, cut) for tree in trees]
    if cut:
        names = _with_counters(needs.counted or EVENT_ID[:1])
        queries.append(_query(trees[0], DROPPED, names, f"~({cut})"))
    # how many events a filter dropped, where a file says so
    runs = {"treename": "Runs", "filter_name": ["genEventCount*"], "fail_on_missing_trees": False}
    return _Wanted(
        dataset,
        {file.url: file for file in dataset.files},
        json.dumps([*queries, runs]),
        DROPPED if cut else None,
    )


def _query(tree: str, target: str, names: Sequence[str], cut: str) -> dict[str, Any]:
    query = {"treename": {tree: target}, "filter_name": names, "fail_on_missing_trees": True}
    return {**query, "cut": cut} if cut else query


def _with_counters(names: Sequence[str]) -> list[str]:
    counters = {f"n{name.partition('_')[0]}" for name in names if "_" in name}
    return sorted({*names, *counters})


async def _one_dataset(service: talk.Service, wanted: _Wanted) -> Dataset:
    """The files of a dataset as they were delivered now, or before."""
    request = _request(wanted)
    digest = hashlib.sha256(f"{service.url} {request.compute_hash()}".encode()).hexdigest()
    folder = service.folder / digest[:40]
    kept = _kept(folder)
    files = _from_kept(wanted, folder, kept)
    if files is None:
        request_id = await talk.submitted(
            service, wanted.dataset.name, request, kept.get("request")
        )
        _note(folder, {"request": request_id})
        await talk.finished(service, wanted.dataset.name, len(wanted.inputs), request_id)
        files = await _fetched(service, wanted, request_id, folder)
    return replace(wanted.dataset, files=tuple(files))


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
        found = json.loads((folder / "delivered.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _note(folder: Path, content: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = folder / f".{os.getpid()}.json"
    temporary.write_text(json.dumps(content))
    temporary.replace(folder / "delivered.json")


def _from_kept(wanted: _Wanted, folder: Path, kept: Mapping[str, Any]) -> list[File] | None:
    """Files that were delivered before, if each one is there and as it was."""
    known = kept.get("files", {})
    if set(known) != set(wanted.inputs):
        return None
    for url, (name, checksum) in known.items():
        path = folder / name
        if not path.is_file() or _checksum(path) != checksum:
            logger.info("%s: %s was changed since; it is asked for again", wanted.dataset.name, url)
            return None
    return [
        _delivered(file, folder / known[url][0], wanted.dropped)
        for url, file in wanted.inputs.items()
    ]


def _checksum(path: Path) -> str:
    value = 1
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            value = zlib.adler32(piece, value)
    return f"{path.stat().st_size}:{value:08x}"


def _delivered(file: File, path: Path, dropped: str | None, *others: str) -> File:
    """The file as it is read: its name stays, so that the account speaks of the one it is from."""
    replicas = (str(path), *others)
    return replace(file, replicas=replicas, dropped=dropped, uuid=None, size=None, adler32=None)


async def _fetched(
    service: talk.Service, wanted: _Wanted, request_id: str, folder: Path
) -> list[File]:
    """Download what was delivered, after every file is accounted for."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - heavy
    from servicex.minio_adapter import MinioAdapter  # noqa: PLC0415 - heavy

    name = wanted.dataset.name
    results = {
        str(result["file-path"]): result for result in await talk.results(service, request_id)
    }
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
    status = await talk.status_of(service, request_id)
    store = MinioAdapter.for_transform(status)

    async def fetch(url: str, file: File) -> tuple[str, Path, str]:
        key = str(results[url]["s3-object-name"])
        try:
            path = await store.download_file(key, str(folder), shorten_filename=True)
            signed = await store.get_signed_url(key)
        except (BotoCoreError, ClientError, OSError, RuntimeError) as error:
            raise DeliveryError(
                f"dataset {name}: {redacted(url)}: what ServiceX made of it can't be fetched: "
                f"{talk.said(error)}; run again"
            ) from error
        await asyncio.to_thread(_verify, name, replace(file, dropped=wanted.dropped), path)
        return url, Path(path), signed

    fetched = await asyncio.gather(*(fetch(url, file) for url, file in wanted.inputs.items()))
    checksums = {url: (path.name, _checksum(path)) for url, path, _ in fetched}
    _note(folder, {"request": request_id, "files": checksums})
    return [
        _delivered(wanted.inputs[url], path, wanted.dropped, signed)
        for url, path, signed in fetched
    ]


def _verify(name: str, file: File, path: Path) -> None:
    """See that a delivered file is whole, and has all events of the one it is from."""
    problem = None
    try:
        with opening.opened(File(file.lfn, (str(path),))) as opened:
            trees = [tree for tree in (file.tree, file.dropped) if tree is not None]
            missing = [tree for tree in trees if tree not in opened]
            found = sum(opened[tree].num_entries for tree in trees if tree in opened)
            if missing:
                problem = f"there is no tree {missing[0]} in it"
            elif file.entries not in {None, found}:
                problem = f"it has {found} events, the fileset says {file.entries}"
    except Exception as error:  # noqa: BLE001 - uproot raises anything on damaged input; it is told
        problem = talk.said(error)
    if problem is not None:
        path.unlink(missing_ok=True)
        raise DeliveryError(
            f"dataset {name}: {redacted(file.url)}: what ServiceX made of it is not right: "
            f"{problem}; run again, or leave out --via servicex"
        )
