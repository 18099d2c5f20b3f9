"""Database of jobs, promotions and tokens in SQLite; every change is durable."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from agc_ml.errors import StoreError, TrainingError, printable
from agc_ml.training.job_spec import JobSpec

State = Literal["queued", "running", "publishing", "succeeded", "failed", "cancelled"]
ENDED: Final = ("succeeded", "failed", "cancelled")

_TABLES: Final = """
create table if not exists jobs (
    id text primary key, key text unique, spec text not null, owner text not null,
    state text not null, attempt integer not null default 0, cancel integer not null default 0,
    progress text not null default '{}', result text, error text, note text not null default '',
    created real not null, started real, ended real, changed real not null);
create index if not exists jobs_by_state on jobs (state, created);
create table if not exists promotions (
    number integer primary key, name text not null, version text not null, previous text not null,
    reason text not null, who text not null, at real not null, state text not null,
    is_rollback integer not null);
create table if not exists tokens (
    name text primary key, role text not null, sha256 text not null unique, created real not null,
    expires real);
"""


class Progress(BaseModel):
    """Progress of a job."""

    model_config = ConfigDict(frozen=True)
    done: int = 0
    total: int = 0
    message: str = ""


class Job(BaseModel):
    """A job and its state."""

    model_config = ConfigDict(frozen=True)

    id: str
    spec: JobSpec
    owner: str = Field(description="name of the token that submitted it")
    state: State
    attempt: int = Field(description="number of times its process was started")
    cancelled: bool = Field(description="true if it was cancelled")
    progress: Progress
    result: dict[str, Any] | None = Field(
        description="registered versions and quality, once it succeeded"
    )
    error: str | None = Field(description="reason of a failure")
    note: str = Field(description="reason why it waits")
    created: float = Field(description="seconds since 1970, UTC")
    started: float | None
    ended: float | None
    changed: float

    @property
    def is_over(self) -> bool:
        """True once it has succeeded, failed or been cancelled."""
        return self.state in ENDED


class Promotion(BaseModel):
    """A change of the champion."""

    model_config = ConfigDict(frozen=True)

    number: int
    name: str
    version: str
    previous: str = Field(description="previous champion, '' if there was none")
    reason: str = Field(description="why it was promoted although gates failed, '' if all passed")
    who: str
    at: float
    state: Literal["begun", "done"]
    is_rollback: bool = Field(description="true if a previous champion was restored")


class Token(BaseModel):
    """Name and role of a token; the token itself is not stored."""

    model_config = ConfigDict(frozen=True)

    name: str
    role: Literal["read", "train", "promote"]
    created: float
    expires: float | None


class Database:
    """The database of a training folder; threads take turns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        with self._errors():
            self._db = sqlite3.connect(
                path, timeout=30, isolation_level=None, check_same_thread=False
            )
            self._db.row_factory = sqlite3.Row
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=full")  # a machine that goes down loses no job
            self._db.executescript(_TABLES)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except sqlite3.Error as error:
            raise StoreError(
                f"{self._path}: can't be used ({_short(error)}); free space or permission "
                "there, or put back a copy"
            ) from error

    def _all(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._errors():
            return self._db.execute(query, values).fetchall()

    def _change(self, query: str, *values: Any) -> int:
        with self._errors():
            return self._db.execute(query, values).rowcount

    def submit(self, spec: JobSpec, owner: str, most_queued: int) -> tuple[Job, bool]:
        """Queue a job, or find the one with its idempotency key; return it and whether it is new.

        Raises
        ------
        TrainingError
            The queue is full, or the key belongs to a job with another specification.
        """
        key, now = spec.idempotency_key, time.time()
        with self._errors():
            self._db.execute("begin immediate")
            try:
                if key is not None and (earlier := self._by_key(key)) is not None:
                    if earlier.spec != spec:
                        raise TrainingError(
                            f"the idempotency key {key!r} belongs to job {earlier.id}, which has "
                            "another specification; use another key"
                        )
                    return earlier, False
                # in the same transaction, so that the queue keeps its limit
                queued = self._db.execute("select count(*) from jobs where state = 'queued'")
                if queued.fetchone()[0] >= most_queued:
                    raise QueueFullError(f"{most_queued} jobs are waiting already; submit it later")
                job_id = uuid.uuid4().hex[:12]
                self._db.execute(
                    "insert into jobs (id, key, spec, owner, state, created, changed)"
                    " values (?, ?, ?, ?, 'queued', ?, ?)",
                    (job_id, key, spec.model_dump_json(exclude_none=True), owner, now, now),
                )
            finally:
                self._db.execute("commit")
        return self.job(job_id), True

    def _by_key(self, key: str) -> Job | None:
        rows = self._db.execute("select * from jobs where key = ?", (key,)).fetchall()
        return _job(rows[0]) if rows else None

    def job(self, job_id: str) -> Job:
        """Return a job.

        Raises
        ------
        UnknownError
            There is no such job.
        """
        rows = self._all("select * from jobs where id = ?", job_id)
        if not rows:
            raise UnknownError(f"there is no job {job_id}; see 'agc-ml jobs list'")
        return _job(rows[0])

    def jobs(self, states: tuple[State, ...] = (), limit: int = 1000) -> list[Job]:
        """Return the newest ``limit`` jobs in some states, or in all; the oldest first."""
        where = f"where state in ({', '.join('?' * len(states))})" if states else ""
        rows = self._all(
            f"select * from jobs {where} order by created desc, rowid desc limit ?",  # noqa: S608 - question marks only
            *states,
            limit,
        )
        return [_job(row) for row in reversed(rows)]

    def queue(self, number: int) -> list[Job]:
        """Return at most ``number`` queued jobs, the oldest first."""
        rows = self._all(
            "select * from jobs where state = 'queued' order by created, rowid limit ?", number
        )
        return list(map(_job, rows))

    def changed(self, job_id: str) -> float:
        """Return the time of the last change of a job; 0 if there is no such job."""
        rows = self._all("select changed from jobs where id = ?", job_id)
        return float(rows[0]["changed"]) if rows else 0.0

    def counts(self) -> dict[str, int]:
        """Return the number of jobs in each state."""
        rows = self._all("select state, count(*) as n from jobs group by state")
        return {row["state"]: row["n"] for row in rows}

    def move(self, job: Job, to: State, **fields: Any) -> bool:
        """Change the state of a job, unless another thread did; return whether it was changed."""
        now = time.time()
        if to == "running":
            fields["started"] = now
        if to in ENDED:
            fields["ended"] = now
        return self._set(job.id, job.state, {"state": to, "changed": now, **fields})

    def note(self, job: Job, **fields: Any) -> None:
        """Change fields of a job, unless its state has changed."""
        self._set(job.id, job.state, {"changed": time.time(), **fields})

    def _set(self, job_id: str, state: str, fields: dict[str, Any]) -> bool:
        values = {
            name: json.dumps(value) if isinstance(value, dict) else value
            for name, value in fields.items()
        }
        columns = ", ".join(f"{name} = ?" for name in values)
        return (
            self._change(
                f"update jobs set {columns} where id = ? and state = ?",  # noqa: S608 - our own names
                *values.values(),
                job_id,
                state,
            )
            > 0
        )

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once if it is queued, else when its process has stopped.

        Raises
        ------
        UnknownError
            There is no such job.
        TrainingError
            It has ended, or is being registered.
        """
        job = self.job(job_id)
        # a queued job has no process
        if job.state == "queued" and self.move(job, "cancelled"):
            return self.job(job_id)
        if job.is_over or job.state == "publishing":
            raise TrainingError(f"job {job_id} is {job.state}: it can't be cancelled any more")
        self._set(job_id, job.state, {"cancel": 1, "changed": time.time()})
        return self.job(job_id)

    def begin_promotion(
        self, name: str, version: str, previous: str, reason: str, who: str, *, is_rollback: bool
    ) -> Promotion:
        """Note that the champion is about to change."""
        with self._errors():
            cursor = self._db.execute(
                "insert into promotions"
                " (name, version, previous, reason, who, at, state, is_rollback)"
                " values (?, ?, ?, ?, ?, ?, 'begun', ?)",
                (name, version, previous, reason, who, time.time(), is_rollback),
            )
        return self._promotions("number = ?", cursor.lastrowid)[0]

    def end_promotion(self, promotion: Promotion, *, happened: bool) -> None:
        """Note that the champion was changed; or delete the note if it was not."""
        if happened:
            self._change("update promotions set state = 'done' where number = ?", promotion.number)
        else:
            self._change("delete from promotions where number = ?", promotion.number)

    def promotions(self, name: str) -> list[Promotion]:
        """Return all changes of a champion, the oldest first."""
        return self._promotions("name = ? and state = 'done'", name)

    def unfinished_promotions(self) -> list[Promotion]:
        """Return promotions that were begun and not ended, by a process that died."""
        return self._promotions("state = 'begun'")

    def _promotions(self, where: str, *values: Any) -> list[Promotion]:
        rows = self._all(f"select * from promotions where {where} order by number", *values)  # noqa: S608 - our own conditions
        return [Promotion.model_validate(dict(row)) for row in rows]

    def add_token(self, token: Token, sha256: str) -> None:
        """Store the digest of a token.

        Raises
        ------
        TrainingError
            A token has this name already.
        """
        if self._all("select 1 from tokens where name = ?", token.name):
            raise TrainingError(f"there is a token {token.name!r}; revoke it, or name it otherwise")
        self._change(
            "insert into tokens (name, role, sha256, created, expires) values (?, ?, ?, ?, ?)",
            token.name,
            token.role,
            sha256,
            token.created,
            token.expires,
        )

    def revoke_token(self, name: str) -> None:
        """Delete a token.

        Raises
        ------
        UnknownError
            There is no such job.
        """
        if not self._change("delete from tokens where name = ?", name):
            raise UnknownError(f"there is no token {name!r}; see 'agc-ml service token list'")

    def tokens(self) -> list[Token]:
        """Return the records of all tokens."""
        rows = self._all("select name, role, created, expires from tokens order by created")
        return [Token.model_validate(dict(row)) for row in rows]

    def token_of(self, sha256: str) -> Token | None:
        """Return the token of a digest."""
        rows = self._all("select name, role, created, expires from tokens where sha256 = ?", sha256)
        return Token.model_validate(dict(rows[0])) if rows else None


def _short(error: Exception) -> str:
    """Return an error of the database in one line; it may quote content."""
    return printable(" ".join(str(error).split())[:200])


class UnknownError(TrainingError):
    """Nothing has this name."""


class QueueFullError(TrainingError):
    """The queue is full."""


def _job(row: sqlite3.Row) -> Job:
    fields = dict(row)
    fields["cancelled"] = fields.pop("cancel")
    for name in ("spec", "progress", "result"):
        fields[name] = None if fields[name] is None else json.loads(fields[name])
    return Job.model_validate(fields)
