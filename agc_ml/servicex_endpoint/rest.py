"""The REST interface of ServiceX, as far as its client uses it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from tornado.web import RequestHandler

from agc_ml._version import __version__
from agc_ml.errors import UsageError
from agc_ml.servicex_endpoint.credentials import EndpointCredentials
from agc_ml.servicex_endpoint.handlers import EndpointHandler, Refusal
from agc_ml.servicex_endpoint.requests import TransformRequest
from agc_ml.servicex_endpoint.store import RequestStatus, RequestStore
from agc_ml.servicex_endpoint.transformation.scheduler import TransformScheduler
from agc_ml.servicex_endpoint.translation.generators import check_enabled, check_length
from agc_ml.servicex_endpoint.translation.translator_pool import BusyError, TranslatorPool

logger = logging.getLogger(__name__)

ID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# The client's behaviour depends on these: results by /results, and titles of this length.
CAPABILITIES: Final = ("poll_local_transformation_results", "long_sample_titles_10240")

_BAD, _UNAUTHORISED, _NOT_FOUND, _BUSY, _NO_ROOM = 400, 401, 404, 503, 507
_RETRY_AFTER_S: Final = 10
_BEARER: Final = "Bearer "


class EndpointContext(NamedTuple):
    """Shared state of the handlers.

    ``address`` is host:port, also of the objects; ``codegens`` have the names that clients use.
    """

    address: str
    credentials: EndpointCredentials
    store: RequestStore
    scheduler: TransformScheduler
    translators: TranslatorPool
    codegens: tuple[str, ...]


class ContextHandler(EndpointHandler):
    """A handler with the shared state, which is a setting of the application."""

    @property
    def context(self) -> EndpointContext:
        """Shared state of the handlers."""
        context: EndpointContext = self.settings["context"]
        return context


class JsonHandler(ContextHandler):
    """Answer in JSON clients that have an access token."""

    def denied(self) -> Refusal | None:
        """Refuse clients without a valid token."""
        if self.is_authorised():
            return None
        return _UNAUTHORISED, "a valid access token is needed"

    def is_authorised(self) -> bool:
        """Return whether the client has an access token."""
        return self.context.credentials.accepts(self.bearer())

    def bearer(self) -> str:
        """Return the token that the client sent."""
        header = self.request.headers.get("Authorization", "")
        return header.removeprefix(_BEARER) if header.startswith(_BEARER) else ""

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error."""
        self.set_status(status)
        self.finish({"message": message})

    def find_request(self, request_id: str) -> RequestStatus | None:
        """Return the request of this id; if there is none, answer so."""
        status = self.context.store.request(request_id)
        if status is None:
            self.refuse(_NOT_FOUND, f"there is no transformation request {request_id}")
        return status

    @contextmanager
    def store_errors(self, action: str) -> Iterator[None]:
        """Answer that an action failed, such as on a full disk."""
        try:
            yield
        except sqlite3.Error as error:
            logger.warning("can't %s: %s", action, error)
            self.refuse(_NO_ROOM, f"the endpoint can't {action} now ({error})")


class RefreshHandler(JsonHandler):
    """``/token/refresh``: an access token for the refresh token."""

    def is_authorised(self) -> bool:
        """Return whether the client has the refresh token."""
        expected = self.context.credentials.token
        return hmac.compare_digest(self.bearer().encode(), expected.encode())

    def post(self) -> None:
        """Issue a token."""
        self.finish({"access_token": self.context.credentials.issue_access_token(time.time())})


class InfoHandler(JsonHandler):
    """``/servicex``: version and abilities of the endpoint."""

    def get(self) -> None:
        """Return them."""
        images = dict.fromkeys(self.context.codegens, f"agc-ml {__version__}")
        self.finish(
            {
                "app-version": __version__,
                "code-gen-image": images,
                "capabilities": list(CAPABILITIES),
            }
        )


class RequestsHandler(JsonHandler):
    """``/servicex/transformation``: all requests, and new ones."""

    takes_body = True

    async def get(self) -> None:
        """List all requests, oldest first."""
        listed = []
        for request_id in self.context.store.ids():
            if status := self.context.store.request(request_id):
                listed.append(_status_json(self.context, status))
            await asyncio.sleep(0)  # each may have megabytes, and other clients wait
        self.finish({"requests": listed})

    async def post(self) -> None:
        """Accept a request, if it is valid."""
        try:
            request = TransformRequest.parse(bytes(self.body))
            check_enabled(request.codegen, self.context.codegens)
            check_length(request.codegen, request.selection)
            program = await self.context.translators.translate(
                request.codegen, request.selection, request.result_format
            )
        except UsageError as error:
            self.refuse(_BAD, str(error))
            return
        except BusyError as busy:
            self.set_header("Retry-After", str(_RETRY_AFTER_S))
            self.refuse(_BUSY, f"the endpoint is busy ({busy}); try again later")
            return
        with self.store_errors("keep the request"):
            request_id = self.context.store.add(request, program)
            self.context.scheduler.wake()
            self.finish({"request_id": request_id})


class TransformationHandler(JsonHandler):
    """``/servicex/transformation/ID``, and the same with ``/status``."""

    def get(self, request_id: str) -> None:
        """Return the status of a request."""
        if status := self.find_request(request_id):
            self.finish(_status_json(self.context, status))

    async def delete(self, request_id: str) -> None:
        """Stop a request, and delete it with its objects."""
        if self.find_request(request_id):
            with self.store_errors("delete the request"):
                await self.context.scheduler.delete(request_id)
                self.finish({"message": f"{request_id} is deleted"})


class ResultsHandler(JsonHandler):
    """``/servicex/transformation/ID/results``: finished files, also failed ones."""

    def get(self, request_id: str) -> None:
        """List results, only those since ``later_than`` if it is given."""
        if not self.find_request(request_id):
            return
        text = self.get_query_argument("later_than", "0001-01-01T00:00:00")
        try:
            later_than = datetime.fromisoformat(text)
            if later_than.tzinfo is None:
                later_than = later_than.replace(tzinfo=UTC)
            later_than = later_than.astimezone(UTC)
        except (ValueError, OverflowError):
            self.refuse(_BAD, f"later_than={text:.100}: not a time in ISO 8601")
            return
        self.finish({"results": self.context.store.results(request_id, later_than)})


class CancelHandler(JsonHandler):
    """``/servicex/transformation/ID/cancel``."""

    async def get(self, request_id: str) -> None:
        """Stop a request; its results stay."""
        if self.find_request(request_id):
            with self.store_errors("stop the request"):
                self.context.store.cancel(request_id)
                await self.context.scheduler.stop(request_id)
                self.finish({"message": f"{request_id} is canceled"})


class NotFoundHandler(JsonHandler):
    """All other paths."""

    def denied(self) -> Refusal | None:
        """Refuse the request."""
        return _NOT_FOUND, f"there is no {self.request.path}"


def _status_json(context: EndpointContext, status: RequestStatus) -> dict[str, Any]:
    request, n_files = status.request, len(status.request.files)
    names = hashlib.sha256("\n".join(request.files).encode()).hexdigest()
    return {
        "request_id": status.id,
        "did": f"file-list:{names}",
        "did_id": status.number,
        "title": request.title,
        "selection": request.selection,
        "tree-name": None,
        "image": f"agc-ml {__version__}",
        "result-destination": request.destination,
        "result-format": request.result_format,
        "generated-code-cm": "",
        "status": status.status,
        "app-version": __version__,
        "files": n_files,
        "files-completed": status.completed,
        "files-failed": status.failed,
        "files-remaining": n_files - status.completed - status.failed,
        "submit-time": status.submitted,
        "finish-time": status.finished,
        "minio-endpoint": context.address,
        "minio-secured": False,
        "minio-access-key": context.credentials.access_key,
        "minio-secret-key": context.credentials.secret_key,
    }


_ONE_REQUEST: Final = rf"/servicex/transformation/({ID})"
ROUTES: Final[list[tuple[str, type[RequestHandler]]]] = [
    ("/token/refresh", RefreshHandler),
    ("/servicex", InfoHandler),
    ("/servicex/transformation", RequestsHandler),
    (f"{_ONE_REQUEST}(?:/status)?", TransformationHandler),
    (f"{_ONE_REQUEST}/results", ResultsHandler),
    (f"{_ONE_REQUEST}/cancel", CancelHandler),
]
