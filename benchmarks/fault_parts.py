"""Parts of `faults.py`: events, two processors that count them, a web server that misbehaves."""

from __future__ import annotations

import http.server
import itertools
import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

STRIDE: Final = 2000
"""Numbers of events that a file may have: those of the i-th begin with i times so much."""

N_FILES: Final = 12

PROCESSORS: Final = f'''
"""Count events, and fill a histogram of their numbers: each loss and each double shows."""

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import hist
import numpy as np

from agc_ml.columnar.events import blocks

N = {STRIDE * N_FILES}


def filled(parts: Any, dataset: str) -> dict[str, Any]:
    numbers = hist.Hist.new.Reg(N, -0.5, N - 0.5, name="number", label="number").Int64()
    n = 0
    for part in parts:
        events = np.asarray(part.event).astype(np.int64)
        numbers.fill(events)
        n += len(events)
    return {{"numbers": numbers, "n": n, "cutflow": {{dataset: {{"all": n}}}}}}


@dataclass(frozen=True)
class Records:
    sleep: float = 0.0
    columns: ClassVar = ("event", "Hit_pt")

    def process(self, events: Any) -> dict[str, Any]:
        time.sleep(self.sleep)
        np.asarray(events.Hit.pt[:, :0])  # read it
        return filled([events], events.metadata["dataset"])


@dataclass(frozen=True)
class Flat:
    sleep: float = 0.0
    columns: ClassVar = ("event", "Hit_pt")
    flat: ClassVar = True

    def process(self, events: Any) -> dict[str, Any]:
        time.sleep(self.sleep)
        return filled(blocks(events), events.metadata["dataset"])
'''


class Part(NamedTuple):
    """A file of events, whose numbers are ``first`` and those after it."""

    path: Path
    first: int
    events: int


def write_files(folder: Path) -> list[Part]:
    """Files of 700 to 1,400 events, with several codecs and numbers of baskets."""
    import awkward as ak  # noqa: PLC0415 - heavy
    import numpy as np  # noqa: PLC0415 - heavy
    import uproot  # noqa: PLC0415 - heavy

    codecs = [uproot.ZLIB(1), uproot.ZLIB(4), uproot.LZMA(1)]
    made = []
    for index in range(N_FILES):
        rng = np.random.default_rng(index)
        n, first = 700 + index * 137 % 700, index * STRIDE
        counts = rng.poisson(3, n)
        pt = rng.exponential(60, counts.sum()).astype(np.float32)
        columns = {
            "run": np.ones(n, np.uint32),
            "luminosityBlock": np.arange(n, dtype=np.uint32) // 100,
            "event": (first + np.arange(n)).astype(np.uint64),
            "Hit": ak.unflatten(ak.zip({"pt": pt}), counts),
        }
        path = folder / f"{index:02}.root"
        with uproot.recreate(path, compression=codecs[index % len(codecs)]) as file:
            kinds = {
                name: values.type.content if name == "Hit" else values.dtype
                for name, values in columns.items()
            }
            tree = file.mktree(
                "Events", kinds, counter_name=lambda name: f"n{name}",
                field_name=lambda outer, inner: inner if outer == "" else f"{outer}_{inner}",
            )  # fmt: skip
            edges = np.linspace(0, n, 2 + index % 5).astype(int)
            for start, stop in itertools.pairwise(edges):
                tree.extend({name: values[start:stop] for name, values in columns.items()})
        made.append(Part(path, first, n))
    return made


MODES: Final = ("404", "403", "500", "503", "429", "close", "cut", "short", "stall", "flip",
                "zeros", "no range", "loop")  # fmt: skip
"""Ways in which a web server may be wrong."""


@dataclass
class Web:
    """A web server of a folder, of which the next requests of a file go wrong in a stated way."""

    folder: Path
    rules: dict[str, tuple[int, str]] = field(default_factory=dict)
    port: int = 0

    def start(self) -> None:
        """Serve in a thread."""
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def mode_of(self, name: str) -> str:
        """How a request of a file goes wrong, "" if it does not; it counts."""
        left, mode = self.rules.get(name, (0, ""))
        if left <= 0:
            return ""
        self.rules[name] = (left - 1, mode)
        return mode


def _handler(web: Web) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            name = unquote(urlsplit(self.path).path).lstrip("/")
            mode, path = web.mode_of(name), web.folder / name
            if mode == "close":
                self.close_connection = True
            elif mode.isdigit() or not path.is_file():
                self.reply(int(mode or 404), b"")
            elif mode == "loop":
                self.reply(302, b"", {"Location": self.path})
            else:
                time.sleep(2 * (mode == "stall"))
                self.reply(*_answer(path, self.headers.get("Range", ""), mode), mode)

        def reply(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, mode: str = ""
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) - 37 * (mode == "short")))
            self.end_headers()
            self.close_connection |= mode in {"cut", "short"}
            self.wfile.write(body[: len(body) // 2] if mode == "cut" else body)

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # nobody listens any more
                self.close_connection = True

    return Handler


def _answer(path: Path, asked: str, mode: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of an answer that asks for ranges of a file."""
    content = path.read_bytes()
    headers = {"ETag": f'"{path.stat().st_mtime_ns}"'}
    ranges = re.findall(r"(\d+)-(\d+)", asked)
    if mode == "no range" or not ranges:
        return 200, content, headers
    places = [(int(a), min(int(b) + 1, len(content))) for a, b in ranges]
    bodies = [_spoiled(content[a:b], mode) for a, b in places]
    named = [f"bytes {a}-{b - 1}/{len(content)}" for a, b in places]
    if len(places) == 1:
        return 206, bodies[0], {**headers, "Content-Range": named[0]}
    body = b"".join(
        f"\r\n--B\r\nContent-Range: {name}\r\n\r\n".encode() + part
        for name, part in zip(named, bodies, strict=True)
    )
    kind = {"Content-Type": "multipart/byteranges; boundary=B"}
    return 206, body + b"\r\n--B--\r\n", {**headers, **kind}


def _spoiled(part: bytes, mode: str) -> bytes:
    if mode == "zeros":
        return bytes(len(part))
    spoiled = bytearray(part)
    if mode == "flip":
        for place in range(len(part) // 3, len(part), max(1, len(part) // 7)):
            spoiled[place] ^= 0x55
    return bytes(spoiled)


def damaged_checkpoint(folder: Path, rng: random.Random) -> str:
    """Damage a finished chunk on disk, or put one in place of another; says what was done."""
    chunks = sorted(p for p in folder.glob("**/chunks/*") if not p.name.startswith("."))
    if not chunks:
        return "no chunk to damage"
    one, other = rng.choice(chunks), rng.choice(chunks)
    kind = rng.choice(("flipped", "cut", "replaced", "removed"))
    content = bytearray(one.read_bytes())
    if kind == "flipped":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        one.write_bytes(bytes(content))
    elif kind == "cut":
        one.write_bytes(bytes(content[: rng.randrange(len(content))]))
    elif kind == "replaced":
        one.write_bytes(other.read_bytes())
    else:
        one.unlink()
    return f"a chunk {kind}"


def forked(log: Path, action: Callable[[], int | None]) -> int:
    """Run something in a fork of this process, in a session of its own; returns its number."""
    number = os.fork()
    if number:
        return number
    code = 99
    try:
        os.setsid()
        with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        code = action() or 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        os._exit(code)
