"""What the endpoint knows, in SQLite: requests, their files, what became of each.

A killed endpoint that starts again on the same folder finds what is not finished.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from agc_ml.servicex_endpoint.requests import Request

Status = Literal["Running", "Complete", "Canceled"]

_SCHEMA: Final = """
create table if not exists requests (
  number integer primary key,
  id text not null unique,
  body text not null,
  program text not null,
  status text not null,
  submitted text not null,
  finished text
);
create table if not exists files (
  number integer primary key,
  request text not null references requests (id) on delete cascade,
  path text not null,
  status text not null default 'pending',
  object text,
  bytes integer not null default 0,
  events integer not null default 0,
  error text,
  created text
);
create index if not exists files_of_request on files (request, status);
create index if not exists files_to_do on files (number) where status = 'pending';
create index if not exists files_by_time on files (created);
"""
_ONE_TICK: Final = timedelta(microseconds=1)


class Job(NamedTuple):
    """One input of a request that is to be transformed."""

    number: int
    request_id: str
    path: str
    request: Request
    program: str


class Outcome(NamedTuple):
    """What became of a job: an object, or the reason why there is none."""

    object_name: str | None = None
    size: int = 0
    events: int = 0
    error: str | None = None


class Known(NamedTuple):
    """A request as it stands; times are in UTC, in ISO 8601."""

    number: int
    id: str
    request: Request
    status: Status
    submitted: str
    finished: str | None
    completed: int
    failed: int


class Result(NamedTuple):
    """A file that is done with."""

    path: str
    status: Literal["success", "failure"]
    object_name: str | None
    size: int
    events: int
    error: str | None
    created: str


class State:
    """The requests of an endpoint; for one thread."""

    def __init__(self, file: Path) -> None:
        self._db = sqlite3.connect(file)
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma foreign_keys = on")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    def add(self, request: Request, program: str) -> str:
        """Take a request on; its id comes back."""
        request_id = str(uuid.uuid4())
        body = request.model_dump_json(by_alias=True)
        with self._db:
            self._db.execute(
                "insert into requests (id, body, program, status, submitted)"
                " values (?, ?, ?, 'Running', ?)",
                (request_id, body, program, _text(datetime.now(UTC))),
            )
            self._db.executemany(
                "insert into files (request, path) values (?, ?)",
                [(request_id, path) for path in request.files],
            )
        return request_id

    def ids(self) -> list[str]:
        """All requests in the order in which they came."""
        return [found for (found,) in self._db.execute("select id from requests order by number")]

    def request(self, request_id: str) -> Known | None:
        """The request with this id, if there is."""
        rows = self._db.execute(
            "select r.number, r.id, r.body, r.status, r.submitted, r.finished,"
            " coalesce(sum(f.status = 'success'), 0), coalesce(sum(f.status = 'failure'), 0)"
            " from requests r left join files f on f.request = r.id"
            " where r.id = ? group by r.number",
            (request_id,),
        )
        for number, id_, body, *rest in rows:
            return Known(number, id_, Request.model_validate_json(body), *rest)
        return None

    def next_job(self, busy: Iterable[int]) -> Job | None:
        """The first file of running requests that nobody is at work on."""
        taken = set(busy)
        rows = self._db.execute(
            "select f.number, f.request, f.path, r.body, r.program"
            " from files f join requests r on r.id = f.request"
            " where f.status = 'pending' and r.status = 'Running' order by f.number limit ?",
            (len(taken) + 1,),
        )
        for number, request_id, path, body, program in rows:
            if number not in taken:
                return Job(number, request_id, path, Request.model_validate_json(body), program)
        return None

    def record(self, job: Job, outcome: Outcome) -> bool:
        """Note what became of a job; whether its request is finished by that.

        Clients ask for what came after the newest that they have, so that no two results may have
        the same time, and none an earlier one than those before it, whatever the clock does.
        """
        with self._db:
            newest = self._one("select max(created) from files")
            now = datetime.now(UTC)
            if newest is not None:
                now = max(now, datetime.fromisoformat(newest) + _ONE_TICK)
            self._db.execute(
                "update files set status = ?, object = ?, bytes = ?, events = ?, error = ?,"
                " created = ? where number = ?",
                ("failure" if outcome.error else "success", *outcome, _text(now), job.number),
            )
            left = self._one(
                "select count(*) from files where request = ? and status = 'pending'",
                job.request_id,
            )
            if not left:
                self._finish(job.request_id, "Complete")
        return not left

    def results(self, request_id: str, later_than: datetime) -> list[Result]:
        """Files that are done with since then, oldest first."""
        rows = self._db.execute(
            "select path, status, object, bytes, events, error, created from files"
            " where request = ? and created > ? order by created",
            (request_id, _text(later_than)),
        )
        return [Result(*row) for row in rows]

    def objects(self, request_id: str) -> dict[str, int]:
        """Names and sizes in bytes of the objects of a request."""
        rows = self._db.execute(
            "select object, bytes from files where request = ? and status = 'success'"
            " order by object",
            (request_id,),
        )
        return dict(rows.fetchall())

    def cancel(self, request_id: str) -> None:
        """Do nothing more for a request, unless it is finished; what it has stays."""
        with self._db:
            self._finish(request_id, "Canceled")

    def delete(self, request_id: str) -> None:
        """Forget a request."""
        with self._db:
            self._db.execute("delete from requests where id = ?", (request_id,))

    def _finish(self, request_id: str, status: Status) -> None:
        self._db.execute(
            "update requests set status = ?, finished = ? where id = ? and status = 'Running'",
            (status, _text(datetime.now(UTC)), request_id),
        )

    def _one(self, query: str, *values: str) -> Any:
        return self._db.execute(query, values).fetchone()[0]


def _text(time: datetime) -> str:
    """A time as text that sorts as times do."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")
