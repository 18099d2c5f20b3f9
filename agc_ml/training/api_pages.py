"""Routes of the service itself: health, numbers, a page for people."""

from __future__ import annotations

import contextlib
from typing import Final

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, PlainTextResponse

from agc_ml.errors import ModelError
from agc_ml.training import board, versions
from agc_ml.training.house import PAGE_POLICY, InHouse, Reader
from agc_ml.training.versions import VersionFacts

ROUTES: Final = APIRouter()


@ROUTES.get("/healthz", tags=["service"])
async def health(house: InHouse) -> dict[str, str]:
    """Whether the service works, for anyone; 503 where it does not."""
    house.training.table.counts()
    return {
        "status": "ok",
        "registry": "open" if house.is_open else "closed",
        "mlflow": "up" if house.is_mlflow_up else "down",
    }


@ROUTES.get("/metrics", tags=["service"], response_class=PlainTextResponse)
async def metrics(house: InHouse, _: Reader) -> str:
    """Numbers for Prometheus."""
    return board.metrics(house.training, house.requests, mlflow_up=house.is_mlflow_up)


@ROUTES.get("/", include_in_schema=False)
async def page(house: InHouse, _: Reader) -> HTMLResponse:
    """Models and jobs, for people."""
    models: list[VersionFacts] = []
    if house.is_open:
        with contextlib.suppress(ModelError):
            models = await house.read(versions.of_all, house.training.registry)
    jobs = house.training.table.jobs(limit=board.MOST)
    text = board.page(jobs, models, house.mlflow_url, is_up=house.is_mlflow_up)
    return HTMLResponse(text, headers={"Content-Security-Policy": PAGE_POLICY})
