"""Processes that leave nothing behind: one that works, and one that ends all that it started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_END_WITHIN_S: Final = 10
_TOLD: Final = 4096  # bytes of what was printed that are kept
_DIED: Final = 128  # plus the signal: the exit code of a process whose child died of it


def supervise() -> None:
    """Go on in a child of this process, which ends all of its descendants when that is over.

    It is over when the child ends, on SIGTERM, and when standard input does; so nobody writes to
    that. The child's standard input is empty; the end of what it prints is printed here. Where a
    process can't adopt orphans, not on Linux, the child's process group is all that is ended.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    told, news = _signals()
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child:
        os.close(writer)
        _watch(child, reader, told)
    for descriptor in (reader, told, news):
        os.close(descriptor)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    end_with_parent(parent)
    os.setpgid(0, 0)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for descriptor in (1, 2):
        os.dup2(writer, descriptor)
    os.close(writer)


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent, which had this id, ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was faster
        os._exit(1)


def end_descendants() -> None:
    """Kill all that this process started, and what those started, and so on."""
    deadline = time.monotonic() + _END_WITHIN_S
    while time.monotonic() < deadline:
        stopped: set[int] = set()
        while fresh := descendants(os.getpid()) - stopped:  # what is stopped starts nothing more
            send(fresh, signal.SIGSTOP)
            stopped |= fresh
        send(stopped, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def _signals() -> tuple[int, int]:
    """A pipe that tells of SIGTERM and SIGCHLD: its ends to read and to write."""
    told, news = os.pipe()
    os.set_blocking(news, False)
    signal.set_wakeup_fd(news)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return told, news


def _watch(child: int, reader: int, told: int) -> NoReturn:
    """Wait until it is over, end what is left, and exit as the child did."""
    status, printed, events = None, b"", select.poll()
    for descriptor in (0, reader, told):
        events.register(descriptor, select.POLLIN)
    while status is None:
        ready = {descriptor for descriptor, _ in events.poll()}
        if reader in ready:
            content = os.read(reader, 65536)
            printed = (printed + content)[-_TOLD:]
            if not content:
                events.unregister(reader)
        if 0 in ready or (told in ready and signal.SIGTERM in os.read(told, 4096)):
            break
        ended, code = os.waitpid(child, os.WNOHANG)
        status = code if ended else None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    end_descendants()
    os.set_blocking(reader, False)
    with contextlib.suppress(BlockingIOError):
        while content := os.read(reader, 65536):
            printed = (printed + content)[-_TOLD:]
    os.write(1, printed)
    code = 1 if status is None else os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else _DIED - code)


def ending(code: int) -> str:
    """End of a supervised process: the name of a signal, or its exit code."""
    number = -code if code < 0 else code - _DIED
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"exit code {code}"


def descendants(pid: int) -> set[int]:
    """Processes that a process started, and those that these started, and so on."""
    found: set[int] = set()
    left = [pid]
    while left:
        for task in Path(f"/proc/{left.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # it has ended
                children = set(map(int, task.read_text().split())) - found
                found |= children
                left += children
    return found


def send(pids: set[int], number: int) -> None:
    """Send a signal to those of some processes that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
