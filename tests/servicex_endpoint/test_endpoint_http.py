"""Who is heard: names and pages, tokens before bodies, slow requests and floods."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import httpx
import pytest
from services.servicex import Endpoint
from tornado.web import Application, RequestHandler

from agc_ml.servicex_endpoint import handlers
from agc_ml.servicex_endpoint import server as serving
from agc_ml.servicex_endpoint.server import MAX_CONNECTIONS, EndpointServer
from agc_ml.servicex_endpoint.signatures import AccessDeniedError, AccessKeys

TRANSFORMATION = "/servicex/transformation"
PRESIGNED = "X-Amz-Signature=a&X-Amz-Date=20200101T000000Z&X-Amz-Expires=99999999999"


def raw(port: int, request: bytes, more: bytes = b"") -> bytes:
    """What is answered to some bytes until the connection is closed, or nothing comes."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(request)
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while part := connection.recv(65536):
                answer += part
                if b"\r\n\r\n" in answer and not more:
                    break
                connection.settimeout(0.2)
        return answer


def status(answer: bytes) -> int:
    found = re.match(rb"HTTP/1.1 (\d+) ", answer)
    return int(found[1]) if found else 0


@pytest.fixture(scope="module")
def authorization(servicex_endpoint: Endpoint) -> bytes:
    return f"Authorization: {servicex_endpoint.headers()['Authorization']}\r\n".encode()


HERE = b"Host: 127.0.0.1\r\n"
LENGTHS = {
    b"Content-Length: -1": 400,
    b"Content-Length: +1": 400,
    b"Content-Length: 0x1": 400,
    b"Content-Length: \xb2": 400,
    b"Content-Length: 1\r\nContent-Length: 2": 400,
    b"Content-Length: 1\r\nTransfer-Encoding: chunked": 400,
    b"Transfer-Encoding: xchunked": 400,
    b"Transfer-Encoding: chunked": 400,
    b"Content-Length: 4000001": 413,
    b"Content-Length: " + b"9" * 400: 413,
}


@pytest.mark.parametrize("length", LENGTHS)
def test_bodies_of_odd_lengths(
    servicex_endpoint: Endpoint, authorization: bytes, length: bytes
) -> None:
    head = f"POST {TRANSFORMATION} HTTP/1.1\r\n".encode() + HERE + authorization + length
    begin = time.monotonic()
    assert status(raw(servicex_endpoint.port, head + b"\r\n\r\nzz\r\n")) == LENGTHS[length]
    assert time.monotonic() - begin < 5


def test_a_body_without_a_length_is_limited(
    servicex_endpoint: Endpoint, authorization: bytes
) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 65536

    name, value = authorization.decode().strip().split(": ")
    url = servicex_endpoint.url + TRANSFORMATION
    answer = httpx.post(url, headers={name: value}, content=pieces())
    assert answer.status_code == 413
    assert answer.json() == {"message": "a request may have 4 MB; split it"}


def test_the_token_is_asked_for_before_a_body(servicex_endpoint: Endpoint) -> None:
    """The body never comes, but the answer does; clients that send one hear it, too."""
    for path in (TRANSFORMATION, "/token/refresh", "/elsewhere"):
        head = f"POST {path} HTTP/1.1\r\n".encode() + HERE + b"Content-Length: 3000000\r\n\r\n"
        answer = raw(servicex_endpoint.port, head)
        assert status(answer) == (404 if path == "/elsewhere" else 401)
        assert b"Connection: close" in answer
    with httpx.Client(base_url=servicex_endpoint.url) as client:
        for size in (10, 100_000, 3_000_000, 10_000_000):
            for _ in range(5):
                assert client.post(TRANSFORMATION, content=b"x" * size).status_code == 401


REQUESTS = {
    b"GET /servicex HTTP/1.1\r\nHost: [\r\n": 400,
    b"GET /servicex HTTP/1.1\r\n": 400,
    b"GET /servicex HTTP/1.1\r\nHost: evil.example\r\n": 400,
    b"GET /servicex HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n": 400,
    b"GET /servicex HTTP/1.1\r\nHost: evil.example@127.0.0.1\r\n": 400,
    b"GET /servicex HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n": 400,
    b"GET /servicex HTTP/1.1\r\nHost: 0.0.0.0\r\n": 400,
    b"GET /servicex HTTP/1.1\r\nHost: LOCALHOST:1\r\n": 200,
    b"GET /servicex HTTP/1.1\r\nHost: [::1]:5000\r\n": 200,
    b"GET /servicex HTTP/1.0\r\n": 200,
    b"GET /servicex HTTP/1.1\r\nA: b\r\n c\r\n" + HERE: 400,
    b"GET /a\x1b[31m HTTP/1.1\r\n" + HERE: 400,
    b"GET /%00%ff%1b HTTP/1.1\r\n" + HERE: 404,
    b"GET http://evil.example/servicex HTTP/1.1\r\n" + HERE: 404,
    b"OPTIONS * HTTP/1.1\r\n" + HERE: 404,
    b"TRACE /servicex HTTP/1.1\r\n" + HERE: 405,
    b"GET /servicex HTTP/1.1\r\nOrigin: http://evil.example\r\n" + HERE: 403,
    b"GET /servicex HTTP/1.1\r\nOrigin: null\r\n" + HERE: 403,
    b"GET /servicex HTTP/1.1\r\nOrigin: http://127.0.0.1:8080\r\n" + HERE: 403,
    b"GET /servicex HTTP/1.1\r\nOrigin: http://127.0.0.1\r\n" + HERE: 200,
    b"POST /servicex/transformation HTTP/1.1\r\nOrigin: http://evil.example\r\n" + HERE: 403,
    b"GET /servicex?" + b"&" * 5000 + b" HTTP/1.1\r\n" + HERE: 400,
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HERE: 0,
}


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
def test_names_pages_and_heads(
    servicex_endpoint: Endpoint, authorization: bytes, request_: bytes
) -> None:
    answer = raw(servicex_endpoint.port, request_ + authorization + b"\r\n")
    assert status(answer) == REQUESTS[request_]


@pytest.mark.parametrize(
    "query",
    [
        "Signature=%ff%fe&AWSAccessKeyId=%ff&Expires=99999999999",
        "Signature=%ff%fe&AWSAccessKeyId=ACCESS&Expires=99999999999",
        "Signature=a&AWSAccessKeyId=ACCESS&Expires=%D9%A3",
        "Signature=a&AWSAccessKeyId=ACCESS&Expires=" + "9" * 5000,
        "X-Amz-Signature=a&X-Amz-Date=20200101T000000Z&X-Amz-Expires=999999999999",
        "X-Amz-Signature=a&X-Amz-Date=00010101T000000Z&X-Amz-Expires=1&X-Amz-Credential=ACCESS",
        "X-Amz-Signature=%00&X-Amz-Date=%00&X-Amz-Expires=1&X-Amz-Credential=///////",
        f"{PRESIGNED}&X-Amz-Credential=ACCESS/20200101/%ff/%00&X-Amz-SignedHeaders=host%0a;;x",
        "=&&=&X-Amz-Signature",
    ],
)
def test_odd_signatures_are_denied(servicex_endpoint: Endpoint, query: str) -> None:
    url = f"/00000000-0000-0000-0000-000000000000/a?{query}"
    assert httpx.get(servicex_endpoint.url + url).status_code == 403
    keys = AccessKeys("ACCESS", "secret")
    with pytest.raises(AccessDeniedError):
        keys.check("GET", f"http://127.0.0.1{url}", {"host": "127.0.0.1"}, 1_800_000_000)


def test_good_clients_are_heard_in_a_flood(
    servicex_endpoint: Endpoint, authorization: bytes
) -> None:
    """More half requests, half bodies and idle connections than there may be."""
    head = f"POST {TRANSFORMATION} HTTP/1.1\r\n".encode()
    kinds = [
        head + b"Host: x\r\nX-a: ",
        head + HERE + authorization + b"Content-Length: 9\r\n\r\n{",
        b"GET /servicex HTTP/1.1\r\n" + HERE + authorization + b"\r\n",
    ]
    log = servicex_endpoint.folder.with_name("endpoint.log")
    before = log.stat().st_size
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            for _ in range(MAX_CONNECTIONS // 2):
                address = ("127.0.0.1", servicex_endpoint.port)
                connection = stack.enter_context(socket.create_connection(address, 5))
                with contextlib.suppress(ConnectionError):
                    connection.sendall(kind)
            begin = time.monotonic()
            for _ in range(5):
                assert "code-gen-image" in servicex_endpoint.get("/servicex")
            assert time.monotonic() - begin < 5
    assert log.stat().st_size - before < 30_000


class Slow(RequestHandler):
    async def get(self) -> None:
        await asyncio.sleep(0.5)
        self.finish("done")


class Large(handlers.EndpointHandler):
    def denied(self) -> None:
        return None

    def get(self) -> None:
        self.finish(b"x" * 20_000_000)


Scenario = Callable[[EndpointServer, int], Any]


def with_server(scenario: Scenario, listener: socket.socket | None = None) -> None:
    """Run a server on a free port, and something beside it."""

    async def run() -> None:
        application = Application(
            [("/", Slow), ("/large", Large)],
            log_function=lambda handler: server.request_answered(handler.request),
        )
        server = EndpointServer(application, max_body=100)
        listening = listener or socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.setblocking(False)
        server.listen_on(listening)
        await scenario(server, listening.getsockname()[1])
        server.stop_listening(listening)
        await server.close_all_connections()

    asyncio.run(run())


async def asked(port: int, request: bytes) -> bytes:
    """All that is answered until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        return b"reset"
    finally:
        writer.close()


def test_slow_requests_have_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEADERS_S", 0.3)
    monkeypatch.setattr(serving, "BODY_S", 0.3)

    async def scenario(_: EndpointServer, port: int) -> None:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
        begin = time.monotonic()
        answers = await asyncio.gather(
            *(asked(port, part) for part in (b"", b"GET", head, head + b"\r\n{"))
        )
        assert answers == [b""] * 4
        assert time.monotonic() - begin < 5
        answer = await asked(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # longer than that
        assert b"done" in answer

    with_server(scenario)


def test_answers_that_nobody_takes_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "STALL_S", 0.3)
    request_ = b"GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    async def scenario(server: EndpointServer, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_)
        assert await reader.readexactly(10) == b"HTTP/1.1 2"
        assert len(server._clients) == 1
        await asyncio.sleep(1)
        assert not server._clients
        writer.close()
        assert len(await asked(port, request_)) > 20_000_000  # who takes it gets it

    with_server(scenario)


def test_the_oldest_that_say_nothing_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 6)
    monkeypatch.setattr(serving, "MAX_PER_CLIENT", 4)

    async def scenario(server: EndpointServer, port: int) -> None:
        whole = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        working = [asyncio.create_task(asked(port, whole)) for _ in range(3)]
        await asyncio.sleep(0.1)
        first = asyncio.create_task(asked(port, b"GET"))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(asked(port, whole))  # the fifth of this client
        assert await asyncio.wait_for(first, 1) in {b"", b"reset"}
        assert await asyncio.wait_for(asked(port, whole), 1) in {b"", b"reset"}  # all are at work
        answers = await asyncio.gather(*working, second)
        assert all(b"done" in answer for answer in answers)
        await asyncio.sleep(0.1)
        assert not server._clients
        assert not server._n_of_client

    with_server(scenario)


def test_connections_that_can_not_be_accepted_are_no_flood(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serving, "_RETRY_S", 0.2)

    class Full(socket.socket):
        times = 3

        def accept(self) -> tuple[socket.socket, Any]:
            if self.times:
                self.times -= 1
                self.fail()
            return super().accept()

        def fail(self) -> NoReturn:
            raise OSError(errno.EMFILE, "Too many open files")

    async def scenario(_: EndpointServer, port: int) -> None:
        begin = time.monotonic()
        answer = await asked(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"done" in answer
        assert time.monotonic() - begin > 0.6

    with_server(scenario, Full())
    told = [r.getMessage() for r in caplog.records if "accepted" in r.getMessage()]
    assert told == ["a connection can't be accepted (Too many open files)"] * 3
