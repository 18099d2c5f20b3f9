"""Translation off the loop: in processes with a deadline, a few at once, and a queue that ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Final, cast

from agc_ml.errors import UsageError
from agc_ml.servicex_endpoint.requests import escaped
from agc_ml.servicex_endpoint.transformation import limits
from agc_ml.servicex_endpoint.translation.translator import READY

logger = logging.getLogger(__name__)

DEADLINE_S: Final = 10  # of a query; sound ones take less than a second
AT_ONCE: Final = 2
PLACES: Final = 256  # of queries that wait
PATIENCE_S: Final = 60  # that one waits
START_S: Final = 60
_LONGEST_ANSWER: Final = 16_000_000  # bytes


class Busy(Exception):  # noqa: N818 - an answer, no fault
    """A query finds no room now; the same one may later."""


class Translators:
    """Processes that translate, in a folder: started on demand, replaced where a query ends one."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._idle: list[asyncio.subprocess.Process] = []
        self._room = asyncio.Semaphore(AT_ONCE)
        self._starting = asyncio.Lock()
        self._waiting = 0

    async def translate(self, codegen: str, selection: str, result_format: str) -> str:
        """Make the program of a query.

        Raises
        ------
        UsageError
            The query is refused, or translating it takes too long or too much.
        Busy
            Too many are being translated.
        """
        query = json.dumps([codegen, selection, result_format]).encode() + b"\n"
        await self._enter()
        try:
            process = await self._free()
            try:
                answer = await self._ask(process, query)
            except BaseException:
                await _kill(process)
                raise
            self._idle.append(process)
        except EOFError:
            raise UsageError(
                f"the query for {codegen} can't be used: its translation failed"
            ) from None
        except TimeoutError:
            raise UsageError(
                f"the query for {codegen} can't be used: its translation takes more than"
                f" {DEADLINE_S} s"
            ) from None
        finally:
            self._room.release()
        if "refused" in answer:
            raise UsageError(answer["refused"])
        return answer["program"]

    async def warm(self) -> None:
        """Start a process before the first query comes."""
        with contextlib.suppress(Busy):  # it is logged
            self._idle.append(await self._free())

    async def close(self) -> None:
        """End the processes; nobody asks any more."""
        while self._idle:
            await _kill(self._idle.pop())

    async def _enter(self) -> None:
        if self._waiting >= PLACES:
            raise Busy(f"{PLACES} queries wait to be translated")
        self._waiting += 1
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._room.acquire()
        except TimeoutError:
            raise Busy(f"no query could be translated for {PATIENCE_S} s") from None
        finally:
            self._waiting -= 1

    async def _free(self) -> asyncio.subprocess.Process:
        """A process that has nothing to do; one that is starting is waited for."""
        async with self._starting:
            return self._idle.pop() if self._idle else await self._start()

    async def _start(self) -> asyncio.subprocess.Process:
        began = time.monotonic()
        log = self._folder / "translator.log"
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-P",
                    "-m",
                    "agc_ml.servicex_endpoint.translation.translator",
                    str(os.getpid()),
                ),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                cwd=self._folder,
                env=limits.environment(os.environ, self._folder),
                start_new_session=True,
                limit=_LONGEST_ANSWER,
            )
        said = b""
        try:
            async with asyncio.timeout(START_S):
                said = await _stdout(process).readline()
        except TimeoutError:
            pass
        finally:
            if said != READY:
                await _kill(process)
        if said != READY:
            why = log.read_text(errors="replace").strip().rpartition("\n")[2] or "no answer"
            logger.warning("no translator can be started (%s)", escaped(why[:200]))
            raise Busy("no translator can be started")
        logger.debug("a translator started in %.1f s", time.monotonic() - began)
        return process

    @staticmethod
    async def _ask(process: asyncio.subprocess.Process, query: bytes) -> dict[str, str]:
        stdin = cast("asyncio.StreamWriter", process.stdin)
        async with asyncio.timeout(DEADLINE_S):
            with contextlib.suppress(ConnectionError):  # it died; reading tells
                stdin.write(query)
                await stdin.drain()
            said = await _stdout(process).readline()
        if not said.endswith(b"\n"):
            raise EOFError
        answer: dict[str, str] = json.loads(said)
        return answer


def _stdout(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    return cast("asyncio.StreamReader", process.stdout)


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
