"""Deadlines and limits of connections, with a small application; seconds are shorter."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services.floods import (
    answer,
    connected,
    half_requests,
    is_closed,
    seconds_until_closed,
)

from agc_ml.training.http import accepting, connections
from agc_ml.training.http.connections import Connections, Guarded
from agc_ml.training.http.http_server import make_server

MOST, MOST_EACH = 24, 20
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\nX-a: "
GET = b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n"


class Small:
    """An application: answers at once, waits until it is let go, or reads bodies."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = 0
        self.faults: list[BaseException] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._answer(scope, receive, send)
        except BaseException as error:
            self.faults.append(error)
            raise

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun += 1
        body = b"done"
        if scope["path"] == "/wait":
            while not self.go.is_set():  # noqa: ASYNC110 - it is set by a thread
                await asyncio.sleep(0.01)
        elif scope["path"] == "/large":
            body = b"x" * 20_000_000
        elif scope["path"] == "/read":
            message: dict[str, Any] = {"more_body": True}
            while message.get("more_body"):
                message = await receive()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Running:
    """A server in a thread."""

    def __init__(self, certificate: Path | None = None, key: Path | None = None) -> None:
        self.app = Small()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        app: Any = self.app
        self._server = make_server(app, certificate, key)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def _run(self) -> None:
        asyncio.run(self._server.serve([self._listener]))

    def stop(self) -> None:
        self.app.go.set()
        self._server.should_exit = True
        self._thread.join(20)
        self._listener.close()

    def asks(self, path: str = "/quick") -> bytes:
        with connected(self.url) as one:
            asked = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            return answer(one, asked.encode())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("HEAD_S", 0.6), ("WINDOW_S", 0.8), ("DISCARD_S", 0.5),
                          ("_YOUNG_S", 0.3), ("_SWEEP_S", 0.1)):  # fmt: skip
        monkeypatch.setattr(connections, name, seconds)
    monkeypatch.setattr(accepting, "HEAD_S", 0.6)
    monkeypatch.setattr(Guarded, "everyone", Connections(MOST, MOST_EACH))


@pytest.fixture
def server() -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()


def test_half_a_head_is_kept_for_a_while_only(server: Running) -> None:
    """Nothing, a part, a part that grows, and a part of the second request."""
    with connected(server.url) as silent, connected(server.url) as half, \
            connected(server.url) as growing, connected(server.url) as second:  # fmt: skip
        half.sendall(HEAD)
        growing.sendall(HEAD)
        second.sendall(GET + HEAD)
        start = time.monotonic()
        while not is_closed(growing) and time.monotonic() - start < 5:
            growing.setblocking(True)
            try:
                growing.sendall(b"a")
            except OSError:
                break
            time.sleep(0.05)
        assert 0.4 < time.monotonic() - start < 4
        assert all(seconds_until_closed(one, 5) < 4 for one in (silent, half, second))


def test_an_idle_connection_stays(server: Running) -> None:
    with connected(server.url) as idle:
        for _ in range(2):
            idle.sendall(GET)
            assert b"200 OK" in idle.recv(1 << 16)
            time.sleep(0.9)
            assert not is_closed(idle)
            idle.settimeout(5)


def upload(length: int) -> bytes:
    return f"PUT /read HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def test_a_body_has_to_come_on(server: Running) -> None:
    with connected(server.url) as slow:
        slow.sendall(upload(1000) + b"x")
        start = time.monotonic()
        said = b""
        slow.settimeout(0.1)
        while time.monotonic() - start < 6 and b"kB of a body" not in said:
            try:
                slow.sendall(b"x")
                said += slow.recv(1 << 16)
            except TimeoutError:
                pass
        assert b"408 Request Timeout" in said
        assert time.monotonic() - start < 5
        head, _, body = said.partition(b"\r\n\r\n")
        assert b"application/problem+json" in head
        assert json.loads(body)["status"] == 408


def test_a_body_may_take_as_long_as_it_comes_on(server: Running) -> None:
    """Longer than any deadline: a large one over a slow line."""
    part = b"x" * 12_000
    with connected(server.url) as slow:
        slow.sendall(upload(13 * len(part)))
        for _ in range(13):
            slow.sendall(part)
            time.sleep(0.1)
        assert b"200 OK" in slow.recv(1 << 16)


def test_what_nobody_reads_is_dropped(server: Running) -> None:
    """A body that is not asked for, of a request that was answered."""
    with connected(server.url) as one:
        one.sendall(b"PUT /quick HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n")
        assert b"200 OK" in one.recv(1 << 16)
        one.sendall(b"x" * 9_000_000)
        time.sleep(0.3)
        assert not is_closed(one)
        one.settimeout(5)
        one.sendall(GET)
        assert b"200 OK" in one.recv(1 << 16)
    with connected(server.url) as two:
        two.sendall(b"PUT /quick HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n")
        assert b"200 OK" in two.recv(1 << 16)
        assert seconds_until_closed(two, 5) < 4


def test_an_answer_that_nobody_reads(server: Running) -> None:
    with connected(server.url, receive=4096) as one:
        one.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(2)  # two windows and a bit
        read = len(answer(one, b""))
        assert read < 20_000_000  # it was given up
    with connected(server.url, receive=4096) as slow:
        slow.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        read, start = 0, time.monotonic()
        while part := slow.recv(200_000):
            read += len(part)
            if time.monotonic() - start < 1.2:
                time.sleep(0.02)  # slower than it could be
        assert read > 20_000_000


def test_whoever_asks_gets_through_a_flood(server: Running) -> None:
    """More connections than there may be, all from one address."""
    with half_requests(server.url, 4 * MOST_EACH, HEAD) as halves:
        assert b"200 OK" in server.asks()
        assert sum(map(is_closed, halves)) >= 3 * MOST_EACH
        assert not is_closed(halves[-1])


def test_first_halves_then_idle_ones_never_busy_ones(server: Running) -> None:
    busy = [connected(server.url) for _ in range(MOST_EACH - 4)]
    for one in busy:
        one.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    idle = [connected(server.url) for _ in range(2)]
    for one in idle:
        one.sendall(GET)
        assert b"200 OK" in one.recv(1 << 16)
    with half_requests(server.url, 2, HEAD) as halves:
        while server.app.begun < MOST_EACH - 2:
            time.sleep(0.01)
        for gone in ([halves[0]], halves, [*halves, idle[0]], [*halves, *idle]):
            one = connected(server.url)
            one.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            busy.append(one)
            time.sleep(0.1)
            assert [o for o in (*halves, *idle, *busy) if is_closed(o)] == gone
    assert b"503 Service Unavailable" in server.asks()
    assert b"Retry-After: 5" in server.asks()
    server.app.go.set()
    for one in busy:
        one.settimeout(5)
        assert b"200 OK" in one.recv(1 << 16)
        one.close()
    for one in idle:
        one.close()


def test_slow_bodies_make_room(server: Running) -> None:
    with half_requests(server.url, MOST_EACH, upload(1000) + b"x") as slow:
        while server.app.begun < MOST_EACH:
            time.sleep(0.01)
        assert b"503" in server.asks()  # too young to be called slow
        time.sleep(0.5)
        assert b"200 OK" in server.asks()
        assert sum(map(is_closed, slow)) < 5


@pytest.mark.parametrize(
    "asked",
    [
        b"\x16\x03\x01\x02\x00\x01\x00" + b"\x00" * 300,
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /" + b"\xff" + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PUT /read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PUT /wait HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http(server: Running, asked: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """It is told, as a problem; nothing of it is a fault, not even where someone is answering."""
    with connected(server.url) as one:
        said = answer(one, asked)
    server.app.go.set()
    assert said.startswith(b"HTTP/1.1 400 Bad Request")
    assert b"application/problem+json" in said
    assert b"200 OK" in server.asks()
    assert not server.app.faults
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_an_upgrade_is_not_made(server: Running) -> None:
    asked = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n"
    with connected(server.url) as one:
        assert b"200 OK" in answer(one, asked)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def test_halves_of_tls(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that do not even say hello are few, and closed in time."""
    monkeypatch.setattr("agc_ml.training.http.http_server.capacity", lambda: 80)
    running = Running(*pair)
    context = ssl.create_default_context(cafile=str(pair[0]))
    try:
        with half_requests(running.url, 60, b"\x16\x03\x01") as halves:
            with context.wrap_socket(connected(running.url), server_hostname="127.0.0.1") as one:
                assert b"200 OK" in answer(one, GET.replace(b"x\r", b"x\r\nConnection: close\r"))
            assert sum(map(is_closed, halves)) >= 50
            assert seconds_until_closed(halves[-1], 5) < 4
    finally:
        running.stop()


def test_the_limit_of_files_is_raised() -> None:
    """In a process of its own: it can't be lowered again by everyone."""
    for soft, hard, expected in ((64, 5000, 2000), (64, 400, 200), (4500, 5000, 2000)):
        code = (
            "import resource\n"
            f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
            "from agc_ml.training.http.connections import capacity\n"
            "print(capacity(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        )
        found, now = map(int, done.stdout.split())
        assert found == expected
        assert now >= 2 * found
