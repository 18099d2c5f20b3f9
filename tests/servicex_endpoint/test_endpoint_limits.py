"""What requests and their queries may use: of the endpoint, of the machine, of what is secret."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx
import nanoaod
import psutil
import pytest
from services.servicex import Endpoint, endpoint, finished, submitted

from agc_ml.errors import UsageError
from agc_ml.servicex_endpoint import logs
from agc_ml.servicex_endpoint.isolation import limits
from agc_ml.servicex_endpoint.translation import translator_pool
from agc_ml.servicex_endpoint.translation.translator_pool import BusyError, TranslatorPool

AT_ONCE_S = 5.0  # with room for a machine that has more to do


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nanoaod.write(tmp_path_factory.mktemp("files") / "a.root", nanoaod.events(20, 1))


def function(body: str) -> Any:
    """A query whose function does something, and then gives a column."""
    from servicex import query  # noqa: PLC0415 - heavy

    lines = dedent(body).strip().replace("\n", "\n    ")
    return query.PythonFunction(f"def run_query(path):\n    {lines}\n    return [{{'x': 1.0}}]\n")


def raw(**query: Any) -> Any:
    from servicex import query as queries  # noqa: PLC0415 - heavy

    return queries.UprootRaw([{"treename": "Events", **query}])


def errors(running: Endpoint, request_id: str) -> dict[str, str]:
    """Why files of a request failed."""
    finished(running, request_id)
    return {r["file-path"]: r["error"] or "" for r in running.results(request_id)}


def wait_for(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_python_runs_only_where_it_is_named(tmp_path: Path, file: Path) -> None:
    told = """
    import json, os, pathlib, resource
    names = ("DATA", "CPU", "FSIZE", "NOFILE", "CORE", "NPROC")
    of = {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in names}
    (pathlib.Path(path).parent / "told").write_text(json.dumps([of, dict(os.environ)]))
    """
    folder = tmp_path / "endpoint"
    secret = {"SOME_SECRET": "x", "AGC_ML_TRAINING_TOKEN": "x", "XRD_NETWORKSTACK": "IPv4"}
    with endpoint(folder, "--workers", 1, "--memory", 2, **secret) as running:
        limited = submitted(running, [file], function(told))
        finished(running, limited)
        left = submitted(running, [file], function("import time; time.sleep(60)"))
    of, environment = json.loads((file.parent / "told").read_text())
    assert of["DATA"] == [2e9, 2e9]
    assert of["CPU"] == [300 * os.cpu_count(), 300 * os.cpu_count()]
    assert (of["FSIZE"], of["NOFILE"], of["CORE"]) == ([16e9, 16e9], [1024, 1024], [0, 0])
    assert of["NPROC"][0] > limits.PROCESSES
    assert not set(secret) & set(environment) - {"XRD_NETWORKSTACK"}
    assert environment["XRD_NETWORKSTACK"] == "IPv4"
    assert {"PATH", "HOME", "TMPDIR", "XRD_REQUESTTIMEOUT"} <= set(environment)
    assert environment["TMPDIR"].startswith(str(folder / "work"))
    with endpoint(folder, codegens="") as running:
        info = running.get("/servicex")
        assert list(info["code-gen-image"]) == ["uproot", "uproot-raw"]
        why = "python: this code generator is off here; the endpoint can be started with"
        flag = "--codegens func_adl,uproot-raw,python"
        assert errors(running, left) == {str(file): f"{why} {flag}"}
        with pytest.raises(ValueError, match=f"{why} {flag}"):
            submitted(running, [file], function(""))


def test_what_a_function_does_ends_with_it(servicex_endpoint: Endpoint, file: Path) -> None:
    """Whatever it starts, prints, or says of itself."""
    before = set(psutil.pids())
    cases = {
        "daemons": """
            import os, subprocess, sys, time
            for _ in range(200): print("x" * 10**6)
            subprocess.Popen(["sleep", "4321"], start_new_session=True)
            subprocess.Popen("setsid sh -c 'setsid sleep 4322 & sleep 4323' & exit", shell=True)
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0: time.sleep(4324)
                os._exit(0)
            """,
        "memory": "import numpy; numpy.ones(10**10)",
        "disk": "open('big', 'wb').truncate(17 * 10**9)",
        "terminal": "import sys; raise ValueError(f'{sys.stdin.read()}a\\udc80\\x1b[31m')",
        "verdict": "import os; open('report.json', 'w').write('{\"size\": 1e99}'); os._exit(0)",
        "long": "import os; open('report.json', 'w').write(' ' * 200_000); os._exit(0)",
        "link": """
            import os
            os.unlink('output')
            os.symlink('/etc/passwd', 'output')
            open('report.json', 'w').write('{}')
            os._exit(0)
            """,
    }
    ids = {
        name: submitted(servicex_endpoint, [file], function(body)) for name, body in cases.items()
    }
    why = {name: errors(servicex_endpoint, number)[str(file)] for name, number in ids.items()}
    assert why["memory"] == "it needs more than 4 GB of memory (--memory)"
    assert why["disk"] == "it writes more than 16 GB into a file"
    assert why["terminal"] == r"ValueError: a\udc80\x1b[31m"
    assert why["verdict"].startswith("the transformer's report is damaged (size: ")
    assert why["long"].startswith("the transformer's report can't be read (it has more than")
    assert why["link"] == "the transformer left no output"
    assert why["daemons"] == ""
    left = [psutil.Process(pid).cmdline() for pid in psutil.pids() if pid not in before]
    assert not [words for words in left if "sleep" in words]


def test_inputs_are_files_and_none_of_the_endpoint(
    servicex_endpoint: Endpoint, tmp_path: Path
) -> None:
    """Its secrets least of all, whatever leads there; and nothing that never ends."""
    secrets = servicex_endpoint.folder / "credentials.json"
    (tmp_path / "link").symlink_to(secrets)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text(secrets.read_text())
    paths = [tmp_path / name for name in ("link", "fifo", "text")]
    paths += [secrets, Path("/dev/zero"), tmp_path, Path("/proc/self/cwd/job.json")]
    begin = time.monotonic()
    request_id = submitted(servicex_endpoint, paths, raw(expressions="nJet"))
    why = errors(servicex_endpoint, request_id)
    assert time.monotonic() - begin < 40
    own, odd = "it is a file of the endpoint itself", "not a regular file"
    assert [why[str(path)] for path in paths if path.name != "text"] == [
        own,
        odd,
        own,
        odd,
        odd,
        own,
    ]
    words = json.loads(secrets.read_text()).values()
    assert not [word for word in words if word in why[str(tmp_path / "text")]]


def request(**changes: Any) -> bytes:
    sound = {
        "title": "t",
        "file-list": ["/a.root"],
        "selection": '[{"treename": "Events"}]',
        "codegen": "uproot-raw",
        "result-destination": "object-store",
        "result-format": "root-file",
    }
    return json.dumps({**sound, **changes}).encode()


BODIES = {
    "nested": b"[" * 200_000,
    "objects": b'{"a":' * 100_000,
    "infinite": request(title=float("inf")),
    "nested selection": request(selection="[" * 100_000),
    "nested twice": request(selection="[" * 900 + "]" * 900),
    "long query": request(codegen="uproot", selection="(" * 120_000),
    "deep query": request(codegen="uproot", selection="(- " * 9000 + "1" + ")" * 9000),
    "title": request(title="a\0b"),
    "half a character": request(title="\ud800"),
    "file": request(**{"file-list": ["/tmp/\ud800"]}),
    "files": request(**{"file-list": [f"/{i}" for i in range(100_000)]}),
    "letters": b"\xff\xfe",
    "nothing": b"",
    "deep python": request(
        codegen="python", selection="ZGVmIHJ1bl9xdWVyeShmKToKIHJldHVybiA" + "LS0t" * 30_000 + "MQ=="
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_odd_requests_are_refused_at_once(servicex_endpoint: Endpoint, name: str) -> None:
    headers = servicex_endpoint.headers()
    wait_for(
        lambda: (
            "translator started" in servicex_endpoint.folder.with_name("endpoint.log").read_text()
        )
    )
    begin = time.monotonic()
    answer = httpx.post(
        f"{servicex_endpoint.url}/servicex/transformation", headers=headers, content=BODIES[name]
    )
    assert answer.status_code == 400, answer.text
    assert len(answer.json()["message"].splitlines()) == 1
    assert time.monotonic() - begin < AT_ONCE_S


@pytest.mark.parametrize(
    "time_",
    ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2020-13-01", "\0", "x" * 9000],
)
def test_times_that_are_none_are_refused(
    servicex_endpoint: Endpoint, file: Path, time_: str
) -> None:
    request_id = submitted(servicex_endpoint, [file], raw(expressions="nJet"))
    answer = httpx.get(
        f"{servicex_endpoint.url}/servicex/transformation/{request_id}/results",
        params={"later_than": time_},
        headers=servicex_endpoint.headers(),
    )
    assert answer.status_code == 400
    assert answer.json()["message"].endswith(": not a time in ISO 8601")
    asyncio.run(servicex_endpoint.adapter().delete_transform(request_id))


def test_a_translation_has_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another query goes on meanwhile; one that is sound goes on afterwards."""
    columns = " ".join(["(attr e 'x')"] * 3500)
    slow = f"(call Select (call EventDataset 'f' 't') (lambda (list e) (list {columns})))"
    sound = '[{"treename": "Events", "cut": "nJet > 3"}]'

    async def scenario() -> None:
        translators = TranslatorPool(tmp_path / "translation")
        await translators.warm()
        both = [translators.translate("uproot-raw", sound, "root-file") for _ in range(2)]
        await asyncio.gather(*both)
        monkeypatch.setattr(translator_pool, "DEADLINE_S", 0.7)
        begin = time.monotonic()
        late = asyncio.create_task(translators.translate("uproot", slow, "root-file"))
        program = await translators.translate("uproot-raw", sound, "root-file")
        assert json.loads(program) == json.loads(sound)
        assert not late.done()
        with pytest.raises(UsageError, match=r"its translation takes more than 0\.7 s"):
            await late
        assert time.monotonic() - begin < 5
        monkeypatch.setattr(translator_pool, "DEADLINE_S", 10)
        with pytest.raises(UsageError, match="the query for uproot-raw can't be used: not JSON"):
            await translators.translate("uproot-raw", "{", "root-file")
        asked = asyncio.create_task(translators.translate("uproot", slow, "root-file"))
        await asyncio.sleep(0.3)
        (process,) = (p for p in psutil.Process().children() if "translator" in str(p.cmdline()))
        process.kill()
        with pytest.raises(UsageError, match="its translation failed"):
            await asked
        monkeypatch.setattr(translator_pool, "MAX_WAITING", 0)
        with pytest.raises(BusyError, match="0 queries wait"):
            await translators.translate("uproot-raw", sound, "root-file")
        await translators.close()

    asyncio.run(scenario())
    assert not [p for p in psutil.Process().children() if "translator" in str(p.cmdline())]


def test_a_flood_of_lines_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.5
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    rate = logs.RateLimit(3)

    def passes(message: str, *arguments: object) -> str | None:
        record = logging.LogRecord("x", logging.INFO, "", 0, message, arguments, None)
        return record.getMessage() if rate.filter(record) else None

    assert [passes("%d%%", i) for i in range(5)] == ["0%", "1%", "2%", None, None]
    now = 1.5
    assert passes("%d%%", 5) == "5% (after 2 lines that are left out)"
    assert passes("%d%%", 6) == "6%"


def test_the_log_of_libraries_is_limited_too() -> None:
    """In a process of its own: a Dask cluster in this one keeps libraries quiet."""
    code = """
import logging
from agc_ml.servicex_endpoint import logs
logging.getLogger("agc_ml").addHandler(logging.StreamHandler())
with logs.rate_limited():
    for _ in range(1000):
        logging.getLogger("tornado.application").error("again")
assert logging.getLogger("tornado").propagate
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < done.stderr.count("again") <= 2 * logs.LINES_PER_SECOND
