"""Checks of a request before its body is read: token, role, type, parameters and size."""

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
from agc_ml.training.service.context import ServiceContext
from agc_ml.training.service.database import Token
from agc_ml.training.service.tokens import Role

# Bytes of a request's body, except for training sets
MAX_BODY: Final = 1 << 20

_JSON: Final = "application/json"
# Types that a foreign page can have a browser send without a preflight request
_FORM_TYPES: Final = frozenset(
    {"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"}
)


class LimitedRequest(Request):
    """A request with a limit of its body's bytes, and strict JSON."""

    def __init__(self, scope: Scope, receive: Receive, most: int) -> None:
        super().__init__(scope, receive)
        self._most = most
        declared = self.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > most:
            raise _too_large(most, int(declared))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body, part by part."""
        n_bytes = 0
        async for part in super().stream():
            n_bytes += len(part)
            if n_bytes > self._most:
                raise _too_large(self._most, n_bytes)
            yield part

    async def json(self) -> Any:
        """Return the body: no NaN, no lone surrogates, limited nesting."""
        try:
            return pydantic_core.from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(
                HTTPStatus.BAD_REQUEST, f"the body is not JSON: {str(error)[:200]}"
            ) from error


class CheckedRoute(APIRoute):
    """A route that checks a request before it reads the body.

    PUT takes files of up to ``ServiceContext.max_upload`` bytes; other methods that change
    something take JSON.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, behind the checks."""
        role, takes_file = _role(self.dependant), "PUT" in (self.methods or ())
        parameters = {one.alias for one in self.dependant.query_params}
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            context: ServiceContext = request.app.state.context
            if role is not None:
                request.state.token = _authorized(request, context, role)
            _check_type(request, takes_file=takes_file)
            for name in request.query_params:
                if name not in parameters:
                    raise _unknown_parameter(name, parameters)
            most = context.max_upload if takes_file else MAX_BODY
            return await handle(LimitedRequest(request.scope, request.receive, most))

        return checked


def _role(dependant: Dependant) -> Role | None:
    """Return the role that a route needs, None if it is open to everyone."""
    for dependency in dependant.dependencies:
        role: Role | None = getattr(dependency.call, "role", None) or _role(dependency)
        if role is not None:
            return role
    return None


def _authorized(request: Request, context: ServiceContext, role: Role) -> Token:
    if context.user is not None:
        return Token(name=context.user, role="promote", created=0, expires=None)
    token = tokens.valid_token(context.manager.database, _secret(request))
    if token is None:
        raise HTTPException(
            HTTPStatus.UNAUTHORIZED,
            "a valid token is needed; 'agc-ml service token add' makes one",
            {"WWW-Authenticate": 'Basic realm="agc-ml: any name, the token as password"'},
        )
    request.state.who = token.name
    if not tokens.includes(token, role):
        raise HTTPException(
            HTTPStatus.FORBIDDEN,
            f"the token {token.name!r} has the role {token.role!r}; {role!r} is needed",
        )
    return token


def _secret(request: Request) -> str:
    """Return the token of a request: Bearer, or the password of Basic from a browser."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return secret.strip()
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            return base64.b64decode(secret, validate=True).decode().partition(":")[2]
    return ""


def _check_type(request: Request, *, takes_file: bool) -> None:
    if request.method in SAFE:
        return
    content_type = request.headers.get("content-type")
    media = None if content_type is None else content_type.partition(";")[0].strip().lower()
    if takes_file:
        if media in _FORM_TYPES:
            raise _wrong_type(media, "application/vnd.apache.parquet")
        return
    has_body = (
        request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    )
    if media != _JSON and (media is not None or has_body):
        raise _wrong_type(media, _JSON)


def _unknown_parameter(name: str, parameters: set[str]) -> HTTPException:
    listed = ", ".join(sorted(parameters)) or "none"
    return HTTPException(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        f"{name[:80]!r} is not a parameter here; there are: {listed}",
    )


def _wrong_type(media: str | None, needed: str) -> HTTPException:
    sent = "a body without a Content-Type" if media is None else f"Content-Type {media[:80]!r}"
    return HTTPException(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"{sent} is not accepted here; send {needed}"
    )


def _too_large(most: int, n_bytes: int) -> HTTPException:
    hint = "" if most == MAX_BODY else "; start the service with a larger --max-upload"
    return HTTPException(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"a body of {n_bytes / 1e6:,.1f} MB or more; at most {most / 1e6:,.0f} MB are accepted "
        f"here{hint}",
    )
