"""Scheduling of input files: first come, first served, a limited number at a time."""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
from typing import Final

from agc_ml.servicex_endpoint.requests import escaped
from agc_ml.servicex_endpoint.store import (
    RequestStore,
    TransformJob,
    TransformOutcome,
)
from agc_ml.servicex_endpoint.transformation.transformer_pool import TransformerPool
from agc_ml.transports.credentials import redacted

logger = logging.getLogger(__name__)

RETRY_S: Final = 5.0  # after there was no room
# No space, memory or files now, or the database is in use.
_TRANSIENT: Final = {"ENOSPC", "EDQUOT", "ENOMEM", "EAGAIN", "EMFILE", "ENFILE"}
_TRANSIENT_SQLITE: Final = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
}


class TransformScheduler:
    """Run the jobs of the request store."""

    def __init__(self, store: RequestStore, pool: TransformerPool) -> None:
        self._store = store
        self._pool = pool
        self._running: dict[int, tuple[TransformJob, asyncio.Task[TransformOutcome]]] = {}
        self._new_request = asyncio.Event()

    async def run(self, n_parallel: int) -> None:
        """Run jobs until cancelled; those that find no room now are run again later.

        Raises
        ------
        sqlite3.Error
            The database is damaged.
        """
        async with asyncio.TaskGroup() as group:
            for _ in range(n_parallel):
                group.create_task(self._work())

    def wake(self) -> None:
        """Look for jobs, as there is a new request."""
        self._new_request.set()

    async def stop(self, request_id: str) -> None:
        """Stop the jobs of a request, which must not be running in the store."""
        tasks = [task for job, task in self._running.values() if job.request_id == request_id]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def delete(self, request_id: str) -> None:
        """Stop a request, and delete it with its objects."""
        try:
            self._store.cancel(request_id)
        except sqlite3.Error as error:
            if not _is_transient(error):
                raise
            self._store.delete_objects(request_id)  # on a full disk, deleting a row needs room
            self._store.cancel(request_id)
        await self.stop(request_id)
        self._store.delete_objects(request_id)
        self._store.delete(request_id)

    async def _work(self) -> None:
        while True:
            try:
                job = self._store.next_job(self._running)
                if job is None:
                    self._new_request.clear()
                    await self._new_request.wait()
                else:
                    await self._run_job(job)
            except (OSError, sqlite3.Error) as error:
                if not _is_transient(error):
                    raise
                logger.error("results can't be stored now (%s)", error)  # noqa: TRY400 - one line says it
                await asyncio.sleep(RETRY_S)

    async def _run_job(self, job: TransformJob) -> None:
        task = asyncio.create_task(self._pool.transform(job))
        self._running[job.number] = (job, task)
        try:
            await asyncio.wait({task})
            if not task.cancelled():
                self._record(job, _outcome(task))
        finally:
            task.cancel()
            await asyncio.wait({task})
            del self._running[job.number]

    def _record(self, job: TransformJob, outcome: TransformOutcome) -> None:
        is_finished = self._store.record(job, outcome)
        if outcome.error:
            line = escaped(f"{job.request_id}: {job.path}: {outcome.error}")
            logger.warning("%s", redacted(line))
        if is_finished:
            logger.info("%s: finished", job.request_id)


def _outcome(task: asyncio.Task[TransformOutcome]) -> TransformOutcome:
    """Return the outcome of a job, also if the endpoint could not run it."""
    try:
        return task.result()
    except OSError as error:
        if _is_transient(error):
            raise
        return TransformOutcome(
            error=f"the endpoint can't transform it ({error.strerror or error})"
        )


def _is_transient(error: OSError | sqlite3.Error) -> bool:
    """Return whether a retry may help: a full disk, or a database in use."""
    if isinstance(error, OSError):
        return errno.errorcode.get(error.errno or 0) in _TRANSIENT
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _TRANSIENT_SQLITE
