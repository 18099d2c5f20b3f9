"""Looking at a cluster while its results are awaited: what it waits for, and for how long.

Nothing is waited for in silence, nor for ever. Where nothing finishes for a minute, a line says
why. What is on a worker that does not answer is taken away from it. And where no worker that
answers is at work on anything, it ends after a while.
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
"""How long a cluster is waited for of which no worker that answers is at work, by default."""

NO_WORKERS_S: Final = 300.0
"""The same of a cluster of which no worker was ever seen."""

LOOK_S: Final = 15.0
TELL_S: Final = 60.0
SILENT_S: Final = 45.0
"""After so long without a heartbeat a worker is asked whether it is there."""

ANSWER_S: Final = 10.0
"""So long it may take to answer; and a scheduler."""

TAKINGS: Final = 2
"""So often a job is taken from a worker that does not answer; it may be the job's own doing."""

_RESTART_S: Final = 20.0
"""A nanny gives a worker 4 s to end, then kills it. If the scheduler did not wait so long, it would
tell the worker to close, and one that wakes up just then would take its nanny with it."""

_CLOCK_S: Final = 2.0
_ASKED: Final = 20
_NAMED: Final = 3
_TWO_MINUTES: Final = 120


@dataclass
class _Seen:
    """A worker: its last heartbeat, by its own count, and when that was another one before.

    ``is_told``: that it is silent since then, and left to the scheduler.
    """

    heartbeat: float
    changed: float
    is_told: bool = False


@dataclass
class Watch:
    """What is known of a cluster that works on jobs of ours.

    ``jobs`` are their names by key. ``alone``: of a job that was taken away before, and stays where
    it is now. ``patience`` in seconds, None for the default. ``any_worker``: there was one before.
    ``fetching``: so many results are on their way.
    """

    client: Client
    jobs: Mapping[str, str]
    patience: float | None = None
    alone: bool = False
    any_worker: bool = False
    fetching: int = 0
    taken: Counter[str] = field(default_factory=Counter)
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _begun: dict[tuple[str, str], float] = field(default_factory=dict)
    _processing: Mapping[str, list[str]] = field(default_factory=dict)
    _stuck_until: float = 0.0

    def __post_init__(self) -> None:
        now = time.monotonic()
        self._progress = self._busy = self._answered = self._looked = self._told = now
        self._clock = time.time() - now
        self._state = ""

    def moved(self) -> None:
        """Note that something finished."""
        self._progress = self._busy = time.monotonic()

    def look(self, pending: Collection[str]) -> set[str]:
        """Look at the cluster from time to time; returns keys of jobs to be given up.

        Raises
        ------
        WaitError
            It took longer than there is patience for.
        OSError
            The scheduler is gone.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return set()
        self._looked = now
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
            given_up = self._look_at(info["workers"], ours)
            self._state = self._described(ours, len(pending))
        self._tell()
        return given_up

    def _look_at(
        self, workers: Mapping[str, Mapping[str, Any]], ours: Mapping[str, list[str]]
    ) -> set[str]:
        """See which workers are there, and take jobs from those that do not answer."""
        now = time.monotonic()
        self.any_worker |= bool(workers)
        for address, about in workers.items():
            heartbeat = float(about["last_seen"])
            seen = self._seen.setdefault(address, _Seen(heartbeat, now))
            if seen.heartbeat != heartbeat:
                seen.heartbeat, seen.changed, seen.is_told = heartbeat, now, False
        self._seen = {address: self._seen[address] for address in workers}
        at_work = {(worker, key) for worker, keys in ours.items() for key in keys}
        self._begun = {pair: self._begun.get(pair, now) for pair in at_work}
        suspects = [
            address
            for address, seen in self._seen.items()
            if now - seen.changed > SILENT_S and self._has_something(address, ours)
        ]
        given_up: set[str] = set()
        for address in self._unanswering(suspects[:_ASKED]):
            given_up |= self._take_from(address, ours.get(address, []))
        is_at_work = any(keys and not self._is_silent(one) for one, keys in ours.items())
        holders_answer = self.fetching and not any(map(self._is_silent, self._seen))
        if (is_at_work or holders_answer) and now > self._stuck_until:
            self._busy = now
        return given_up

    def _has_something(self, address: str, ours: Mapping[str, list[str]]) -> bool:
        """Return whether a worker holds us up: it has a job of ours, or the result of one."""
        if ours.get(address):
            return True
        with contextlib.suppress(TimeoutError, OSError):
            held = self._ask(lambda: self.client.scheduler.has_what(workers=[address]))
            return any(key in self.jobs for keys in held.values() for key in keys)
        return False

    def _is_silent(self, address: str) -> bool:
        seen = self._seen.get(address)
        return seen is None or time.monotonic() - seen.changed > SILENT_S

    def _unanswering(self, addresses: Collection[str]) -> list[str]:
        """Workers without heartbeats that do not answer either: a clock may only be set back."""
        if not addresses:
            return []
        answers = self.client.sync(_asked, self.client, addresses)
        now = time.monotonic()
        for address in addresses:
            if address in answers and address in self._seen:
                self._seen[address].changed = now
        return [address for address in addresses if address not in answers]

    def _take_from(self, address: str, keys: Collection[str]) -> set[str]:
        """Take jobs from a worker, if it was there when it got them; returns those to be given up.

        One that got silent before is to blame, and no job. What was given up stays where it is.
        """
        seen = self._seen[address]
        begun = [key for key in keys if self._begun[address, key] < seen.changed + SILENT_S / 2]
        if begun and (self.alone or all(self.taken[key] >= TAKINGS for key in begun)):
            return set()
        named = _some([self.jobs[key] for key in keys]) or "results"
        if seen.is_told or (self._is_let_go_by_scheduler() and self._is_shared(address)):
            if not seen.is_told:
                logger.warning(
                    "worker %s has not answered for %.0f s, and has something else, too: it is "
                    "left to the scheduler (worker-ttl) with what it has of this run: %s",
                    *(address, time.monotonic() - seen.changed, named),
                )
            seen.is_told = True
            return set()
        self.taken.update(begun)
        logger.warning(
            "worker %s has not answered for %.0f s; what it has goes to another one: %s",
            *(address, time.monotonic() - seen.changed, named),
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

    def _is_let_go_by_scheduler(self) -> bool:
        """Return whether the scheduler removes silent workers; one elsewhere is taken to do so."""
        scheduler = getattr(getattr(self.client, "cluster", None), "scheduler", None)
        return bool(getattr(scheduler, "worker_ttl", True))

    def _is_shared(self, address: str) -> bool:
        """Return whether a worker has jobs or results that are not of this round."""
        with contextlib.suppress(TimeoutError, OSError):
            held = self._ask(lambda: self.client.scheduler.has_what(workers=[address]))
            keys = [*self._processing.get(address, ()), *held.get(address, ())]
            return any(key not in self.jobs for key in keys)
        return True

    def _described(self, ours: Mapping[str, list[str]], n_pending: int) -> str:
        """Describe the jobs and workers that are waited for."""
        now = time.monotonic()
        if not self._seen:
            return "the cluster has no workers" + ("" if self.any_worker else " yet")
        silent = [address for address, keys in ours.items() if keys and self._is_silent(address)]
        parts = []
        if silent:
            n = f"{len(silent)} workers do" if len(silent) > 1 else "1 worker does"
            parts.append(f"{n} not answer ({_some(silent)})")
        at_work = sorted(
            ((now - since, worker, key) for (worker, key), since in self._begun.items()
             if worker not in silent), reverse=True
        )  # fmt: skip
        parts += [_some([f"{self.jobs[k]} for {s:.0f} s on {w}" for s, w, k in at_work])] * bool(
            at_work
        )
        if self.fetching:
            parts.append(f"{self.fetching} results are being fetched")
        waiting = n_pending - len(self._begun) - self.fetching
        if waiting > 0:
            what = "more wait" if parts else "wait, and no worker takes any"
            parts.append(f"{waiting} {what}")
        return "; ".join(parts)

    def _tell(self) -> None:
        """Say what is waited for, once a minute, and stop where there is no patience left."""
        now = time.monotonic()
        limit = PATIENCE_S if self.patience is None else self.patience
        if self.patience is None and not self.any_worker:
            limit = NO_WORKERS_S
        idle, left = now - self._busy, limit - (now - self._busy)
        if left <= 0:
            raise WaitError(
                f"nothing has finished for {_minutes(now - self._progress)}, and no worker that "
                f"answers has been at work for {_minutes(idle)}: {self._state}"
            )
        if now - max(self._progress, self._told) < TELL_S:
            return
        self._told = now
        ends = f"; it ends in {_minutes(left)}" if idle > LOOK_S and left < float("inf") else ""
        logger.warning(
            "nothing has finished for %s: %s%s", _minutes(now - self._progress), self._state, ends
        )

    def _check_clock(self, now: float) -> None:
        """Say that the clock was set back.

        Dask's processes wait then until it is what it was: they answer, and send no results.
        """
        clock = time.time() - now
        if clock < self._clock - _CLOCK_S:
            self._stuck_until = now + self._clock - clock
            logger.warning(
                "the clock of this machine was set back by %.0f s, and for as long Dask's "
                "processes may send each other nothing; if nothing goes on, stop it (Ctrl-C) and "
                "use --resume",
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


async def _asked(client: Client, addresses: Collection[str]) -> set[str]:
    """Addresses of the workers that answer, of those that are asked."""

    async def ask(address: str) -> str | None:
        message = {"op": "identity"}
        with contextlib.suppress(TimeoutError, OSError):
            answer = client.scheduler.broadcast(msg=message, workers=[address], on_error="ignore")
            return address if await asyncio.wait_for(answer, ANSWER_S) else None
        return None

    answers = await asyncio.gather(*(ask(address) for address in addresses))
    return {answer for answer in answers if answer is not None}


def _some(names: Collection[str]) -> str:
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(list(names)[:_NAMED]) + more


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < _TWO_MINUTES else f"{seconds / 60:.0f} min"
