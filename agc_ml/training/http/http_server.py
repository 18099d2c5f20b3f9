"""uvicorn with deadlines and limits for connections."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from agc_ml.training.http.accepting import Acceptor
from agc_ml.training.http.connections import KEEP_ALIVE_S, Guarded, capacity


class Server(uvicorn.Server):
    """Server that accepts connections with `Acceptor`, and leaves signals to the service."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ignore signals: uvicorn would raise them again when it has stopped."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await self.lifespan.startup()
        protocol = functools.partial(
            Guarded,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        handshakes = capacity() // 8
        acceptors: list[Any] = [
            Acceptor(listener, protocol, self.config.ssl, handshakes) for listener in sockets or []
        ]
        for acceptor in acceptors:
            acceptor.open()
        self.servers = acceptors
        self.started = True


def make_server(app: FastAPI, certificate: Path | None, key: Path | None) -> Server:
    """Return a server of an application; with a certificate and its key it speaks TLS."""
    return Server(
        uvicorn.Config(
            app,
            http=Guarded,
            ws="none",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=2,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
    )
