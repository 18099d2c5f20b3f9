"""Routes of the service itself: health, metrics, web pages."""

from __future__ import annotations

import contextlib
from http import HTTPStatus
from typing import Final, Literal

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from agc_ml.errors import ModelError, StoreError
from agc_ml.training.http.problems import responses
from agc_ml.training.pages import board
from agc_ml.training.registry.publisher import Publisher
from agc_ml.training.registry.versions import VersionFacts
from agc_ml.training.service.authorization import CheckedRoute
from agc_ml.training.service.context import PAGE_POLICY, Context, Reader

ROUTES: Final = APIRouter(route_class=CheckedRoute)


class Health(BaseModel):
    """State of the service."""

    status: Literal["ok"]
    registry: Literal["open", "closed"] = Field(description="closed if it can't be used now")
    mlflow: Literal["up", "down"]


@ROUTES.get(
    "/healthz",
    tags=["service"],
    summary="Check the health of the service",
    responses=responses(is_open=True),
)
async def health(context: Context) -> Health:
    """Return the state of the service, without a token; 503 if it does not work."""
    try:
        context.manager.database.counts()
    except StoreError as error:
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "jobs can't be read") from error
    return Health(
        status="ok",
        registry="open" if context.is_registry_open else "closed",
        mlflow="up" if context.is_mlflow_up else "down",
    )


@ROUTES.get(
    "/metrics",
    tags=["service"],
    summary="Read numbers for Prometheus",
    response_class=PlainTextResponse,
    responses=responses(),
)
async def metrics(context: Context, _: Reader) -> str:
    """Return jobs by state, requests by status, and the state of MLflow."""
    return board.metrics(context.manager, context.requests, mlflow_up=context.is_mlflow_up)


@ROUTES.get("/", include_in_schema=False)
async def page(context: Context, _: Reader) -> HTMLResponse:
    """Show models and jobs."""
    models: list[VersionFacts] | None = None
    if context.is_registry_open:
        with contextlib.suppress(ModelError):
            models = await context.read_registry(Publisher.all_bundles)
    jobs = context.manager.database.jobs(limit=board.MAX_JOBS)
    text = board.page(jobs, models, context.mlflow_url, is_up=context.is_mlflow_up)
    return HTMLResponse(text, headers={"Content-Security-Policy": PAGE_POLICY})


@ROUTES.get("/jobs/{job_id}", include_in_schema=False)
async def page_of_job(job_id: str, context: Context, _: Reader) -> HTMLResponse:
    """Show a job."""
    job = context.manager.database.job(job_id)
    text = board.job_page(job, context.manager.log(job, board.LAST_LINES))
    return HTMLResponse(text, headers={"Content-Security-Policy": PAGE_POLICY})
