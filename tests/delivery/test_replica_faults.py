"""Servers that fail while a run reads from them: the same histograms, or an error in time.

The servers are real ones on this machine; their faults are made with signals, with a proxy, or in
their files.
"""

from __future__ import annotations

import logging
import random
import shutil
import threading
import time
from pathlib import Path

import nanoaod
import numpy as np
import pytest
import stepwise
from services.proxy import Proxy
from services.xrootd import Server, Storage

import agc_ml as agc
from agc_ml.delivery import replica_source
from agc_ml.errors import IncompleteError, InputFileError
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset
from agc_ml.results.run_result import RunResult
from agc_ml.transports import server_health

logger = logging.getLogger("faults")
pytestmark = pytest.mark.usefixtures("fresh")

N_FILES, N_EVENTS, CHUNK = 3, 1000, 500
PROCESSORS = {"flat": stepwise.Flat(), "records": stepwise.Records()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of five clusters of 200 events."""
    folder = tmp_path_factory.mktemp("files")
    return [
        nanoaod.write(folder / f"{i}.root", nanoaod.events(N_EVENTS, i), cluster=200)
        for i in range(N_FILES)
    ]


@pytest.fixture(scope="module")
def baseline(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("baseline")
    return run("flat", fileset([[str(path)] for path in files]), folder / "run")


def fileset(replicas: list[list[str]]) -> Fileset:
    listed = tuple(File(f"/store/{i}.root", tuple(urls)) for i, urls in enumerate(replicas))
    return Fileset((Dataset("tt", "tt", listed, xsec=100.0),), 1000.0, "made up")


def run(kind: str, what: Fileset, output: Path, **options: object) -> RunResult:
    return agc.run(
        PROCESSORS[kind],
        what,
        **{"site": "inline", "output": output, "chunk_size": CHUNK, "quiet": True, **options},
    )


def same(result: RunResult, baseline: RunResult) -> None:
    """Every event once, and the same bits."""
    assert result.status == "complete"
    assert result.ledger.faults() == []
    assert result.ledger.events == baseline.ledger.events
    assert result.cutflow == baseline.cutflow
    assert result.templates.keys() == baseline.templates.keys()
    for name, template in result.templates.items():
        other = baseline.templates[name]
        np.testing.assert_array_equal(template.values(flow=True), other.values(flow=True))
        np.testing.assert_array_equal(template.variances(flow=True), other.variances(flow=True))


def both(storage: Storage, files: list[Path], over: str) -> tuple[Server, Server, Fileset]:
    """Two servers with the same files, read over root:// or http://."""
    first, second = (storage.data(storage.folder(*files)) for _ in range(2))
    url = Server.url if over == "root" else Server.http
    urls = [[url(first, path.name), url(second, path.name)] for path in files]
    return first, second, fileset(urls)


class Stopwatch:
    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __enter__(self) -> None:
        self.begun = time.monotonic()

    def __exit__(self, *_: object) -> None:
        seconds = time.monotonic() - self.begun
        logger.info("%.1f s of %g s", seconds, self.limit)
        assert seconds < self.limit


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("over", ["root", "http"])
def test_all_is_well(
    kind: str, over: str, storage: Storage, files: list[Path], baseline: RunResult, tmp_path: Path
) -> None:
    *_, listed = both(storage, files, over)
    result = run(kind, listed, tmp_path / "run")
    same(result, baseline)
    assert result.warnings == baseline.warnings


@pytest.mark.parametrize("over", ["root", "http"])
def test_a_server_that_is_killed_and_comes_back(
    over: str, storage: Storage, files: list[Path], baseline: RunResult, tmp_path: Path
) -> None:
    server = storage.data(storage.folder(*files))
    url = server.url if over == "root" else server.http

    def restart() -> None:
        server.kill()
        threading.Timer(3, server.start).start()

    stepwise.EVENTS[:] = [None, None, restart]
    with Stopwatch(3 + 8):
        result = run("flat", fileset([[url(path.name)] for path in files]), tmp_path / "run")
    same(result, baseline)
    assert any("failed while it was read" in line for line in result.warnings) or over == "root"


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("over", ["root", "http"])
@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_one_of_two_replicas_is_lost_in_the_middle_of_a_file(
    fault: str,
    over: str,
    kind: str,
    storage: Storage,
    files: list[Path],
    baseline: RunResult,
    tmp_path: Path,
) -> None:
    first, _, listed = both(storage, files, over)
    stepwise.EVENTS[:] = [None, getattr(first, fault)]
    with Stopwatch(12):
        result = run(kind, listed, tmp_path / "run")
    same(result, baseline)
    assert any("failed while it was read" in line for line in result.warnings)
    assert result.metrics.retries == 0  # what was read stays read


@pytest.mark.parametrize("over", ["root", "http"])
@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_all_replicas_are_lost(
    fault: str,
    over: str,
    storage: Storage,
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if over == "http":  # the deadline is as of root://, and half a minute long
        monkeypatch.setattr(replica_source, "DEADLINE_S", 6)
    first, second, listed = both(storage, files, over)

    def lose() -> None:
        getattr(first, fault)()
        getattr(second, fault)()

    stepwise.EVENTS[:] = [None, lose]
    with Stopwatch(30), pytest.raises(IncompleteError) as caught:
        run("flat", listed, tmp_path / "run")
    text = str(caught.value)
    for server in (first, second):
        assert f":{server.port if over == 'root' else server.http_port}/" in text
    assert "/store/0.root" in text
    assert "finished chunks are kept" in text.lower()
    assert "\n" not in text


def test_nothing_answers_from_the_beginning(
    storage: Storage, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_source, "DEADLINE_S", 10)
    first, second, listed = both(storage, files, "root")
    first.freeze()
    second.kill()
    with Stopwatch(30), pytest.raises(InputFileError, match="no file can be opened") as caught:
        run("flat", listed, tmp_path / "run")
    assert str(first.port) in str(caught.value)
    assert str(second.port) in str(caught.value)


@pytest.mark.parametrize("over", ["root", "http"])
@pytest.mark.parametrize("fault", ["delay", "rate", "cut", "stall", "flip"])
def test_a_bad_line(
    fault: str,
    over: str,
    storage: Storage,
    proxies: list[Proxy],
    files: list[Path],
    baseline: RunResult,
    tmp_path: Path,
) -> None:
    """Between a good server and us: there is one replica only, so all has to come over it."""
    server = storage.data(storage.folder(*files))
    proxy = Proxy(server.port if over == "root" else server.http_port)
    proxies.append(proxy)
    url = (
        f"root://127.0.0.1:{proxy.port}//" if over == "root" else f"http://127.0.0.1:{proxy.port}/"
    )
    listed = fileset([[url + path.name] for path in files])
    same(run("flat", listed, tmp_path / "before"), baseline)
    amount = {"delay": 0.05, "rate": 400_000.0}.get(fault, proxy.sent * 3 // 2)
    setattr(proxy, fault, amount)
    shutil.rmtree(tmp_path / "cache")
    with Stopwatch(25):
        result = run("flat", listed, tmp_path / "run")
    same(result, baseline)
    assert getattr(proxy, fault) in {None, 0.05, 400_000.0}  # it came to it


def test_a_redirector_sends_to_the_other_replica(
    storage: Storage, files: list[Path], baseline: RunResult, tmp_path: Path
) -> None:
    redirector = storage.redirector()
    replicas = [storage.replica(storage.folder(*files), redirector) for _ in range(2)]
    listed = fileset([[redirector.url(path.name)] for path in files])
    result = run("flat", listed, tmp_path / "first")  # it waits for the replicas to report
    same(result, baseline)
    server_health.forget()
    stepwise.EVENTS[:] = [None, replicas[0].kill, None, None, None, None, None, replicas[0].start]
    with Stopwatch(14):
        same(run("flat", listed, tmp_path / "second"), baseline)


def test_a_redirector_that_is_gone_is_not_needed_for_an_open_file(
    storage: Storage, files: list[Path], baseline: RunResult, tmp_path: Path
) -> None:
    redirector = storage.redirector()
    server = storage.replica(storage.folder(*files), redirector)
    direct = [server.url(path.name) for path in files]
    listed = fileset(
        [[redirector.url(path.name), d] for path, d in zip(files, direct, strict=True)]
    )
    stepwise.EVENTS[:] = [None, redirector.kill]
    same(run("flat", listed, tmp_path / "run"), baseline)


def test_a_cache_that_is_gone_is_passed_by(
    storage: Storage, files: list[Path], baseline: RunResult, tmp_path: Path
) -> None:
    origin = storage.data(storage.folder(*files))
    cache = storage.cache(origin.address)
    listed = fileset([[origin.url(path.name)] for path in files])
    via = f"xcache=root://{cache.address}"
    cold = run("flat", listed, tmp_path / "cold", via=via)
    same(cold, baseline)
    stepwise.EVENTS[:] = [None, cache.kill]
    with Stopwatch(8 + 4):
        result = run("flat", listed, tmp_path / "warm", via=via)
    same(result, baseline)
    assert any(str(cache.port) in line for line in result.warnings)
    cache.start()
    origin.kill()
    server_health.forget()
    time.sleep(6)  # the client refuses a server for a while after an error
    same(run("flat", listed, tmp_path / "alone", via=via), baseline)


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "flipped":
        import uproot  # noqa: PLC0415 - only here

        with uproot.open(path) as file:
            branch = file["Events"]["Jet_pt"]
            place = int(branch.member("fBasketSeek")[2] + branch.member("fBasketBytes")[2] - 30)
        content[place] ^= 4
    elif how == "empty":
        content.clear()
    else:
        del content[int(len(content) * {"half": 0.5, "1 %": 0.99, "0.1 %": 0.999}[how]) :]
    path.write_bytes(content)


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("how", ["missing", "empty", "half", "1 %", "0.1 %", "flipped"])
def test_a_damaged_replica_is_named_and_the_other_one_read(
    how: str, kind: str, storage: Storage, files: list[Path], baseline: RunResult, tmp_path: Path
) -> None:
    first, _, listed = both(storage, files, "root")
    damage(Path(first.arguments[0], "1.root"), how)
    with Stopwatch(10):
        result = run(kind, listed, tmp_path / "run")
    same(result, baseline)
    (told,) = [line for line in result.warnings if "failed while" in line]
    assert f"{first.port}//1.root" in told


N_FAULTS = 200


@pytest.mark.slow
def test_two_hundred_faults(storage: Storage, proxies: list[Proxy], tmp_path: Path) -> None:
    """Connections cut and slowed down at random bytes, servers killed, over many small files."""
    chance = random.Random(20261126)
    paths = [
        nanoaod.write(tmp_path / f"{i}.root", nanoaod.events(400, i), cluster=100)
        for i in range(N_FAULTS // 4)
    ]
    servers = [storage.data(storage.folder(*paths)) for _ in range(2)]
    lines = [Proxy(servers[0].port), Proxy(servers[1].http_port)]
    proxies += lines
    replicas = [
        [
            f"root://127.0.0.1:{lines[0].port}//{p.name}",
            f"http://127.0.0.1:{lines[1].port}/{p.name}",
        ]
        for p in paths
    ]
    for urls in replicas:
        chance.shuffle(urls)
    happened: list[str] = []

    def fault() -> None:
        server_health.forget()  # or it would keep to the better one
        kind = chance.choices(["cut", "slow", "kill"], [170, 26, 4])[0]
        happened.append(kind)
        place = chance.randrange(2)
        if kind == "cut":
            lines[place].cut = lines[place].sent + chance.randrange(20_000)
        elif kind == "slow":
            lines[place].delay = chance.choice([0.0, 0.02])
        else:
            servers[place].kill()
            servers[place].start()

    expected = run("flat", fileset([[str(path)] for path in paths]), tmp_path / "expected")
    shutil.rmtree(tmp_path / "cache")
    stepwise.EVENTS[:] = [fault] * N_FAULTS
    with Stopwatch(150):
        result = run("flat", fileset(replicas), tmp_path / "run")
    same(result, expected)
    assert len(happened) == N_FAULTS
    counts = {kind: happened.count(kind) for kind in sorted(set(happened))}
    logger.info("%s, %s cuts came to it", counts, [line.cuts for line in lines])
    assert sum(line.cuts for line in lines) > N_FAULTS // 10
