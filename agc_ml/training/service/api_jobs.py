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
from agc_ml.training.http.openapi import problems
from agc_ml.training.job_spec import DIGEST, JobSpec
from agc_ml.training.service.authorization import Route
from agc_ml.training.service.context import InHouse, Reader, Trainer
from agc_ml.training.service.database import ENDED, Job, State, UnknownError

ROUTES: Final = APIRouter(route_class=Route)

UPLOAD: Final = ".upload"
"""How the name of a file begins that is being uploaded."""

EVERY_S: Final = 0.5
"""Between two looks at a job that someone follows."""

_UPLOADS: Final = 64
_FOLLOWERS: Final = 500
"""Of these, so many at once."""

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
JobId = Annotated[str, PathParameter(description="identity of the job, as the list of jobs has it")]


class Uploaded(BaseModel):
    """A training set that is here now."""

    digest: str


class DatasetFacts(BaseModel):
    """A training set that is here."""

    digest: str
    bytes: int = Field(description="size of its file")


class LastLines(BaseModel):
    """The end of a log."""

    lines: list[str]


@ROUTES.put(
    "/v1/datasets/{digest}",
    status_code=201,
    tags=["training sets"],
    summary="Upload a training set",
    responses={
        200: {"model": Uploaded, "description": "It is here already; what was sent is not read."},
        **problems(413, 415, 422),
    },
    openapi_extra=_FILE,
)
async def upload(
    digest: Digest, request: Request, response: Response, house: InHouse, _: Trainer
) -> Uploaded:
    """A training set as Parquet; its digest says which one it is."""
    if not re.fullmatch(DIGEST, digest):
        raise TrainingError("the digest of a training set is 64 hexadecimal digits")
    if house.training.dataset_path(digest).exists():
        response.status_code = HTTPStatus.OK
        return Uploaded(digest=digest)
    with (
        house.one_of("uploads", _UPLOADS),
        tempfile.NamedTemporaryFile(dir=house.training.folder, prefix=UPLOAD) as file,
    ):
        try:
            async for part in request.stream():
                file.write(part)
            file.flush()
        except OSError as error:
            raise StoreError(f"the training set can't be kept ({error.strerror})") from error
        await house.take_in(Path(file.name), digest)
    return Uploaded(digest=digest)


@ROUTES.get(
    "/v1/datasets/{digest}",
    tags=["training sets"],
    summary="Look whether a training set is here",
    responses=problems(404, 422),
)
async def dataset(digest: Digest, house: InHouse, _: Reader) -> DatasetFacts:
    """Its digest and its size; 404 if it has to be uploaded."""
    path = house.training.dataset_path(digest)
    if not re.fullmatch(DIGEST, digest) or not path.exists():
        raise UnknownError(f"there is no training set {digest[:12]} here; upload it")
    return DatasetFacts(digest=digest, bytes=path.stat().st_size)


@ROUTES.post(
    "/v1/jobs",
    status_code=202,
    tags=["jobs"],
    summary="Submit a job",
    responses={
        200: {"model": Job, "description": "The job that the idempotency key made before."},
        **problems(413, 415, 422, 429),
    },
)
async def submit(spec: JobSpec, response: Response, house: InHouse, who: Trainer) -> Job:
    """Take a job on; the same idempotency key gives the first job."""
    job, is_new = house.training.submit(spec, who.name)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if not is_new:
        response.status_code = HTTPStatus.OK
    return job


@ROUTES.get("/v1/jobs", tags=["jobs"], summary="List jobs", responses=problems(422))
async def jobs(
    house: InHouse,
    _: Reader,
    state: Annotated[State | None, Query(description="only jobs in this state")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="most that are listed")] = 100,
) -> list[Job]:
    """Jobs, the oldest first; the newest ``limit`` of them."""
    states = () if state is None else (state,)
    return house.training.table.jobs(states, limit)


@ROUTES.get("/v1/jobs/{job_id}", tags=["jobs"], summary="Show a job", responses=problems(404, 422))
async def job(job_id: JobId, house: InHouse, _: Reader) -> Job:
    """How a job stands."""
    return house.training.table.job(job_id)


@ROUTES.get(
    "/v1/jobs/{job_id}/logs",
    tags=["jobs"],
    summary="Read the log of a job",
    responses=problems(404, 422),
)
async def logs(
    job_id: JobId,
    house: InHouse,
    _: Reader,
    tail: Annotated[int, Query(ge=1, le=10_000, description="lines at most")] = 200,
) -> LastLines:
    """The last lines of what its process said, of the last megabyte."""
    found = house.training.table.job(job_id)
    return LastLines(lines=house.training.log(found, tail))


async def _known(job_id: JobId, house: InHouse, _: Reader) -> Job:
    """A job that is there: once an answer streams, it is too late to say that it is not."""
    return house.training.table.job(job_id)


async def _follows(house: InHouse) -> AsyncIterator[None]:
    with house.one_of("followers", _FOLLOWERS):
        yield


@ROUTES.get(
    "/v1/jobs/{job_id}/events",
    tags=["jobs"],
    summary="Follow a job",
    response_class=EventSourceResponse,
    responses=problems(404, 422),
    dependencies=[Depends(_follows)],
)
async def events(
    job_id: JobId, house: InHouse, _: Reader, found: Annotated[Job, Depends(_known)]
) -> AsyncIterator[ServerSentEvent]:
    """The job each time it changes, until it is over, as server-sent events."""
    yield ServerSentEvent(data=found, event="job", id=str(found.changed))
    while found.state not in ENDED:
        await asyncio.sleep(EVERY_S)
        if house.training.table.changed(job_id) != found.changed:  # to read all of it takes longer
            found = house.training.table.job(job_id)
            yield ServerSentEvent(data=found, event="job", id=str(found.changed))


@ROUTES.post(
    "/v1/jobs/{job_id}/cancel",
    tags=["jobs"],
    summary="Cancel a job",
    responses=problems(404, 413, 415, 422),
)
async def cancel(job_id: JobId, house: InHouse, _: Trainer) -> Job:
    """Stop a job: at once if it waits, else as soon as its process has stopped."""
    return house.training.cancel(job_id)
