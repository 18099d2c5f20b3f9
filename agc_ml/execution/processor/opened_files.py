"""Files that a processor opens while it works: seen, written down, and compared by a resume.

Python tells its audit hooks of every file that it opens. What belongs to the machinery is left out:
inputs, modules that are imported, files of libraries, of the system, files that are written, and
what is opened by threads that were there before, or for a request to a server.
Files that a library opens in C, as ROOT and HDF5 do, are not seen: a processor declares those in
``files``.

Code may keep what it read: a cache of its own, or a module's variable. So a process remembers which
code opened what, and a file that such code opened once counts in all later chunks.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import linecache
import os
import socketserver
import sys
import threading
import tokenize
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import FrameType
from typing import Any, Final

from agc_ml.errors import ProcessorError
from agc_ml.execution.processor.code_identity import MAIN, OURS, is_of_library

LARGEST: Final = 64 << 20
"""Bytes up to which the content of a file is compared; of larger ones size and time are."""
_SYSTEM: Final = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/")
_IN_MEMORY: Final = "/dev/shm/"  # noqa: S108 - nothing of ours is there
"""Files of the user's all the same."""
_FROZEN: Final = "<frozen "
_IMPORT: Final = "<frozen importlib"


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as it was: ``size`` in bytes, ``modified`` in ns, sha256 unless it is large."""

    size: int
    modified: int
    sha256: str | None

    def differs(self, other: Seen) -> bool:
        """Return whether the content is another one, as far as can be told."""
        if self.sha256 is None or other.sha256 is None:
            return (self.size, self.modified) != (other.size, other.modified)
        return self.sha256 != other.sha256


class _Watch:
    def __init__(self, is_left_out: Callable[[str], bool]) -> None:
        self.read: dict[str, set[str]] = {}  # by which code
        self.both: dict[str, tuple[int, int]] = {}  # size and time before
        self.written: set[str] = set()
        self.others = frozenset(threading.enumerate())
        self.is_left_out = is_left_out


# Per process: files that were opened in earlier chunks, by the code that may have kept them.
_earlier: Final[dict[str, dict[str, Seen]]] = {}
_here: Final = threading.local()
_watches: Final[list[_Watch]] = []
_theirs: Final[weakref.WeakSet[threading.Thread]] = weakref.WeakSet()
"""Threads that processors started: they may outlive a chunk, and work for the next one."""
_lock: Final = threading.Lock()
_installed: list[bool] = []


@contextlib.contextmanager
def watched(
    is_left_out: Callable[[str], bool], homes: frozenset[str] = frozenset()
) -> Iterator[Callable[[], dict[str, Seen]]]:
    """See which files are opened in here; what it gives tells them, by path, as they are then.

    ``is_left_out`` says of a path that it is none of the processor's. What earlier chunks opened
    with code of the same ``homes`` (`home`) counts too: it may be in memory still. To tell it
    raises a ProcessorError if one of these has changed, and was not opened again.
    """
    with _lock:
        if not _installed:
            sys.addaudithook(_hook)
            _installed.append(True)
    watch = _Watch(is_left_out)
    before = getattr(_here, "watch", None)
    _here.watch = watch
    _watches.append(watch)
    try:
        yield lambda: _with_earlier(watch, homes)
    finally:
        _watches.remove(watch)
        _here.watch = before


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _watches:
        return
    path, _, flags = arguments
    if not isinstance(path, str | bytes | os.PathLike) or not isinstance(flags, int):
        return
    own = getattr(_here, "watch", None)
    for watch in [own] if own is not None else _watches_of(threading.current_thread()):
        _note(watch, os.path.abspath(os.fsdecode(path)), flags)  # noqa: PTH100 - no links resolved


def _watches_of(thread: threading.Thread) -> list[_Watch]:
    """Those that a thread without one may be of: it was started under them, or works on."""
    found = [watch for watch in list(_watches) if thread not in watch.others or thread in _theirs]
    if any(frame.f_code.co_filename == socketserver.__file__ for frame in _frames()):
        return []  # of a server of this process, for a request
    if found:
        _theirs.add(thread)
    return found


def home(module: str, name: str) -> str:
    """Name under which files are remembered that code opened: its module, in a script its own.

    ``name`` is qualified. A notebook has many processors in its one module.
    """
    return f"{module}.{name.partition('.')[0]}" if module == MAIN else module


def _note(watch: _Watch, path: str, flags: int) -> None:
    is_changed = flags & os.O_WRONLY or (
        flags & os.O_RDWR and flags & (os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    )
    if is_changed:
        watch.written.add(path)
        return
    is_systems = path.startswith(_SYSTEM) and not path.startswith(_IN_MEMORY)
    if is_systems or watch.is_left_out(path):
        return
    homes: set[str] = set()
    for frame in _frames():
        code, module = frame.f_code, str(frame.f_globals.get("__name__"))
        name = code.co_filename
        is_import = name.startswith(_IMPORT) and code.co_name != "get_data"  # of anything
        if not homes and (is_import or name.startswith(_machinery())):
            return
        is_python = name.startswith(_FROZEN) or is_of_library(name) or name == __file__
        if not is_python and module.partition(".")[0] != OURS:
            homes.add(home(module, code.co_qualname))  # the processor's own code
    watch.read.setdefault(path, set()).update(homes)
    if flags & os.O_RDWR and path not in watch.both:
        with contextlib.suppress(OSError):
            watch.both[path] = _size_and_time(path)


def _size_and_time(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


def _frames() -> Iterator[FrameType]:
    """What calls this, from the inside out: nothing else tells who opens a file."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as above
    while frame is not None:
        yield frame
        frame = frame.f_back


@cache
def _machinery() -> tuple[str, ...]:
    """Folders and files of code that opens what is no input of the processor's."""
    ours = Path(__file__).parents[2]
    folders = [ours / part for part in ("columnar", "delivery", "models", "transports")]
    for package, part in (("numba", "core"), ("coffea", "nanoevents")):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folders.append(Path(spec.origin).parent / part)
    files = (str(module.__file__) for module in (linecache, tokenize))
    return (*(f"{folder}{os.sep}" for folder in folders), *files)


def _with_earlier(watch: _Watch, homes: frozenset[str]) -> dict[str, Seen]:
    """Files that were opened in a watch, and those of earlier chunks."""
    opened = seen(path for path in watch.read if path not in watch.written)
    for path, size_and_time in watch.both.items():  # what maps files opens them so, to read
        if path in opened and size_and_time != (opened[path].size, opened[path].modified):
            del opened[path]
            watch.written.add(path)
    with _lock:
        others = [pair for pair in earlier(homes) if pair[0] not in {*opened, *watch.written}]
        now = seen({path for path, _ in others})
        for path, before in others:
            is_open = any(path in one.read for one in _watches)  # a thread reads it just now
            if changed({path: before}, now) and not is_open:
                raise ProcessorError(
                    f"{path}: changed since this process opened it, and what was read may be in "
                    "memory still; open it again in each chunk (clear the cache that keeps it), or "
                    "start Python and its workers anew"
                )
        for path, one in opened.items():
            for name in watch.read[path] or homes:
                _earlier.setdefault(name, {})[path] = one
    return {**now, **opened}


def earlier(homes: Iterable[str]) -> list[tuple[str, Seen]]:
    """Files that code of any of these opened in this process, as they were then."""
    return [pair for name in homes for pair in _earlier.get(name, {}).items()]


def forget(module: str) -> None:
    """Forget what a module opened that is made anew, and keeps nothing of it."""
    _earlier.pop(module, None)


def seen(paths: Iterable[str]) -> dict[str, Seen]:
    """Files as they are now, by path; those that are gone, and what is no file, left out."""
    found = {path: _seen(path) for path in paths}
    return {path: one for path, one in found.items() if one is not None}


def _seen(path: str) -> Seen | None:
    try:
        status = Path(path).stat()
        if not Path(path).is_file():
            return None
        digest = _sha256(path, status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError:
        return None
    return Seen(status.st_size, status.st_mtime_ns, digest)


@lru_cache(maxsize=1024)
def _sha256(path: str, size: int, _modified: int, _inode: int) -> str | None:
    if size > LARGEST:
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def to_plain(files: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Files for JSON."""
    return {path: asdict(one) for path, one in files.items()}


def from_plain(files: Mapping[str, Mapping[str, Any]]) -> dict[str, Seen]:
    """Undo `to_plain`."""
    return {path: Seen(**one) for path, one in files.items()}


def changed(before: Mapping[str, Seen], now: Mapping[str, Seen]) -> list[str]:
    """Paths of files that are gone, or other than before."""
    return [path for path, one in before.items() if path not in now or one.differs(now[path])]
