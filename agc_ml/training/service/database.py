"""Jobs, promotions and tokens, in SQLite: what is written here survives any death."""

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
    """How far a job is."""

    model_config = ConfigDict(frozen=True)
    done: int = 0
    total: int = 0
    message: str = ""


class Job(BaseModel):
    """A job as it stands."""

    model_config = ConfigDict(frozen=True)

    id: str
    spec: JobSpec
    owner: str = Field(description="name of the token that submitted it")
    state: State
    attempt: int = Field(description="how often its process was started")
    cancelled: bool = Field(description="whether it was asked to stop")
    progress: Progress
    result: dict[str, Any] | None = Field(description="versions and numbers, once it succeeded")
    error: str | None = Field(description="why it failed")
    note: str = Field(description="what it waits for")
    created: float = Field(description="seconds since 1970, UTC")
    started: float | None
    ended: float | None
    changed: float

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ENDED


class Promotion(BaseModel):
    """A change of the champion; ``reason`` says why gates were passed over, '' if they passed."""

    model_config = ConfigDict(frozen=True)

    number: int
    name: str
    version: str
    previous: str = Field(description="champion before, '' if there was none")
    reason: str
    who: str
    at: float
    state: Literal["begun", "done"]
    is_rollback: bool = Field(description="whether it went back to a champion before")


class Token(BaseModel):
    """Who may do what; the token itself is not kept."""

    model_config = ConfigDict(frozen=True)

    name: str
    role: Literal["read", "train", "promote"]
    created: float
    expires: float | None


class Table:
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
        """Take a job on; of a key that was used before, the first job. Whether it is new.

        Raises
        ------
        TrainingError
            The queue is full, or the key was used for something else.
        """
        key, now = spec.idempotency_key, time.time()
        with self._errors():
            self._db.execute("begin immediate")
            try:
                if key is not None and (known := self._by_key(key)) is not None:
                    if known.spec != spec:
                        raise TrainingError(
                            f"the idempotency key {key!r} belongs to job {known.id}, which does "
                            "something else; use another key"
                        )
                    return known, False
                queued = self._db.execute("select count(*) from jobs where state = 'queued'")
                if queued.fetchone()[0] >= most_queued:
                    raise QueueFullError(f"{most_queued} jobs are waiting already; submit it later")
                identity = uuid.uuid4().hex[:12]
                self._db.execute(
                    "insert into jobs (id, key, spec, owner, state, created, changed)"
                    " values (?, ?, ?, ?, 'queued', ?, ?)",
                    (identity, key, spec.model_dump_json(exclude_none=True), owner, now, now),
                )
            finally:
                self._db.execute("commit")
        return self.job(identity), True

    def _by_key(self, key: str) -> Job | None:
        rows = self._db.execute("select * from jobs where key = ?", (key,)).fetchall()
        return _job(rows[0]) if rows else None

    def job(self, identity: str) -> Job:
        """A job.

        Raises
        ------
        UnknownError
            There is none of this name.
        """
        rows = self._all("select * from jobs where id = ?", identity)
        if not rows:
            raise UnknownError(f"there is no job {identity}; see 'agc-ml jobs list'")
        return _job(rows[0])

    def jobs(self, states: tuple[State, ...] = (), limit: int = 1000) -> list[Job]:
        """Jobs, the oldest first; all, or those in some states. The newest ``limit`` of them."""
        where = f"where state in ({', '.join('?' * len(states))})" if states else ""
        rows = self._all(
            f"select * from jobs {where} order by created desc, rowid desc limit ?",  # noqa: S608 - question marks only
            *states,
            limit,
        )
        return [_job(row) for row in reversed(rows)]

    def queue(self, number: int) -> list[Job]:
        """Queued jobs, the oldest first, at most ``number``."""
        rows = self._all(
            "select * from jobs where state = 'queued' order by created, rowid limit ?", number
        )
        return list(map(_job, rows))

    def changed(self, identity: str) -> float:
        """Time of the last change of a job; 0 if there is none of this name."""
        rows = self._all("select changed from jobs where id = ?", identity)
        return float(rows[0]["changed"]) if rows else 0.0

    def counts(self) -> dict[str, int]:
        """Number of jobs in each state."""
        rows = self._all("select state, count(*) as n from jobs group by state")
        return {row["state"]: row["n"] for row in rows}

    def move(self, job: Job, to: State, **fields: Any) -> bool:
        """Change the state of a job, unless it is in another one by now; whether it was changed."""
        now = time.time()
        if to == "running":
            fields["started"] = now
        if to in ENDED:
            fields["ended"] = now
        return self._set(job.id, job.state, {"state": to, "changed": now, **fields})

    def note(self, job: Job, **fields: Any) -> None:
        """Change what is known of a job, if it is in the same state still."""
        self._set(job.id, job.state, {"changed": time.time(), **fields})

    def _set(self, identity: str, state: str, fields: dict[str, Any]) -> bool:
        values = {
            name: json.dumps(value) if isinstance(value, dict) else value
            for name, value in fields.items()
        }
        columns = ", ".join(f"{name} = ?" for name in values)
        return (
            self._change(
                f"update jobs set {columns} where id = ? and state = ?",  # noqa: S608 - our own names
                *values.values(),
                identity,
                state,
            )
            > 0
        )

    def cancel(self, identity: str) -> Job:
        """Ask a job to stop; one that waits is cancelled at once.

        Raises
        ------
        UnknownError
            There is none of this name.
        TrainingError
            It is over, or is being registered.
        """
        job = self.job(identity)
        if job.state == "queued" and self.move(job, "cancelled"):
            return self.job(identity)
        if job.is_over or job.state == "publishing":
            raise TrainingError(f"job {identity} is {job.state}: it can't be cancelled any more")
        self._set(identity, job.state, {"cancel": 1, "changed": time.time()})
        return self.job(identity)

    def begin_promotion(
        self, name: str, version: str, previous: str, reason: str, who: str, *, is_rollback: bool
    ) -> Promotion:
        """Note that a champion is about to be changed."""
        now = time.time()
        with self._errors():
            cursor = self._db.execute(
                "insert into promotions"
                " (name, version, previous, reason, who, at, state, is_rollback)"
                " values (?, ?, ?, ?, ?, ?, 'begun', ?)",
                (name, version, previous, reason, who, now, is_rollback),
            )
        return self._promotions("number = ?", cursor.lastrowid)[0]

    def end_promotion(self, promotion: Promotion, *, happened: bool) -> None:
        """Note that it was changed, or forget that it was to be."""
        if happened:
            self._change("update promotions set state = 'done' where number = ?", promotion.number)
        else:
            self._change("delete from promotions where number = ?", promotion.number)

    def promotions(self, name: str) -> list[Promotion]:
        """Changes of a champion, the oldest first."""
        return self._promotions("name = ? and state = 'done'", name)

    def unfinished_promotions(self) -> list[Promotion]:
        """Those that were begun by someone who died, perhaps."""
        return self._promotions("state = 'begun'")

    def _promotions(self, where: str, *values: Any) -> list[Promotion]:
        rows = self._all(f"select * from promotions where {where} order by number", *values)  # noqa: S608 - our own conditions
        return [Promotion.model_validate(dict(row)) for row in rows]

    def add_token(self, token: Token, sha256: str) -> None:
        """Keep a token's digest.

        Raises
        ------
        TrainingError
            There is one of this name.
        """
        if self._all("select 1 from tokens where name = ?", token.name):
            raise TrainingError(f"there is a token {token.name!r}; revoke it, or name it otherwise")
        self._change(
            "insert into tokens (name, role, sha256, created, expires) values (?, ?, ?, ?, ?)",
            *(token.name, token.role, sha256, token.created, token.expires),
        )

    def revoke_token(self, name: str) -> None:
        """Forget a token.

        Raises
        ------
        UnknownError
            There is none of this name.
        """
        if not self._change("delete from tokens where name = ?", name):
            raise UnknownError(f"there is no token {name!r}; see 'agc-ml service token list'")

    def tokens(self) -> list[Token]:
        """All tokens, without themselves."""
        rows = self._all("select name, role, created, expires from tokens order by created")
        return [Token.model_validate(dict(row)) for row in rows]

    def token_of(self, sha256: str) -> Token | None:
        """The token of a digest."""
        rows = self._all("select name, role, created, expires from tokens where sha256 = ?", sha256)
        return Token.model_validate(dict(rows[0])) if rows else None


def _short(error: Exception) -> str:
    """Shorten an error of the database, which may quote its content."""
    return printable(" ".join(str(error).split())[:200])


class UnknownError(TrainingError):
    """There is nothing of this name."""


class QueueFullError(TrainingError):
    """Too much is waiting already."""


def _job(row: sqlite3.Row) -> Job:
    return Job(
        id=row["id"],
        spec=JobSpec.model_validate_json(row["spec"]),
        owner=row["owner"],
        state=row["state"],
        attempt=row["attempt"],
        cancelled=bool(row["cancel"]),
        progress=Progress.model_validate_json(row["progress"]),
        result=None if row["result"] is None else json.loads(row["result"]),
        error=row["error"],
        note=row["note"],
        created=row["created"],
        started=row["started"],
        ended=row["ended"],
        changed=row["changed"],
    )
