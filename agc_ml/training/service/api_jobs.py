"""Routes of training sets and jobs."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

from agc_ml.errors import StoreError, TrainingError
from agc_ml.training.http.problems import responses
from agc_ml.training.job_spec import DIGEST, JobSpec
from agc_ml.training.service.authorization import CheckedRoute
from agc_ml.training.service.context import Context, Reader, Trainer
from agc_ml.training.service.database import Job, State, UnknownError
from agc_ml.training.service.job_manager import UPLOAD

ROUTES: Final = APIRouter(route_class=CheckedRoute)

# Between two queries of a job that is followed
POLL_S: Final = 0.5

_MAX_UPLOADS: Final = 64
_MAX_FOLLOWERS: Final = 500

_FILE: Final = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("application/vnd.apache.parquet", "application/octet-stream")
        },
    }
}

Digest = Annotated[
    str,
    PathParameter(
        description="digest of the training set's content, 64 hexadecimal digits",
        json_schema_extra={"pattern": f"^{DIGEST}$"},
    ),
]
JobId = Annotated[str, PathParameter(description="id of the job, as the list of jobs has it")]


class Uploaded(BaseModel):
    """Digest of an uploaded training set."""

    digest: str


class DatasetFacts(BaseModel):
    """Digest and size of a training set."""

    digest: str
    bytes: int = Field(description="size of its file")


class LastLines(BaseModel):
    """Last lines of a log."""

    lines: list[str]


@ROUTES.put(
    "/v1/datasets/{digest}",
    status_code=201,
    tags=["training sets"],
    summary="Upload a training set",
    responses={
        200: {"model": Uploaded, "description": "It was uploaded before; the body is not read."},
        **responses(413, 415, 422),
    },
    openapi_extra=_FILE,
)
async def upload(
    digest: Digest, request: Request, response: Response, context: Context, _: Trainer
) -> Uploaded:
    """Upload a training set as Parquet; the digest of its content is its name."""
    if not re.fullmatch(DIGEST, digest):
        raise TrainingError("the digest of a training set is 64 hexadecimal digits")
    if context.manager.dataset_path(digest).exists():
        response.status_code = HTTPStatus.OK
        return Uploaded(digest=digest)
    with (
        context.limited("uploads", _MAX_UPLOADS),
        tempfile.NamedTemporaryFile(dir=context.manager.folder, prefix=UPLOAD) as file,
    ):
        try:
            async for part in request.stream():
                file.write(part)
            file.flush()
        except OSError as error:
            raise StoreError(f"the training set can't be stored ({error.strerror})") from error
        await context.store_dataset(Path(file.name), digest)
    return Uploaded(digest=digest)


@ROUTES.get(
    "/v1/datasets/{digest}",
    tags=["training sets"],
    summary="Check for a training set",
    responses=responses(404, 422),
)
async def dataset(digest: Digest, context: Context, _: Reader) -> DatasetFacts:
    """Return its digest and size; 404 if it was not uploaded."""
    path = context.manager.dataset_path(digest)
    if not re.fullmatch(DIGEST, digest) or not path.exists():
        raise UnknownError(f"there is no training set {digest[:12]} here; upload it")
    return DatasetFacts(digest=digest, bytes=path.stat().st_size)


@ROUTES.post(
    "/v1/jobs",
    status_code=202,
    tags=["jobs"],
    summary="Submit a job",
    responses={
        200: {"model": Job, "description": "The earlier job with this idempotency key."},
        **responses(413, 415, 422, 429),
    },
)
async def submit(spec: JobSpec, response: Response, context: Context, token: Trainer) -> Job:
    """Queue a job; the same idempotency key returns the first one."""
    job, is_new = context.manager.submit(spec, token.name)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if not is_new:
        response.status_code = HTTPStatus.OK
    return job


@ROUTES.get("/v1/jobs", tags=["jobs"], summary="List jobs", responses=responses(422))
async def jobs(
    context: Context,
    _: Reader,
    state: Annotated[State | None, Query(description="only jobs in this state")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="largest number of jobs to list")] = 100,
) -> list[Job]:
    """List the newest ``limit`` jobs, the oldest first."""
    states = () if state is None else (state,)
    return context.manager.database.jobs(states, limit)


@ROUTES.get("/v1/jobs/{job_id}", tags=["jobs"], summary="Show a job", responses=responses(404, 422))
async def job(job_id: JobId, context: Context, _: Reader) -> Job:
    """Return a job and its state."""
    return context.manager.database.job(job_id)


@ROUTES.get(
    "/v1/jobs/{job_id}/logs",
    tags=["jobs"],
    summary="Read the log of a job",
    responses=responses(404, 422),
)
async def logs(
    job_id: JobId,
    context: Context,
    _: Reader,
    tail: Annotated[int, Query(ge=1, le=10_000, description="largest number of lines")] = 200,
) -> LastLines:
    """Return the last lines of its log, from the last megabyte."""
    job = context.manager.database.job(job_id)
    return LastLines(lines=context.manager.log(job, tail))


async def _existing_job(job_id: JobId, context: Context, _: Reader) -> Job:
    """Return a job, or 404: too late for that once the answer streams."""
    return context.manager.database.job(job_id)


async def _limit_followers(context: Context) -> AsyncIterator[None]:
    with context.limited("followers", _MAX_FOLLOWERS):
        yield


@ROUTES.get(
    "/v1/jobs/{job_id}/events",
    tags=["jobs"],
    summary="Follow a job",
    response_class=EventSourceResponse,
    responses=responses(404, 422),
    dependencies=[Depends(_limit_followers)],
)
async def events(
    job_id: JobId, context: Context, _: Reader, job: Annotated[Job, Depends(_existing_job)]
) -> AsyncIterator[ServerSentEvent]:
    """Stream the job as server-sent events, each time it changes, until it has ended."""
    yield ServerSentEvent(data=job, event="job", id=str(job.changed))
    while not job.is_over:
        await asyncio.sleep(POLL_S)
        if context.manager.database.changed(job_id) != job.changed:  # cheaper than reading the job
            job = context.manager.database.job(job_id)
            yield ServerSentEvent(data=job, event="job", id=str(job.changed))


@ROUTES.post(
    "/v1/jobs/{job_id}/cancel",
    tags=["jobs"],
    summary="Cancel a job",
    responses=responses(404, 413, 415, 422),
)
async def cancel(job_id: JobId, context: Context, _: Trainer) -> Job:
    """Cancel a job: at once if it is queued, else when its process has stopped."""
    return context.manager.cancel(job_id)
