"""What requests are answered from, and who may ask."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from agc_ml.training import access
from agc_ml.training.access import Role
from agc_ml.training.core import Training
from agc_ml.training.table import Token

# A report is a page of ours, but what is in it comes from whoever trained.
PAGE_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

# Declared for the API's document, and read by it; without one, a browser is asked for Basic.
_BEARER: Final = HTTPBearer(auto_error=False, description="a token of 'agc-ml service token add'")

Answer = TypeVar("Answer")


@dataclass
class House:
    """What requests are answered from.

    ``talker`` runs what changes the registry, one after the other; ``readers`` what reads it;
    ``taker`` reads training sets, one at a time; ``is_open`` says whether the registry can be used
    by now; ``mlflow_url`` is where people find MLflow's pages, ``is_mlflow_up`` whether it answers.
    ``open_to_all``: no token is needed.
    """

    training: Training
    talker: Executor
    readers: Executor
    taker: Executor
    mlflow_url: str
    max_upload: int
    open_to_all: bool = False
    is_open: bool = False
    is_mlflow_up: bool = False
    requests: dict[tuple[str, int], int] = field(default_factory=dict)

    async def talk(self, function: Callable[..., Answer], *args: Any, **kwargs: Any) -> Answer:
        """Change the registry."""
        call = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self.talker, call)

    async def read(self, function: Callable[..., Answer], *args: Any) -> Answer:
        """Read the registry, or a large file."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, function, *args)

    async def take_in(self, path: Path, digest: str) -> None:
        """Check and keep a training set."""
        call = functools.partial(
            self.training.add_dataset, path, digest, self.max_upload, "the training set"
        )
        await asyncio.get_running_loop().run_in_executor(self.taker, call)


async def _house(request: Request) -> House:
    # Not a plain function: FastAPI would call that in a thread, for each request.
    found: House = request.app.state.house
    return found


InHouse = Annotated[House, Depends(_house)]


def _needs(role: Role) -> Callable[..., Awaitable[Token]]:
    """Only for those whose token has a role."""

    async def check(
        request: Request,
        house: InHouse,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    ) -> Token:
        if house.open_to_all:
            return Token(name="anyone", role="promote", created=0, expires=None)
        found = access.known(
            house.training.table, bearer.credentials if bearer else _password(request)
        )
        if found is None:
            raise HTTPException(
                HTTPStatus.UNAUTHORIZED,
                "a valid token is needed; 'agc-ml service token add' makes one",
                {"WWW-Authenticate": 'Basic realm="agc-ml: any name, the token as password"'},
            )
        request.state.who = found.name
        if not access.may(found, role):
            raise HTTPException(
                HTTPStatus.FORBIDDEN,
                f"the token {found.name!r} has the role {found.role!r}; {role!r} is needed",
            )
        return found

    check.role = role  # type: ignore[attr-defined] # tests go through all routes
    return check


def _password(request: Request) -> str:
    """The token of a request whose browser asked for it, as a password."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            return base64.b64decode(given, validate=True).decode().partition(":")[2]
    return ""


Reader = Annotated[Token, Depends(_needs("read"))]
Trainer = Annotated[Token, Depends(_needs("train"))]
Promoter = Annotated[Token, Depends(_needs("promote"))]
