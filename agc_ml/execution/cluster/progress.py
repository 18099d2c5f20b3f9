"""Showing how far a run is: a bar on a terminal and in a notebook, plain lines on a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from agc_ml.errors import printable
from agc_ml.execution.state.run_state import Tick

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES: Final = 10.0


@contextmanager
def shown(*, quiet: bool, pieces: str = "chunks") -> Iterator[Callable[[Tick], None]]:
    """Give a function that shows a `Tick`; on standard error, which leaves the output clean.

    ``pieces`` is what the chunks are called; ticks without events show only them.
    """
    if quiet:
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - not needed when quiet

    console = Console(stderr=True)
    if console.is_terminal or console.is_jupyter:
        with _bar(console, pieces) as show:
            yield show
    else:
        yield _Lines(console, pieces)


@contextmanager
def steps(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Give a function that shows what is being done, ``stage: how far``, on standard error.

    A terminal or notebook shows the last of it while it lasts; a pipe gets a line at each new
    stage, and every ten seconds.
    """
    if quiet:
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - not needed when quiet

    console = Console(stderr=True)
    if console.is_terminal or console.is_jupyter:
        from rich.text import Text  # noqa: PLC0415 - only on a terminal

        with console.status("") as status:
            yield lambda text: status.update(Text(printable(text)))
        return
    last = ("", 0.0)

    def line(text: str) -> None:
        nonlocal last
        stage, now = text.partition(":")[0], time.monotonic()
        if stage != last[0] or now - last[1] > SECONDS_BETWEEN_LINES:
            last = (stage, now)
            console.print(printable(text), highlight=False, soft_wrap=True, markup=False)

    yield line


@contextmanager
def _bar(console: Console, pieces: str) -> Iterator[Callable[[Tick], None]]:
    from rich import progress  # noqa: PLC0415 - only on a terminal

    bar = progress.Progress(
        progress.TextColumn(f"{{task.fields[chunks]}} {pieces}"),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[events]}"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[failures]}"),
        console=console,
    )
    start = time.monotonic()
    first: list[int] = []
    with bar:
        task = bar.add_task("run", total=None, chunks="0", events="", failures="", visible=False)

        def show(tick: Tick) -> None:
            if not first:
                first.append(tick.events_done)
            rate = (tick.events_done - first[0]) / max(time.monotonic() - start, 1e-3)
            bar.update(
                task,
                visible=True,
                completed=tick.events_done if tick.events else tick.chunks_done,
                total=tick.events or tick.chunks,
                chunks=f"{tick.chunks_done}/{tick.chunks}",
                events=_events(tick, rate).lstrip(", "),
                failures=f"{tick.failures} failed attempts" if tick.failures else "",
            )

        yield show


def _events(tick: Tick, rate: float) -> str:
    if not tick.events:
        return ""
    return f", {tick.events_done:,}/{tick.events:,} events, {rate:,.0f} events/s"


class _Lines:
    """A line every ten seconds, and the last one."""

    def __init__(self, console: Console, pieces: str) -> None:
        self._console = console
        self._pieces = pieces
        self._start = time.monotonic()
        self._last = self._start

    def __call__(self, tick: Tick) -> None:
        now = time.monotonic()
        is_last = tick.chunks_done == tick.chunks
        if now - self._last < SECONDS_BETWEEN_LINES and not is_last:
            return
        self._last = now
        rate = tick.events_done / max(now - self._start, 1e-3)
        failures = f", {tick.failures} failed attempts" if tick.failures else ""
        self._console.print(
            f"{tick.chunks_done}/{tick.chunks} {self._pieces}{_events(tick, rate)}{failures}",
            highlight=False,
            soft_wrap=True,
        )
