"""What the document of the interface says of answers that are no success."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from agc_ml.training.http.problems import MEDIA_TYPE

PROBLEM: Final = "Problem"

_WHEN: Final = {
    400: "The request is no HTTP, its body is no JSON, or the connection broke off.",
    401: "A valid token is needed.",
    403: "The token's role does not suffice, or a page of others asks in a browser.",
    404: "There is nothing of this name.",
    408: "The request arrives too slowly.",
    409: "It is otherwise by now: look again, and decide anew.",
    413: "The body is too large.",
    415: "The body is of a type that is not taken here.",
    421: "The host that was asked for is no name of this service.",
    422: "What is asked for makes no sense; the detail names the field.",
    429: "Too much is waiting already; try again later.",
    500: "A fault of the service; its log says more.",
    503: "Too much is asked for, or the registry can't be used now; try again later.",
    507: "There is no space left, or a file can't be written.",
}
_ALWAYS: Final = (400, 408, 421, 500, 503, 507)


def problems(*statuses: int, is_open: bool = False) -> dict[int | str, dict[str, Any]]:
    """Answers of a route that are problems; some may come from every one of them."""
    usual = _ALWAYS if is_open else (*_ALWAYS, 401, 403)
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{PROBLEM}"}}}
    return {
        status: {"description": f"{HTTPStatus(status).phrase}: {_WHEN[status]}", "content": content}
        for status in sorted({*usual, *statuses})
    }
