"""Atomic writes of files, and folders with one owner at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from agc_ml.errors import StoreError, UsageError

logger = logging.getLogger(__name__)

LOCK: Final = ".lock"
PARTIAL: Final = ".agc-ml-"
"""Prefix of our hidden files and folders."""


def home() -> Path:
    """Return the user's home; a missing folder for users without a name, as in containers."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")


def cache() -> Path:
    """Return the folder of caches, which may be deleted: agc-ml in XDG_CACHE_HOME (~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache") / "agc-ml"


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Create a folder and lock it for this process; a new folder that stays empty is removed.

    Raises
    ------
    UsageError
        Another agc-ml uses it.
    StoreError
        It can't be written.
    """
    is_new = not folder.exists()
    with store_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            if is_new:
                drop_if_empty(folder)


def drop_if_empty(folder: Path) -> None:
    """Remove a folder if it is empty."""
    with suppress(OSError):
        folder.rmdir()


def _locked(folder: Path) -> IO[bytes]:
    path = folder / LOCK
    if path.is_symlink():  # a foreign link may lead to a file of ours
        raise UsageError(f"{path}: a link is in the way; remove it")
    while True:
        with store_errors(folder):
            # no link that appears just now is followed, and no pipe waited for
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            lock = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise UsageError(
                f"{folder}: another agc-ml is at work in it; name another folder with -o"
            ) from error
        except OSError as error:  # a file system without locks
            logger.debug("%s: not locked: %s", folder, error)
            return lock
        if path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())):
            return lock
        lock.close()  # its owner removed it meanwhile


@contextmanager
def store_errors(folder: Path) -> Iterator[None]:
    """Report failed writes in a folder in one line."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{folder}: can't be written ({error.strerror or error}); name another with -o"
        ) from error


def is_unused(folder: Path) -> bool:
    """Return whether a folder is empty or does not exist.

    Hidden files do not count: a process that was killed while it wrote may have left one.
    """
    return not folder.exists() or all(
        path.name.startswith(".") and path.is_file() for path in folder.iterdir()
    )


def is_plain(folder: Path) -> bool:
    """Return whether a name is a folder, and not a link to one."""
    return folder.is_dir() and not folder.is_symlink()


def check_plain(folder: Path) -> None:
    """Reject a file or a link in place of a folder to write into.

    Raises
    ------
    UsageError
        There is one.
    """
    if os.path.lexists(folder) and not is_plain(folder):
        raise UsageError(f"{folder}: a file or a link is in the way; remove it")


def clear(folder: Path, keep: Sequence[str] = ()) -> None:
    """Empty a folder, except for the names to ``keep`` and foreign hidden files."""
    for path in folder.iterdir():
        is_hidden = path.name.startswith(".") and not path.name.startswith(PARTIAL)
        if is_hidden or path.name in {LOCK, *keep}:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write(
    path: Path, writer: Callable[[Path], object], *, durable: bool = True, mode: int = 0o644
) -> None:
    """Write a file atomically: temporary name, fsync, rename.

    ``writer`` gets the temporary path and fills it. Without ``durable`` there is no fsync: the file
    survives the death of the process, but may be damaged if the machine crashes, so its reader
    has to check it. ``mode`` are the permissions of the file.

    Raises
    ------
    StoreError
        The folder can't be written, or the disk is full.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL, suffix=path.suffix)
    except OSError as error:
        raise StoreError(_cannot_write(path, error)) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        writer(temporary)
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        raise StoreError(_cannot_write(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Write a text file atomically that only its owner can read; raises as `write`."""
    write(path, lambda temporary: temporary.write_text(text), mode=0o600)


def _cannot_write(path: Path, error: OSError) -> str:
    return (
        f"{path}: can't be written ({error.strerror or error}); check disk space and permissions, "
        "or name another folder"
    )
