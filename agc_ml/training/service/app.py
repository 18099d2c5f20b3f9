"""The HTTP application of the training service."""

from __future__ import annotations

import logging
import time
from collections import Counter
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agc_ml._version import __version__
from agc_ml.errors import AgcError, ModelError, StoreError, TrainingError
from agc_ml.models.registry import ChangedError, RegistryError
from agc_ml.models.registry_access import HEADER
from agc_ml.training.http import guard, problems
from agc_ml.training.http.guard import HostNames
from agc_ml.training.job_spec import first_error
from agc_ml.training.registry.promotion import ConflictError
from agc_ml.training.service import api_jobs, api_models, api_pages
from agc_ml.training.service.context import ServiceContext
from agc_ml.training.service.database import QueueFullError, UnknownError

logger = logging.getLogger(__name__)

_STATUS: Final[tuple[tuple[type[AgcError], HTTPStatus], ...]] = (
    (UnknownError, HTTPStatus.NOT_FOUND),
    (ConflictError, HTTPStatus.CONFLICT),
    (QueueFullError, HTTPStatus.TOO_MANY_REQUESTS),
    (RegistryError, HTTPStatus.SERVICE_UNAVAILABLE),
    (ChangedError, HTTPStatus.CONFLICT),
    (StoreError, HTTPStatus.INSUFFICIENT_STORAGE),
    (TrainingError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (ModelError, HTTPStatus.NOT_FOUND),
)
_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    HEADER: __version__,
}
# Characters of a path in the log
_MAX_PATH: Final = 200


def application(context: ServiceContext) -> FastAPI:
    """Return the application: its routes, and its errors as problem details."""
    from fastapi_offline import FastAPIOffline  # noqa: PLC0415 - reads its files

    app = FastAPIOffline(
        title="agc-ml training service",
        version=__version__,
        # a redirect names the host that was asked for, and http where a proxy has https
        redirect_slashes=False,
        swagger_ui_parameters={"defaultModelsExpandDepth": 0},
    )
    app.state.context = context
    _add_errors(app)
    for routes in (api_pages.ROUTES, api_jobs.ROUTES, api_models.ROUTES):
        app.include_router(routes)
    return app


def served_application(context: ServiceContext, hosts: HostNames) -> FastAPI:
    """Return the application for a server: guarded, logged and documented."""
    app = application(context)
    app.add_middleware(_Guard, requests=context.requests, hosts=hosts)
    app.openapi()["components"]["schemas"][problems.PROBLEM] = problems.SCHEMA
    return app


def _problem(
    status: HTTPStatus | int, detail: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    status = HTTPStatus(status)
    return JSONResponse(
        problems.content(status, detail),
        status.value,
        {**problems.headers(status), **(headers or {})},
        media_type=problems.MEDIA_TYPE,
    )


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(AgcError)
    async def agc_error(_: Request, error: AgcError) -> JSONResponse:
        status = next((s for kind, s in _STATUS if isinstance(error, kind)), HTTPStatus.BAD_REQUEST)
        return _problem(status, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, first_error(error, skip=1))

    @app.exception_handler(ClientDisconnect)
    async def disconnect(_: Request, __: ClientDisconnect) -> JSONResponse:
        # For the log and the counts only: the client has gone.
        return _problem(HTTPStatus.BAD_REQUEST, "the connection broke off within the body")

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return _problem(error.status_code, str(error.detail), dict(error.headers or {}))


class _Guard:
    """Middleware that rejects foreign pages, logs and counts answers, and adds our headers.

    Not a function of ``app.middleware``, which costs a task and a queue for each request.
    """

    def __init__(self, app: ASGIApp, requests: Counter[tuple[str, int]], hosts: HostNames) -> None:
        self._app = app
        self._requests = requests
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        is_begun = False

        async def send_logged(message: Message) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start":
                is_begun = True
                MutableHeaders(scope=message).update(_HEADERS)
                self._log(scope, message["status"], time.perf_counter() - start)
            await send(message)

        if (refusal := guard.refusal(scope, self._hosts)) is not None:
            await _problem(*refusal)(scope, receive, send_logged)
            return
        try:
            await self._app(scope, receive, send_logged)
        except Exception as error:
            logger.exception("a fault of the service")
            if is_begun:  # too late to say so: the client sees that the answer breaks off
                raise
            detail = f"a fault of the service ({type(error).__name__})"
            await _problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail)(scope, receive, send_logged)

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        # clients without a token may send any word as the method
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests[method, status] += 1
        logger.info(
            "request",
            extra={
                "facts": {
                    "method": method,
                    "path": scope["path"][:_MAX_PATH],
                    "status": status,
                    "ms": round(1000 * seconds, 1),
                    "who": scope.get("state", {}).get("who", ""),
                }
            },
        )
