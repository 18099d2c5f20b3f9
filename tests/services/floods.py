"""Clients that do harm: half requests, slow bodies, answers that nobody reads. On loopback only."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit


def connected(url: str, *, receive: int | None = None) -> socket.socket:
    """A connection; ``receive`` bytes are what its buffer takes of answers."""
    at = urlsplit(url)
    connection = socket.socket()
    if receive is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    connection.settimeout(5)
    connection.connect((at.hostname, at.port))
    return connection


@contextlib.contextmanager
def half_requests(url: str, number: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """So many connections, each of which has sent the same and nothing more."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(number):
            connection = stack.enter_context(connected(url))
            with contextlib.suppress(OSError):  # given up already
                connection.sendall(sent)
            found.append(connection)
        yield found


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has hung up; what it said before is read."""
    connection.setblocking(False)
    try:
        while connection.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def seconds_until_closed(connection: socket.socket, most: float) -> float:
    """How long the other side kept a connection; ``most`` if it is open still."""
    start = time.monotonic()
    while not is_closed(connection) and time.monotonic() - start < most:
        time.sleep(0.05)
    return time.monotonic() - start


def answer(connection: socket.socket, asked: bytes) -> bytes:
    """What is answered until the connection is closed, or nothing comes for two seconds."""
    connection.settimeout(2)
    found = b""
    with contextlib.suppress(OSError):
        connection.sendall(asked)
        while part := connection.recv(1 << 16):
            found += part
    return found
