"""Shared state of the request handlers, and the roles they need."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from agc_ml.training.http import uploads
from agc_ml.training.service.database import Token
from agc_ml.training.service.job_manager import JobManager
from agc_ml.training.service.tokens import Role

# The content of a report comes from whoever trained the model.
PAGE_POLICY: Final = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)

# Declared for the OpenAPI document only; browsers without a token are asked for Basic.
_BEARER: Final = HTTPBearer(auto_error=False, description="a token of 'agc-ml service token add'")

# Age up to which an answer of the registry is shared
FRESH_S: Final = 1.0

Answer = TypeVar("Answer")


@dataclass
class ServiceContext:
    """Shared state of the request handlers.

    Attributes
    ----------
    registry_writer, readers
        Executors: one thread that changes the registry, and some that read it, or large files.
    mlflow_url
        Address of MLflow's pages; ``is_mlflow_up`` if it answers.
    user
        Name of those who need no token; None if everyone needs one.
    """

    manager: JobManager
    registry_writer: Executor
    readers: Executor
    mlflow_url: str
    max_upload: int
    user: str | None = None
    is_registry_open: bool = False
    is_mlflow_up: bool = False
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    _dataset_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _active: Counter[str] = field(default_factory=Counter)
    _cache: dict[Any, tuple[float, asyncio.Future[Any]]] = field(default_factory=dict)

    async def write_registry(
        self, function: Callable[..., Answer], *args: Any, **kwargs: Any
    ) -> Answer:
        """Change the registry, one change at a time."""
        call = functools.partial(function, *args, **kwargs)
        try:
            return await asyncio.get_running_loop().run_in_executor(self.registry_writer, call)
        finally:
            self._cache.clear()

    async def read_registry(self, function: Callable[..., Answer], *args: Any) -> Answer:
        """Read the registry; answers are shared for a second, or until it is changed."""
        now, key = time.monotonic(), (function, *args)
        for old, (since, _) in list(self._cache.items()):
            if now - since > FRESH_S:
                del self._cache[old]
        if key not in self._cache:
            reading = asyncio.ensure_future(
                self.run_in_reader(function, self.manager.registry, *args)
            )
            reading.add_done_callback(_retrieve_error)  # also if the client has gone
            self._cache[key] = now, reading
        answer: Answer = await asyncio.shield(self._cache[key][1])
        return answer

    async def run_in_reader(self, function: Callable[..., Answer], *args: Any) -> Answer:
        """Run a function that blocks, in a thread for readers."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, function, *args)

    async def store_dataset(self, path: Path, digest: str) -> None:
        """Validate and keep a training set, one at a time."""
        async with self._dataset_lock:
            await uploads.check(path, digest, self.max_upload)
        await self.run_in_reader(self.manager.store_dataset, path, digest)

    @contextlib.contextmanager
    def limited(self, kind: str, most: int) -> Iterator[None]:
        """Limit requests that hold a file or take long to ``most`` of a kind at once."""
        if self._active[kind] >= most:
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{most} {kind} are active already; try later"
            )
        self._active[kind] += 1
        try:
            yield
        finally:
            self._active[kind] -= 1


def _retrieve_error(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


async def _context(request: Request) -> ServiceContext:
    # async, as FastAPI calls plain functions in a thread, for each request
    context: ServiceContext = request.app.state.context
    return context


Context = Annotated[ServiceContext, Depends(_context)]


def _needs(role: Role) -> Callable[..., Awaitable[Token]]:
    """Return a dependency on a role, which `authorization.CheckedRoute` looks for and checks."""

    async def token_of(
        request: Request,
        _: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    ) -> Token:
        token: Token = request.state.token
        return token

    token_of.role = role  # type: ignore[attr-defined]
    return token_of


Reader = Annotated[Token, Depends(_needs("read"))]
Trainer = Annotated[Token, Depends(_needs("train"))]
Promoter = Annotated[Token, Depends(_needs("promote"))]
