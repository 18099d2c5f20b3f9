"""HTTP server for clients that may be strangers: deadlines, and limits of connections.

When there are too many connections, those are closed first that have not sent a complete request
for the longest time: so clients with a request are served, whoever else keeps connections open.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections import Counter
from typing import Any, Final, cast

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate, HTTPServerRequest
from tornado.iostream import IOStream
from tornado.web import Application

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 500
MAX_PER_CLIENT: Final = 400
HEADERS_S: Final = 30  # also how long a connection may be idle
BODY_S: Final = 60
MAX_HEADERS: Final = 64 * 1024  # bytes
_OTHER_FILES: Final = 200  # files that the endpoint itself has open
_BACKLOG: Final = 1024
_BATCH: Final = 32  # connections accepted before data of the others are read
_RETRY_S: Final = 1.0  # after a connection could not be accepted


class EndpointServer(HTTPServer):
    """Tornado's server, with limits; ``application`` has to call `request_answered`."""

    def initialize(self, application: Application, max_body: int) -> None:  # type: ignore[override]
        """Set up; bodies have at most ``max_body`` bytes."""
        super().initialize(
            application,
            idle_connection_timeout=HEADERS_S,
            body_timeout=BODY_S,
            max_header_size=MAX_HEADERS,
            max_body_size=max_body,
            max_buffer_size=max_body + MAX_HEADERS,
        )
        self._clients: dict[IOStream, str] = {}
        self._n_of_client: Counter[str] = Counter()
        self._waiting: dict[IOStream, None] = {}  # the longest waiting first
        self._max_connections = _max_connections()

    def listen_on(self, listener: socket.socket) -> None:
        """Accept connections on a socket."""
        listener.listen(_BACKLOG)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def stop_listening(self, listener: socket.socket) -> None:
        """Accept no more connections, and close the socket."""
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        """Serve a connection, if another one can be closed for it where they are too many."""
        client = str(address[0])
        crowded = self._n_of_client[client] >= MAX_PER_CLIENT
        if (crowded or len(self._clients) >= self._max_connections) and not self._make_room(
            client if crowded else None
        ):
            stream.close()
            return
        self._clients[stream] = client
        self._n_of_client[client] += 1
        self._waiting[stream] = None
        super().handle_stream(stream, address)

    def start_request(
        self, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        """Begin to read a request."""
        delegate = super().start_request(server_conn, request_conn)
        stream, finish = cast("HTTP1Connection", request_conn).stream, delegate.finish

        def finish_request() -> None:
            self._waiting.pop(stream, None)  # complete: it is not to be closed for others
            finish()

        delegate.finish = finish_request  # type: ignore[method-assign]
        return delegate

    def request_answered(self, request: HTTPServerRequest) -> None:
        """Mark a connection as waiting again."""
        stream = cast("HTTP1Connection", request.connection).stream
        if stream in self._clients:
            self._waiting.pop(stream, None)
            self._waiting[stream] = None

    def on_close(self, server_conn: object) -> None:
        """Forget a connection."""
        self._forget(cast("Any", server_conn).stream)
        super().on_close(server_conn)

    def _make_room(self, client: str | None) -> bool:
        """Close the connection that waits longest, of a client or any; False if none waits."""
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
            self._n_of_client[client] -= 1
            if not self._n_of_client[client]:
                del self._n_of_client[client]

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                connection, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no more files or memory, of this process or of all
                logger.warning("a connection can't be accepted (%s)", error.strerror)
                self._make_room(None)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                loop.call_later(_RETRY_S, self._accept_again, listener)
                return
            stream = IOStream(connection, max_buffer_size=self.max_buffer_size)
            self.handle_stream(stream, address)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)


def _max_connections() -> int:
    """Raise this process's limit of open files, and return how many connections it allows."""
    needed = MAX_CONNECTIONS + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(soft - _OTHER_FILES, soft // 2)
    return MAX_CONNECTIONS
