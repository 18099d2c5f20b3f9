"""Lines that are left out and counted; log files that do not grow for ever."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agc_ml.training.http import logs
from agc_ml.training.http.logs import RateLimitedHandler

logger = logging.getLogger("flood")


@pytest.fixture
def sparing() -> Iterator[RateLimitedHandler]:
    handler = RateLimitedHandler()
    handler.setStream(io.StringIO())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield handler
    logger.removeHandler(handler)
    logger.propagate = True


def lines(handler: RateLimitedHandler) -> list[dict[str, Any]]:
    return [json.loads(line) for line in handler.stream.getvalue().splitlines()]


def begin_second() -> None:
    time.sleep(1 - time.time() % 1 + 0.01)


def test_a_flood_of_one_kind_hides_no_other(sparing: RateLimitedHandler) -> None:
    begin_second()
    for _ in range(500):
        logger.info("request", extra={"facts": {"method": "GET", "status": 401}})
    logger.info("request", extra={"facts": {"method": "POST", "status": 202}})
    logger.error("a fault")
    begin_second()
    sparing.flush()
    found = lines(sparing)
    assert len(found) == logs.MAX_LINES + 3
    assert found[-2]["message"] == "a fault"
    assert found[-1]["message"] == "480 more lines like this were omitted"
    assert (found[-1]["left_out"], found[-1]["status"], found[-1]["method"]) == (480, 401, "GET")
    sparing.flush()
    assert lines(sparing) == found  # it is said once


def test_what_was_left_out_is_said_at_the_end() -> None:
    code = (
        "import logging; from agc_ml.training.http.logs import log_as_json\n"
        "log_as_json(logging.INFO)\n"
        "for _ in range(3000): logging.getLogger('agc_ml').info('line')\n"
        "import time; time.sleep(1.1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert len(found) < 200
    assert sum(line.get("left_out", 1) for line in found) == 3000


def test_files_are_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writer has it open at its end, as jobs and MLflow do, and goes on."""
    monkeypatch.setattr(logs, "MAX_BYTES", 1000)
    path = tmp_path / "log.txt"
    with path.open("ab", buffering=0) as file:
        for number in range(300):
            file.write(b"line %d\n" % number)
            logs.rotate(path)
    files = sorted(one.name for one in tmp_path.iterdir())
    assert files == ["log.txt", "log.txt.1"]
    assert all(one.stat().st_size < 1100 for one in tmp_path.iterdir())
    both = (tmp_path / "log.txt.1").read_bytes() + path.read_bytes()
    assert b"\0" not in both
    assert both.endswith(b"line 298\nline 299\n")
    logs.rotate(tmp_path / "none.txt")  # not written yet


def test_the_end_of_a_large_log(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    assert logs.last_lines(path, 10) == []
    path.write_bytes(b"\xffab\nc\n")
    assert logs.last_lines(path, 10) == ["�ab", "c"]
    path.write_bytes(b"a line of some length\n" * 200_000 + b"the last\n")
    found = logs.last_lines(path, 10_000)
    assert len(found) == 10_000
    assert found[-1] == "the last"
    path.write_bytes(b"x" * 3_000_000)
    assert logs.last_lines(path, 5) == ["x" * (1 << 20)]
