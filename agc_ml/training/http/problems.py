"""Problem details (RFC 9457): error answers, and their descriptions in the OpenAPI document."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from agc_ml._version import __version__
from agc_ml.models.registry_access import HEADER

MEDIA_TYPE: Final = "application/problem+json"

SCHEMA: Final[dict[str, Any]] = {
    "title": "Problem",
    "description": "Problem details, RFC 9457.",
    "type": "object",
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string", "description": "phrase of the status"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "cause, and way out"},
    },
    "required": ["type", "title", "status", "detail"],
    "additionalProperties": False,
}

_RETRY_AFTER: Final = {HTTPStatus.TOO_MANY_REQUESTS: "60", HTTPStatus.SERVICE_UNAVAILABLE: "5"}
PROBLEM: Final = "Problem"

_WHEN: Final = {
    400: "The request is not HTTP, its body is not JSON, or the connection broke off.",
    401: "A valid token is needed.",
    403: "The role of the token is not sufficient, or a foreign web page sent the request.",
    404: "Nothing has this name.",
    408: "The request arrives too slowly.",
    409: "The state has changed: read it again before you retry.",
    413: "The body is too large.",
    415: "The type of the body is not accepted here.",
    421: "The requested host is not a name of this service.",
    422: "The request is invalid; the detail names the field.",
    429: "The queue is full; try again later.",
    500: "Internal error; the log of the service has details.",
    503: "The service is busy, or the registry can't be used now; try again later.",
    507: "No space is left, or a file can't be written.",
}
_ALWAYS: Final = (400, 408, 421, 500, 503, 507)


def content(status: HTTPStatus, detail: str) -> dict[str, Any]:
    """Return the body of an answer, for JSON."""
    return {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        # requests may hold lone surrogates, which can't be encoded
        "detail": " ".join(detail.encode(errors="backslashreplace").decode().split()),
    }


def headers(status: HTTPStatus) -> dict[str, str]:
    """Return the headers of an answer, without its type."""
    retry = {"Retry-After": _RETRY_AFTER[status]} if status in _RETRY_AFTER else {}
    return {HEADER: __version__, **retry}


def responses(*statuses: int, is_open: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the error answers of a route, with those that every route may give."""
    usual = _ALWAYS if is_open else (*_ALWAYS, 401, 403)
    problem = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{PROBLEM}"}}}
    return {
        status: {"description": f"{HTTPStatus(status).phrase}: {_WHEN[status]}", "content": problem}
        for status in sorted({*usual, *statuses})
    }
