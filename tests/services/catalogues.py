"""Places where filesets come from: an Open Data portal and a Rucio server.

They answer in the formats of the real ones, for the real clients.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus, urlsplit

import pytest
from places import REFERENCE


@dataclass
class Answer:
    """What a server sends back."""

    status: int = 200
    body: str = ""
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class LimitedRequest:
    """What a client sent."""

    path: str
    body: str
    headers: dict[str, str]


@contextmanager
def serving(answer: Callable[[LimitedRequest], Answer]) -> Iterator[str]:
    """An HTTP server on a free port; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            given = answer(LimitedRequest(self.path, body, dict(self.headers.items())))
            content = given.body.encode()
            self.send_response(given.status)
            for name, value in {"Content-Type": given.kind, **given.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_POST = do_HEAD = do_GET  # noqa: N815 - as above

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def hanging() -> Iterator[int]:
    """A port where connections are accepted, and nothing is ever said."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield int(listener.getsockname()[1])


def refusing() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# -- CERN Open Data ----------------------------------------------------------------------------


def record(number: int) -> dict[str, Any]:
    """A record as the portal's API gives it."""
    return dict(json.loads((REFERENCE / "opendata.json").read_text())["records"][str(number)])


def _portal(asked: LimitedRequest) -> Answer:
    known = json.loads((REFERENCE / "opendata.json").read_text())["records"]
    number = asked.path.rpartition("/")[2]
    if number in known and asked.path == f"/record/{number}":
        return Answer(200, "<html></html>", "text/html")
    if number in known and asked.path == f"/api/records/{number}":
        return Answer(200, json.dumps(known[number]))
    return Answer(404, json.dumps({"status": 404, "message": "PID does not exist."}))


@pytest.fixture(scope="session")
def portal() -> Iterator[str]:
    """A portal with the records of the reference file."""
    with serving(_portal) as address:
        yield address


# -- Rucio -------------------------------------------------------------------------------------


@dataclass
class RucioServer:
    """A server with some datasets; ``posted`` is what it was asked for replicas.

    ``configure`` points the client to it, with changes of its settings.
    """

    configure: Callable[..., None]
    address: str = ""
    posted: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, asked: LimitedRequest) -> Answer:
        reference = json.loads((REFERENCE / "rucio.json").read_text())
        path = urlsplit(asked.path).path
        if path == "/auth/userpass":
            return self._token(asked)
        if asked.headers.get("X-Rucio-Auth-Token") != "token-of-tester":
            return _refusal(401, "CannotAuthenticate", "Cannot authenticate with given credentials")
        if path == "/replicas/list":
            self.posted.append(json.loads(asked.body))
            (did,) = self.posted[-1]["dids"]
            return _rows(reference["replicas"].get(f"{did['scope']}:{did['name']}", []))
        scope, name, what = (unquote_plus(part) for part in path.split("/")[2:])
        assert what == "files"
        if f"{scope}:{name}" not in reference["files"]:
            text = f"Data identifier '{scope}:{name}' not found"
            return _refusal(404, "DataIdentifierNotFound", text)
        return _rows(reference["files"][f"{scope}:{name}"])

    def _token(self, asked: LimitedRequest) -> Answer:
        if asked.headers.get("X-Rucio-Password") != "secret":
            text = "Cannot authenticate to account tester with given credentials"
            return _refusal(401, "CannotAuthenticate", text)
        return Answer(
            200, "", "application/octet-stream", {"X-Rucio-Auth-Token": "token-of-tester"}
        )


def _rows(rows: list[dict[str, Any]]) -> Answer:
    body = "".join(f"{json.dumps(row)}\n" for row in rows)
    return Answer(200, body, "application/x-json-stream")


def _refusal(status: int, name: str, message: str) -> Answer:
    told = {"ExceptionClass": name, "ExceptionMessage": message}
    return Answer(status, json.dumps(told), "application/octet-stream", told)


def configure_rucio(patch: pytest.MonkeyPatch, folder: Path, address: str, **changes: str) -> None:
    """Configure the client for a server; its tokens stay in ``folder`` as well."""
    settings = {
        "rucio_host": address,
        "auth_host": address,
        "account": "tester",
        "auth_type": "userpass",
        "username": "tester",
        "password": "secret",
        "auth_token_file_path": str(folder / "token"),
        **changes,
    }
    lines = [f"{name} = {value}" for name, value in settings.items() if value]
    path = folder / "rucio.cfg"
    path.write_text("\n".join(["[client]", *lines]) + "\n")
    use_rucio_configuration(patch, path)


def use_rucio_configuration(patch: pytest.MonkeyPatch, path: Path | None) -> None:
    """Let the client read that file, or look where it looks without any."""
    from rucio.common.config import clean_cached_config  # noqa: PLC0415 - an extra

    clean_cached_config()  # it reads its configuration once in a process
    if path is None:
        patch.delenv("RUCIO_CONFIG", raising=False)
        patch.setenv("RUCIO_HOME", "/nowhere")
    else:
        patch.setenv("RUCIO_CONFIG", str(path))


@pytest.fixture
def rucio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RucioServer]:
    """A Rucio server with the datasets of the reference file, and a client configured for it."""
    made = RucioServer(partial(configure_rucio, monkeypatch, tmp_path))
    with serving(made.answer) as made.address:
        made.configure(made.address)
        yield made
