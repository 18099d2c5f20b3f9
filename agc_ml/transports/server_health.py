"""What a process remembers of servers and replicas that failed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Final
from urllib.parse import urlsplit

from agc_ml.transports.replica_errors import ReplicaError, TransientError

REMEMBERED_S: Final = 60.0
"""So long a replica that failed comes after those that did not."""
GIVEN_UP_S: Final = 10.0
"""So long a server that did not answer within the deadline of a read is not asked again."""

_lock: Final = threading.Lock()
_failed: dict[str, float] = {}
_given_up: dict[str, tuple[float, str]] = {}
_times: Counter[str] = Counter()


def server(url: str) -> str:
    """Scheme, host and port; empty for a file of this machine."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}" if host else ""


def failed(url: str, error: ReplicaError) -> None:
    """Remember that a replica failed: its server with it, unless only this file is bad."""
    what = server(url) if isinstance(error, TransientError) else url
    with _lock:
        _failed[what or url] = time.monotonic()
        _times[what or url] += 1


def give_up(url: str, reason: str) -> None:
    """Remember that a server did not help for as long as a read may take."""
    with _lock:
        _given_up[server(url) or url] = time.monotonic(), reason


def answered(url: str) -> None:
    """Forget what was said of a replica and its server."""
    if not _failed and not _given_up:
        return
    with _lock:
        for what in (url, server(url)):
            _failed.pop(what, None)
            _given_up.pop(what, None)


def times_failed(url: str) -> int:
    """How often its server failed since the process began."""
    return _times[server(url)]


def in_order(urls: tuple[str, ...]) -> list[str]:
    """The replicas, those that failed lately behind the others, the last failure last."""
    now = time.monotonic()
    with _lock:
        failures = {url: max(_failed.get(url, 0.0), _failed.get(server(url), 0.0)) for url in urls}
    return sorted(urls, key=lambda url: failures[url] if now - failures[url] < REMEMBERED_S else 0)


def why_given_up(url: str) -> str | None:
    """Why its server was given up, if that was a moment ago."""
    since, reason = _given_up.get(server(url) or url, (-GIVEN_UP_S, ""))
    return reason if time.monotonic() - since < GIVEN_UP_S else None


def is_on_probation(url: str) -> bool:
    """Return whether its server was given up, and has not answered since."""
    return (server(url) or url) in _given_up


def forget() -> None:
    """Forget everything, as a new process would."""
    with _lock:
        _failed.clear()
        _given_up.clear()
        _times.clear()
