"""Memory of a process for servers and replicas that failed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Final
from urllib.parse import urlsplit

from agc_ml.transports.replica_errors import ReplicaError, TransientError

# Seconds for which a replica that failed comes after those that did not.
REMEMBERED_S: Final = 60.0
# Seconds for which a server that missed the deadline of a read is not asked again.
GIVEN_UP_S: Final = 10.0

_lock: Final = threading.Lock()
_failure_times: dict[str, float] = {}
_given_up: dict[str, tuple[float, str]] = {}
_n_failures: Counter[str] = Counter()


def server(url: str) -> str:
    """Return scheme, host and port; for a file of this machine its path."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}" if host else url


def record_failure(url: str, error: ReplicaError) -> None:
    """Remember a failure: of the server, or of the replica alone if only this file is bad."""
    subject = server(url) if isinstance(error, TransientError) else url
    with _lock:
        _failure_times[subject] = time.monotonic()
        _n_failures[subject] += 1


def record_success(url: str) -> None:
    """Forget the failures of a replica and its server."""
    if _failure_times or _given_up:
        with _lock:
            for subject in (url, server(url)):
                _failure_times.pop(subject, None)
                _given_up.pop(subject, None)


def give_up(url: str, reason: str) -> None:
    """Remember that a server missed the deadline of a read."""
    with _lock:
        _given_up[server(url)] = time.monotonic(), reason


def n_failures(url: str) -> int:
    """Return how often a server failed since the process began."""
    return _n_failures[server(url)]


def by_reliability(urls: tuple[str, ...]) -> list[str]:
    """Sort replicas: those that failed lately come last, the latest failure at the very end."""
    now = time.monotonic()
    with _lock:
        times = {
            url: max(_failure_times.get(url, 0.0), _failure_times.get(server(url), 0.0))
            for url in urls
        }
    return sorted(urls, key=lambda url: times[url] if now - times[url] < REMEMBERED_S else 0)


def given_up_reason(url: str) -> str | None:
    """Return why a server was given up, if that was a moment ago."""
    since, reason = _given_up.get(server(url), (-GIVEN_UP_S, ""))
    return reason if time.monotonic() - since < GIVEN_UP_S else None


def is_on_probation(url: str) -> bool:
    """Return whether a server was given up, and has not answered since."""
    return server(url) in _given_up


def forget() -> None:
    """Forget everything, as a new process would."""
    with _lock:
        _failure_times.clear()
        _given_up.clear()
        _n_failures.clear()
