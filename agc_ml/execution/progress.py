"""Progress of long work on standard error: a bar on a terminal and in a notebook, else lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from agc_ml.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES: Final = 10.0


class Progress(NamedTuple):
    """Pieces of work that are done, of how many; ``events`` is 0 where they are not counted."""

    done: int
    total: int
    events_done: int = 0
    events: int = 0
    failures: int = 0

    def events_text(self, rate: float) -> str:
        """Events that are done, and the rate in events/s; "" if they are not counted."""
        if not self.events:
            return ""
        return f"{self.events_done:,}/{self.events:,} events, {rate:,.0f} events/s"

    @property
    def failures_text(self) -> str:
        """Number of failed attempts, "" if there are none."""
        return f"{self.failures} failed attempts" if self.failures else ""


Show = Callable[[Progress], None]


@contextmanager
def show_progress(*, quiet: bool, pieces: str = "chunks") -> Iterator[Show]:
    """Yield a function that shows a `Progress`; ``pieces`` is the name of what is counted."""
    console = None if quiet else _console()
    if console is None:
        yield lambda _: None
    elif console.is_terminal or console.is_jupyter:
        with _bar(console, pieces) as show:
            yield show
    else:
        yield _lines(console, pieces)


@contextmanager
def show_steps(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows a line ``stage: details``.

    A terminal or notebook shows the last line until the end; a pipe gets a line at each new stage,
    and every ten seconds.
    """
    console = None if quiet else _console()
    if console is None:
        yield lambda _: None
        return
    if console.is_terminal or console.is_jupyter:
        from rich.text import Text  # noqa: PLC0415 - only on a terminal

        with console.status("") as status:
            yield lambda text: status.update(Text(printable(text)))
        return
    last = ("", 0.0)

    def show(text: str) -> None:
        nonlocal last
        stage, now = text.partition(":")[0], time.monotonic()
        if stage != last[0] or now - last[1] > SECONDS_BETWEEN_LINES:
            last = (stage, now)
            _print(console, text)

    yield show


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - not needed when quiet

    return Console(stderr=True)


def _print(console: Console, line: str) -> None:
    console.print(printable(line), highlight=False, soft_wrap=True, markup=False)


@contextmanager
def _bar(console: Console, pieces: str) -> Iterator[Show]:
    from rich import progress  # noqa: PLC0415 - only on a terminal

    bar = progress.Progress(
        progress.TextColumn(f"{{task.fields[pieces]}} {pieces}"),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[events]}"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[failures]}"),
        console=console,
    )
    start = time.monotonic()
    at_start: list[int] = []
    with bar:
        task = bar.add_task("run", total=None, pieces="0", events="", failures="", visible=False)

        def show(now: Progress) -> None:
            # events of an earlier run do not count in the rate
            if not at_start:
                at_start.append(now.events_done)
            rate = (now.events_done - at_start[0]) / max(time.monotonic() - start, 1e-3)
            bar.update(
                task,
                visible=True,
                completed=now.events_done if now.events else now.done,
                total=now.events or now.total,
                pieces=f"{now.done}/{now.total}",
                events=now.events_text(rate),
                failures=now.failures_text,
            )

        yield show


def _lines(console: Console, pieces: str) -> Show:
    """Return a function that prints a line every ten seconds, and the last one."""
    start = last = time.monotonic()

    def show(now: Progress) -> None:
        nonlocal last
        clock = time.monotonic()
        if clock - last < SECONDS_BETWEEN_LINES and now.done != now.total:
            return
        last = clock
        events = now.events_text(now.events_done / max(clock - start, 1e-3))
        parts = (f"{now.done}/{now.total} {pieces}", events, now.failures_text)
        _print(console, ", ".join(filter(None, parts)))

    return show
