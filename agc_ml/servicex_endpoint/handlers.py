"""Base of all request handlers: who may ask, from where, with how large a body."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any, Final
from urllib.parse import urlsplit

from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler, stream_request_body

from agc_ml.servicex_endpoint.requests import MAX_BYTES

STALL_S: Final = 60.0  # that a client may take for a piece of an answer
_TOO_LARGE: Final = 413, f"a request may have {MAX_BYTES / 1e6:g} MB; split it"

Refusal = tuple[int, str]  # status and message


@stream_request_body
class EndpointHandler(RequestHandler):
    """A handler that calls `denied` before it reads a body, and reads one if ``takes_body``."""

    takes_body = False

    def prepare(self) -> None:
        """Refuse requests that are not allowed."""
        self.body = bytearray()
        # tornado has refused lengths that are not numbers
        length = self.request.headers.get("Content-Length", "")
        is_large = length.isascii() and length.isdecimal() and int(length[:20]) > MAX_BYTES
        refusal = (
            refuse_foreign(self.request) or self.denied() or (_TOO_LARGE if is_large else None)
        )
        if refusal is not None:
            self._refuse_at_once(refusal)

    def denied(self) -> Refusal | None:
        """Return why this request is refused, or None."""
        raise NotImplementedError

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error."""
        raise NotImplementedError

    def data_received(self, chunk: bytes) -> None:
        """Keep a piece of the body."""
        if self.takes_body and not self._finished:
            self.body += chunk
            if len(self.body) > MAX_BYTES:  # it came without a length
                self._refuse_at_once(_TOO_LARGE)

    def flush(self, include_footers: bool = False) -> Any:
        """Send the answer so far, and disconnect a client that does not take it."""
        sent = super().flush(include_footers)
        stream = getattr(self.request.connection, "stream", None)
        if stream is not None and not sent.done():
            timer = asyncio.get_running_loop().call_later(STALL_S, stream.close)
            sent.add_done_callback(lambda _: timer.cancel())
        return sent

    def write_error(self, status_code: int, **_: Any) -> None:
        """Answer an error of tornado's, or of ours."""
        self.refuse(status_code, self._reason)

    def _refuse_at_once(self, refusal: Refusal) -> None:
        """Answer before the body is read, which makes the connection unusable."""
        self.set_header("Connection", "close")
        self.refuse(*refusal)


def refuse_foreign(request: HTTPServerRequest) -> Refusal | None:
    """Refuse requests of foreign hosts and origins; None for a request that may be handled.

    The host has to be a name that always means this machine, so that no other name leads browsers
    here; and a browser says which page sends a request.
    """
    try:
        name = urlsplit(f"//{request.host}").hostname or ""
        is_here = name == "localhost" or name.endswith(".localhost")
        is_here = is_here or ipaddress.ip_address(name).is_loopback
    except ValueError:
        is_here = False
    if not is_here:
        return 400, f"the host {request.host:.100} is not served; use localhost or 127.0.0.1"
    origin = request.headers.get("Origin")
    if origin is not None and origin.lower() != f"http://{request.host}".lower():
        return 403, f"pages of {origin:.100} may not send requests to this endpoint"
    return None
