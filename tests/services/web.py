"""A web server of ranges that can be told to go wrong."""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

BOUNDARY = "next"


class Web(ThreadingHTTPServer):
    """Serves the files of a folder, and counts what it is asked for.

    ``many``: whether it answers several ranges at once; ``ranges``: whether it knows any;
    ``status``: what it answers instead, if anything; ``token``: which one it wants, and ``tokens``
    what it was given; ``elsewhere``: where it sends clients;
    ``cut``: after how many bytes of a content it hangs up; ``stall``: seconds before it answers;
    ``drip``: whether the rest comes byte by byte; ``lie``: what it makes of the next ``lies``
    contents; ``mirrors``: how many seconds later each of those that take turns got the files, and
    ``later``: what those got that are not the first.
    """

    daemon_threads = True

    def __init__(self, folder: Path, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.scheme = "https"
        self.folder = folder
        self.many = self.ranges = True
        self.status: int | None = None
        self.token: str | None = None
        self.tokens: list[str | None] = []
        self.elsewhere: str | None = None
        self.cut: int | None = None
        self.stall = 0.0
        self.drip = False
        self.lie: Callable[[bytes], bytes] = bytes
        self.lies = 0
        self.mirrors = [0]
        self.later: bytes | None = None
        self.requests: list[str] = []
        self.sent = 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, name: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/{name}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    server: Web
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are sent apart: the second one would wait 40 ms

    def do_GET(self) -> None:
        web = self.server
        time.sleep(web.stall)
        asked = self.headers.get("Range", "")
        web.requests.append(asked)
        web.tokens.append(self.headers.get("Authorization"))
        if web.elsewhere is not None:
            self.reply(307, {"Location": web.elsewhere}, b"over there")
            return
        path = web.folder / self.path.lstrip("/")
        status = web.status
        if web.token is not None and self.headers.get("Authorization") != f"Bearer {web.token}":
            status = 401
        if status is None and not path.is_file():
            status = 404
        if status is not None:
            self.reply(status, {}, b"")
            return
        content = path.read_bytes()
        if web.lies:
            web.lies -= 1
            content = web.lie(content)
        ranges = [(int(a), int(b) + 1) for a, b in re.findall(r"(\d+)-(\d+)", asked)]
        mirror = web.mirrors[len(web.requests) % len(web.mirrors)]
        content = web.later if mirror and web.later is not None else content
        written = path.stat().st_mtime_ns + mirror * 10**9
        tag = {"ETag": f'"{written}"', "Last-Modified": formatdate(written // 10**9, usegmt=True)}
        if not ranges or not web.ranges or (len(ranges) > 1 and not web.many):
            self.reply(200, tag, content)
        elif len(ranges) == 1:
            ((start, stop),) = ranges
            where = f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}"
            self.reply(206, {**tag, "Content-Range": where}, content[start:stop])
        else:
            between = f"\r\n--{BOUNDARY}"
            parts = [
                f"{between}\r\nContent-Range: bytes {a}-{b - 1}/{len(content)}\r\n\r\n".encode()
                + content[a:b]
                for a, b in ranges
            ]
            body = b"".join(parts) + f"{between}--\r\n".encode()
            kind = {"Content-Type": f"multipart/byteranges; boundary={BOUNDARY}"}
            self.reply(206, {**tag, **kind}, body)

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        web = self.server
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if web.cut is not None and len(body) > web.cut:
            self.wfile.write(body[: web.cut])
            self.close_connection = True
            return
        for i in range(len(body) if web.drip else 0):
            self.wfile.write(body[i : i + 1])
            time.sleep(0.1)
        self.wfile.write(body)
        web.sent += len(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """A web server of an empty folder."""
    folder = tmp_path / "web"
    folder.mkdir()
    made = Web(folder)
    yield made
    made.shutdown()
    made.server_close()
