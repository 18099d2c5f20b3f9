"""Replicas, ways to them, and what is known of files, one by one."""

from __future__ import annotations

import base64
import contextlib
import itertools
import logging
import os
import shutil
import sqlite3
import ssl
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import nanoaod
import numpy as np
import pytest
import stepwise
from commandline import agc as agc_command
from hypothesis import given
from hypothesis import strategies as st
from pymacaroons import MACAROON_V1, Macaroon
from services.proxy import Proxy
from services.web import Web
from services.xrootd import Asking, Server, Storage

import agc_ml as agc
from agc_ml.columnar.columns import Columns
from agc_ml.delivery import opening, routing, worker_environment
from agc_ml.delivery import replica_source as source
from agc_ml.errors import AgcError, DeliveryError, FilesetError, UsageError
from agc_ml.execution import file_check, inspection
from agc_ml.execution.inspection import FileInfo, inspect_file
from agc_ml.execution.state import inspection_cache
from agc_ml.execution.worker.job import Failure, one_line
from agc_ml.inputs.columns import ColumnRequest
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset
from agc_ml.inputs.paths import logical_name
from agc_ml.transports import base, credentials, file_header, http, server_health, xrootd
from agc_ml.transports.replica_errors import PermanentError, ReplicaError, TransientError

SECRET = "a-secret-that-nobody-may-see"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server_health.forget()
    for name in credentials.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    server_health.forget()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("file")
    return nanoaod.write(folder / "x.root", nanoaod.events(1000, 1), cluster=100)


@pytest.fixture
def served(web: Web, path: Path) -> str:
    shutil.copy(path, web.folder / "x.root")
    return web.url("x.root")


def content(*urls: str, **known: object) -> bytes:
    """What several distant ranges of a file hold."""
    with opening.open_file(File("x.root", urls, **known)) as file:
        read = file.file.source.read([(1000, 1100), (9000, 9001), (30_000, 40_000)])
        return b"|".join(bytes(part) for part in read)


@pytest.fixture(scope="module")
def right(path: Path) -> bytes:
    data = path.read_bytes()
    return b"|".join([data[1000:1100], data[9000:9001], data[30_000:40_000]])


def agc_run_fails(what: Fileset, tmp_path: Path) -> str:
    with pytest.raises(AgcError) as caught:
        agc.run(stepwise.Flat(), what, site="inline", output=tmp_path / "run", quiet=True)
    return str(caught.value)


def one_file(*urls: str) -> Fileset:
    return Fileset((Dataset("tt", "tt", (File("x.root", urls),), xsec=1.0),), 1.0, "made up")


class TestHttp:
    def test_many_ranges_take_one_request(self, web: Web, served: str, right: bytes) -> None:
        assert content(served) == right
        assert len(web.requests) == 3  # to open it: the first bytes, and the list of what is in it
        assert web.requests[-1] == "bytes=1000-1099,9000-9000,30000-39999"

    def test_ranges_that_are_near_each_other_are_one(self) -> None:
        assert http._merge([(9000, 9100), (0, 10), (4000, 4500)]) == [(0, 4500), (9000, 9100)]

    def test_a_server_of_one_range_at_a_time(self, web: Web, served: str, right: bytes) -> None:
        web.many = False
        assert content(served) == right

    def test_a_server_of_whole_files_is_refused(self, web: Web, served: str) -> None:
        web.ranges = False
        with pytest.raises(DeliveryError, match=r"sends whole files.*use one that knows ranges"):
            content(served)

    @pytest.mark.parametrize(
        ("status", "says"),
        [
            (403, "no permission"),
            (404, "no such file"),
            (410, "no such file"),
            (400, "answers 400"),
        ],
    )
    def test_what_will_not_change_is_told_at_once(
        self, status: int, says: str, web: Web, served: str
    ) -> None:
        web.status = status
        begun = time.monotonic()
        with pytest.raises(DeliveryError, match=says):
            content(served)
        assert time.monotonic() - begun < 5
        assert len(web.requests) == 1

    def test_a_server_that_is_busy_is_asked_again(
        self, web: Web, served: str, right: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        web.status = 503

        def recover(_: float) -> None:
            web.status = None

        monkeypatch.setattr(source.time, "sleep", recover)
        assert content(served) == right

    def test_an_answer_that_is_cut_off_is_asked_for_again(
        self, web: Web, served: str, right: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        web.cut = 9_000

        def recover(_: float) -> None:
            web.cut = None

        monkeypatch.setattr(source.time, "sleep", recover)
        assert content(served) == right

    def test_one_that_comes_byte_by_byte_is_given_up(
        self, web: Web, served: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(source, "DEADLINE_S", 2)
        with opening.open_file(File("x.root", (served,))) as file:
            web.drip = True
            begun = time.monotonic()
            with pytest.raises(DeliveryError, match=r"too slow.*\(tried for 2 s\)"):
                file.file.source.read([(1000, 1100), (9000, 9100)])
        assert time.monotonic() - begun < 10

    @pytest.mark.parametrize("how", ["the same content", "another file"])
    def test_a_file_that_is_replaced_while_it_is_read(
        self, how: str, web: Web, served: str, tmp_path: Path
    ) -> None:
        """Of equal layout, so that nothing else would tell: by its tag and time."""
        other = nanoaod.write(tmp_path / "other.root", nanoaod.events(1000, 2), cluster=100)
        with opening.open_file(File("x.root", (served,))) as file:
            file.file.source.read([(1000, 1100)])
            if how == "another file":
                shutil.copy(other, web.folder / "x.root")
            os.utime(web.folder / "x.root", ns=(1, 1))
            with pytest.raises(DeliveryError, match=r"is it another file|its time or") as caught:
                file.file.source.read([(1000, 1100), (9000, 9100)])
        assert caught.value.may_be_replaced
        assert list(file.file.source.failures) == [served]

    @pytest.mark.parametrize("others", [[0, 5], [0, 5, 0, 9], [*range(10)]])
    def test_mirrors_behind_one_name(
        self, others: list[int], web: Web, served: str, right: bytes
    ) -> None:
        """They got the file one after the other, and take turns."""
        web.mirrors = others
        assert content(served) == right

    @pytest.mark.parametrize("common", ["ETag", "Last-Modified"])
    def test_mirrors_that_have_a_tag_or_a_time_in_common(
        self, common: str, web: Web, served: str, right: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And the other one of each answer's own: it costs some requests once, not each time."""

        def stamp(answer: http.RangeResponse) -> str:
            return base.STAMP_SEPARATOR.join([common, str(next(numbers))])

        numbers = itertools.count()
        monkeypatch.setattr(http.RangeResponse, "stamp", property(stamp))
        with opening.open_file(File("x.root", (served,))) as file:
            for i in range(9):
                read = file.file.source.read([(1000 + i, 1100), (9000, 9001)])
                assert bytes(read[0]) == right[i:100]
        assert len(web.requests) < 20

    @pytest.mark.parametrize("many", [True, False])
    @pytest.mark.parametrize("others", [[0, 5], [5, 0], [0, 0, 5], [0, 5, 5], [0, 5, 9]])
    def test_mirrors_of_two_versions_are_never_mixed(
        self,
        others: list[int],
        many: bool,
        web: Web,
        served: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Two files of equal size and UUID: some mirrors have not got the new one yet."""
        monkeypatch.setattr(source, "DEADLINE_S", 2)
        old = (web.folder / "x.root").read_bytes()
        n_same = file_header.N_BYTES // 2
        web.mirrors, web.later, web.many = others, old[:n_same] + bytes(len(old) - n_same), many
        ranges = [(n_same, file_header.N_BYTES), (1000, 1100), (9000, 9100), (30_000, 40_000)]
        try:
            with opening.open_file(File("x.root", (served,))) as file:
                found = [bytes(file.file.source.read([one])[0]) for one in ranges]
                found += [bytes(part) for part in file.file.source.read(ranges[1:])]
        except DeliveryError as error:
            assert error.may_be_replaced  # noqa: PT017 - or it is right
        else:
            of_old, of_new = (
                [content[start:stop] for start, stop in (*ranges, *ranges[1:])]
                for content in (old, web.later)
            )
            assert found in (of_old, of_new)

    def test_one_that_grew_within_a_second(self, web: Web, served: str) -> None:
        """Its tag and time are the same."""
        path = web.folder / "x.root"
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        with opening.open_file(File("x.root", (served,))) as file:
            path.write_bytes(path.read_bytes() + bytes(100))
            os.utime(path, ns=times)
            for ranges in ([(1000, 1100)], [(1000, 1100), (9000, 9100)]):
                with pytest.raises(DeliveryError, match="is it another file"):
                    file.file.source.read(ranges)

    def test_times_and_tags(self) -> None:
        def stamp(tag: str = "", modified: str = "", date: str = "") -> str:
            headers = {"ETag": tag, "Last-Modified": modified, "Date": date}
            return http.RangeResponse(206, {k: v for k, v in headers.items() if v}, [], None).stamp

        old, new = "Thu, 01 Jan 2026 00:00:00 GMT", "Fri, 02 Jan 2026 00:00:00 GMT"
        for one, other, is_same in (
            (('"a"', old, new), ('"b"', old, new), True),  # a mirror
            (('"a"', old, new), ('"a"', new, new), True),
            (('"a"', old, new), ('"b"', new, new), False),
            (('"a"', old, old), ('"b"', old, old), False),  # both within a second
            (("", old, old), ("", new, new), False),
            (('"a"',), ('"b"',), False),
            (('"a"',), ("", new), False),
            ((), ('"b"', new, new), True),  # nothing tells
        ):
            assert base.is_same_version(stamp(*one), stamp(*other)) is is_same

    def test_nobody_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(source, "DEADLINE_S", 2)
        with pytest.raises(DeliveryError, match=r"Connection refused.*\(tried for 2 s\)"):
            content("http://127.0.0.1:9/x.root")

    def test_a_name_that_does_not_resolve(self) -> None:
        begun = time.monotonic()
        with pytest.raises(DeliveryError, match="name is not known"):
            content("http://no-such-host.invalid/x.root")
        assert time.monotonic() - begun < 10


class TestTokens:
    def test_one_that_is_replaced_is_found(
        self, web: Web, served: str, right: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It expires in the middle of a file; whoever renews it writes the file anew."""
        file = tmp_path / "token"
        file.write_text("first\n")
        monkeypatch.setenv("BEARER_TOKEN_FILE", str(file))
        monkeypatch.setenv(credentials.TOKEN_HOSTS, f"127.0.0.1:{web.server_port}")
        web.token = "first"
        with opening.open_file(File("x.root", (served,))) as opened:
            web.token = "second"
            with pytest.raises(DeliveryError, match="a valid token or certificate is needed"):
                opened.file.source.read([(1000, 1100)])
            file.write_text("second\n")
            assert opened.file.source.read([(1000, 1100)]) == [right[:100]]

    @pytest.mark.parametrize("over", ["root", "http"])
    def test_a_real_one_that_expires(
        self,
        over: str,
        storage: Storage,
        path: Path,
        right: bytes,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        key, secret = signing_key(storage)
        server = storage.protected(storage.folder(path), secret)
        url = server.url("x.root") if over == "root" else server.http("x.root")
        with pytest.raises(DeliveryError, match="no permission"):
            content(url)
        monkeypatch.setenv("BEARER_TOKEN", macaroon(key, seconds=3))
        with pytest.raises(DeliveryError, match=r"no token was sent to 127\.0\.0\.1: if it may"):
            content(url)
        monkeypatch.setenv(credentials.TOKEN_HOSTS, "127.0.0.1")
        assert content(url) == right
        time.sleep(4)
        with pytest.raises(DeliveryError, match="no permission") as caught:
            content(url)
        assert "--token-host" not in str(caught.value)
        assert os.environ["BEARER_TOKEN"] not in str(caught.value)

    def test_they_travel_encrypted_or_not_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BEARER_TOKEN", SECRET)
        monkeypatch.setenv(credentials.TOKEN_HOSTS, "host 127.0.0.1:80")
        for url in ("https://host/x", "roots://host//x", "http://127.0.0.1:80/x"):
            assert credentials.token_for(url) == SECRET
            assert not credentials.withheld_hint(url)
        for url in ("http://host/x", "root://host//x"):
            assert credentials.token_for(url) is None
            assert "go over https:// and roots:// only" in credentials.withheld_hint(url)
        assert (
            credentials.with_token("roots://host//x") == f"roots://host//x?authz=Bearer%20{SECRET}"
        )
        assert worker_environment.collect(is_private=False).get("BEARER_TOKEN") is None
        assert worker_environment.collect(is_private=True)["BEARER_TOKEN"] == SECRET

    @pytest.mark.parametrize(
        ("stated", "url", "may"),
        [
            ("a.cern.ch", "https://A.CERN.ch:8443/x", True),
            ("a.cern.ch,b.cern.ch", "roots://b.cern.ch.//x", True),
            (" a.cern.ch \n b.cern.ch\t", "xroots://me@b.cern.ch//x", True),
            ("*.cern.ch", "https://a.b.cern.ch/x", True),
            ("*.cern.ch", "https://cern.ch/x", False),
            ("*.cern.ch", "https://evilcern.ch/x", False),
            ("*.cern.ch", "https://cern.ch.evil.org/x", False),
            ("cern.ch", "https://a.cern.ch/x", False),
            ("a.cern.ch:443", "https://a.cern.ch/x", True),
            ("a.cern.ch:443", "https://a.cern.ch:8443/x", False),
            ("a.cern.ch:1094", "roots://a.cern.ch//x", True),
            ("[::1]:1094", "root://[::1]:1094//x", True),
            ("", "https://a.cern.ch/x", False),
            ("", "http://localhost:80/x", False),
            ("a.cern.ch", "https://evil.org\\@a.cern.ch/x", False),
            ("a.cern.ch", "https://a.cern.ch\\@evil.org/x", False),
            ("a.cern.ch", "roots://a.cern.ch?@evil.org//x", False),
            ("a.cern.ch", "roots://a.cern.ch@evil.org//x", False),
            ("a.cern.ch", "roots://evil.org@a.cern.ch@evil.org//x", False),
            ("a.cern.ch", "https://a.cern.ch#@evil.org/x", False),
            ("a.cern.ch", "https://a.cern.ch%2eevil.org/x", False),
            ("a.cern.ch", "https://evil.org/@a.cern.ch/x", False),
        ],
    )
    def test_only_hosts_that_are_named_have_them(
        self, stated: str, url: str, may: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BEARER_TOKEN", SECRET)
        monkeypatch.setenv(credentials.TOKEN_HOSTS, stated)
        assert (credentials.token_for(url) == SECRET) is may
        assert (SECRET in credentials.with_token(url)) is may

    def test_a_host_that_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BEARER_TOKEN", SECRET)
        for entry in ("*", "https://a.cern.ch", "a.cern.ch/x", "*.*.ch", "a:b"):
            monkeypatch.setenv(credentials.TOKEN_HOSTS, f"good.cern.ch, {entry}")
            with pytest.raises(PermanentError, match=r"AGC_ML_TOKEN_HOSTS: .* is not a host"):
                credentials.token_for("https://good.cern.ch/x")
            called = agc_command("run", "ttbar", "--token-host", entry, "--cluster", "inline")
            assert (called.code, "is not a host; give HOST or" in called.error) == (2, True)
        monkeypatch.setenv(credentials.TOKEN_HOSTS, "good.cern.ch")
        for entry in ("", "a.cern.ch b.cern.ch", "a.cern.ch,b.cern.ch"):
            called = agc_command("run", "ttbar", "--token-host", entry, "--cluster", "inline")
            assert (called.code, f"{entry!r} is not a host" in called.error) == (2, True)

    def test_they_follow_to_named_hosts_only(
        self,
        web: Web,
        served: str,
        right: bytes,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A server that may have it sends us to another one."""
        monkeypatch.setenv("BEARER_TOKEN", SECRET)
        door = Web(tmp_path)
        door.elsewhere = served
        listed = f"127.0.0.1:{door.server_port}"
        monkeypatch.setenv(credentials.TOKEN_HOSTS, listed)
        assert content(door.url("x.root")) == right
        assert (set(door.tokens), set(web.tokens)) == ({f"Bearer {SECRET}"}, {None})
        web.token = SECRET
        server_health.forget()
        port = web.server_port
        with pytest.raises(DeliveryError, match=f"add --token-host 127.0.0.1:{port}") as caught:
            content(door.url("x.root"))
        assert SECRET not in str(caught.value)
        server_health.forget()
        monkeypatch.setenv(credentials.TOKEN_HOSTS, f"{listed},127.0.0.1:{port}")
        assert content(door.url("x.root")) == right
        door.elsewhere = door.url("x.root")
        with pytest.raises(DeliveryError, match="redirects more than 5 times"):
            content(door.url("x.root"))
        door.shutdown()
        door.server_close()

    def test_the_command_line_names_hosts(
        self, web: Web, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BEARER_TOKEN", SECRET)
        monkeypatch.setenv(credentials.TOKEN_HOSTS, "")  # so that it is put back after the test
        web.token = SECRET
        words = ("fileset", "check", served, "--cluster", "inline")
        called = agc_command(*words)
        host = f"127.0.0.1:{web.server_port}"
        assert called.code == 1
        assert f"--token-host{host}" in "".join(called.out.split())
        assert agc_command(*words, "--token-host", "a.cern.ch", "--token-host", host).code == 0
        assert os.environ[credentials.TOKEN_HOSTS] == f"a.cern.ch,{host}"
        assert (
            worker_environment.collect(is_private=False)[credentials.TOKEN_HOSTS]
            == f"a.cern.ch,{host}"
        )

    def test_the_usual_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(credentials.TOKEN_HOSTS, "host")
        (tmp_path / f"bt_u{os.geteuid()}").write_text(f" {SECRET}\n")
        assert credentials.token_for("https://host/x") == SECRET

    def test_a_file_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BEARER_TOKEN_FILE", "/no/such/file")
        monkeypatch.setenv(credentials.TOKEN_HOSTS, "127.0.0.1")
        with pytest.raises(DeliveryError, match=r"/no/such/file \(BEARER_TOKEN_FILE\): No such"):
            content("https://127.0.0.1:9/x.root")

    @pytest.mark.parametrize(
        "text",
        [
            f"root://h//x?authz=Bearer%20{SECRET}&a=b",
            f"Authorization: Bearer {SECRET}",
            f"https://me:{SECRET}@host/x.root",
            f"https://h/x?X-Amz-Credential=me&X-Amz-Signature={SECRET}",
            f"https://h/x?access_token={SECRET}",
            f"https://me:p@{SECRET}@host/x.root",
            f"https://h/x?X-Amz-Security-Token={SECRET}",
            f"https://h/x?se=1&sig={SECRET}",
            f"root://h//x?xrdhttptk={SECRET}",
            f'{{"access_token": "{SECRET}"}}',
            f"Authorization: Basic {SECRET}",
        ],
    )
    def test_no_text_shows_them(self, text: str) -> None:
        assert SECRET not in credentials.redacted(text)
        if text.startswith(("root", "https")):
            assert SECRET not in logical_name(text)

    @pytest.mark.parametrize("name", ["sig=", "signature=", "mc-signature=", "x_sig=", "authz="])
    def test_names_of_folders_are_no_secrets(self, name: str) -> None:
        for place in (f"/scan/{name}0/a.root", f"https://h/scan/{name}0/a.root"):
            assert credentials.redacted(place) == place
            assert logical_name(place).endswith(f"/scan/{name}0/a.root")

    def test_nothing_that_a_run_leaves_shows_them(
        self,
        web: Web,
        served: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        monkeypatch.setenv("BEARER_TOKEN", SECRET)
        monkeypatch.setenv(credentials.TOKEN_HOSTS, "127.0.0.1")
        web.token = SECRET
        signed = f"{served}?authz=Bearer%20{SECRET}"
        shutil.copy(web.folder / "x.root", web.folder / f"x.root?authz=Bearer%20{SECRET}")
        missing = f"http://someone:{SECRET}@127.0.0.1:{web.server_port}/missing.root"
        listed = Fileset(
            (Dataset("tt", "tt", (File("x.root", (missing, signed)),), xsec=1.0),), 1.0, "made up"
        )
        output = tmp_path / "run"
        agc.run(
            stepwise.Flat(), listed, site="inline", output=output, quiet=True, command=(signed,)
        )
        for file in output.rglob("*"):
            assert not file.is_file() or SECRET.encode() not in file.read_bytes()
        web.status = 403
        with pytest.raises(AgcError) as caught:
            agc.run(stepwise.Flat(), listed, site="inline", output=tmp_path / "b", quiet=True)
        assert SECRET not in str(caught.value) + caplog.text


def signing_key(storage: Storage) -> tuple[bytes, Path]:
    """A key, and the file that a server has it from."""
    key, secret = os.urandom(64), storage.folder() / "secret"
    lines = textwrap.fill(base64.b64encode(key).decode(), 64)  # as OpenSSL writes them
    secret.write_text(lines + "\n")
    if os.geteuid() == 0:
        shutil.chown(secret, "xrootd", "xrootd")
    secret.chmod(0o400)
    return key, secret


def macaroon(key: bytes, *, seconds: int) -> str:
    """Leave to read everything of the server for some seconds."""
    made = Macaroon(location="agc", identifier="tests", key=key, version=MACAROON_V1)
    made.add_first_party_caveat("name:somebody")
    made.add_first_party_caveat("activity:READ_METADATA,DOWNLOAD,LIST")
    made.add_first_party_caveat("path:/")
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
    made.add_first_party_caveat(f"before:{until}")
    return str(made.serialize())


@dataclass(frozen=True)
class Certificates:
    """Files of an authority and of what it signed, as grid sites have them."""

    authorities: Path
    server: Path
    proxy: Path
    stranger: Path

    def context(self) -> ssl.SSLContext:
        """Of a server that wants to know who comes."""
        made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, capath=str(self.authorities))
        made.load_cert_chain(self.server)
        made.verify_mode = ssl.CERT_REQUIRED
        return made


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    def signed(name: str, authority: str) -> Path:
        openssl(*_KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
        by = ("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial")
        made = ("-req", "-in", f"{name}.csr", "-days", "2", "-extfile", "names")
        openssl("x509", *made, *by, "-out", f"{name}.crt")
        both = folder / f"{name}.both"
        both.write_bytes(
            (folder / f"{name}.crt").read_bytes() + (folder / f"{name}.key").read_bytes()
        )
        return both

    for authority in ("ours", "theirs"):
        subject = ("-x509", "-days", "2", "-subj", f"/CN={authority}")
        openssl(*_KEY, *subject, "-keyout", f"{authority}.key", "-out", f"{authority}.pem")
    (folder / "trusted").mkdir()
    shutil.copy(folder / "ours.pem", folder / "trusted")
    openssl("rehash", "trusted")
    return Certificates(
        folder / "trusted", signed("server", "ours"), signed("me", "ours"), signed("x", "theirs")
    )


_KEY = ("req", "-newkey", "rsa:2048", "-nodes")


class TestCertificates:
    @pytest.fixture
    def secure(
        self, certificates: Certificates, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Web]:
        monkeypatch.setattr(source, "DEADLINE_S", 2)
        web = Web(path.parent, certificates.context())
        yield web
        web.shutdown()
        web.server_close()

    def test_a_proxy_lets_us_in(
        self,
        secure: Web,
        certificates: Certificates,
        right: bytes,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with pytest.raises(DeliveryError, match="its server is not trusted"):
            content(secure.url("x.root"))
        monkeypatch.setenv("X509_CERT_DIR", str(certificates.authorities))
        with pytest.raises(DeliveryError, match=r"refuses our certificate|the connection broke"):
            content(secure.url("x.root"))
        mine = tmp_path / "proxy"
        mine.write_bytes(certificates.stranger.read_bytes())
        monkeypatch.setenv("X509_USER_PROXY", str(mine))
        with pytest.raises(DeliveryError):
            content(secure.url("x.root"))
        server_health.forget()  # whoever is refused may see a broken connection and not why
        mine.write_bytes(certificates.proxy.read_bytes())  # renewed
        os.utime(mine, (1, 1))
        assert content(secure.url("x.root")) == right

    @pytest.mark.parametrize(("fault", "at"), [("cut", 100), ("flip", 700), ("flip", 12_000)])
    def test_a_bad_line_is_no_distrust(
        self,
        fault: str,
        at: int,
        certificates: Certificates,
        secure: Web,
        proxies: list[Proxy],
        right: bytes,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It fails in the handshake or behind it; both are asked again."""
        monkeypatch.setenv("X509_CERT_DIR", str(certificates.authorities))
        monkeypatch.setenv("X509_USER_PROXY", str(certificates.proxy))
        proxies.append(proxy := Proxy(secure.server_port))
        setattr(proxy, fault, at)
        assert content(f"https://127.0.0.1:{proxy.port}/x.root") == right
        assert getattr(proxy, fault) is None  # it came to it

    @pytest.mark.parametrize(
        ("message", "kind", "says"),
        [
            ("resource temporarily unavailable", PermanentError, "not trusted"),
            ("Failed to initialize TLS", PermanentError, "not trusted"),
            ("Unable to validate vm; hostname not in SAN", PermanentError, "not trusted"),
            ("Unable to connect to host; error_ssl", PermanentError, "not trusted"),
            (
                "connection refused: Server was not configured to support encryption.",
                PermanentError,
                "not configured to support encryption",
            ),
            ("Unable to connect to host; broken pipe", TransientError, "broken pipe"),
            ("socket error", TransientError, "socket error"),
        ],
    )
    def test_what_the_xrootd_client_says_of_tls(
        self, message: str, kind: type[ReplicaError], says: str
    ) -> None:
        """As 6.2.1 says it; the last two when a line is cut in the handshake."""
        status = SimpleNamespace(message=f"[FATAL] TLS error: {message}", errno=0)
        error = xrootd._replica_error(status, "roots://h//x")
        assert type(error) is kind
        assert says in str(error)

    @pytest.mark.parametrize("over", ["root", "https"])
    def test_tokens_over_tls(
        self, over: str, certificates: Certificates, storage: Storage, path: Path, right: bytes
    ) -> None:
        """In processes of their own: the XRootD client takes its authorities once."""
        key, secret = signing_key(storage)
        server = storage.protected(storage.folder(path), secret, certificates.server)
        url = server.url("x.root") if over == "root" else server.http("x.root")
        url = url.replace("root://", "roots://").replace("http://", "https://")
        token = macaroon(key, seconds=100)

        def read(**environment: str) -> str:
            """What a process reads, or the line that says why not."""
            code = (
                "import sys\n"
                "from agc_ml.inputs.datasets import File\n"
                "from agc_ml.delivery.opening import open_file\n"
                "from agc_ml.errors import DeliveryError\n"
                "try:\n"
                "    with open_file(File('x.root', (sys.argv[1],))) as file:\n"
                "        print(bytes(file.file.source.read([(1000, 1100)])[0]).hex())\n"
                "except DeliveryError as error:\n"
                "    print(error)\n"
            )
            begun = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-c", code, url],
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                check=True,
            )
            assert time.monotonic() - begun < 15
            assert token not in done.stdout + done.stderr
            return done.stdout.strip()

        ours = str(certificates.authorities)
        here = {"BEARER_TOKEN": token, credentials.TOKEN_HOSTS: "127.0.0.1"}
        assert read(X509_CERT_DIR=ours, **here) == right[:100].hex()
        assert "no permission" in read(X509_CERT_DIR=ours)
        assert "add --token-host 127.0.0.1" in read(X509_CERT_DIR=ours, BEARER_TOKEN=token)
        refused = read(X509_CERT_DIR=str(path.parent), **here)
        assert "its server is not trusted" in refused
        assert "X509_CERT_DIR" in refused
        assert "\n" not in refused

    def test_no_server_gets_one_at_login(self, certificates: Certificates) -> None:
        """The client would give it to any, and lets a server say how to log in at the next one."""
        last = Asking(certificates.server)
        first = Asking(certificates.server, (last.port, "?xrd.wantprot=ztn"))
        code = (
            "import sys\n"
            "from agc_ml.inputs.datasets import File\n"
            "from agc_ml.delivery import opening\n"
            "from agc_ml.transports import credentials\n"
            "from agc_ml.errors import DeliveryError\n"
            "for url in sys.argv[1:]:\n"
            "    try:\n"
            "        with opening.open_file(File('x.root', (url,))):\n"
            "            pass\n"
            "    except DeliveryError as error:\n"
            "        print(error)\n"
            "assert credentials.bearer_token()\n"
        )
        urls = [
            f"roots://127.0.0.1:{first.port}//x.root",
            f"root://127.0.0.1:{last.port}//x.root?xrd.wantprot=ztn",
        ]
        subprocess.run(
            [sys.executable, "-c", code, *urls],
            env={
                **os.environ,
                "BEARER_TOKEN": SECRET,
                "X509_CERT_DIR": str(certificates.authorities),
                "XrdSecPROTOCOL": "ztn,unix",
            },
            check=True,
        )
        logins = first.logins + last.logins
        assert any(login.startswith(b"ztn") for login in logins)
        assert not any(SECRET.encode() in login for login in logins)
        for server in (first, last):
            server.close()

    def test_a_proxy_that_is_not_there(self, secure: Web, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("X509_USER_PROXY", "/no/such/proxy")
        with pytest.raises(DeliveryError, match=r"certificates can't be read.*/no/such/proxy"):
            content(secure.url("x.root"))


class TestReplicas:
    def test_one_that_is_another_file_is_passed_by(
        self, path: Path, right: bytes, tmp_path: Path
    ) -> None:
        other = nanoaod.write(tmp_path / "other.root", nanoaod.events(1000, 1), cluster=100)
        with opening.open_file(File("x.root", (str(path),))) as file:
            uuid = str(file.file.uuid)
        assert content(str(other), str(path), uuid=uuid) == right
        with pytest.raises(DeliveryError, match="is it another file") as caught:
            content(str(other), uuid=uuid)
        assert caught.value.is_other_file

    def test_unknown_protocols(self) -> None:
        with pytest.raises(
            DeliveryError, match=r"protocol gopher:// is not known here.*root, roots"
        ):
            content("gopher://host/x.root")

    def test_others_that_fsspec_knows(self, path: Path, right: bytes) -> None:
        import fsspec  # noqa: PLC0415 - only here

        with fsspec.open("memory://x.root", "wb") as target:
            target.write(path.read_bytes())
        assert content("memory://x.root") == right
        with pytest.raises(DeliveryError, match="FileNotFoundError"):
            content("memory://y.root")

    @pytest.mark.parametrize(
        "name", ["ETag", "e_tag", "mtime", "last_modified", "LastModified", "modified", "updated"]
    )
    def test_others_that_are_overwritten(
        self, name: str, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each file system has a name of its own for what changes then."""
        from fsspec.implementations.memory import MemoryFileSystem  # noqa: PLC0415 - only here

        def info(*_: object) -> dict[str, object]:
            return {"size": path.stat().st_size, name: stamps.pop(0), "created": "2026"}

        stamps = ["a", "b"]
        with MemoryFileSystem().open("x.root", "wb") as target:
            target.write(path.read_bytes())
        monkeypatch.setattr(MemoryFileSystem, "info", info)
        with (
            opening.open_file(File("x.root", ("memory://x.root",))) as file,
            pytest.raises(DeliveryError, match="replaced or changed"),
        ):
            file.file.source.check_same()

    def test_others_that_break_in_their_own_way(
        self, path: Path, right: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fsspec.implementations.memory import MemoryFileSystem  # noqa: PLC0415 - only here

        def fail(*_: object) -> None:
            raise RuntimeError("no credentials\nhere")

        monkeypatch.setattr(MemoryFileSystem, "info", fail)
        assert content("memory://x.root", str(path)) == right
        with pytest.raises(DeliveryError, match="RuntimeError: no credentials here"):
            content("memory://x.root")

    def test_a_damaged_one_is_not_asked_for_ever(self, path: Path, tmp_path: Path) -> None:
        """Also where a replica is listed twice."""
        damaged = tmp_path / "x.root"
        info = inspect_file(File("x.root", (str(path),)), ("Jet_pt",), flat=True)
        assert isinstance(info, FileInfo)
        seek = int(info.directory["Jet_pt"].seeks[5])
        content = bytearray(path.read_bytes())
        content[seek + 100 : seek + 200] = bytes(100)
        damaged.write_bytes(content)
        outcome = agc_run_fails(one_file(str(damaged), str(damaged)), tmp_path)
        assert "basket is damaged" in outcome

    def test_an_outage_is_no_damage(self, web: Web, served: str) -> None:
        file = File("x.root", (served, f"{served}.gone"))
        info = inspect_file(file, ("Jet_pt",), flat=True)
        assert isinstance(info, FileInfo)
        with opening.open_file(file) as opened:
            columns = Columns(opened, "Events", info.directory or {})
            web.status = 404
            with pytest.raises(DeliveryError, match="no replica can be read") as caught:
                columns.read("Jet_pt", 0, 1000)
        assert f"{served}.gone" in one_line(caught.value)

    def test_every_replica_is_told(self) -> None:
        urls = [f"http://no-such-host.invalid/{'long' * 30}/{i}.root" for i in range(5)]
        failure = inspect_file(File("x.root", tuple(urls)), ())
        assert isinstance(failure, Failure)
        assert all(url in failure.reason for url in urls)
        assert all(url in one_line(DeliveryError(failure.reason)) for url in urls)

    def test_the_damaged_one_is_blamed(self, path: Path) -> None:
        """Not the one that is read from by then."""
        urls = (str(path), f"file://{path}")
        with opening.open_file(File("x.root", urls)) as file:
            source = file.file.source
            assert source.url == urls[0]
            assert source.distrust("bad", urls[1])
            assert source.url == urls[0]
            assert list(source.failures) == [urls[1]]
            assert not source.distrust("bad", urls[0])

    def test_a_server_whose_name_is_wrong(self) -> None:
        begun = time.monotonic()
        with pytest.raises(DeliveryError, match=r"name is not known \(Invalid address"):
            content("root://no-such-host.invalid//x.root")
        assert time.monotonic() - begun < 10

    def test_files_that_are_not_there(self, shared_storage: Storage, path: Path) -> None:
        server = shared_storage.data(shared_storage.folder(path))
        with pytest.raises(DeliveryError, match="no such file"):
            content(server.url("y.root"))
        closed = Path(server.arguments[0], "x.root")
        closed.chmod(0)
        with pytest.raises(DeliveryError, match="no permission"):
            content(server.url("x.root"))

    @given(
        ranges=st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 9 * 10**6)), max_size=30)
    )
    def test_what_is_cut_for_requests_is_put_together(self, ranges: list[tuple[int, int]]) -> None:
        wanted = [(start, start + length) for start, length in ranges]
        batches = list(source._batches(wanted))
        for batch in batches:
            assert len(batch) <= source.MAX_RANGES
            assert all(0 < stop - start <= source.MAX_RANGE_BYTES for start, stop in batch)
            total = sum(stop - start for start, stop in batch)
            assert total <= source.MAX_REQUEST_BYTES
        pieces = (bytes(stop - start) for batch in batches for start, stop in batch)
        together = source._join(wanted, pieces)
        assert [len(data) for data in together] == [length for _, length in ranges]

    def test_many_small_ranges(self, shared_storage: Storage, path: Path) -> None:
        """Over 1024 in a go, and a multiple of it, which the protocol refuses."""
        server = shared_storage.data(shared_storage.folder(path))
        data = path.read_bytes()
        for url in (server.url("x.root"), server.http("x.root")):
            with opening.open_file(File("x.root", (url,))) as file:
                wanted = [(place, place + 3) for place in range(600, 600 + 2048 * 20, 20)]
                found = file.file.source.read(wanted)
            assert [bytes(part) for part in found] == [data[a:b] for a, b in wanted]


class TestWays:
    LISTED = ("/data/x.root", "https://web/store/x.root", "root://origin:1094//store/x.root")

    def order(self, via: str, *replicas: str) -> tuple[str, ...]:
        made = Fileset((Dataset("d", "d", (File("/store/x.root", replicas or self.LISTED),)),))
        return routing.deliver(made, routing.parse(via)).datasets[0].files[0].replicas

    def test_kinds(self) -> None:
        local, web, root = self.LISTED
        assert self.order("local") == (local,)
        assert self.order("https") == (web, local, root)
        assert self.order("xrootd") == (root, local, web)
        there = "root://redirector//store/x.root"
        assert self.order("xrootd=root://redirector/") == (there, root, local, web)
        assert self.order("https=http://w/a") == ("http://w/a/store/x.root", web, local, root)
        assert self.order("xcache=root://c:1") == ("root://c:1//store/x.root", *self.LISTED)
        assert self.order("xcache=root://c:1//{url}")[0] == f"root://c:1//{root}"

    def test_a_file_belongs_to_one_cache(self) -> None:
        caches = [f"root://cache{i}" for i in range(4)]

        def owner(lfn: str, some: list[str]) -> str:
            made = Fileset((Dataset("d", "d", (File(lfn, (lfn,)),)),))
            way = routing.parse("xcache=" + ",".join(some))
            return routing.deliver(made, way).datasets[0].files[0].url.rpartition("//")[0]

        lfns = [f"/store/{i}.root" for i in range(200)]
        before = {lfn: owner(lfn, caches) for lfn in lfns}
        after = {lfn: owner(lfn, caches[:3]) for lfn in lfns}
        assert all(30 < list(before.values()).count(cache) < 70 for cache in caches)
        assert all(before[lfn] in {after[lfn], caches[3]} for lfn in lfns)

    @pytest.mark.parametrize(
        ("via", "says"),
        [
            ("ftp", "no such route"),
            ("xcache", "name a cache"),
            ("https=", "use local, https"),
            ("local=/data", "use local, https"),
            ("xrootd=https://host", "should be root://HOST"),
            ("xrootd=host:1094", "should be root://HOST"),
            ("xcache=root://[::1", "should be root://HOST"),
            ("https=https://[::1", "should be http://HOST or https://HOST"),
            ("xrootd=root://a,root://b", "use local, https"),
        ],
    )
    def test_ways_that_are_none(self, via: str, says: str) -> None:
        with pytest.raises(UsageError, match=says):
            routing.parse(via)

    def test_no_replica_of_the_kind(self) -> None:
        with pytest.raises(
            FilesetError, match=r"dataset d: /store/x.root has no replica for --via"
        ):
            self.order("https", "/data/x.root")


class TestWhatIsKnownOfFiles:
    COLUMNS = ("Jet_pt", "Jet_eta")

    def test_trees_are_parsed_once(
        self, web: Web, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: list[str] = []
        original = inspection._inspect

        def spy(*arguments: object, **options: object) -> object:
            opened.append(str(arguments[1]))
            return original(*arguments, **options)

        monkeypatch.setattr(inspection, "_inspect", spy)
        listed = one_file(served)
        results = [
            agc.run(stepwise.Flat(), listed, site="inline", output=tmp_path / f"{i}", quiet=True)
            for i in range(2)
        ]
        assert len(opened) == 1
        assert results[0].cutflow == results[1].cutflow == {"tt": {"all": 1000}}
        other = nanoaod.write(tmp_path / "other.root", nanoaod.events(700, 2), cluster=100)
        shutil.copy(other, web.folder / "x.root")
        result = agc.run(
            stepwise.Flat(), listed, site="inline", output=tmp_path / "stale", quiet=True
        )
        assert result.status == "complete"
        assert result.cutflow == {"tt": {"all": 700}}
        assert result.ledger.events == 700
        assert len(opened) == 2

    def test_replaced_behind_a_replica_that_is_gone(
        self, web: Web, served: str, tmp_path: Path
    ) -> None:
        listed = one_file(f"http://127.0.0.1:{web.server_port}/gone.root", served)
        agc.run(stepwise.Flat(), listed, site="inline", output=tmp_path / "1", quiet=True)
        other = nanoaod.write(tmp_path / "other.root", nanoaod.events(700, 2), cluster=100)
        shutil.copy(other, web.folder / "x.root")
        result = agc.run(stepwise.Flat(), listed, site="inline", output=tmp_path / "2", quiet=True)
        assert result.cutflow == {"tt": {"all": 700}}

    def test_each_run_tells_of_its_own_failures(
        self, web: Web, served: str, path: Path, tmp_path: Path
    ) -> None:
        listed = one_file(served, str(path))
        stepwise.EVENTS[:] = [lambda: setattr(web, "status", 403)]
        options = {"site": "inline", "quiet": True, "chunk_size": 300}
        first = agc.run(stepwise.Flat(), listed, output=tmp_path / "1", **options)
        assert any("no permission" in warning for warning in first.warnings)
        web.status = None
        second = agc.run(stepwise.Flat(), listed, output=tmp_path / "2", **options)
        assert not any("no permission" in warning for warning in second.warnings)

    def test_local_files_are_looked_at(self, path: Path, tmp_path: Path) -> None:
        mine = tmp_path / "x.root"
        shutil.copy(path, mine)
        cache, file = inspection_cache.InspectionCache(), File("x.root", (str(mine),))
        info = inspect_file(file, self.COLUMNS, flat=True)
        assert isinstance(info, FileInfo)
        assert cache.recall(file, ColumnRequest(self.COLUMNS, flat=True)) is None
        cache.keep(file, ColumnRequest(self.COLUMNS, flat=True), info)
        known = cache.recall(file, ColumnRequest(self.COLUMNS, flat=True))
        assert known is not None
        assert known.uuid == info.uuid
        np.testing.assert_array_equal(
            known.directory["Jet_pt"].seeks, info.directory["Jet_pt"].seeks
        )
        assert cache.recall(file, ColumnRequest(("Jet_pt",), flat=True)) is None
        assert cache.recall(file, ColumnRequest(self.COLUMNS)) is None
        os.utime(mine, ns=(1, 1))
        assert cache.recall(file, ColumnRequest(self.COLUMNS, flat=True)) is None

    def test_what_is_known_is_no_matter_of_life_and_death(self, path: Path, tmp_path: Path) -> None:
        damaged = tmp_path / "damaged.sqlite"
        damaged.write_text("this is no database, " * 100)
        file = File("x.root", (str(path),))
        info = inspect_file(file, self.COLUMNS, flat=True)
        assert isinstance(info, FileInfo)
        for place in (damaged, Path("/proc/nowhere/files.sqlite")):
            cache = inspection_cache.InspectionCache(place)
            cache.keep(file, ColumnRequest(self.COLUMNS), info)
            assert cache.recall(file, ColumnRequest(self.COLUMNS)) is None
        good = tmp_path / "good.sqlite"
        inspection_cache.InspectionCache(good).keep(file, ColumnRequest(self.COLUMNS), info)
        with contextlib.closing(sqlite3.connect(good)) as database, database:
            database.execute("UPDATE files SET content = ?", (b"what is this",))
        assert (
            inspection_cache.InspectionCache(good).recall(file, ColumnRequest(self.COLUMNS)) is None
        )
        locked = inspection_cache.InspectionCache(good)
        begun = time.monotonic()
        with contextlib.closing(sqlite3.connect(good)) as database:
            database.execute("BEGIN EXCLUSIVE")
            for _ in range(3):
                locked.keep(file, ColumnRequest(self.COLUMNS), info)
                assert locked.recall(file, ColumnRequest(self.COLUMNS)) is None
        assert time.monotonic() - begun < 8


class TestChecks:
    def test_replicas_that_differ(
        self, shared_storage: Storage, path: Path, tmp_path: Path
    ) -> None:
        server: Server = shared_storage.data(shared_storage.folder(path))
        other = nanoaod.write(tmp_path / "x.root", nanoaod.events(900, 1))
        listed = one_file(server.url("x.root"), server.http("x.root"), str(other))
        first, second, third = file_check.check(listed, site="inline", quiet=True)
        assert first.problem is second.problem is None
        assert third.problem is not None
        assert third.problem.startswith("its uuid is ")
        assert f"{server.port}//x.root" in third.problem

    def test_checksums(self, shared_storage: Storage, path: Path) -> None:
        server = shared_storage.data(shared_storage.folder(path))
        (found,) = file_check.check(
            one_file(server.url("x.root")), checksums=True, site="inline", quiet=True
        )
        assert found.adler32 is not None
        stated = File("x.root", (str(path),), adler32=found.adler32)
        assert isinstance(inspect_file(stated, (), checksum=True), FileInfo)
        wrong = File("x.root", (str(path),), adler32="00000001")
        outcome = inspect_file(wrong, (), checksum=True)
        assert isinstance(outcome, Failure)
        assert "its adler32 is" in outcome.reason


def test_workers_are_equipped_also_those_that_come_late(monkeypatch: pytest.MonkeyPatch) -> None:
    from agc_ml.execution.cluster.dask_executor import DaskExecutor  # noqa: PLC0415 - heavy

    monkeypatch.setenv("XRD_REQUESTTIMEOUT", "17")
    with agc.connect("local", workers=1) as client:
        monkeypatch.setenv("BEARER_TOKEN", SECRET)  # after the first worker began
        monkeypatch.setenv(credentials.TOKEN_HOSTS, "host,other")
        executor = DaskExecutor(client)
        client.cluster.scale(2)
        client.wait_for_workers(2, timeout=60)
        seen = client.run(lambda: {**os.environ})
        executor.close()
    assert len(seen) == 2
    for environment in seen.values():
        assert environment["BEARER_TOKEN"] == SECRET
        assert environment[credentials.TOKEN_HOSTS] == "host,other"
        assert environment["XRD_REQUESTTIMEOUT"] == "17"
        assert environment["XRD_STREAMTIMEOUT"] == xrootd.SETTINGS["XRD_STREAMTIMEOUT"]
