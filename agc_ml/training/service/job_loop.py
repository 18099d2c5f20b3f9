"""Loop that runs the jobs of a folder: in the service, and in training without one."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from agc_ml.errors import StoreError
from agc_ml.training.http import logs
from agc_ml.training.service.context import ServiceContext
from agc_ml.training.service.database import Job
from agc_ml.training.service.job_manager import Outcome

logger = logging.getLogger(__name__)

TICK_S: Final = 0.2
# Between two attempts to use the registry for a job
RETRY_S: Final = 3.0


async def run_jobs(context: ServiceContext) -> None:
    """Supervise the processes of jobs; prepare and publish jobs one at a time, for ever."""
    manager = context.manager
    registry_task: asyncio.Task[None] | None = None
    not_before: dict[str, float] = {}
    while True:
        try:
            waiting = manager.step()
        except StoreError as error:
            logger.error("%s", error)  # noqa: TRY400 - one line says it
            waiting = []
        except Exception:  # a fault of one job must not stop the others
            logger.exception("jobs can't be supervised")
            await asyncio.sleep(RETRY_S)
            continue
        # the registry has one writer: start the next job when the one before is done
        if registry_task is None or registry_task.done():
            now = time.monotonic()
            due = [job for job in waiting if not_before.get(job.id, 0) <= now]
            if due and context.is_registry_open:
                not_before[due[0].id] = now + RETRY_S
                registry_task = asyncio.create_task(_use_registry(context, due[0]))
        logs.log_omitted()
        await asyncio.sleep(TICK_S)


async def _use_registry(context: ServiceContext, job: Job) -> None:
    """Prepare a queued job, or publish a finished one."""
    outcome: Outcome
    try:
        outcome = await context.write_registry(context.manager.use_registry, job)
    except Exception as error:
        logger.exception("job %s", job.id)
        outcome = error
    try:
        context.manager.settle(job, outcome)
    except StoreError as error:  # the job keeps its state, and is retried
        logger.error("job %s: %s", job.id, error)  # noqa: TRY400 - one line says it
