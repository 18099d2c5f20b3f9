"""Supervision: one process works, and its parent ends all descendants afterwards."""

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
_MAX_PRINTED: Final = 4096  # bytes of output that are kept
_SIGNALLED: Final = 128  # plus the signal: the exit code if the child died of one


def supervise() -> None:
    """Continue in a child of this process, which ends all of its descendants afterwards.

    That is when the child ends, on SIGTERM, and when standard input ends, to which nobody writes.
    The child's standard input is empty; the end of its output is printed here. Where a process
    can't adopt orphans (not on Linux), only the child's process group is ended.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # The parent watches the child's output and its own signals.
    signals, signals_end = _signal_pipe()
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child:
        os.close(writer)
        _watch(child, reader, signals)
    # The child gets a session with default signals, no input, and its output in the pipe.
    for descriptor in (reader, signals, signals_end):
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
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def end_descendants() -> None:
    """Kill all descendants of this process."""
    deadline = time.monotonic() + _END_WITHIN_S
    while time.monotonic() < deadline:
        stopped: set[int] = set()
        while fresh := descendants(os.getpid()) - stopped:  # a stopped process starts no more
            send_signal(fresh, signal.SIGSTOP)
            stopped |= fresh
        send_signal(stopped, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def _signal_pipe() -> tuple[int, int]:
    """Return a pipe that receives SIGTERM and SIGCHLD: its ends to read and to write."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return reader, writer


def _watch(child: int, reader: int, signals: int) -> NoReturn:
    """Wait for the end, kill descendants that are left, and exit as the child did."""
    status, printed, events = None, b"", select.poll()
    for descriptor in (0, reader, signals):
        events.register(descriptor, select.POLLIN)
    while status is None:
        ready = {descriptor for descriptor, _ in events.poll()}
        if reader in ready:
            content = os.read(reader, 65536)
            printed = (printed + content)[-_MAX_PRINTED:]
            if not content:
                events.unregister(reader)
        if 0 in ready or (signals in ready and signal.SIGTERM in os.read(signals, 4096)):
            break
        ended, code = os.waitpid(child, os.WNOHANG)
        status = code if ended else None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    end_descendants()
    os.set_blocking(reader, False)
    with contextlib.suppress(BlockingIOError):
        while content := os.read(reader, 65536):
            printed = (printed + content)[-_MAX_PRINTED:]
    os.write(1, printed)
    code = 1 if status is None else os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else _SIGNALLED - code)


def exit_reason(code: int) -> str:
    """Return how a supervised process ended: the name of a signal, or its exit code."""
    number = -code if code < 0 else code - _SIGNALLED
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"exit code {code}"


def descendants(pid: int) -> set[int]:
    """Return all descendants of a process."""
    all_children: set[int] = set()
    pending = [pid]
    while pending:
        for task in Path(f"/proc/{pending.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # it has ended
                children = set(map(int, task.read_text().split())) - all_children
                all_children |= children
                pending += children
    return all_children


def send_signal(pids: set[int], number: int) -> None:
    """Send a signal to processes, unless they have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
