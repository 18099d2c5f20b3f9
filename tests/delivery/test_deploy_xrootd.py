"""Servers of a federation: who can reach them, and what they serve."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
from pathlib import Path

import psutil
import pytest
from conftest import absent
from services.xrootd import SERVE, Server, Storage, free_port

from agc_ml.transports.connect import connect

HERE = {"127.0.0.1", "::1"}


@pytest.fixture(scope="module")
def outside() -> str:
    """An address of this machine at which others reach it."""
    for lines in psutil.net_if_addrs().values():
        for line in lines:
            if line.family is socket.AF_INET and not line.address.startswith("127."):
                return str(line.address)
    absent("this machine has no address but its own")
    raise AssertionError


def refuses(address: str, port: int) -> bool:
    """Whether nobody listens there, or hangs up at once."""
    try:
        with socket.create_connection((address, port), 2) as line:
            line.settimeout(0.5)
            return line.recv(1) == b""
    except ConnectionRefusedError:
        return True
    except TimeoutError:  # it waits for what we want
        return False


def made(storage: Storage, role: str) -> Server:
    folder = storage.folder()
    if role == "protected":
        secret = folder / "secret"
        secret.write_text(base64.b64encode(os.urandom(64)).decode() + "\n")
        if os.geteuid() == 0:
            shutil.chown(secret, "xrootd", "xrootd")
        return storage.protected(storage.folder(), secret)
    if role == "cache":
        return storage.cache(storage.data(folder).address)
    if role in {"redirector", "replica"}:
        redirector = storage.redirector()
        return redirector if role == "redirector" else storage.replica(folder, redirector)
    return storage.data(folder)


@pytest.mark.parametrize("role", ["data", "protected", "cache", "redirector", "replica"])
def test_nobody_outside_this_machine_is_served(role: str, storage: Storage, outside: str) -> None:
    server = made(storage, role)
    listening = server.sockets()
    assert ("127.0.0.1", server.port) in listening
    for address, port in listening:
        assert address in HERE or refuses(outside, port)
    (said,) = server.said.read_text().splitlines()
    assert said.startswith(f"{role}: serves ")
    assert f"at root://127.0.0.1:{server.port}/" in said
    assert "all users of this machine" in said
    if role != "redirector":
        assert server.arguments[role == "cache"] in said


def test_an_address_that_is_asked_for(storage: Storage, outside: str) -> None:
    server = storage.data(storage.folder(), ADDRESS=outside)
    assert not refuses(outside, server.port)
    assert refuses("127.0.0.1", server.port)
    (said,) = server.said.read_text().splitlines()
    assert f"at root://{outside}:{server.port}/" in said
    assert said.endswith(f"to everybody who can connect (logs: {server.base}/state/log)")


def served(*arguments: object, **environment: str) -> str:
    """What it says where it does not start."""
    done = subprocess.run(
        ["bash", str(SERVE), *map(str, arguments)],
        env={**os.environ, "PORT": str(free_port()), **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode
    return done.stderr


@pytest.mark.parametrize("role", ["data", "protected", "cache", "replica"])
@pytest.mark.parametrize("link", ["../elsewhere", "/etc/hostname", "a/../../gone"])
def test_links_that_lead_out_are_refused(role: str, link: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "secret").touch()
    (folder / "a" / "within").symlink_to("..")
    (folder / "a" / "out").symlink_to(link if link[0] == "/" else f"../{link}")
    arguments = {"protected": [folder, tmp_path / "secret"], "cache": ["h:1", folder]}
    more = {"replica": [folder, "h:1"], "data": [folder]}
    said = served(role, *{**arguments, **more}[role], STATE=str(tmp_path / "state"))
    assert said.startswith(f"serve: {folder}/a/out leads out of the folder, to /")
    assert said.count("\n") == 1
    assert "accept all links with FOLLOW_LINKS=yes" in said


def test_links_that_are_followed(storage: Storage) -> None:
    folder, elsewhere = storage.folder(), storage.folder()
    (elsewhere / "x.root").write_bytes(b"far")
    (folder / "real.root").write_bytes(b"near")
    (folder / "inside.root").symlink_to("real.root")
    assert content(storage.data(folder).url("inside.root")) == b"near"
    (folder / "out.root").symlink_to(elsewhere / "x.root")
    assert content(storage.data(folder, FOLLOW_LINKS="yes").url("out.root")) == b"far"


def content(url: str) -> bytes:
    file = connect(url, 8)
    (read,) = file.read([(0, file.size)], 8)
    file.close()
    return bytes(read)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = served("data", tmp_path, PORT=port, STATE=str(tmp_path / "state"))
    assert f"serve: 127.0.0.1:{port}: Address already in use" in said
    assert served("redirector", PORT=port, ADDRESS="here", STATE=str(tmp_path / "state"))
