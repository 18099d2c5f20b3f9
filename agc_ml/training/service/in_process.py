"""The service's application in this process: training in a folder, without a service."""

from __future__ import annotations

import asyncio
import getpass
import itertools
import os
import queue
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from agc_ml.training.service.app import application
from agc_ml.training.service.context import ServiceContext
from agc_ml.training.service.job_loop import run_jobs
from agc_ml.training.service.job_manager import JobManager, Settings, owned_folder
from agc_ml.training.transports import Answer, UnreachableError


@contextmanager
def local_transport(folder: Path, workers: int | None, site: str) -> Iterator[InProcessTransport]:
    """Open a folder to train in, with the application of the service on it.

    Raises
    ------
    UsageError
        The folder holds something else, or is in use.
    """
    settings = Settings(folder, site=site, workers=workers or os.cpu_count() or 1)
    with (
        owned_folder(folder, option="--service"),
        closing(JobManager(settings)) as manager,
        ThreadPoolExecutor(1, "registry-writer") as registry_writer,
        ThreadPoolExecutor(2, "reader") as readers,
        start_blocking_portal() as portal,
    ):
        context = ServiceContext(
            manager=manager,
            registry_writer=registry_writer,
            readers=readers,
            mlflow_url="",
            max_upload=sys.maxsize,
            user=getpass.getuser(),
            is_registry_open=True,
        )
        transport = InProcessTransport(context, portal)
        try:
            yield transport
        finally:
            transport.close()


class InProcessTransport:
    """Requests to the application in this process; its event loop runs in a thread.

    Jobs run from the first time that one is followed until the transport is closed.
    """

    name = ""

    def __init__(self, context: ServiceContext, portal: BlockingPortal) -> None:
        self._context = context
        self._app = application(context)
        self._portal = portal
        self._job_loop: Future[None] | None = None

    def close(self) -> None:
        """Stop running jobs."""
        if self._job_loop is not None:
            self._job_loop.cancel()

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Any,
        *,
        stream: bool,
        timeout: float,  # noqa: ARG002 - nothing to wait for but the work itself
    ) -> Answer:
        """Have the application answer; a stream is a job that is followed."""
        if stream and self._job_loop is None:
            self._job_loop = self._portal.start_task_soon(run_jobs, self._context)
        messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        answering = self._portal.start_task_soon(
            self._answer, _scope(method, path, headers), body, messages.put
        )
        if not stream:
            answering.result()  # raises errors that the application does not answer
        start = messages.get()
        if start is None:
            raise _broken_off(answering)
        parts = _parts(messages, answering)
        return Answer(start["status"], parts)

    async def _answer(
        self, scope: dict[str, Any], body: Any, put: Callable[[dict[str, Any] | None], None]
    ) -> None:
        requests: Iterator[dict[str, Any]] = itertools.chain(
            ({"type": "http.request", "body": part, "more_body": True} for part in _body(body)),
            [{"type": "http.request"}],
        )

        async def receive() -> dict[str, Any]:
            if (request := next(requests, None)) is not None:
                return request
            return await asyncio.Future()  # the client does not disconnect

        async def send(message: Any) -> None:
            put(message)

        try:
            await self._app(scope, receive, send)
        finally:
            put(None)


def _scope(method: str, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return an ASGI scope of a request."""
    bare, _, query = path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": bare,
        "raw_path": bare.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "server": None,
    }


def _body(body: Any) -> Iterator[bytes]:
    """Yield the parts of a body: text, or an open file."""
    if isinstance(body, str):
        yield body.encode()
    elif body is not None:
        yield from iter(lambda: body.read(1 << 20), b"")


def _parts(
    messages: queue.SimpleQueue[dict[str, Any] | None], answering: Future[None]
) -> Generator[bytes]:
    try:
        while (message := messages.get()) is not None:
            yield message.get("body", b"")
            if not message.get("more_body"):
                return
        raise _broken_off(answering)
    finally:
        answering.cancel()


def _broken_off(answering: Future[None]) -> UnreachableError:
    return UnreachableError(f"the answer broke off ({answering.exception()!r})")
