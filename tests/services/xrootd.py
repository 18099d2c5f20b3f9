"""Real XRootD servers on loopback, started as anybody can start them: with deploy/xrootd/serve."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from places import ROOT

SERVE = ROOT / "deploy" / "xrootd" / "serve"
READY_S = 20


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Server:
    """A server of one role; its ports stay the same when it is started again."""

    def __init__(self, base: Path, role: str, *arguments: str, **environment: str) -> None:
        self.base = base
        self.arguments = arguments
        self.port, self.http_port, self.cms_port = free_port(), free_port(), free_port()
        self._command = ["bash", str(SERVE), role, *arguments]
        self._environment = {
            **os.environ,
            "PORT": str(self.port),
            "HTTP_PORT": str(self.http_port),
            "CMS_PORT": str(self.cms_port),
            "STATE": str(base / "state"),
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._address = environment.get("ADDRESS", "127.0.0.1")
        self.said = base / "said"
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, name: str) -> str:
        return f"root://{self.address}//{name}"

    def http(self, name: str) -> str:
        return f"http://127.0.0.1:{self.http_port}/{name}"

    def start(self) -> None:
        for _ in range(2):  # about one start in 120 crashes
            with self.said.open("wb") as said:
                self._process = subprocess.Popen(
                    self._command,
                    env=self._environment,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,
                )
            if self._is_listening():
                return
            self.kill()
        logs = "\n".join(p.read_text()[-2000:] for p in self.base.rglob("*.log"))
        pytest.fail(f"{self._command} does not start:\n{logs}")

    def _is_listening(self) -> bool:
        assert self._process is not None
        end = time.monotonic() + READY_S
        while time.monotonic() < end and self._process.poll() is None:
            with (
                contextlib.suppress(OSError),
                socket.create_connection((self._address, self.port), 0.5) as line,
            ):
                line.settimeout(end - time.monotonic())
                line.sendall(struct.pack(">5i", 0, 0, 0, 4, 2012))  # the protocol's first words
                if len(whole(line, 16)) == 16:  # sockets are open before the server is
                    return True
            time.sleep(0.02)
        return False

    def sockets(self) -> list[tuple[str, int]]:
        """Addresses and ports on which its processes listen."""
        assert self._process is not None
        lines = []
        for one in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # a shell's, that came and went
                lines += one.net_connections("inet")
        return [(line.laddr.ip, line.laddr.port) for line in lines if line.status == "LISTEN"]

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """As a power cut does it."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        self._process = None

    def freeze(self) -> None:
        """It accepts connections, and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)


class Storage:
    """Servers, and folders that they can read."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.servers: list[Server] = []

    def folder(self, *files: Path) -> Path:
        """A folder that the server may read, with copies of files."""
        made = Path(tempfile.mkdtemp(prefix="files-", dir=self.base))
        made.chmod(0o755)
        for file in files:
            shutil.copy(file, made / file.name)
            (made / file.name).chmod(0o644)
        return made

    def _server(self, role: str, *arguments: str, **environment: str) -> Server:
        base = Path(tempfile.mkdtemp(prefix=f"{role}-", dir=self.base))
        base.chmod(0o755)
        server = Server(base, role, *arguments, **environment)
        self.servers.append(server)
        return server

    def data(self, folder: Path, **environment: str) -> Server:
        return self._server("data", str(folder), **environment)

    def protected(self, folder: Path, secret: Path, certificate: Path | None = None) -> Server:
        """With a certificate, a file that holds its key too, over TLS."""
        pair = {} if certificate is None else dict.fromkeys(("CERT", "KEY"), str(certificate))
        return self._server("protected", str(folder), str(secret), **pair)

    def cache(self, origin: str) -> Server:
        """A cache before ``origin``, host:port, or = for any."""
        folder = self.folder()
        if os.geteuid() == 0:
            shutil.chown(folder, "xrootd", "xrootd")
        return self._server("cache", origin, str(folder))

    def redirector(self) -> Server:
        return self._server("redirector")

    def replica(self, folder: Path, redirector: Server) -> Server:
        return self._server("replica", str(folder), f"127.0.0.1:{redirector.cms_port}")

    def close(self) -> None:
        for server in self.servers:
            server.kill()
        shutil.rmtree(self.base, ignore_errors=True)


class Asking:
    """A server that wants a token at login, and has no files; ``logins`` are what it was given.

    It may send clients ``elsewhere``: to a port, and what follows a host.
    """

    def __init__(self, certificate: Path, elsewhere: tuple[int, str] | None = None) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._elsewhere = None
        if elsewhere is not None:
            port, more = elsewhere
            self._elsewhere = struct.pack(">I", port) + f"127.0.0.1{more}".encode()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.logins: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(line,), daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        """As XProtocol.hh has it: to begin with TLS, then login, authentication, requests."""
        with contextlib.suppress(OSError, struct.error), contextlib.ExitStack() as stack:
            stack.enter_context(line)
            whole(line, 20)
            line.sendall(struct.pack(">2xHIII", 0, 8, 0x511, 1))
            while True:
                head = whole(line, 24)
                request, n = struct.unpack(">2xH16xI", head)
                body = whole(line, n)
                status, answer = 4003, struct.pack(">I", 3011) + b"no such file\0"
                if request == 3006:  # which protocol: TLS from now on, and for the login
                    status, answer = 0, struct.pack(">II", 0x511, 0xC4000001)
                elif request == 3007:
                    status, answer = 0, bytes(16) + b"&P=ztn,0:4096:&P=unix\0"
                elif request == 3000:
                    self.logins.append(body)
                    status, answer = 0, b""
                elif request == 3010 and self._elsewhere is not None:
                    status, answer = 4004, self._elsewhere
                line.sendall(head[:2] + struct.pack(">HI", status, len(answer)) + answer)
                if request == 3006:
                    line = self._context.wrap_socket(line, server_side=True)
                    stack.enter_context(line)


def whole(line: socket.socket, n: int) -> bytes:
    """So many bytes; fewer where the line ends."""
    found = b""
    while len(found) < n and (part := line.recv(n - len(found))):
        found += part
    return found


@contextlib.contextmanager
def opened() -> Iterator[Storage]:
    if shutil.which("xrootd") is None:
        from conftest import absent  # noqa: PLC0415 - it imports the fixtures of this module

        absent("no XRootD server: install one with 'apt-get install xrootd-server'")
    base = Path(tempfile.mkdtemp(prefix="agc-storage-"))
    base.chmod(0o755)
    storage = Storage(base)
    try:
        yield storage
    finally:
        storage.close()


@pytest.fixture
def storage() -> Iterator[Storage]:
    """Servers of one test."""
    with opened() as made:
        yield made


@pytest.fixture(scope="module")
def shared_storage() -> Iterator[Storage]:
    """Servers of a module, that no test stops."""
    with opened() as made:
        yield made
