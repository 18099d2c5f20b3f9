"""Store of an endpoint: requests and their files in SQLite, results in one folder a request.

A killed endpoint that restarts on the same folder finds what is not finished.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sqlite3
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from agc_ml.servicex_endpoint.requests import ResultFormat, TransformRequest

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
_SUFFIXES: Final[dict[ResultFormat, str]] = {
    "root-file": ".root",
    "root-rntuple": ".root",
    "parquet": ".parquet",
}
_MAX_STEM: Final = 80


class TransformJob(NamedTuple):
    """One input file of a request, to be transformed."""

    number: int
    request_id: str
    path: str
    request: TransformRequest
    program: str


class TransformOutcome(BaseModel):
    """Outcome of a job: events and bytes of its object, or an error and whether it may pass."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    error: str | None = None
    transient: bool = False
    events: int = Field(default=0, ge=0, lt=2**63)
    size: int = Field(default=0, ge=0, lt=2**63)


class RequestStatus(NamedTuple):
    """A request and its progress; times are in UTC, in ISO 8601."""

    number: int
    id: str
    request: TransformRequest
    status: Status
    submitted: str
    finished: str | None
    completed: int
    failed: int


class RequestStore:
    """Requests of an endpoint in ``file``, their objects below ``objects``; for one thread."""

    def __init__(self, file: Path, objects: Path) -> None:
        self.folder = objects
        self._db = sqlite3.connect(file)
        self._db.row_factory = sqlite3.Row
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma foreign_keys = on")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def add(self, request: TransformRequest, program: str) -> str:
        """Add a request; return its id."""
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
        """Return the ids of all requests, oldest first."""
        return [id_ for (id_,) in self._db.execute("select id from requests order by number")]

    def request(self, request_id: str) -> RequestStatus | None:
        """Return the request with this id, if there is one."""
        row = self._db.execute(
            "select r.number, r.id, r.body, r.status, r.submitted, r.finished,"
            " coalesce(sum(f.status = 'success'), 0), coalesce(sum(f.status = 'failure'), 0)"
            " from requests r left join files f on f.request = r.id"
            " where r.id = ? group by r.number",
            (request_id,),
        ).fetchone()
        if row is None:
            return None
        number, id_, body, *rest = row
        return RequestStatus(number, id_, TransformRequest.model_validate_json(body), *rest)

    def next_job(self, busy: Iterable[int]) -> TransformJob | None:
        """Return the first pending file of running requests whose number is not ``busy``."""
        taken = set(busy)
        rows = self._db.execute(
            "select f.number, f.request, f.path, r.body, r.program"
            " from files f join requests r on r.id = f.request"
            " where f.status = 'pending' and r.status = 'Running' order by f.number limit ?",
            (len(taken) + 1,),
        )
        for number, request_id, path, body, program in rows:
            if number not in taken:
                request = TransformRequest.model_validate_json(body)
                return TransformJob(number, request_id, path, request, program)
        return None

    def record(self, job: TransformJob, outcome: TransformOutcome) -> bool:
        """Record the outcome of a job; return whether it was the last of its request.

        Clients ask for results newer than the newest that they have. So no two results may have
        the same time, and none an earlier one than those before it, whatever the clock does.
        """
        is_failed = outcome.error is not None
        name = None if is_failed else object_name(job.path, job.request.result_format)
        status = "failure" if is_failed else "success"
        with self._db:
            newest = self._value("select max(created) from files")
            now = datetime.now(UTC)
            if newest is not None:
                now = max(now, datetime.fromisoformat(newest) + _ONE_TICK)
            self._db.execute(
                "update files set status = ?, object = ?, bytes = ?, events = ?, error = ?,"
                " created = ? where number = ?",
                (
                    status,
                    name,
                    outcome.size,
                    outcome.events,
                    outcome.error,
                    _text(now),
                    job.number,
                ),
            )
            # the last file of a request completes it
            n_left = self._value(
                "select count(*) from files where request = ? and status = 'pending'",
                job.request_id,
            )
            if not n_left:
                self._finish(job.request_id, "Complete")
        return not n_left

    def results(self, request_id: str, later_than: datetime) -> list[dict[str, Any]]:
        """Return the files that finished after a time, oldest first, with the client's names."""
        rows = self._db.execute(
            'select request as "request-id", path as "file-path", status as transform_status,'
            ' object as "s3-object-name", bytes as "total-bytes", events as "total-events",'
            " created as created_at, error"
            " from files where request = ? and created > ? order by created",
            (request_id, _text(later_than)),
        )
        return [dict(row) for row in rows]

    def objects(self, request_id: str) -> dict[str, int]:
        """Return names and sizes in bytes of the objects of a request."""
        rows = self._db.execute(
            "select object, bytes from files where request = ? and status = 'success'"
            " order by object",
            (request_id,),
        )
        return dict(rows.fetchall())

    def cancel(self, request_id: str) -> None:
        """Cancel a request that is not finished; its results stay."""
        with self._db:
            self._finish(request_id, "Canceled")

    def delete(self, request_id: str) -> None:
        """Delete a request."""
        with self._db:
            self._db.execute("delete from requests where id = ?", (request_id,))

    def add_object(self, job: TransformJob, file: Path) -> None:
        """Move the result of a job into the store, replacing an earlier one."""
        folder = self.folder / job.request_id
        folder.mkdir(parents=True, exist_ok=True)
        file.replace(folder / object_name(job.path, job.request.result_format))

    def delete_objects(self, request_id: str) -> None:
        """Delete all objects of a request."""
        shutil.rmtree(self.folder / request_id, ignore_errors=True)

    def _finish(self, request_id: str, status: Status) -> None:
        self._db.execute(
            "update requests set status = ?, finished = ? where id = ? and status = 'Running'",
            (status, _text(datetime.now(UTC)), request_id),
        )

    def _value(self, query: str, *values: str) -> Any:
        return self._db.execute(query, values).fetchone()[0]


def object_name(path: str, result_format: ResultFormat) -> str:
    """Return a unique name for the object of an input file, similar to the input's.

    It has only letters, digits, dots, dashes and underscores: clients replace other characters,
    which could make two names equal.
    """
    digest = hashlib.sha256(path.encode()).hexdigest()[:12]
    stem = PurePosixPath(urlsplit(path).path).stem
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[-_MAX_STEM:].lstrip("._-")
    return f"{plain or 'file'}-{digest}{_SUFFIXES[result_format]}"


def _text(time: datetime) -> str:
    """Return a time as text that sorts as times do."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")
