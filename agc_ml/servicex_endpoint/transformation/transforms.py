"""The work: as many inputs at once as there are workers, first come, first served."""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
from typing import Final

from agc_ml.servicex_endpoint.objects import Objects
from agc_ml.servicex_endpoint.requests import escaped
from agc_ml.servicex_endpoint.state import Job, Outcome, State
from agc_ml.servicex_endpoint.transformation.workers import Workers
from agc_ml.transports.credentials import redacted

logger = logging.getLogger(__name__)

AGAIN_S: Final = 5.0  # after there was no room: there may be by then
_MAY_PASS: Final = {
    *(errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
}
_STATE_MAY_PASS: Final = {
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED),
}


class Transforms:
    """Does what the state says is to be done."""

    def __init__(self, state: State, kept: Objects, workers: Workers) -> None:
        self._state = state
        self._kept = kept
        self._workers = workers
        self._running: dict[int, tuple[Job, asyncio.Task[Outcome]]] = {}
        self._news = asyncio.Event()

    async def run(self, at_once: int) -> None:
        """Work until cancelled; what there is no room for now is done again later.

        Raises
        ------
        sqlite3.Error
            The state is damaged.
        """
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(self._work())

    def wake(self) -> None:
        """Have a look: there is a new request."""
        self._news.set()

    async def stop(self, request_id: str) -> None:
        """Stop all work for a request, which the state must not call running any more."""
        tasks = [task for job, task in self._running.values() if job.request_id == request_id]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def delete(self, request_id: str) -> None:
        """Remove a request and all that there is of it."""
        try:
            self._state.cancel(request_id)
        except sqlite3.Error as error:
            if not _passes(error):
                raise
            self._kept.delete(request_id)  # on a full disk, the state needs room to forget
            self._state.cancel(request_id)
        await self.stop(request_id)
        self._kept.delete(request_id)
        self._state.delete(request_id)

    async def _work(self) -> None:
        while True:
            try:
                job = self._state.next_job(self._running)
                if job is None:
                    self._news.clear()
                    await self._news.wait()
                else:
                    await self._do(job)
            except (OSError, sqlite3.Error) as error:
                if not _passes(error):
                    raise
                logger.error("nothing can be kept now (%s)", error)  # noqa: TRY400 - one line says it
                await asyncio.sleep(AGAIN_S)

    async def _do(self, job: Job) -> None:
        task = asyncio.create_task(self._workers.transform(job))
        self._running[job.number] = (job, task)
        try:
            await asyncio.wait({task})
            if not task.cancelled():
                self._record(job, _outcome(task))
        finally:
            task.cancel()
            await asyncio.wait({task})
            del self._running[job.number]

    def _record(self, job: Job, outcome: Outcome) -> None:
        is_finished = self._state.record(job, outcome)
        if outcome.error:
            told = escaped(f"{job.request_id}: {job.path}: {outcome.error}")
            logger.warning("%s", redacted(told))
        if is_finished:
            logger.info("%s: finished", job.request_id)


def _outcome(task: asyncio.Task[Outcome]) -> Outcome:
    """Outcome of a job: that it failed, too, where the endpoint has no way to work on it."""
    try:
        return task.result()
    except OSError as error:
        if _passes(error):
            raise
        return Outcome(error=f"the endpoint can't work on it ({error.strerror or error})")


def _passes(error: OSError | sqlite3.Error) -> bool:
    """Return whether it may be otherwise later: of a full disk, or a state in use."""
    if isinstance(error, OSError):
        return error.errno in _MAY_PASS
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _STATE_MAY_PASS
