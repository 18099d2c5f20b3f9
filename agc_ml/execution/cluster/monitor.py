"""Monitor of a cluster whose results are awaited.

If nothing finishes for a minute, a line says why. Jobs of a worker that does not answer are taken
from it. If no responding worker has a job, the run stops after a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agc_ml.errors import WaitError

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 600.0
"""Default wait for a cluster in which no responding worker has a job."""

NO_WORKERS_S: Final = 300.0
"""The same for a cluster that never had a worker."""

CHECK_S: Final = 15.0
REPORT_S: Final = 60.0
SILENT_S: Final = 45.0
"""Time without a heartbeat after which a worker is asked."""

ANSWER_S: Final = 10.0
"""Time for a worker, or the scheduler, to answer."""

TAKINGS: Final = 2
"""Number of times that a job is taken from silent workers; the job may be the cause."""

_RESTART_S: Final = 20.0
"""A nanny gives a worker 4 s to end, then kills it. A scheduler that does not wait so long asks the
worker to close, and one that wakes up just then would stop its nanny as well."""

_CLOCK_S: Final = 2.0
_MOST_ASKED: Final = 20
_MOST_NAMED: Final = 3
_TWO_MINUTES: Final = 120


@dataclass
class _Worker:
    """Last heartbeat of a worker, by its own clock, and the time at which that changed.

    ``is_reported``: a line has said that it is silent, and left to the scheduler.
    """

    heartbeat: float
    changed: float
    is_reported: bool = False


@dataclass
class ClusterMonitor:
    """State of a cluster that works on the jobs of a round.

    Attributes
    ----------
    jobs
        Names of the jobs by key.
    patience
        Seconds after which it gives up, None for the default.
    alone
        The round is one job that killed workers before: it is not taken from a worker.
    any_worker
        There is, or was, a worker.
    fetching
        Number of results that are being fetched.
    taken
        Number of times that each job was taken from a silent worker.
    """

    client: Client
    jobs: Mapping[str, str]
    patience: float | None = None
    alone: bool = False
    any_worker: bool = False
    fetching: int = 0
    taken: Counter[str] = field(default_factory=Counter)
    _workers: dict[str, _Worker] = field(default_factory=dict)
    _at_work_since: dict[tuple[str, str], float] = field(default_factory=dict)
    _processing: Mapping[str, list[str]] = field(default_factory=dict)
    _stuck_until: float = 0.0

    def __post_init__(self) -> None:
        now = time.monotonic()
        self._progress = self._busy = self._answered = self._checked = self._reported = now
        self._clock = time.time() - now
        self._state = ""

    def note_progress(self) -> None:
        """Note that something finished."""
        self._progress = self._busy = time.monotonic()

    def check(self, pending: Collection[str]) -> set[str]:
        """Check the cluster from time to time; return the keys of jobs to give up.

        Raises
        ------
        WaitError
            Nothing progressed for longer than ``patience``.
        OSError
            The scheduler is gone.
        """
        now = time.monotonic()
        if now - self._checked < CHECK_S:
            return set()
        self._checked = now
        self._check_clock(now)
        given_up: set[str] = set()
        try:
            info = self._ask(lambda: self.client.scheduler.identity(n_workers=-1))
            self._processing = self._ask(self.client.scheduler.processing)
        except TimeoutError:
            silent = time.monotonic() - self._answered
            scheduler = self.client.scheduler.address
            self._state = f"the scheduler {scheduler} has not answered for {silent:.0f} s"
        else:
            self._answered = time.monotonic()
            ours = {
                worker: [key for key in keys if key in pending]
                for worker, keys in self._processing.items()
            }
            given_up = self._check_workers(info["workers"], ours)
            self._state = self._describe(ours, len(pending))
        self._report()
        return given_up

    def _check_workers(
        self, workers: Mapping[str, Mapping[str, Any]], ours: Mapping[str, list[str]]
    ) -> set[str]:
        """Update the heartbeats of workers, and take jobs from those that do not answer."""
        now = time.monotonic()
        self.any_worker |= bool(workers)
        for address, about in workers.items():
            heartbeat = float(about["last_seen"])
            worker = self._workers.setdefault(address, _Worker(heartbeat, now))
            if worker.heartbeat != heartbeat:
                worker.heartbeat, worker.changed, worker.is_reported = heartbeat, now, False
        self._workers = {address: self._workers[address] for address in workers}
        at_work = {(address, key) for address, keys in ours.items() for key in keys}
        self._at_work_since = {pair: self._at_work_since.get(pair, now) for pair in at_work}
        suspects = [
            address
            for address, worker in self._workers.items()
            if now - worker.changed > SILENT_S and self._holds_up(address, ours)
        ]
        given_up: set[str] = set()
        for address in self._unanswering(suspects[:_MOST_ASKED]):
            given_up |= self._take_from(address, ours.get(address, []))
        is_at_work = any(keys and not self._is_silent(address) for address, keys in ours.items())
        holders_answer = self.fetching and not any(map(self._is_silent, self._workers))
        if (is_at_work or holders_answer) and now > self._stuck_until:
            self._busy = now
        return given_up

    def _holds_up(self, address: str, ours: Mapping[str, list[str]]) -> bool:
        """Return whether a worker has a job of this round, or the result of one."""
        if ours.get(address):
            return True
        with contextlib.suppress(TimeoutError, OSError):
            held = self._ask(lambda: self.client.scheduler.has_what(workers=[address]))
            return any(key in self.jobs for keys in held.values() for key in keys)
        return False

    def _is_silent(self, address: str) -> bool:
        worker = self._workers.get(address)
        return worker is None or time.monotonic() - worker.changed > SILENT_S

    def _unanswering(self, addresses: Collection[str]) -> list[str]:
        """Workers that do not answer: without a heartbeat a clock may only be set back."""
        if not addresses:
            return []
        answers = self.client.sync(_ask_workers, self.client, addresses)
        now = time.monotonic()
        for address in addresses:
            if address in answers and address in self._workers:
                self._workers[address].changed = now
        return [address for address in addresses if address not in answers]

    def _take_from(self, address: str, keys: Collection[str]) -> set[str]:
        """Take jobs from a silent worker; return those that were taken too often.

        Only jobs that began before it fell silent count, as others are not the cause.
        """
        worker = self._workers[address]
        answered_until = worker.changed + SILENT_S / 2
        begun = [key for key in keys if self._at_work_since[address, key] < answered_until]
        if begun and (self.alone or all(self.taken[key] >= TAKINGS for key in begun)):
            return set()
        named = _first_names([self.jobs[key] for key in keys]) or "results"
        silence = time.monotonic() - worker.changed
        if worker.is_reported or (self._scheduler_removes_silent() and self._is_shared(address)):
            if not worker.is_reported:
                logger.warning(
                    "worker %s has not answered for %.0f s, and has other work, too: the scheduler "
                    "(worker-ttl) decides about its jobs of this run: %s",
                    address,
                    silence,
                    named,
                )
            worker.is_reported = True
            return set()
        self.taken.update(begun)
        logger.warning(
            "worker %s has not answered for %.0f s; its jobs go to another one: %s",
            address,
            silence,
            named,
        )
        with contextlib.suppress(TimeoutError):
            self._ask(
                lambda: self.client.scheduler.restart_workers(
                    workers=[address],
                    timeout=_RESTART_S,
                    wait_for_workers=False,
                    on_error="return",
                    stimulus_id=f"agc-ml-silent-{time.time()}",
                ),
                timeout=_RESTART_S + ANSWER_S,
            )
        return {key for key in begun if self.taken[key] >= TAKINGS}

    def _scheduler_removes_silent(self) -> bool:
        """Return whether the scheduler removes silent workers; assumed of one elsewhere."""
        scheduler = getattr(getattr(self.client, "cluster", None), "scheduler", None)
        return bool(getattr(scheduler, "worker_ttl", True))

    def _is_shared(self, address: str) -> bool:
        """Return whether a worker has jobs or results of other rounds or clients."""
        with contextlib.suppress(TimeoutError, OSError):
            held = self._ask(lambda: self.client.scheduler.has_what(workers=[address]))
            keys = [*self._processing.get(address, ()), *held.get(address, ())]
            return any(key not in self.jobs for key in keys)
        return True

    def _describe(self, ours: Mapping[str, list[str]], n_pending: int) -> str:
        """Describe the pending jobs and their workers."""
        now = time.monotonic()
        if not self._workers:
            return "the cluster has no workers" + ("" if self.any_worker else " yet")
        silent = [address for address, keys in ours.items() if keys and self._is_silent(address)]
        parts = []
        if silent:
            n = f"{len(silent)} workers do" if len(silent) > 1 else "1 worker does"
            parts.append(f"{n} not answer ({_first_names(silent)})")
        at_work = sorted(
            (since, address, key)
            for (address, key), since in self._at_work_since.items()
            if address not in silent
        )
        if at_work:
            jobs = [f"{self.jobs[key]} for {now - t:.0f} s on {where}" for t, where, key in at_work]
            parts.append(_first_names(jobs))
        if self.fetching:
            parts.append(f"{self.fetching} results are being fetched")
        waiting = n_pending - len(self._at_work_since) - self.fetching
        if waiting > 0:
            parts.append(f"{waiting} {'more wait' if parts else 'wait, and no worker takes any'}")
        return "; ".join(parts)

    def _report(self) -> None:
        """Log what is pending, once a minute, and stop when ``patience`` is over."""
        now = time.monotonic()
        limit = PATIENCE_S if self.patience is None else self.patience
        if self.patience is None and not self.any_worker:
            limit = NO_WORKERS_S
        idle, left = now - self._busy, limit - (now - self._busy)
        if left <= 0:
            raise WaitError(
                f"nothing has finished for {_minutes(now - self._progress)}, and no responding "
                f"worker has had a job for {_minutes(idle)}: {self._state}"
            )
        if now - max(self._progress, self._reported) < REPORT_S:
            return
        self._reported = now
        ends = f"; it ends in {_minutes(left)}" if idle > CHECK_S and left < float("inf") else ""
        logger.warning(
            "nothing has finished for %s: %s%s", _minutes(now - self._progress), self._state, ends
        )

    def _check_clock(self, now: float) -> None:
        """Warn if the clock was set back.

        Until it has caught up, Dask's processes answer, but send no results.
        """
        clock = time.time() - now
        if clock < self._clock - _CLOCK_S:
            self._stuck_until = now + self._clock - clock
            logger.warning(
                "the clock of this machine was set back by %.0f s, and for that time Dask's "
                "processes may send nothing; if nothing progresses, stop the run (Ctrl-C) and use "
                "--resume",
                self._clock - clock,
            )
        self._clock = clock

    def _ask(self, question: Callable[[], Awaitable[Any]], timeout: float | None = None) -> Any:
        """Ask the scheduler.

        Raises
        ------
        TimeoutError
            It does not answer.
        """
        return self.client.sync(question, callback_timeout=timeout or ANSWER_S)


async def _ask_workers(client: Client, addresses: Collection[str]) -> set[str]:
    """Return the addresses of the workers that answer."""

    async def ask(address: str) -> str | None:
        message = {"op": "identity"}
        with contextlib.suppress(TimeoutError, OSError):
            answer = client.scheduler.broadcast(msg=message, workers=[address], on_error="ignore")
            return address if await asyncio.wait_for(answer, ANSWER_S) else None
        return None

    answers = await asyncio.gather(*(ask(address) for address in addresses))
    return {answer for answer in answers if answer is not None}


def _first_names(names: Collection[str]) -> str:
    more = f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(list(names)[:_MOST_NAMED]) + more


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < _TWO_MINUTES else f"{seconds / 60:.0f} min"
