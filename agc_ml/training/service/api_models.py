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
from agc_ml.training.http.openapi import problems
from agc_ml.training.job_spec import Pair, VersionNumber
from agc_ml.training.pages.report_page import REPORT
from agc_ml.training.registry import versions
from agc_ml.training.registry.versions import VersionFacts
from agc_ml.training.service.authorization import Route
from agc_ml.training.service.context import PAGE_POLICY, InHouse, Promoter, Reader
from agc_ml.training.service.database import Promotion, UnknownError

ROUTES: Final = APIRouter(tags=["models"], route_class=Route)

Name = Annotated[str, Path(description="name of the model, such as jet_assignment")]
VersionOf = Annotated[VersionNumber, Path(description="version of the bundle")]
CurrentVersion = Annotated[int, Field(ge=0, le=MOST_VERSION)]
"""Of the champion; 0: there is none."""


class Content(Response):
    """Bytes."""

    media_type = "application/octet-stream"


class Promote(BaseModel):
    """Which bundle is to be the champion: by its version, or those of its two models."""

    model_config = ConfigDict(extra="forbid")
    version: VersionNumber | None = None
    versions: Pair | None = None
    expect_current: CurrentVersion | None = Field(
        default=None, description="version that is the champion now; 0: there is none"
    )
    force: bool = Field(default=False, description="although it fails a gate")
    reason: str = Field(default="", max_length=500, description="why, if it is forced")


class Rollback(BaseModel):
    """Back to the champion before."""

    model_config = ConfigDict(extra="forbid")
    expect_current: CurrentVersion | None = None


@ROUTES.get("/v1/models", summary="List all bundles", responses=problems())
async def models(house: InHouse, _: Reader) -> list[VersionFacts]:
    """Bundles of all models, the oldest first of each."""
    return await house.look(versions.of_all)


@ROUTES.get(
    "/v1/models/{name}", summary="List the bundles of a model", responses=problems(404, 422)
)
async def of_model(name: Name, house: InHouse, _: Reader) -> list[VersionFacts]:
    """Bundles of a model, the oldest first."""
    return await house.look(versions.of_model, _name(name))


@ROUTES.get(
    "/v1/models/{name}/promotions",
    summary="List who made which bundle champion",
    responses=problems(404, 422),
)
async def promotions(name: Name, house: InHouse, _: Reader) -> list[Promotion]:
    """Who was made champion, when, and by whom."""
    return house.training.table.promotions(_name(name))


@ROUTES.get(
    "/v1/models/{name}/resolve",
    summary="Find the bundle of an alias or a version",
    responses=problems(404, 409, 422),
)
async def resolve(
    name: Name,
    house: InHouse,
    _: Reader,
    alias: Annotated[
        str, Query(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="such as champion")
    ] = CHAMPION,
    version: Annotated[VersionNumber | None, Query(description="this one, of no alias")] = None,
) -> VersionFacts:
    """What an alias or a version is now; its files can be relied upon."""
    which = alias if version is None else str(version)
    return await house.look(versions.resolved, _name(name), which)


@ROUTES.get(
    "/v1/models/{name}/versions/{version}/files/{file:path}",
    summary="Download a file of a bundle",
    response_class=Content,
    responses=problems(404, 409, 422),
)
async def content(
    name: Name,
    version: VersionOf,
    file: Annotated[str, Path(description="name of the file, as the bundle lists it")],
    house: InHouse,
    _: Reader,
) -> Response:
    """A file of a bundle, with the bytes that it was registered with."""
    data = await house.read(
        versions.content, house.training.registry, _name(name), str(version), file
    )
    return Content(data)


@ROUTES.get(
    "/v1/models/{name}/versions/{version}/report",
    summary="Read the report of a bundle",
    response_class=HTMLResponse,
    responses=problems(404, 409, 422),
)
async def report(name: Name, version: VersionOf, house: InHouse, _: Reader) -> HTMLResponse:
    """A page to decide from whether a bundle is promoted: its gates, numbers and figures."""
    data = await house.read(
        versions.content, house.training.registry, _name(name), str(version), REPORT
    )
    return HTMLResponse(data, headers={"Content-Security-Policy": PAGE_POLICY})


@ROUTES.post(
    "/v1/models/{name}/promote",
    summary="Make a bundle the champion",
    responses=problems(404, 409, 413, 415, 422),
)
async def promote(name: Name, asked: Promote, house: InHouse, who: Promoter) -> Promotion:
    """Make a bundle the champion, unless another one is than was expected."""
    if (asked.version is None) == (asked.versions is None):
        raise TrainingError("either version (of a bundle) or versions (of two models)")
    if asked.force != bool(asked.reason.strip()):
        raise TrainingError("force needs a reason, and a reason is for force only")
    return await house.talk(
        house.training.promoting.promote,
        _name(name),
        asked.versions or str(asked.version),
        expected=_expected(asked.expect_current),
        who=who.name,
        force=asked.reason.strip(),
    )


@ROUTES.post(
    "/v1/models/{name}/rollback",
    summary="Go back to the champion before",
    responses=problems(404, 409, 413, 415, 422),
)
async def rollback(name: Name, asked: Rollback, house: InHouse, who: Promoter) -> Promotion:
    """Make the champion before the champion again."""
    return await house.talk(
        house.training.promoting.rollback,
        _name(name),
        expected=_expected(asked.expect_current),
        who=who.name,
    )


def _name(name: str) -> str:
    """A name that may go into a query of MLflow's."""
    if not re.fullmatch(NAME, name):
        raise UnknownError(f"there is no model {name[:80]!r}")
    return name


def _expected(version: int | None) -> str | None:
    return None if version is None else str(version or "")
