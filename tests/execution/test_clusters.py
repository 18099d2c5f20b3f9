"""Local clusters: strangers on the same machine can neither use nor read them."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from commandline import PROGRAM, agc
from cryptography import x509
from distributed import Client

import agc_ml
from agc_ml.errors import ClusterError, UsageError
from agc_ml.execution.cluster import clusters

STRANGER = """
import sys
import agc_ml
from distributed import Client
from distributed.security import Security

def main():
    with agc_ml.connect("local", workers=1) as own:
        of_its_own = own.security
    keys = (("tcp", None), ("tls", Security.temporary()), ("tls", of_its_own))
    for address in sys.argv[1:]:
        for scheme, security in keys:
            try:
                Client(f"{scheme}://{address}", security=security, timeout=3)
            except (OSError, RuntimeError, TypeError, ValueError) as error:
                print("refused", type(error).__name__)
            else:
                print("IN")

if __name__ == "__main__":
    main()
"""


def listening(process: psutil.Process) -> list[Any]:
    """Sockets on which a process and its children listen."""
    return [
        connection.laddr
        for one in (process, *process.children(recursive=True))
        for connection in one.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]


@pytest.fixture(scope="module")
def others() -> set[Any]:
    """Where this process listened before."""
    return set(listening(psutil.Process()))


@pytest.fixture(scope="module")
def local(others: set[Any]) -> Iterator[Any]:
    with agc_ml.connect("local", workers=1) as client:
        yield client


PAGES = ("/", "/status", "/info/main/workers.html", "/json/counts.json", "/metrics", "/health",
         "/sysmon", "/statics/css/base.css", "/info/call-stacks/a.html")  # fmt: skip


def pages(port: int) -> dict[str, int]:
    """Pages that a port shows to anyone, with their status; none where it speaks no HTTP."""
    found = {}
    for page in PAGES:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", page)
            found[page] = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return {}
        finally:
            connection.close()
    return {page: status for page, status in found.items() if status != 404}


def test_what_processes_send_each_other_is_encrypted(local: Any) -> None:
    info = local.scheduler_info(n_workers=-1)
    addresses = [info["address"], *info["workers"]]
    assert all(address.startswith("tls://127.0.0.1:") for address in addresses)
    assert clusters.is_private(local)
    assert local.submit(os.getpid).result() != os.getpid()


def test_strangers_are_kept_out(local: Any) -> None:
    info = local.scheduler_info(n_workers=-1)
    nannies = [about["nanny"] for about in info["workers"].values()]
    addresses = (info["address"], *info["workers"], *nannies)
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *addresses],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    outcomes = [line.split()[0] for line in done.stdout.splitlines()]
    assert outcomes == ["refused"] * 3 * len(addresses)


def test_certificate_of_a_cluster_holds_whatever_the_clock_is_set_to(local: Any) -> None:
    certificate = x509.load_pem_x509_certificate(local.security.tls_ca_file.encode())
    assert certificate.not_valid_before_utc.year <= 1970
    assert certificate.not_valid_after_utc.year == 9999


def test_local_workers_are_ours_whatever_dask_is_configured_to_use(tmp_path: Path) -> None:
    """A facility may set an address for all clients, and ciphers that suit its own keys."""
    called = subprocess.run(
        [PROGRAM, "run", "dimuon", "-o", str(tmp_path / "run"), "--workers", "1"],
        env={
            **os.environ,
            "DASK_SCHEDULER_ADDRESS": "tcp://127.0.0.1:9",
            "DASK_DISTRIBUTED__COMM__TLS__CIPHERS": "ECDHE-RSA-AES128-GCM-SHA256",
            "DASK_DISTRIBUTED__COMM__TLS__MAX_VERSION": "1.2",
        },
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert called.returncode == 0, called.stderr
    assert "cluster: local, 1 workers" in called.stderr


def test_nothing_shows_pages_or_listens_to_other_machines(local: Any, others: set[Any]) -> None:
    found = set(listening(psutil.Process())) - others
    assert len(found) >= 3
    assert {address.ip for address in found} <= {"127.0.0.1", "::1"}
    for address in found:
        assert pages(address.port) == {}, address
    assert local.submit(os.getpid).result() != os.getpid()  # and that was nobody's end


def test_nor_do_workers_that_are_started_again(others: set[Any]) -> None:
    with agc_ml.connect("local", workers=1) as client:
        before = client.submit(os.getpid, pure=False).result()
        client.restart()
        assert client.submit(os.getpid, pure=False).result() != before
        for address in set(listening(psutil.Process())) - others:
            assert pages(address.port) == {}, address


def test_settings_of_the_scheduler_are_for_ours_only() -> None:
    """In a notebook people start others."""
    import dask  # noqa: PLC0415 - heavy

    name = "distributed.scheduler.worker-ttl"
    before = dask.config.get(name)
    with agc_ml.connect("local", workers=1) as client:
        assert client.cluster.scheduler.worker_ttl is None
        assert dask.config.get(name) == before


def test_asynchronous_clients_are_refused(tmp_path: Path) -> None:
    async def run() -> None:
        async with Client(
            asynchronous=True, processes=False, n_workers=1, dashboard_address="127.0.0.1:0"
        ) as client:
            with pytest.raises(UsageError, match=r"is asynchronous; pass one that is not"):
                agc_ml.run("ttbar", client=client, output=tmp_path / "run", quiet=True)

    asyncio.run(run())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stops", [1, 2])
def test_what_is_stopped_while_workers_start_leaves_nothing(stops: int, tmp_path: Path) -> None:
    """Neither tracebacks of Dask's nor processes."""
    for wait in (0.4, 0.8):
        process = subprocess.Popen(
            [PROGRAM, "run", "ttbar", "--workers", "2", "-o", tmp_path / "run"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        assert process.stderr.readline().startswith("run directory")
        time.sleep(wait)
        started = psutil.Process(process.pid).children(recursive=True)
        for _ in range(stops):
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        _, told = process.communicate(timeout=60)
        assert process.returncode in {130, -signal.SIGINT}  # a second one while Python ends
        assert "Traceback" not in told
        assert psutil.wait_procs(started, timeout=20)[1] == []


def test_a_ctrl_c_that_workers_get_while_they_import_is_none_of_theirs(tmp_path: Path) -> None:
    """A terminal sends it to all; what they have to say to it is a traceback."""
    process = subprocess.Popen(
        [PROGRAM, "run", "ttbar", "--workers", "2", "-o", tmp_path / "run"],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    end = time.monotonic() + 60
    while not (workers := _spawned(process.pid)) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert psutil.wait_procs(workers, timeout=20)[1] == []


def _spawned(pid: int) -> list[psutil.Process]:
    """Workers of a process."""
    children = psutil.Process(pid).children(recursive=True)
    with contextlib.suppress(psutil.Error):
        return [one for one in children if any("spawn_main" in word for word in one.cmdline())]
    return []


def test_the_dashboard_is_there_where_it_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"--dashboard {port}: the port can't be used"):
            agc_ml.connect("local", workers=1, dashboard=port)
    with agc_ml.connect("local", workers=1, dashboard=port) as client:
        assert f":{port}/" in str(clusters.dashboard_of(client))
        assert pages(port)["/status"] == 200
        shown = [address for address in listening(psutil.Process()) if address.port == port]
        assert {address.ip for address in shown} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cluster", "inline", "--dashboard"), "for local workers; inline has none"),
        (("--cluster", "tcp://h:1", "--dashboard"), "for local workers; tcp://h:1 has its own"),
        (("--dashboard", "ttbar"), "ttbar is not a port; without a port, put the option last"),
        (("--dashboard", "70000"), "70000 is not a port"),
        (("--cluster", "inline", "--workers", "2"), "--workers is for local workers; inline has"),
        (("--patience", "nan"), "a number of minutes is needed"),
        (("--patience", "0"), "0.0 is not in the range"),
    ],
)
def test_wrong_options(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    called = agc("run", "ttbar", *arguments, "-o", tmp_path / "run")
    assert called.code == 2
    assert message in called.error
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_who_can_read_the_dashboard(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [PROGRAM, "run", "ttbar", "--workers", "1", "-o", tmp_path / "run", "--dashboard"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        told = next(line for line in process.stderr if line.startswith("dashboard: "))
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert re.fullmatch(
        r"dashboard: http://127\.0\.0\.1:\d+/status \(no login: other users of this machine can "
        r"read it\)\n",
        told,
    )


SCRIPT = """
import agc_ml
from agc_ml.measurement.cross_section import _beside
{body}
"""


def test_code_from_standard_input(tmp_path: Path) -> None:
    """It is run here; workers can't import it."""
    code = """
import agc_ml
def count(events):
    return {"n": len(events)}
few = agc_ml.Fileset.load("demo").limit(files=1)
for how in ({"site": "inline"}, {"workers": 1}):
    print(agc_ml.run(count, few, output="run", overwrite=True, quiet=True, **how).status)
"""
    done = subprocess.run(
        [sys.executable], input=code, cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=100,
    )  # fmt: skip
    assert done.stdout == "complete\n"
    assert "code from standard input can't start processes" in done.stderr.splitlines()[-1]


def test_tls_without_certificates_says_so(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="certificates are needed: set DASK_DISTRIBUTED__COMM"):
        agc_ml.connect("tls://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"tcp://: an address is needed, such as tcp://host:8786"):
        agc_ml.connect("tcp://")
    with pytest.raises(UsageError, match="an address is needed, such as tls://host:8786"):
        agc_ml.connect("tls://[::1")


SLOW = """
import os, signal, sys, threading, time
import distributed
import agc_ml

begun, ended, made = time.monotonic(), threading.Event(), []
start = distributed.LocalCluster

def slow(**given):
    for seconds in (0.3, 0.6):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    ended.wait(60)
    made.append(start(**given))
    return made[0]

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    distributed.LocalCluster = slow
    try:
        agc_ml.connect("local", workers=1)
    except KeyboardInterrupt:
        print(time.monotonic() - begun)
    if sys.argv[1] == "goes on":
        ended.set()
        while not made or made[0].status.name != "closed":
            time.sleep(0.1)
"""


@pytest.mark.parametrize("what", ["hangs", "goes on"])
def test_a_second_ctrl_c_ends_a_start(what: str) -> None:
    """Also where this is not the end of the process: no cluster is left that nobody has."""
    done = subprocess.run(
        [sys.executable, "-c", SLOW, what], capture_output=True, text=True, timeout=60, check=True
    )
    assert 0.5 < float(done.stdout) < 8


@pytest.mark.parametrize(
    "body",
    [
        "agc_ml.run('ttbar', workers=1, output='run', quiet=True)",
        "with _beside(print) as wait:\n    wait()",
    ],
    ids=["workers", "figures"],
)
def test_a_script_that_workers_import_is_named(body: str, tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT.format(body=body))
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=100,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("agc_ml.errors.ClusterError: ")
    assert "mine.py: worker processes import this script" in last
    assert last.endswith("put its code under: if __name__ == '__main__':")
    assert not (tmp_path / "run").exists()
