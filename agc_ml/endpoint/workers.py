"""One input in a process of its own: a time limit, and other attempts where they may help."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, Final

from agc_ml.delivery import xrootd
from agc_ml.delivery.credentials import redacted
from agc_ml.endpoint import objects
from agc_ml.endpoint.requests import locate
from agc_ml.endpoint.state import Job, Outcome
from agc_ml.endpoint.transformer import JOB, OUTPUT, VERDICT

logger = logging.getLogger(__name__)

PAUSES_S: Final = (1, 4)  # before the second and the third attempt

# Before libraries are loaded. Of dask-awkward's optimisations one does not know today's Dask.
_VARIABLES: Final = {
    **xrootd.SETTINGS,
    "DASK_SCHEDULER": "synchronous",
    "DASK_AWKWARD__OPTIMIZATION__WHICH": '["columns"]',
    "OMP_NUM_THREADS": "1",
}


class Workers:
    """Starts processes in folders of their own below ``folder``."""

    def __init__(self, folder: Path, kept: objects.Objects, timeout: float) -> None:
        self._folder = folder
        self._kept = kept
        self._timeout = timeout
        shutil.rmtree(folder, ignore_errors=True)  # of an endpoint that was killed
        folder.mkdir()
        self._lifeline, self._held = os.pipe()

    def close(self) -> None:
        """Let processes that are left, if any, know that it is over."""
        os.close(self._held)
        os.close(self._lifeline)

    async def transform(self, job: Job) -> Outcome:
        """Transform an input; its object is kept when this comes back."""
        verdict: dict[str, Any] = {}
        for pause in (*PAUSES_S, None):
            verdict = await self._attempt(job)
            if not verdict.get("transient") or pause is None:
                break
            told = f"{job.path}: {verdict['error']}"
            logger.debug("%s; again in %d s", redacted(told), pause)
            await asyncio.sleep(pause)
        if "error" in verdict:
            return Outcome(error=verdict["error"])
        name = objects.name_for(job.path, job.request.result_format)
        return Outcome(name, verdict["size"], verdict["events"])

    async def _attempt(self, job: Job) -> dict[str, Any]:
        folder = self._folder / str(job.number)
        folder.mkdir()
        try:
            request = job.request
            what = {
                "codegen": request.codegen,
                "program": job.program,
                "source": locate(job.path),
                "format": request.result_format,
            }
            (folder / JOB).write_text(json.dumps(what))
            verdict = await self._run(folder)
            if "error" not in verdict:
                name = objects.name_for(job.path, request.result_format)
                self._kept.keep(job.request_id, name, folder / OUTPUT)
            return verdict
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _run(self, folder: Path) -> dict[str, Any]:
        log = folder / "log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "agc_ml.endpoint.transformer"),
                stdin=self._lifeline,
                stdout=output,
                stderr=output,
                cwd=folder,
                env={**_VARIABLES, **os.environ},
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(self._timeout):
                await process.wait()
        except TimeoutError:
            return {"error": f"not done after {self._timeout:g} s (--timeout)"}
        finally:
            await _end(process)
        with contextlib.suppress(FileNotFoundError):
            verdict: dict[str, Any] = json.loads((folder / VERDICT).read_text())
            return verdict
        said = " ".join(log.read_text(errors="replace").split())[-300:]
        return {"error": f"the worker died ({_ending(process)}): {said}", "transient": True}


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill a process and all that it started, unless it is over."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _ending(process: asyncio.subprocess.Process) -> str:
    code = process.returncode or 0
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
