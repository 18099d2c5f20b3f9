"""Routes of models: versions, promotion, rollback."""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from agc_ml.errors import TrainingError
from agc_ml.models.naming import NAME
from agc_ml.models.registry import CHAMPION, MOST_VERSION
from agc_ml.training.http.problems import responses
from agc_ml.training.job_spec import Pair, VersionNumber
from agc_ml.training.pages.report_page import REPORT
from agc_ml.training.registry.publisher import Publisher
from agc_ml.training.registry.versions import VersionFacts
from agc_ml.training.service.authorization import CheckedRoute
from agc_ml.training.service.context import PAGE_POLICY, Context, Promoter, Reader, ServiceContext
from agc_ml.training.service.database import Promotion, UnknownError

ROUTES: Final = APIRouter(tags=["models"], route_class=CheckedRoute)

Name = Annotated[str, Path(description="name of the model")]
VersionOf = Annotated[VersionNumber, Path(description="version of the bundle")]
# Version of the champion; 0 if there is none
CurrentVersion = Annotated[int, Field(ge=0, le=MOST_VERSION)]


class Content(Response):
    """A file's content."""

    media_type = "application/octet-stream"


class Promote(BaseModel):
    """Bundle to promote: its version, or the versions of its two models."""

    model_config = ConfigDict(extra="forbid")
    version: VersionNumber | None = None
    versions: Pair | None = None
    expect_current: CurrentVersion | None = Field(
        default=None,
        description="promote only if this version is the champion now; 0 if there is none",
    )
    force: bool = Field(default=False, description="promote even if gates failed")
    reason: str = Field(default="", max_length=500, description="reason for a forced promotion")


class Rollback(BaseModel):
    """Restore the previous champion."""

    model_config = ConfigDict(extra="forbid")
    expect_current: CurrentVersion | None = None


@ROUTES.get("/v1/models", summary="List all bundles", responses=responses())
async def models(context: Context, _: Reader) -> list[VersionFacts]:
    """List the bundles of all models, the oldest of each first."""
    return await context.read_registry(Publisher.all_bundles)


@ROUTES.get(
    "/v1/models/{name}", summary="List the bundles of a model", responses=responses(404, 422)
)
async def of_model(name: Name, context: Context, _: Reader) -> list[VersionFacts]:
    """List the bundles of a model, the oldest first."""
    return await context.read_registry(Publisher.bundles, _name(name))


@ROUTES.get(
    "/v1/models/{name}/promotions",
    summary="List the promotions of a model",
    responses=responses(404, 422),
)
async def promotions(name: Name, context: Context, _: Reader) -> list[Promotion]:
    """List all changes of the champion: versions, users, times and reasons."""
    return context.manager.database.promotions(_name(name))


@ROUTES.get(
    "/v1/models/{name}/resolve",
    summary="Find the bundle of an alias or a version",
    responses=responses(404, 409, 422),
)
async def resolve(
    name: Name,
    context: Context,
    _: Reader,
    alias: Annotated[
        str, Query(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="such as champion")
    ] = CHAMPION,
    version: Annotated[
        VersionNumber | None, Query(description="version number, instead of an alias")
    ] = None,
) -> VersionFacts:
    """Return the bundle of an alias or a version; the sha256 of its files were verified."""
    which = alias if version is None else str(version)
    return await context.read_registry(Publisher.resolve, _name(name), which)


@ROUTES.get(
    "/v1/models/{name}/versions/{version}/files/{file:path}",
    summary="Download a file of a bundle",
    response_class=Content,
    responses=responses(404, 409, 422),
)
async def content(
    name: Name,
    version: VersionOf,
    file: Annotated[str, Path(description="name of the file, as the bundle lists it")],
    context: Context,
    _: Reader,
) -> Response:
    """Return a file of a bundle; its sha256 was verified."""
    return Content(await _file(context, name, version, file))


@ROUTES.get(
    "/v1/models/{name}/versions/{version}/report",
    summary="Read the validation report of a bundle",
    response_class=HTMLResponse,
    responses=responses(404, 409, 422),
)
async def report(name: Name, version: VersionOf, context: Context, _: Reader) -> HTMLResponse:
    """Return the validation report of a bundle: gates, quality and figures."""
    data = await _file(context, name, version, REPORT)
    return HTMLResponse(data, headers={"Content-Security-Policy": PAGE_POLICY})


@ROUTES.post(
    "/v1/models/{name}/promote",
    summary="Make a bundle the champion",
    responses=responses(404, 409, 413, 415, 422),
)
async def promote(name: Name, request: Promote, context: Context, token: Promoter) -> Promotion:
    """Make a bundle the champion, unless the current champion is not the expected one."""
    if (request.version is None) == (request.versions is None):
        raise TrainingError("either version (of a bundle) or versions (of two models)")
    if request.force != bool(request.reason.strip()):
        raise TrainingError("force needs a reason, and a reason is for force only")
    return await context.write_registry(
        context.manager.champions.promote,
        _name(name),
        request.versions or str(request.version),
        expected=_expected(request.expect_current),
        who=token.name,
        force=request.reason.strip(),
    )


@ROUTES.post(
    "/v1/models/{name}/rollback",
    summary="Roll back to the previous champion",
    responses=responses(404, 409, 413, 415, 422),
)
async def rollback(name: Name, request: Rollback, context: Context, token: Promoter) -> Promotion:
    """Make the previous champion the champion again."""
    return await context.write_registry(
        context.manager.champions.rollback,
        _name(name),
        expected=_expected(request.expect_current),
        who=token.name,
    )


async def _file(context: ServiceContext, name: str, version: int, file: str) -> bytes:
    registry = context.manager.registry
    return await context.run_in_reader(registry.file, _name(name), str(version), file)


def _name(name: str) -> str:
    """Return a name that is safe in a query of MLflow."""
    if not re.fullmatch(NAME, name):
        raise UnknownError(f"there is no model {name[:80]!r}")
    return name


def _expected(version: int | None) -> str | None:
    return None if version is None else str(version or "")
