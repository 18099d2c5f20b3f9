"""Problem details: how the service says what is wrong, RFC 9457."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from agc_ml._version import __version__
from agc_ml.models.registry_access import HEADER

MEDIA_TYPE: Final = "application/problem+json"

SCHEMA: Final[dict[str, Any]] = {
    "title": "Problem",
    "description": "What is wrong, in one line: RFC 9457.",
    "type": "object",
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string", "description": "the status in words"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "what is wrong, and the way out"},
    },
    "required": ["type", "title", "status", "detail"],
    "additionalProperties": False,
}

_RETRY_AFTER: Final = {HTTPStatus.TOO_MANY_REQUESTS: "60", HTTPStatus.SERVICE_UNAVAILABLE: "5"}


def content(status: HTTPStatus, detail: str) -> dict[str, Any]:
    """The body of an answer, for JSON."""
    return {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        # what was asked may hold halves of characters, which can't be said
        "detail": " ".join(detail.encode(errors="backslashreplace").decode().split()),
    }


def headers(status: HTTPStatus) -> dict[str, str]:
    """The headers of an answer, without its type."""
    found = {HEADER: __version__}
    if status in _RETRY_AFTER:
        found["Retry-After"] = _RETRY_AFTER[status]
    return found
