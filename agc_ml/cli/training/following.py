"""Showing how far a job is: a bar on a terminal, plain lines on a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agc_ml.errors import printable
from agc_ml.training.service.database import Job

Show = Callable[[Job], None]


@contextmanager
def shown(*, quiet: bool) -> Iterator[Show]:
    """Give a function that shows a job; on standard error, which leaves the output clean."""
    if quiet:
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - not needed when quiet

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield _Lines(console.file.write)
        return
    from rich import progress  # noqa: PLC0415 - only on a terminal

    bar = progress.Progress(
        progress.TextColumn("{task.fields[state]}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.description}", markup=False),
        progress.TimeElapsedColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("", total=None, state="queued")

        def show(job: Job) -> None:
            bar.update(
                task,
                description=_said(job),
                completed=job.progress.done,
                total=job.progress.total or None,
                state=job.state,
            )

        yield show


class _Lines:
    """A line for each thing that is new."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._last = ""

    def __call__(self, job: Job) -> None:
        of = f" {job.progress.done}/{job.progress.total}" if job.progress.total else ""
        line = f"{job.state}{of}: {_said(job)}" if _said(job) else job.state
        if line != self._last:
            self._last = line
            self._write(f"{line}\n")


def _said(job: Job) -> str:
    return printable(job.note or job.progress.message)
