"""HTTP for people who may be strangers: deadlines, a limit of connections, bodies only when asked.

Where connections are as many as may be, those go first that have not sent a whole request for the
longest time: so that a client that says what it wants is heard, whoever else keeps some open.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
import socket
from collections import Counter
from typing import Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream
from tornado.web import Application

logger = logging.getLogger(__name__)

MOST_CONNECTIONS: Final = 500
MOST_OF_A_CLIENT: Final = 400
HEADERS_S: Final = 30  # also how long a connection may be idle
BODY_S: Final = 60
LONGEST_HEADERS: Final = 64 * 1024  # bytes
_OTHER_FILES: Final = 200  # that the endpoint has open
_BACKLOG: Final = 1024
_AT_ONCE: Final = 32  # connections accepted before what came over the others is read
_BREATH_S: Final = 1.0  # after a connection could not be accepted


class _Delegate(HTTPMessageDelegate):
    """Tells the server when a request is whole; does what another delegate does."""

    def __init__(self, server: Server, stream: IOStream, inner: HTTPMessageDelegate) -> None:
        self._server = server
        self._stream = stream
        self._inner = inner

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Any:
        return self._inner.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Any:
        return self._inner.data_received(chunk)

    def finish(self) -> None:
        self._server.is_at_work(self._stream)
        self._inner.finish()

    def on_connection_close(self) -> None:
        self._inner.on_connection_close()


class Server(HTTPServer):
    """Tornado's server, with limits; ``application`` has to call `answered`."""

    def initialize(self, application: Application, longest_body: int) -> None:  # type: ignore[override]
        """Make it; bodies have ``longest_body`` bytes at most."""
        super().initialize(
            application,
            idle_connection_timeout=HEADERS_S,
            body_timeout=BODY_S,
            max_header_size=LONGEST_HEADERS,
            max_body_size=longest_body,
            max_buffer_size=longest_body + LONGEST_HEADERS,
        )
        self._clients: dict[IOStream, str] = {}
        self._of_client: Counter[str] = Counter()
        self._waiting: dict[IOStream, None] = {}  # the one that waits for the longest time first
        self._most = _most_connections()

    def listen_on(self, listener: socket.socket) -> None:
        """Accept connections on a socket, as many at a time as there is room for."""
        listener.listen(_BACKLOG)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def stop_listening(self, listener: socket.socket) -> None:
        """Accept no more, and close the socket."""
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        """Serve a connection, if there is room or room can be made."""
        client = str(address[0])
        crowded = self._of_client[client] >= MOST_OF_A_CLIENT
        if (crowded or len(self._clients) >= self._most) and not self._make_room(
            client if crowded else None
        ):
            stream.close()
            return
        self._clients[stream] = client
        self._of_client[client] += 1
        self._waiting[stream] = None
        super().handle_stream(stream, address)

    def start_request(
        self, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        """Expect a request of a connection."""
        inner = super().start_request(server_conn, request_conn)
        return _Delegate(self, cast("HTTP1Connection", request_conn).stream, inner)

    def is_at_work(self, stream: IOStream) -> None:
        """A whole request has come: the connection is not to be closed for others."""
        self._waiting.pop(stream, None)

    def answered(self, request: HTTPServerRequest) -> None:
        """A request has its answer: the connection waits again."""
        stream = cast("HTTP1Connection", request.connection).stream
        if stream in self._clients:
            self._waiting.pop(stream, None)
            self._waiting[stream] = None

    def on_close(self, server_conn: object) -> None:
        """Forget a connection."""
        self._forget(cast("Any", server_conn).stream)
        super().on_close(server_conn)

    def _make_room(self, client: str | None) -> bool:
        """Close what waits for the longest time, of one client or of any; whether there was one."""
        for stream in self._waiting:
            if client in {None, self._clients[stream]}:
                self._forget(stream)
                stream.close()
                return True
        return False

    def _forget(self, stream: IOStream) -> None:
        client = self._clients.pop(stream, None)
        self._waiting.pop(stream, None)
        if client is not None:
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no more files, or no memory: of this process or of all
                logger.warning("a connection can't be accepted (%s)", error.strerror)
                self._make_room(None)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                loop.call_later(_BREATH_S, self._accept_again, listener)
                return
            stream = IOStream(connection, max_buffer_size=self.max_buffer_size)
            self.handle_stream(stream, address)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)


class Guard(NamedTuple):
    """Why a request is refused that another page or name has led to this machine."""

    status: int
    message: str


def foreign(request: HTTPServerRequest) -> Guard | None:
    """Reject requests of foreign hosts and origins; None for a request that may be handled.

    It has to be to this machine by a name that is always its own, so that no other name leads
    browsers here; and a browser says which page sends it.
    """
    try:
        name = urlsplit(f"//{request.host}").hostname or ""
        is_ours = name == "localhost" or name.endswith(".localhost")
        is_ours = is_ours or ipaddress.ip_address(name).is_loopback
    except ValueError:
        is_ours = False
    if not is_ours:
        return Guard(400, f"the host {request.host:.100} is not here; localhost and 127.0.0.1 are")
    origin = request.headers.get("Origin")
    if origin is not None and origin.lower() != f"http://{request.host}".lower():
        return Guard(403, f"pages of {origin:.100} may not ask here")
    return None


def _most_connections() -> int:
    """As many as this process may have, after it has asked for enough files."""
    needed = MOST_CONNECTIONS + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(soft - _OTHER_FILES, soft // 2)
    return MOST_CONNECTIONS
