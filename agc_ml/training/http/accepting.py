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

# Connections that are accepted before those that are there get their turn
_AT_ONCE: Final = 64

_PAUSE_S: Final = 1.0


class Acceptor:
    """What asyncio's own server does, with a limit and a deadline for handshakes of TLS.

    asyncio's accepts hundreds of connections before any of them is read, keeps each for a minute
    while it says nothing of TLS, and logs hundreds of errors a second when no files are left.
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
        self._begun: dict[asyncio.Task[None], socket.socket] = {}  # the oldest first
        self._again: asyncio.TimerHandle | None = None
        listener.setblocking(False)

    def open(self) -> None:
        """Accept connections from now on."""
        self._again = None
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Accept none any more."""
        if self._again is not None:
            self._again.cancel()
        asyncio.get_running_loop().remove_reader(self._listener)
        for task in self._begun:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait for what is left of it: nothing."""

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_AT_ONCE):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:  # no files or memory left
                logger.error(  # noqa: TRY400 - one line says it
                    "no connections for %g s: %s", _PAUSE_S, error.strerror or error
                )
                loop.remove_reader(self._listener)
                self._again = loop.call_later(_PAUSE_S, self.open)
                return
            connection.setblocking(False)
            if len(self._begun) >= self._most:
                next(task for task in self._begun if not task.cancelling()).cancel()
            task = loop.create_task(self._begin(connection))
            self._begun[task] = connection
            task.add_done_callback(self._done)

    async def _begin(self, connection: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(
            self._protocol,
            connection,
            ssl=self._context,
            ssl_handshake_timeout=None if self._context is None else HEAD_S,
        )

    def _done(self, task: asyncio.Task[None]) -> None:
        connection = self._begun.pop(task)
        if task.cancelled():
            connection.close()
        elif (error := task.exception()) is not None:
            logger.debug("no connection: %s", error)
