"""The REST interface of ServiceX, as far as its client uses it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import sqlite3
import time
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from tornado.web import RequestHandler

from agc_ml._version import __version__
from agc_ml.errors import UsageError
from agc_ml.servicex_endpoint import tokens
from agc_ml.servicex_endpoint.credentials import Credentials
from agc_ml.servicex_endpoint.handlers import Handler
from agc_ml.servicex_endpoint.requests import Request
from agc_ml.servicex_endpoint.state import Known, Result, State
from agc_ml.servicex_endpoint.transformation.transforms import Transforms
from agc_ml.servicex_endpoint.translation.generators import check_enabled, check_length
from agc_ml.servicex_endpoint.translation.translation import Busy, Translators

logger = logging.getLogger(__name__)

ID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# What of the client's behaviour hangs on: results by /results, and titles of this length.
CAPABILITIES: Final = ("poll_local_transformation_results", "long_sample_titles_10240")

_BAD, _UNAUTHORISED, _NOT_FOUND, _BUSY, _NO_ROOM = 400, 401, 404, 503, 507
_RETRY_AFTER_S: Final = 10
_BEARER: Final = "Bearer "


class Endpoint(NamedTuple):
    """What the handlers work with.

    ``address`` is host:port, where objects are too; ``codegens`` as clients call them.
    """

    address: str
    credentials: Credentials
    state: State
    transforms: Transforms
    translators: Translators
    codegens: tuple[str, ...]


class _Handler(Handler):
    """Answers in JSON, to whoever has an access token."""

    endpoint: Endpoint

    def initialize(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def denied(self) -> tuple[int, str] | None:
        if self.is_authorised():
            return None
        return _UNAUTHORISED, "a valid access token is needed"

    def is_authorised(self) -> bool:
        secret = self.endpoint.credentials.signing_secret
        return tokens.is_valid(self.bearer(), secret, time.time())

    def bearer(self) -> str:
        given = self.request.headers.get("Authorization", "")
        return given.removeprefix(_BEARER) if given.startswith(_BEARER) else ""

    def refuse(self, status: int, message: str) -> None:
        self.set_status(status)
        self.finish({"message": message})

    def known(self, request_id: str) -> Known | None:
        """The request of this id; if there is none, that is the answer."""
        found = self.endpoint.state.request(request_id)
        if found is None:
            self.refuse(_NOT_FOUND, f"there is no transformation request {request_id}")
        return found


class Refresh(_Handler):
    """``/token/refresh``: an access token for the refresh token."""

    def is_authorised(self) -> bool:
        """Return whether the client has the refresh token."""
        expected = self.endpoint.credentials.token
        return hmac.compare_digest(self.bearer().encode(), expected.encode())

    def post(self) -> None:
        """Issue one."""
        secret = self.endpoint.credentials.signing_secret
        self.finish({"access_token": tokens.issue(secret, time.time())})


class Info(_Handler):
    """``/servicex``: what the endpoint can do."""

    def get(self) -> None:
        """Tell it."""
        images = dict.fromkeys(self.endpoint.codegens, f"agc-ml {__version__}")
        self.finish(
            {
                "app-version": __version__,
                "code-gen-image": images,
                "capabilities": list(CAPABILITIES),
            }
        )


class Transformations(_Handler):
    """``/servicex/transformation``: all requests, and new ones."""

    takes_body = True

    async def get(self) -> None:
        """List them, the oldest first."""
        listed = []
        for request_id in self.endpoint.state.ids():
            if known := self.endpoint.state.request(request_id):
                listed.append(_status(self.endpoint, known))
            await asyncio.sleep(0)  # each may be of megabytes, and others ask, too
        self.finish({"requests": listed})

    async def post(self) -> None:
        """Take one on, if it makes sense."""
        try:
            request = Request.parse(bytes(self.body))
            check_enabled(request.codegen, self.endpoint.codegens)
            check_length(request.codegen, request.selection)
            program = await self.endpoint.translators.translate(
                request.codegen, request.selection, request.result_format
            )
        except UsageError as error:
            self.refuse(_BAD, str(error))
            return
        except Busy as busy:
            self.set_header("Retry-After", str(_RETRY_AFTER_S))
            self.refuse(_BUSY, f"the endpoint has too much to do ({busy}); try again later")
            return
        try:
            request_id = self.endpoint.state.add(request, program)
        except sqlite3.Error as error:
            logger.warning("a request is refused: %s", error)
            self.refuse(_NO_ROOM, f"the endpoint can't keep the request ({error})")
            return
        self.endpoint.transforms.wake()
        self.finish({"request_id": request_id})


class Transformation(_Handler):
    """``/servicex/transformation/ID``, and the same with ``/status``."""

    def get(self, request_id: str) -> None:
        """Tell how it stands."""
        if known := self.known(request_id):
            self.finish(_status(self.endpoint, known))

    async def delete(self, request_id: str) -> None:
        """Stop it, and remove its objects."""
        if self.known(request_id):
            try:
                await self.endpoint.transforms.delete(request_id)
            except sqlite3.Error as error:
                self.refuse(_NO_ROOM, f"the endpoint can't forget the request now ({error})")
                return
            self.finish({"message": f"{request_id} is deleted"})


class Results(_Handler):
    """``/servicex/transformation/ID/results``: files that are done with, also failed ones."""

    def get(self, request_id: str) -> None:
        """List them, those since ``later_than`` if it is given."""
        if not self.known(request_id):
            return
        given = self.get_query_argument("later_than", "0001-01-01T00:00:00")
        try:
            later_than = datetime.fromisoformat(given)
            if later_than.tzinfo is None:
                later_than = later_than.replace(tzinfo=UTC)
            later_than = later_than.astimezone(UTC)
        except (ValueError, OverflowError):
            self.refuse(_BAD, f"later_than={given:.100}: no time in ISO 8601")
            return
        results = self.endpoint.state.results(request_id, later_than)
        self.finish({"results": [_result(request_id, result) for result in results]})


class Cancel(_Handler):
    """``/servicex/transformation/ID/cancel``."""

    async def get(self, request_id: str) -> None:
        """Stop it; what it has stays."""
        if self.known(request_id):
            try:
                self.endpoint.state.cancel(request_id)
            except sqlite3.Error as error:
                self.refuse(_NO_ROOM, f"the endpoint can't stop the request now ({error})")
                return
            await self.endpoint.transforms.stop(request_id)
            self.finish({"message": f"{request_id} is canceled"})


class Missing(_Handler):
    """Everything else."""

    def denied(self) -> tuple[int, str] | None:
        """Say that it is not there."""
        return _NOT_FOUND, f"there is no {self.request.path}"


def _status(endpoint: Endpoint, known: Known) -> dict[str, Any]:
    request, files = known.request, len(known.request.files)
    names = hashlib.sha256("\n".join(request.files).encode()).hexdigest()
    return {
        "request_id": known.id,
        "did": f"file-list:{names}",
        "did_id": known.number,
        "title": request.title,
        "selection": request.selection,
        "tree-name": None,
        "image": f"agc-ml {__version__}",
        "result-destination": request.destination,
        "result-format": request.result_format,
        "generated-code-cm": "",
        "status": known.status,
        "app-version": __version__,
        "files": files,
        "files-completed": known.completed,
        "files-failed": known.failed,
        "files-remaining": files - known.completed - known.failed,
        "submit-time": known.submitted,
        "finish-time": known.finished,
        "minio-endpoint": endpoint.address,
        "minio-secured": False,
        "minio-access-key": endpoint.credentials.access_key,
        "minio-secret-key": endpoint.credentials.secret_key,
    }


def _result(request_id: str, result: Result) -> dict[str, Any]:
    return {
        "request-id": request_id,
        "file-path": result.path,
        "transform_status": result.status,
        "s3-object-name": result.object_name,
        "total-bytes": result.size,
        "total-events": result.events,
        "created_at": result.created,
        "error": result.error,
    }


def routes(endpoint: Endpoint) -> list[tuple[str, type[RequestHandler], dict[str, Any]]]:
    """What is answered by whom."""
    of_one = rf"/servicex/transformation/({ID})"
    handlers: dict[str, type[RequestHandler]] = {
        "/token/refresh": Refresh,
        "/servicex": Info,
        "/servicex/transformation": Transformations,
        f"{of_one}(?:/status)?": Transformation,
        f"{of_one}/results": Results,
        f"{of_one}/cancel": Cancel,
    }
    return [(path, handler, {"endpoint": endpoint}) for path, handler in handlers.items()]
