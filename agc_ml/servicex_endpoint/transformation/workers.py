"""One input in a process of its own: a time limit, and other attempts where they may help."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agc_ml import documents
from agc_ml.errors import UsageError
from agc_ml.servicex_endpoint import objects
from agc_ml.servicex_endpoint.requests import escaped, locate, one_line
from agc_ml.servicex_endpoint.state import Job, Outcome
from agc_ml.servicex_endpoint.transformation import limits
from agc_ml.servicex_endpoint.transformation.supervision import descendants, ending, send
from agc_ml.servicex_endpoint.transformation.transformer import JOB, OUTPUT, VERDICT, out_of_memory
from agc_ml.servicex_endpoint.translation.generators import check_enabled
from agc_ml.transports.credentials import redacted

logger = logging.getLogger(__name__)

PAUSES_S: Final = (1, 4)  # before the second and the third attempt

# What libraries print that die where memory ends, instead of raising MemoryError.
_NO_MEMORY: Final = re.compile(r"bad_alloc|MemoryError|Cannot allocate memory|out of memory")
_END_WITHIN_S: Final = 15
_LONGEST_VERDICT: Final = 100_000  # bytes


class Allowance(NamedTuple):
    """What a transformation may use: seconds, also of each core, and bytes of memory."""

    seconds: float
    memory: float


class Verdict(BaseModel):
    """What became of an attempt: so many events and bytes, or an error, which may pass."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    error: str | None = None
    transient: bool = False
    events: int = Field(default=0, ge=0, lt=2**63)
    size: int = Field(default=0, ge=0, lt=2**63)


class Workers:
    """Starts processes in folders of their own below ``folder``, for generators in ``codegens``."""

    def __init__(
        self, folder: Path, kept: objects.Objects, allowed: Allowance, codegens: tuple[str, ...]
    ) -> None:
        self._folder = folder
        self._kept = kept
        self._allowed = allowed
        self._codegens = codegens
        shutil.rmtree(folder, ignore_errors=True)  # of an endpoint that was killed
        folder.mkdir()
        self._lifeline, self._held = os.pipe()

    def close(self) -> None:
        """Let processes that are left, if any, know that it is over."""
        os.close(self._held)
        os.close(self._lifeline)

    async def transform(self, job: Job) -> Outcome:
        """Transform an input; its object is kept when this comes back."""
        try:  # of an older request: the endpoint may be another by now
            check_enabled(job.request.codegen, self._codegens)
            locate(job.path)
        except UsageError as error:
            return Outcome(error=str(error))
        verdict = Verdict()
        for pause in (*PAUSES_S, None):
            verdict = await self._attempt(job)
            if not verdict.transient or pause is None:
                break
            told = escaped(f"{job.path}: {verdict.error}")
            logger.debug("%s; again in %d s", redacted(told), pause)
            await asyncio.sleep(pause)
        if verdict.error is not None:
            return Outcome(error=escaped(verdict.error))
        name = objects.name_for(job.path, job.request.result_format)
        return Outcome(name, verdict.size, verdict.events)

    async def _attempt(self, job: Job) -> Verdict:
        # of an earlier attempt something may be left that can't be removed
        folder = Path(tempfile.mkdtemp(prefix=f"{job.number}-", dir=self._folder))
        try:
            request = job.request
            what = {
                "codegen": request.codegen,
                "program": job.program,
                "source": locate(job.path),
                "format": request.result_format,
                "own": str(self._folder.parent),
                "memory": self._allowed.memory,
                "seconds": self._allowed.seconds * (os.cpu_count() or 1),
            }
            (folder / JOB).write_text(json.dumps(what))
            verdict = await self._run(folder)
            if verdict.error is None:
                name = objects.name_for(job.path, request.result_format)
                self._kept.keep(job.request_id, name, folder / OUTPUT)
            return verdict
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _run(self, folder: Path) -> Verdict:
        log = folder / "log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-P",
                    "-m",
                    "agc_ml.servicex_endpoint.transformation.transformer",
                ),
                stdin=self._lifeline,
                stdout=output,
                stderr=output,
                cwd=folder,
                env=limits.environment(os.environ, folder),
                start_new_session=True,
            )
        seconds = self._allowed.seconds
        try:
            async with asyncio.timeout(seconds):
                code = await process.wait()
        except TimeoutError:
            return Verdict(error=f"not done after {seconds:g} s (--timeout)")
        finally:
            await _end(process)
        if (folder / VERDICT).is_file():
            return _verdict(folder)
        said = _last_words(log)
        died_of = ending(code)
        if died_of == signal.SIGXCPU.name:
            return Verdict(error=f"not done after {seconds:g} s of each core (--timeout)")
        if _NO_MEMORY.search(said):
            return Verdict(error=out_of_memory(self._allowed.memory))
        return Verdict(error=f"the worker died ({died_of}): {said}", transient=True)


def _last_words(log: Path) -> str:
    """End of a worker's log, which somebody's code may have put something else in place of."""
    with suppress(OSError, ValueError), documents.opened(log) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LONGEST_VERDICT))
        return " ".join(file.read(_LONGEST_VERDICT).decode(errors="replace").split())[-300:]
    return "no log"


def _verdict(folder: Path) -> Verdict:
    """Read a worker's verdict, which somebody's code may have written."""
    try:
        content = documents.content(folder / VERDICT, _LONGEST_VERDICT)
        verdict = Verdict.model_validate_json(content)
    except OSError as error:
        return Verdict(error=f"the worker's verdict can't be read ({error.strerror})")
    except ValidationError as error:
        return Verdict(error=f"the worker's verdict is damaged ({one_line(error)})")
    output = folder / OUTPUT
    if verdict.error is None and (output.is_symlink() or not output.is_file()):
        return Verdict(error="the worker left no output")
    return verdict


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process and all that it started, unless it is over."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_END_WITHIN_S):
            await process.wait()
    except TimeoutError:  # somebody has stopped it
        send({*descendants(process.pid), process.pid}, signal.SIGKILL)
        await process.wait()
