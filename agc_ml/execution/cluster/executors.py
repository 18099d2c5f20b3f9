"""Executors call a function for many jobs: the interface, and the one in this process."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from agc_ml.execution.worker.job import Failure
from agc_ml.models.content import Content


class WorkerDied(NamedTuple):
    """The worker died with a job, or with its result."""


Result = TypeVar("Result")


class Executor(Protocol):
    """Calls a function for each of many jobs, in any order, anywhere.

    ``started`` counts how often workers began with each job, where they report it.
    """

    started: Counter[str]

    def report(self, path: Path) -> AbstractContextManager[None]:
        """Write a report of the work inside of the block to ``path``, where there is one."""

    def provide(
        self, contents: Mapping[str, Content], forget: Callable[[], None] | None = None
    ) -> None:
        """Give every worker, also later ones, contents by sha256, such as models.

        The contents stay there for others, unless workers are to call ``forget`` in the end.
        """

    def outcomes(
        self,
        function: Callable[..., Result],
        jobs: Mapping[str, tuple[Any, ...]],
        *,
        alone: bool = False,
    ) -> Iterator[tuple[str, Result | Failure | WorkerDied]]:
        """Yield each key of ``jobs`` with the result of ``function(*jobs[key])``.

        With ``alone`` a job stays on its worker, even if that stops answering.
        """


class InlineExecutor:
    """Calls in this process, one after the other: for debuggers and small inputs."""

    def __init__(self) -> None:
        self.started: Counter[str] = Counter()

    def report(self, path: Path) -> AbstractContextManager[None]:  # noqa: ARG002 - nothing to report
        """Do nothing, as there is no cluster."""
        return contextlib.nullcontext()

    def provide(
        self,
        contents: Mapping[str, Content],
        forget: Callable[[], None] | None = None,
    ) -> None:
        """Do nothing: this process, which made the processor, has them."""

    def outcomes(
        self,
        function: Callable[..., Result],
        jobs: Mapping[str, tuple[Any, ...]],
        *,
        alone: bool = False,  # noqa: ARG002 - always
    ) -> Iterator[tuple[str, Result | Failure | WorkerDied]]:
        """Call in order."""
        for key, arguments in jobs.items():
            yield key, function(*arguments)
