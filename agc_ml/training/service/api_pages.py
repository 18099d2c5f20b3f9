"""Routes of the service itself: health, numbers, a page for people."""

from __future__ import annotations

import contextlib
from http import HTTPStatus
from typing import Final, Literal

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from agc_ml.errors import ModelError, StoreError
from agc_ml.training.http.openapi import problems
from agc_ml.training.pages import board
from agc_ml.training.registry import versions
from agc_ml.training.registry.versions import VersionFacts
from agc_ml.training.service.authorization import Route
from agc_ml.training.service.context import PAGE_POLICY, InHouse, Reader

ROUTES: Final = APIRouter(route_class=Route)


class Health(BaseModel):
    """How the service is."""

    status: Literal["ok"]
    registry: Literal["open", "closed"] = Field(description="closed: it can't be used now")
    mlflow: Literal["up", "down"]


@ROUTES.get(
    "/healthz",
    tags=["service"],
    summary="Ask whether the service works",
    responses=problems(is_open=True),
)
async def health(house: InHouse) -> Health:
    """For everyone, without a token; 503 where it does not work."""
    try:
        house.training.table.counts()
    except StoreError as error:
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "jobs can't be read") from error
    return Health(
        status="ok",
        registry="open" if house.is_open else "closed",
        mlflow="up" if house.is_mlflow_up else "down",
    )


@ROUTES.get(
    "/metrics",
    tags=["service"],
    summary="Read numbers for Prometheus",
    response_class=PlainTextResponse,
    responses=problems(),
)
async def metrics(house: InHouse, _: Reader) -> str:
    """Jobs by state, requests by status, and whether MLflow answers."""
    return board.metrics(house.training, house.requests, mlflow_up=house.is_mlflow_up)


@ROUTES.get("/", include_in_schema=False)
async def page(house: InHouse, _: Reader) -> HTMLResponse:
    """Models and jobs, for people."""
    models: list[VersionFacts] | None = None
    if house.is_open:
        with contextlib.suppress(ModelError):
            models = await house.look(versions.of_all)
    jobs = house.training.table.jobs(limit=board.MOST)
    text = board.page(jobs, models, house.mlflow_url, is_up=house.is_mlflow_up)
    return HTMLResponse(text, headers={"Content-Security-Policy": PAGE_POLICY})


@ROUTES.get("/jobs/{job_id}", include_in_schema=False)
async def page_of_job(job_id: str, house: InHouse, _: Reader) -> HTMLResponse:
    """A job, for people."""
    job = house.training.table.job(job_id)
    text = board.page_of_job(job, house.training.log(job, board.LAST_LINES))
    return HTMLResponse(text, headers={"Content-Security-Policy": PAGE_POLICY})
