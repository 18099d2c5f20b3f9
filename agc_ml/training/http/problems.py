"""Problem details (RFC 9457): bodies and headers of error answers."""

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
