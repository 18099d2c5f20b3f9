"""A TCP proxy that delays, cuts, stalls and flips what a server sends."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest


class Proxy:
    """Passes connections on to a port of this machine.

    The faults are those of what the server sends: ``delay`` seconds before each piece; ``rate`` in
    bytes/s; and once, after so many bytes of all: ``cut`` the connection, ``stall`` it for good,
    ``flip`` a bit.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self.delay = 0.0
        self.rate = 0.0
        self.cut: int | None = None
        self.stall: int | None = None
        self.flip: int | None = None
        self.sent = self.cuts = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._to), 5)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                self._open |= {client, server}
                for pair, is_answer in (((client, server), False), ((server, client), True)):
                    threading.Thread(
                        target=self._pump, args=(*pair, is_answer), daemon=True
                    ).start()

    def _pump(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                target.sendall(self._harmed(piece, source, target) if is_answer else piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _harmed(self, piece: bytes, *ends: socket.socket) -> bytes:
        if self.delay or self.rate:
            time.sleep(self.delay + (len(piece) / self.rate if self.rate else 0))
        with self._lock:
            begin, self.sent = self.sent, self.sent + len(piece)
            if self.cut is not None and self.sent > self.cut:
                self.cut = None
                self.cuts += 1
                for end in ends:
                    end.shutdown(socket.SHUT_RDWR)
            if self.flip is not None and begin <= self.flip < self.sent:
                harmed = bytearray(piece)
                harmed[self.flip - begin] ^= 1
                piece, self.flip = bytes(harmed), None
            stalls = self.stall is not None and self.sent > self.stall
            if stalls:
                self.stall = None
        if stalls:
            time.sleep(3600)
        return piece

    def close(self) -> None:
        for end in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                end.close()


@pytest.fixture
def proxies() -> Iterator[list[Proxy]]:
    """Proxies of one test: it adds them, and they are closed for it."""
    made: list[Proxy] = []
    yield made
    for proxy in made:
        proxy.close()
