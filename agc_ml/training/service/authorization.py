"""A request as it arrives: who asks, and what comes, before any of its body is read."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from http import HTTPStatus
from typing import Any, Final

import pydantic_core
from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope

from agc_ml.training.http.guard import SAFE
from agc_ml.training.service import tokens
from agc_ml.training.service.context import House
from agc_ml.training.service.database import Token
from agc_ml.training.service.tokens import Role

MAX_BODY: Final = 1 << 20
"""Bytes of a request, but for training sets."""

_JSON: Final = "application/json"
_OF_FORMS: Final = frozenset(
    {"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"}
)
"""What a page of others can have a browser send without asking first."""


class Asked(Request):
    """A request of which at most so many bytes are read, and JSON that is nothing else."""

    def __init__(self, scope: Scope, receive: Receive, most: int) -> None:
        super().__init__(scope, receive)
        self._most = most
        announced = self.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > most:
            raise _too_large(most, int(announced))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The body, part by part."""
        n_bytes = 0
        async for part in super().stream():
            n_bytes += len(part)
            if n_bytes > self._most:
                raise _too_large(self._most, n_bytes)
            yield part

    async def json(self) -> Any:
        """The body: no NaN, no halves of characters, no nesting without end."""
        try:
            return pydantic_core.from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(
                HTTPStatus.BAD_REQUEST, f"the body is no JSON: {str(error)[:200]}"
            ) from error


class Route(APIRoute):
    """A route that knows who asks, and refuses what it does not take, before it reads a body.

    PUT is for files, of up to ``House.max_upload`` bytes; everything else that changes something
    is JSON.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler of requests in the checks."""
        role, takes_file = _role(self.dependant), "PUT" in (self.methods or ())
        known = {parameter.alias for parameter in self.dependant.query_params}
        answer = super().get_route_handler()

        async def checked(request: Request) -> Response:
            house: House = request.app.state.house
            if role is not None:
                request.state.token = _authorised(request, house, role)
            _check_type(request, takes_file=takes_file)
            for name in request.query_params:
                if name not in known:
                    raise _unknown(name, known)
            most = house.max_upload if takes_file else MAX_BODY
            return await answer(Asked(request.scope, request.receive, most))

        return checked


def _role(dependant: Dependant) -> Role | None:
    """The role that a route needs, None if it is open to everyone."""
    for one in dependant.dependencies:
        role: Role | None = getattr(one.call, "role", None) or _role(one)
        if role is not None:
            return role
    return None


def _authorised(request: Request, house: House, role: Role) -> Token:
    if house.open_to_all:
        return Token(name="anyone", role="promote", created=0, expires=None)
    found = tokens.known(house.training.table, _given(request))
    if found is None:
        raise HTTPException(
            HTTPStatus.UNAUTHORIZED,
            "a valid token is needed; 'agc-ml service token add' makes one",
            {"WWW-Authenticate": 'Basic realm="agc-ml: any name, the token as password"'},
        )
    request.state.who = found.name
    if not tokens.may(found, role):
        raise HTTPException(
            HTTPStatus.FORBIDDEN,
            f"the token {found.name!r} has the role {found.role!r}; {role!r} is needed",
        )
    return found


def _given(request: Request) -> str:
    """The token of a request; of a browser that asked for it, the password."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            return base64.b64decode(given, validate=True).decode().partition(":")[2]
    return ""


def _check_type(request: Request, *, takes_file: bool) -> None:
    if request.method in SAFE:
        return
    given = request.headers.get("content-type")
    media = None if given is None else given.partition(";")[0].strip().lower()
    if takes_file:
        if media in _OF_FORMS:
            raise _wrong_type(media, "application/vnd.apache.parquet")
        return
    has_body = (
        request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    )
    if media != _JSON and (media is not None or has_body):
        raise _wrong_type(media, _JSON)


def _unknown(name: str, known: set[str]) -> HTTPException:
    there = ", ".join(sorted(known)) or "none"
    return HTTPException(
        HTTPStatus.UNPROCESSABLE_ENTITY, f"{name[:80]!r} is no parameter here; there are: {there}"
    )


def _wrong_type(given: str | None, needed: str) -> HTTPException:
    what = "a body without a Content-Type" if given is None else f"Content-Type {given[:80]!r}"
    return HTTPException(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"{what} is not taken here; send {needed}"
    )


def _too_large(most: int, n_bytes: int) -> HTTPException:
    hint = "" if most == MAX_BODY else "; start the service with a larger --max-upload"
    return HTTPException(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"a body of {n_bytes / 1e6:,.1f} MB or more; at most {most / 1e6:,.0f} MB are taken "
        f"here{hint}",
    )
