"""Transformers: each input file in a process of its own, with a time limit and retries."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ValidationError

from agc_ml import documents
from agc_ml.errors import UsageError
from agc_ml.servicex_endpoint.isolation.processes import start_module
from agc_ml.servicex_endpoint.isolation.supervision import descendants, exit_reason, send_signal
from agc_ml.servicex_endpoint.requests import escaped, locate, one_line
from agc_ml.servicex_endpoint.store import RequestStore, TransformJob, TransformOutcome
from agc_ml.servicex_endpoint.transformation.transformer import (
    JOB,
    OUTPUT,
    REPORT,
    out_of_memory,
)
from agc_ml.servicex_endpoint.translation.generators import check_enabled
from agc_ml.transports.credentials import redacted

logger = logging.getLogger(__name__)

PAUSES_S: Final = (1, 4)  # before the second and the third attempt

_MODULE: Final = "agc_ml.servicex_endpoint.transformation.transformer"
# Output of libraries that crash without memory, instead of raising MemoryError.
_NO_MEMORY: Final = re.compile(r"bad_alloc|MemoryError|Cannot allocate memory|out of memory")
_END_WITHIN_S: Final = 15
_MAX_REPORT: Final = 100_000  # bytes


class TransformerLimits(NamedTuple):
    """Limits of a transformer: seconds, also of each core, and bytes of memory."""

    seconds: float
    memory: float


class TransformerPool:
    """Transformers in folders below ``folder``, for the code generators ``codegens``."""

    def __init__(
        self,
        folder: Path,
        store: RequestStore,
        limits: TransformerLimits,
        codegens: tuple[str, ...],
    ) -> None:
        self._folder = folder
        self._store = store
        self._limits = limits
        self._codegens = codegens
        shutil.rmtree(folder, ignore_errors=True)  # of an endpoint that was killed
        folder.mkdir()
        # Transformers end when this pipe, their standard input, is closed.
        self._lifeline, self._lifeline_end = os.pipe()

    def close(self) -> None:
        """End the transformers that are left, if any."""
        os.close(self._lifeline_end)
        os.close(self._lifeline)

    async def transform(self, job: TransformJob) -> TransformOutcome:
        """Transform an input file, and store its object."""
        try:  # again, since the request may be of an endpoint with other settings
            check_enabled(job.request.codegen, self._codegens)
            source = locate(job.path)
        except UsageError as error:
            return TransformOutcome(error=str(error))
        outcome = await self._attempt(job, source)
        for pause in PAUSES_S:
            if outcome.transient:
                line = escaped(f"{job.path}: {outcome.error}")
                logger.debug("%s; again in %d s", redacted(line), pause)
                await asyncio.sleep(pause)
                outcome = await self._attempt(job, source)
        if outcome.error is not None:  # its text may be of foreign code
            return TransformOutcome(error=escaped(outcome.error))
        return outcome

    async def _attempt(self, job: TransformJob, source: str) -> TransformOutcome:
        # a new name, as an earlier attempt may have left files that can't be removed
        folder = Path(tempfile.mkdtemp(prefix=f"{job.number}-", dir=self._folder))
        try:
            description = {
                "codegen": job.request.codegen,
                "program": job.program,
                "source": source,
                "format": job.request.result_format,
                "own": str(self._folder.parent),
                "memory": self._limits.memory,
                "seconds": self._limits.seconds * (os.cpu_count() or 1),
            }
            (folder / JOB).write_text(json.dumps(description))
            outcome = await self._run(folder)
            if outcome.error is None:
                self._store.add_object(job, folder / OUTPUT)
            return outcome
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _run(self, folder: Path) -> TransformOutcome:
        log = folder / "log"
        with log.open("wb") as output:
            process = await start_module(
                _MODULE, folder=folder, stdin=self._lifeline, stdout=output, stderr=output
            )
        seconds = self._limits.seconds
        try:
            async with asyncio.timeout(seconds):
                code = await process.wait()
        except TimeoutError:
            return TransformOutcome(error=f"not done after {seconds:g} s (--timeout)")
        finally:
            await _end(process)
        if (folder / REPORT).is_file():
            return _read_report(folder)
        # It died: by a limit, or for a reason that a retry may not meet again.
        tail = _log_tail(log)
        reason = exit_reason(code)
        if reason == signal.SIGXCPU.name:
            return TransformOutcome(error=f"not done after {seconds:g} s of each core (--timeout)")
        if _NO_MEMORY.search(tail):
            return TransformOutcome(error=out_of_memory(self._limits.memory))
        return TransformOutcome(error=f"the transformer died ({reason}): {tail}", transient=True)


def _log_tail(log: Path) -> str:
    """Return the end of a transformer's log, which foreign code may have replaced."""
    with suppress(OSError, ValueError), documents.opened(log) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _MAX_REPORT))
        return " ".join(file.read(_MAX_REPORT).decode(errors="replace").split())[-300:]
    return "no log"


def _read_report(folder: Path) -> TransformOutcome:
    """Read a transformer's report, which foreign code may have written."""
    try:
        content = documents.content(folder / REPORT, _MAX_REPORT)
        report = TransformOutcome.model_validate_json(content)
    except ValidationError as error:
        return TransformOutcome(error=f"the transformer's report is damaged ({one_line(error)})")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return TransformOutcome(error=f"the transformer's report can't be read ({reason})")
    output = folder / OUTPUT
    if report.error is None and (output.is_symlink() or not output.is_file()):
        return TransformOutcome(error="the transformer left no output")
    return report


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process and its descendants, unless it has ended."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_END_WITHIN_S):
            await process.wait()
    except TimeoutError:  # somebody has stopped it
        send_signal({*descendants(process.pid), process.pid}, signal.SIGKILL)
        await process.wait()
