"""What all handlers do before they answer: who asks, from where, with how large a body."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from tornado.httputil import HTTPHeaders
from tornado.web import RequestHandler, stream_request_body

from agc_ml.servicex_endpoint.requests import MOST_BYTES
from agc_ml.servicex_endpoint.server import foreign

STALL_S: Final = 60.0  # that a client may take for a piece of an answer
_TOO_LARGE: Final = 413, f"a request has {MOST_BYTES / 1e6:g} MB at most; make several"


@stream_request_body
class Handler(RequestHandler):
    """A handler that asks `denied` before it reads a body, and reads one if ``takes_body`` only."""

    takes_body = False

    def prepare(self) -> None:
        """Refuse whoever may not ask."""
        self.body = bytearray()
        refusal = foreign(self.request) or self.denied()
        if refusal is None and _length(self.request.headers) > MOST_BYTES:
            refusal = _TOO_LARGE
        if refusal is not None:
            self._refuse_at_once(refusal)

    def denied(self) -> tuple[int, str] | None:
        """Status and reason if this request is refused."""
        raise NotImplementedError

    def refuse(self, status: int, message: str) -> None:
        """Answer that something is wrong."""
        raise NotImplementedError

    def data_received(self, chunk: bytes) -> None:
        """Keep a piece of the body."""
        if self.takes_body and not self._finished:
            self.body += chunk
            if len(self.body) > MOST_BYTES:  # it came without a length
                self._refuse_at_once(_TOO_LARGE)

    def flush(self, include_footers: bool = False) -> Any:
        """Send what is written so far, and hang up on a client that does not take it."""
        sent = super().flush(include_footers)
        stream = getattr(self.request.connection, "stream", None)
        if stream is not None and not sent.done():
            late = asyncio.get_running_loop().call_later(STALL_S, stream.close)
            sent.add_done_callback(lambda _: late.cancel())
        return sent

    def write_error(self, status_code: int, **_: Any) -> None:
        """Answer an error of tornado's, or of ours."""
        self.refuse(status_code, self._reason)

    def _refuse_at_once(self, refusal: tuple[int, str]) -> None:
        """Answer before the body is read, after which the connection can't be used any more."""
        self.set_header("Connection", "close")
        self.refuse(*refusal)


def _length(headers: HTTPHeaders) -> int:
    """Bytes of the body, as the request says; tornado refuses what is no number."""
    stated = headers.get("Content-Length", "")
    return int(stated[:20]) if stated.isascii() and stated.isdecimal() else 0
