"""Child processes on this machine: how they start, and why they can't."""

from __future__ import annotations

import ast
import multiprocessing
import sys
from multiprocessing import util
from pathlib import Path
from typing import Any


def import_nothing_from_here() -> None:
    """Keep the working directory out of ``sys.path`` of processes that multiprocessing starts.

    They would look there first, also for Python's own modules, and others may have written there.
    """
    module: Any = util
    flags = module._args_from_interpreter_flags  # noqa: SLF001 - there is no other way to it
    if "-P" not in flags():
        module._args_from_interpreter_flags = lambda: [*flags(), "-P"]  # noqa: SLF001


def stop_if_imported() -> None:
    """Exit, without a word, if this process is a worker that only imports the user's script.

    It would start workers of its own. The process that started it reports the error.
    """
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):  # as multiprocessing itself finds out
        raise SystemExit(1)


def start_problem(error: BaseException) -> str:
    """Return a line that says why processes can't be started here."""
    if _lacks_guard():
        return (
            f"{sys.modules['__main__'].__file__}: worker processes import this script, and "
            "would run it again; put its code under: if __name__ == '__main__':"
        )
    if getattr(sys.modules["__main__"], "__file__", None) == "<stdin>":
        return (
            "code from standard input can't start processes, which import it; put it in a file, "
            "under: if __name__ == '__main__':"
        )
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return (
        f"processes can't be started on this machine ({reason}); check its memory, and that the "
        "script which starts them does so under: if __name__ == '__main__':"
    )


def _lacks_guard() -> bool:
    """Return whether the main program is a script that runs also when it is imported."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or Path(file).name == "__main__.py":  # a tool's, which has a guard
        return False
    try:
        body = ast.parse(Path(file).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return False
    return not any(
        isinstance(node, ast.If) and "'__main__'" in ast.dump(node.test) for node in body
    )
