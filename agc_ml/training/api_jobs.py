"""Routes of training sets and jobs."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException

from agc_ml.errors import StoreError, TrainingError
from agc_ml.training.house import House, InHouse, Reader, Trainer
from agc_ml.training.spec import DIGEST, JobSpec
from agc_ml.training.table import ENDED, Job, State, UnknownError

ROUTES: Final = APIRouter()

UPLOAD: Final = ".upload"
"""How the name of a file begins that is being uploaded."""

EVERY_S: Final = 0.5
"""Between two looks at a job that someone follows."""

_UNLIMITED: Final = 1 << 60  # here: the service's own limit is looked at while it is read


@ROUTES.put(
    "/v1/datasets/{digest}",
    status_code=201,
    tags=["training sets"],
    max_body_size=_UNLIMITED,
)
async def upload(
    digest: str, request: Request, response: Response, house: InHouse, _: Trainer
) -> dict[str, str]:
    """Upload a training set, as Parquet; its digest says which one it is.

    200: it is here already, and what was sent is not looked at.
    """
    if not re.fullmatch(DIGEST, digest):
        raise TrainingError("the digest of a training set is 64 hexadecimal digits")
    if house.training.dataset_path(digest).exists():
        response.status_code = HTTPStatus.OK
        return {"digest": digest}
    n_bytes = 0
    with tempfile.NamedTemporaryFile(dir=house.training.folder, prefix=UPLOAD) as file:
        try:
            async for part in request.stream():
                n_bytes += len(part)
                if n_bytes > house.max_upload:
                    raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _too_large(house))
                file.write(part)
            file.flush()
        except OSError as error:
            raise StoreError(f"the training set can't be kept ({error.strerror})") from error
        await house.take_in(Path(file.name), digest)
    return {"digest": digest}


@ROUTES.get("/v1/datasets/{digest}", tags=["training sets"])
async def dataset(digest: str, house: InHouse, _: Reader) -> dict[str, Any]:
    """Whether a training set is here."""
    path = house.training.dataset_path(digest)
    if not re.fullmatch(DIGEST, digest) or not path.exists():
        raise UnknownError(f"there is no training set {digest[:12]} here; upload it")
    return {"digest": digest, "bytes": path.stat().st_size}


@ROUTES.post("/v1/jobs", status_code=202, tags=["jobs"])
async def submit(spec: JobSpec, response: Response, house: InHouse, who: Trainer) -> Job:
    """Take a job on; the same idempotency key gives the first job."""
    job, is_new = house.training.submit(spec, who.name)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if not is_new:
        response.status_code = HTTPStatus.OK
    return job


@ROUTES.get("/v1/jobs", tags=["jobs"])
async def jobs(
    house: InHouse,
    _: Reader,
    state: State | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[Job]:
    """Jobs, the oldest first; the newest ``limit`` of them."""
    states = () if state is None else (state,)
    return house.training.table.jobs(states, limit)


@ROUTES.get("/v1/jobs/{job_id}", tags=["jobs"])
async def job(job_id: str, house: InHouse, _: Reader) -> Job:
    """How a job stands."""
    return house.training.table.job(job_id)


@ROUTES.get("/v1/jobs/{job_id}/logs", tags=["jobs"])
async def logs(
    job_id: str,
    house: InHouse,
    _: Reader,
    tail: Annotated[int, Query(ge=1, le=10_000)] = 200,
) -> dict[str, list[str]]:
    """The last lines of its log."""
    found = house.training.table.job(job_id)
    return {"lines": house.training.log(found, tail)}


async def _known(job_id: str, house: InHouse, _: Reader) -> Job:
    """A job that is there: once an answer streams, it is too late to say that it is not."""
    return house.training.table.job(job_id)


@ROUTES.get("/v1/jobs/{job_id}/events", tags=["jobs"], response_class=EventSourceResponse)
async def events(
    job_id: str, house: InHouse, _: Reader, found: Annotated[Job, Depends(_known)]
) -> AsyncIterator[ServerSentEvent]:
    """The job each time it changes, until it is over."""
    changed = 0.0
    while True:
        if found.changed != changed:
            changed = found.changed
            yield ServerSentEvent(data=found, event="job", id=str(changed))
        if found.state in ENDED:
            return
        await asyncio.sleep(EVERY_S)
        found = house.training.table.job(job_id)


@ROUTES.post("/v1/jobs/{job_id}/cancel", tags=["jobs"])
async def cancel(job_id: str, house: InHouse, _: Trainer) -> Job:
    """Stop a job."""
    return house.training.cancel(job_id)


def _too_large(house: House) -> str:
    return (
        f"at most {house.max_upload / 1e6:,.0f} MB are taken; start the service with a larger "
        "--max-upload"
    )
