"""What requests are answered from, and who may ask."""

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

from agc_ml.training.http.guard import Names
from agc_ml.training.service import uploads
from agc_ml.training.service.database import Token
from agc_ml.training.service.job_manager import Training
from agc_ml.training.service.tokens import Role

# A report is a page of ours, but what is in it comes from whoever trained.
PAGE_POLICY: Final = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)

# Declared for the API's document, and read by it; without one, a browser is asked for Basic.
_BEARER: Final = HTTPBearer(auto_error=False, description="a token of 'agc-ml service token add'")

FRESH_S: Final = 1.0

Answer = TypeVar("Answer")


@dataclass
class House:
    """What requests are answered from.

    ``talker`` runs what changes the registry, one after the other; ``readers`` what reads it;
    ``is_open`` says whether the registry can be used by now; ``mlflow_url`` is where people find
    MLflow's pages, ``is_mlflow_up`` whether it answers; ``names`` are those under which the service
    is reached. ``open_to_all``: no token is needed.
    """

    training: Training
    talker: Executor
    readers: Executor
    mlflow_url: str
    max_upload: int
    names: Names
    open_to_all: bool = False
    is_open: bool = False
    is_mlflow_up: bool = False
    requests: dict[tuple[str, int], int] = field(default_factory=dict)
    taking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _at_once: Counter[str] = field(default_factory=Counter)
    _looked: dict[Any, tuple[float, asyncio.Future[Any]]] = field(default_factory=dict)

    async def talk(self, function: Callable[..., Answer], *args: Any, **kwargs: Any) -> Answer:
        """Change the registry."""
        call = functools.partial(function, *args, **kwargs)
        try:
            return await asyncio.get_running_loop().run_in_executor(self.talker, call)
        finally:
            self._looked.clear()

    async def look(self, function: Callable[..., Answer], *args: Any) -> Answer:
        """Read the registry once for all who want to know the same, for a second.

        What is changed by `talk` is seen at once.
        """
        now, key = time.monotonic(), (function, *args)
        for old, (since, _) in list(self._looked.items()):
            if now - since > FRESH_S:
                del self._looked[old]
        if key not in self._looked:
            looking = asyncio.ensure_future(self.read(function, self.training.registry, *args))
            looking.add_done_callback(_heard)  # also where whoever asked is gone by now
            self._looked[key] = now, looking
        found: Answer = await asyncio.shield(self._looked[key][1])
        return found

    async def read(self, function: Callable[..., Answer], *args: Any) -> Answer:
        """Read the registry, or a large file."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, function, *args)

    async def take_in(self, path: Path, digest: str) -> None:
        """Check and keep a training set, one at a time."""
        async with self.taking:
            await uploads.check(path, digest, self.max_upload)
        await self.read(self.training.keep_dataset, path, digest)

    @contextlib.contextmanager
    def one_of(self, what: str, most: int) -> Iterator[None]:
        """Do something that few may do at once: each takes a file, or goes on for hours."""
        if self._at_once[what] >= most:
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{most} {what} are under way already; try later"
            )
        self._at_once[what] += 1
        try:
            yield
        finally:
            self._at_once[what] -= 1


def _heard(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


async def _house(request: Request) -> House:
    # Not a plain function: FastAPI would call that in a thread, for each request.
    found: House = request.app.state.house
    return found


InHouse = Annotated[House, Depends(_house)]


def _needs(role: Role) -> Callable[..., Awaitable[Token]]:
    """Only for those whose token has a role, as `asked.Route` found out."""

    async def found(
        request: Request,
        _: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    ) -> Token:
        token: Token = request.state.token
        return token

    found.role = role  # type: ignore[attr-defined] # it is looked for by `asked.Route`
    return found


Reader = Annotated[Token, Depends(_needs("read"))]
Trainer = Annotated[Token, Depends(_needs("train"))]
Promoter = Annotated[Token, Depends(_needs("promote"))]
