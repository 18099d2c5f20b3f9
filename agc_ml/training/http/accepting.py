"""Acceptor of connections: a few at a time, with a limit of open handshakes."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

from agc_ml.training.http.connections import HEAD_S

logger = logging.getLogger(__name__)

# Connections accepted in a row, before open ones are served
_BATCH: Final = 64

_PAUSE_S: Final = 1.0


class Acceptor:
    """Listener like asyncio's server, with a limit and a deadline for TLS handshakes.

    asyncio accepts hundreds of connections before it reads any, waits a minute for a handshake,
    and logs hundreds of errors a second when file descriptors run out.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext | None,
        most: int,
    ) -> None:
        self._listener, self._protocol, self._context = listener, protocol, context
        self._most = most
        self._handshakes: dict[asyncio.Task[None], socket.socket] = {}  # the oldest first
        self._retry: asyncio.TimerHandle | None = None
        listener.setblocking(False)

    def open(self) -> None:
        """Start to accept connections."""
        self._retry = None
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Stop accepting connections."""
        if self._retry is not None:
            self._retry.cancel()
        asyncio.get_running_loop().remove_reader(self._listener)
        for task in self._handshakes:
            task.cancel()

    async def wait_closed(self) -> None:
        """Return at once: nothing is left to wait for."""

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_BATCH):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:  # no file descriptors or memory left
                logger.error(  # noqa: TRY400 - one line says it
                    "no connections for %g s: %s", _PAUSE_S, error.strerror or error
                )
                loop.remove_reader(self._listener)
                self._retry = loop.call_later(_PAUSE_S, self.open)
                return
            connection.setblocking(False)
            if len(self._handshakes) >= self._most:
                next(task for task in self._handshakes if not task.cancelling()).cancel()
            task = loop.create_task(self._handshake(connection))
            self._handshakes[task] = connection
            task.add_done_callback(self._done)

    async def _handshake(self, connection: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(
            self._protocol,
            connection,
            ssl=self._context,
            ssl_handshake_timeout=None if self._context is None else HEAD_S,
        )

    def _done(self, task: asyncio.Task[None]) -> None:
        connection = self._handshakes.pop(task)
        if task.cancelled():
            connection.close()
        elif (error := task.exception()) is not None:
            logger.debug("no connection: %s", error)
