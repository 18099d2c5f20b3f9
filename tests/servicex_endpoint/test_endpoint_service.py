"""The endpoint while it lives: killed, stopped, cancelled, overloaded, started wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx
import nanoaod
import psutil
import pytest
import uproot
from commandline import agc
from services.servicex import Endpoint, awaited, endpoint, finished, submitted, tidied

N = 50


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    return [nanoaod.write(folder / f"{i}.root", nanoaod.events(N, i)) for i in range(1, 6)]


def function(body: str, notes: Path) -> Any:
    """A query whose function does something, and then gives event numbers."""
    from servicex import query  # noqa: PLC0415 - heavy

    source = f"""
    def run_query(path):
        import os, pathlib, subprocess, sys, time, uproot
        notes = pathlib.Path({str(notes)!r})
        {body}
        with uproot.open({{path: "Events"}}) as tree:
            return tree.arrays(["event"])
    """
    return query.PythonFunction(dedent(source))


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def failure(running: Endpoint, request_id: str) -> str:
    """Why the only file of a request failed."""
    status = finished(running, request_id)
    (result,) = running.results(request_id)
    assert (status.files_failed, result["transform_status"]) == (1, "failure")
    return str(result["error"])


def client_query(running: Endpoint, paths: list[Path], query: Any) -> Any:
    """A query of the client that asks more often than each five seconds."""
    from servicex import dataset  # noqa: PLC0415 - heavy
    from servicex.servicex_client import ServiceXClient  # noqa: PLC0415 - heavy

    client = ServiceXClient(config_path=str(running.config))
    made = client.generic_query(
        dataset_identifier=dataset.FileList([str(path) for path in paths]), query=query
    )
    made.set_result_format("root-file")
    made.servicex_polling_interval = made.minio_polling_interval = 0.2
    return made


@pytest.mark.parametrize("tiny_disk", ["8m"], indirect=True)
def test_a_full_disk_ends_nothing(tiny_disk: Path, tmp_path: Path, files: list[Path]) -> None:
    with endpoint(tiny_disk, "--workers", 1) as running:
        done = submitted(running, files[:1], function("", tmp_path))
        finished(running, done)
        slow = "(notes / 'begun').touch(); time.sleep(2)"
        request_id = submitted(running, files[1:2], function(slow, tmp_path))
        wait_for((tmp_path / "begun").exists)
        filler, log = tiny_disk / "filler", tmp_path / f"{tiny_disk.name}.log"
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(512))
        wait_for(lambda: "results can't be stored now" in log.read_text())
        url = f"{running.url}/servicex/transformation/{done}"
        deleted = httpx.delete(url, headers=running.headers())
        assert deleted.status_code == 200, deleted.text
        assert not (tiny_disk / "objects" / done).exists()
        filler.unlink(missing_ok=True)
        assert finished(running, request_id).files_completed == 1
        assert "Traceback" not in log.read_text()


def test_what_never_passes_is_told_and_not_tried_for_ever(
    tmp_path: Path, files: list[Path]
) -> None:
    with endpoint(tmp_path / "endpoint", "--workers", 1) as running:
        (tmp_path / "endpoint" / "work").rmdir()
        (tmp_path / "endpoint" / "work").touch()
        request_id = submitted(running, files[:1], function("", tmp_path))
        assert "the endpoint can't transform it (Not a directory)" in failure(running, request_id)


def test_a_killed_endpoint_goes_on_where_it_was(tmp_path: Path, files: list[Path]) -> None:
    """With the client waiting all the time."""
    notes = tmp_path / "notes"
    body = """
        (notes / str(os.getpid())).write_text(path)
        child = subprocess.Popen(["sleep", "60"], start_new_session=True)
        (notes.parent / f"{child.pid}.child").touch()
        time.sleep(1)
    """
    slow = function(body, notes)
    notes.mkdir()

    def children() -> set[int]:
        return {int(note.stem) for note in tmp_path.glob("*.child")}

    async def killed_half_way(first: Endpoint) -> tuple[Any, Any, int]:
        query = client_query(first, files, slow)
        waiting = asyncio.create_task(query.as_files_async(display_progress=False))
        await asyncio.to_thread(
            wait_for, lambda: query.current_status and query.current_status.files_completed >= 1
        )
        done_before = query.current_status.files_completed
        first.kill()
        started = {int(note.name) for note in notes.iterdir()}
        started |= children()
        await asyncio.to_thread(wait_for, lambda: all(map(is_gone, started)))
        with endpoint(tmp_path / "endpoint", "--workers", 2, port=first.port) as second:
            assert second.token == first.token
            delivered = await asyncio.wait_for(waiting, 60)
            results = await asyncio.to_thread(second.results, query.request_id)
            return delivered, results, done_before

    with tidied(), endpoint(tmp_path / "endpoint", "--workers", 2) as first:
        delivered, results, done_before = asyncio.run(killed_half_way(first))
    assert 1 <= done_before < len(files)
    assert sorted(result["file-path"] for result in results) == sorted(map(str, files))
    assert len(delivered.file_list) == len(files)
    events = uproot.concatenate([{path: "servicex"} for path in delivered.file_list])["event"]
    expected = uproot.concatenate([f"{path}:Events" for path in files], ["event"])["event"]
    assert sorted(events.tolist()) == expected.tolist()
    processed = [note.read_text() for note in notes.iterdir()]
    assert max(map(processed.count, processed)) <= 2  # again only what was under way


def test_what_is_finished_stays(tmp_path: Path, files: list[Path]) -> None:
    with endpoint(tmp_path / "endpoint", "--workers", 1) as first:
        request_id = submitted(first, files[:1], function("", tmp_path))
        before = finished(first, request_id)
        assert first.stop() == 130
    with endpoint(tmp_path / "endpoint", port=first.port) as second:
        assert finished(second, request_id) == before
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(20) == 130
    log = (tmp_path / "endpoint.log").read_text()
    assert log.count("agc-ml: stopped; run the same command to resume unfinished requests") == 2
    assert "Traceback" not in log


def test_a_cancelled_request_stops(
    servicex_endpoint: Endpoint, tmp_path: Path, files: list[Path]
) -> None:
    slow = function(
        "if path.endswith('2.root'): (notes / 'pid').write_text(str(os.getpid())); time.sleep(60)",
        tmp_path,
    )
    request_id = submitted(servicex_endpoint, files[:2], slow)
    wait_for((tmp_path / "pid").exists)
    awaited(servicex_endpoint, request_id, lambda status: status.files_completed == 1)
    asyncio.run(servicex_endpoint.adapter().cancel_transform(request_id))
    status = awaited(servicex_endpoint, request_id, lambda _: True)
    assert (status.status.value, status.files_completed, status.files_remaining) == (
        *("Canceled", 1),
        1,
    )
    assert is_gone(int((tmp_path / "pid").read_text()))
    assert status.finish_time is not None


def test_a_deleted_request_leaves_nothing(
    servicex_endpoint: Endpoint, tmp_path: Path, files: list[Path]
) -> None:
    adapter = servicex_endpoint.adapter()
    done = submitted(servicex_endpoint, files[:2], function("", tmp_path))
    finished(servicex_endpoint, done)
    stored = servicex_endpoint.folder / "objects" / done
    assert len(list(stored.iterdir())) == 2
    running = submitted(servicex_endpoint, files[:1], function("time.sleep(60)", tmp_path))
    for request_id in (done, running):
        asyncio.run(adapter.delete_transform(request_id))
        with pytest.raises(ValueError, match=f"Transform ID {request_id} not found"):
            asyncio.run(adapter.get_transform_status(request_id))
        with pytest.raises(ValueError, match="not found"):
            asyncio.run(adapter.delete_transform(request_id))
    assert not stored.exists()
    wait_for(lambda: not list((servicex_endpoint.folder / "work").iterdir()))


def test_a_worker_has_its_time(tmp_path: Path, files: list[Path]) -> None:
    body = "(notes / 'pid').write_text(str(subprocess.Popen(['sleep', '60']).pid)); time.sleep(60)"
    with endpoint(tmp_path / "endpoint", "--timeout", 10) as running:
        request_id = submitted(running, files[:1], function(body, tmp_path))
        assert failure(running, request_id) == "not done after 10 s (--timeout)"
        assert is_gone(int((tmp_path / "pid").read_text()))


def test_failures_that_may_pass_are_tried_again(
    servicex_endpoint: Endpoint, tmp_path: Path, files: list[Path]
) -> None:
    body = """
        (notes / f'{time.monotonic()}').touch()
        if len(list(notes.iterdir())) == 1: raise ConnectionResetError
    """
    request_id = submitted(servicex_endpoint, files[:1], function(body, tmp_path))
    assert finished(servicex_endpoint, request_id).files_completed == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_a_worker_that_dies_is_told(
    servicex_endpoint: Endpoint, tmp_path: Path, files: list[Path]
) -> None:
    body = "(notes / f'{time.monotonic()}').touch(); print('gone'); sys.stdout.flush(); os.abort()"
    request_id = submitted(servicex_endpoint, files[:1], function(body, tmp_path))
    assert failure(servicex_endpoint, request_id).startswith("the transformer died (SIGABRT): gone")
    assert len(list(tmp_path.iterdir())) == 3
    request_id = submitted(servicex_endpoint, files[:1], function("1 / 0", tmp_path))
    assert failure(servicex_endpoint, request_id) == "ZeroDivisionError: division by zero"


def test_an_unknown_code_generator_is_refused(
    servicex_endpoint: Endpoint, files: list[Path]
) -> None:
    from servicex import query  # noqa: PLC0415 - heavy

    other = query.FuncADL_ATLASr22().Select(lambda e: e.run)
    with pytest.raises(ValueError, match="atlasr22: no such code generator; there are uproot, "):
        submitted(servicex_endpoint, files, other)
    with tidied():
        asked = client_query(servicex_endpoint, files, other)
        with pytest.raises(NameError, match="atlasr22 code generator not supported"):
            asyncio.run(asked.as_files_async(display_progress=False))


def test_odd_questions_get_answers(servicex_endpoint: Endpoint) -> None:
    headers = asyncio.run(servicex_endpoint.adapter()._get_authorization())
    client = httpx.Client(base_url=servicex_endpoint.url, headers=headers)
    nobody = "/servicex/transformation/00000000-0000-0000-0000-000000000000"
    for method, path in [
        *[("GET", f"{nobody}{end}") for end in ("", "/status", "/results", "/cancel")],
        ("DELETE", nobody),
        ("GET", "/servicex/transformation/x"),
    ]:
        answer = client.request(method, path)
        assert answer.status_code == 404
        assert answer.json()["message"].startswith("there is no ")
    answer = client.post("/servicex/transformation", content=b"[]")
    assert (answer.status_code, answer.json()["message"][:24]) == (400, "the request is malformed")
    assert client.put("/servicex").json() == {"message": "Method Not Allowed"}
    known = client.get("/servicex/transformation").json()["requests"]
    if known:
        url = f"/servicex/transformation/{known[0]['request_id']}/results?later_than=soon"
        assert client.get(url).json() == {"message": "later_than=soon: not a time in ISO 8601"}
    client.close()


def test_a_token_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("open sesame\n")
    with endpoint(tmp_path / "endpoint", "--token", tmp_path / "token") as running:
        assert running.token == "open sesame"
        assert asyncio.run(running.adapter().get_servicex_info()).code_gen_image
    (tmp_path / "token").write_text(" ")
    for name, why in [("token", "empty"), ("nothing", "can't be read (No such file")]:
        path = tmp_path / name
        called = agc("service", "servicex", "-o", tmp_path / "e", "--token", path)
        assert called.code == 2
        assert f"--token {path}: {why}" in called.error


def test_wrong_starts_say_why(
    tmp_path: Path, servicex_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for code, folder, message in [
            (2, tmp_path / "new", f"port {port}: in use; name another with --port, 0 for any"),
            (2, tmp_path / "full", "holds other files; name a new folder with -o"),
            (2, servicex_endpoint.folder, "another agc-ml is at work in it"),
            (1, tmp_path / "full" / "thesis.tex", "can't be written (Not a directory)"),
            (1, tmp_path / "full" / "thesis.tex" / "x", "can't be written (Not a directory)"),
        ]:
            called = agc("service", "servicex", "-o", folder, "--port", port)
            assert (called.code, called.out) == (code, "")
            assert message in called.error
    monkeypatch.setattr("agc_ml.cli.services.servicex.find_spec", lambda _: None)
    called = agc("service", "servicex", "-o", tmp_path / "new")
    assert called.code == 2
    assert "func_adl_uproot is not installed" in called.error
    assert "pip install 'agc-ml[endpoint]'" in called.error
