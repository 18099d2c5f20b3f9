"""Translation outside the event loop: in a few processes with deadlines, and a bounded queue."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Final, cast

from agc_ml.errors import UsageError
from agc_ml.servicex_endpoint.isolation.processes import start_module
from agc_ml.servicex_endpoint.requests import escaped
from agc_ml.servicex_endpoint.translation.translator import READY

logger = logging.getLogger(__name__)

DEADLINE_S: Final = 10  # of a query; valid ones take less than a second
PROCESSES: Final = 2
MAX_WAITING: Final = 256  # queries
PATIENCE_S: Final = 60  # of a query that waits
START_S: Final = 60
_MODULE: Final = "agc_ml.servicex_endpoint.translation.translator"
_MAX_ANSWER: Final = 16_000_000  # bytes


class BusyError(Exception):
    """Too many queries are being translated; the same one may be accepted later."""


class TranslatorPool:
    """Processes that translate: started on demand, replaced where a query kills one."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._idle: list[Process] = []
        self._free_slots = asyncio.Semaphore(PROCESSES)
        self._starting = asyncio.Lock()
        self._n_waiting = 0

    async def translate(self, codegen: str, selection: str, result_format: str) -> str:
        """Return the program of a query.

        Raises
        ------
        UsageError
            The query is refused, or translating it takes too much time or memory.
        BusyError
            Too many are being translated.
        """
        query = json.dumps([codegen, selection, result_format]).encode() + b"\n"
        await self._wait_for_slot()
        try:
            process = await self._idle_process()
            try:
                answer = await _ask(process, query)
            except BaseException:
                await _kill(process)
                raise
            self._idle.append(process)
        except (EOFError, TimeoutError) as error:
            is_late = isinstance(error, TimeoutError)
            problem = f"takes more than {DEADLINE_S} s" if is_late else "failed"
            raise UsageError(
                f"the query for {codegen} can't be used: its translation {problem}"
            ) from None
        finally:
            self._free_slots.release()
        if "refused" in answer:
            raise UsageError(answer["refused"])
        return answer["program"]

    async def warm(self) -> None:
        """Start a process before the first query comes."""
        with contextlib.suppress(BusyError):  # it is logged
            self._idle.append(await self._idle_process())

    async def close(self) -> None:
        """End the processes, when there are no more queries."""
        while self._idle:
            await _kill(self._idle.pop())

    async def _wait_for_slot(self) -> None:
        if self._n_waiting >= MAX_WAITING:
            raise BusyError(f"{MAX_WAITING} queries wait to be translated")
        self._n_waiting += 1
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._free_slots.acquire()
        except TimeoutError:
            raise BusyError(f"no query could be translated for {PATIENCE_S} s") from None
        finally:
            self._n_waiting -= 1

    async def _idle_process(self) -> Process:
        """Return an idle process, after one that is starting."""
        async with self._starting:
            return self._idle.pop() if self._idle else await self._start()

    async def _start(self) -> Process:
        began = time.monotonic()
        log = self._folder / "translator.log"
        with log.open("wb") as errors:
            process = await start_module(
                _MODULE,
                str(os.getpid()),
                folder=self._folder,
                stdin=PIPE,
                stdout=PIPE,
                stderr=errors,
                limit=_MAX_ANSWER,
            )
        # It is ready when its libraries are loaded.
        line = b""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(START_S):
                    line = await _stdout(process).readline()
        finally:
            if line != READY:
                await _kill(process)
        if line != READY:
            reason = log.read_text(errors="replace").strip().rpartition("\n")[2] or "no answer"
            logger.warning("no translator can be started (%s)", escaped(reason[:200]))
            raise BusyError("no translator can be started")
        logger.debug("a translator started in %.1f s", time.monotonic() - began)
        return process


async def _ask(process: Process, query: bytes) -> dict[str, str]:
    stdin = cast("asyncio.StreamWriter", process.stdin)
    async with asyncio.timeout(DEADLINE_S):
        with contextlib.suppress(ConnectionError):  # it died; reading tells
            stdin.write(query)
            await stdin.drain()
        line = await _stdout(process).readline()
    if not line.endswith(b"\n"):
        raise EOFError
    answer: dict[str, str] = json.loads(line)
    return answer


def _stdout(process: Process) -> asyncio.StreamReader:
    return cast("asyncio.StreamReader", process.stdout)


async def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
