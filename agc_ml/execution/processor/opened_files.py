"""Files that a processor opens while it works: noted, and compared by a resume.

Python's audit hooks see every file that it opens. Left out are inputs, imported modules, files of
libraries and of the system, files that are written, and files that older threads open, or a server
for a request. Files that a library opens in C, as ROOT and HDF5 do, are not seen: a processor
declares those in ``files``.

Code may keep what it read, in a cache or a module's variable. So a process remembers which code
opened a file, and the file counts in all later chunks that use the code.
"""

from __future__ import annotations

import contextlib
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
from agc_ml.execution.code.canonical import OURS, digest
from agc_ml.execution.code.source_files import MAIN, is_of_library, top_of

LARGEST: Final = 64 << 20
"""Bytes up to which the content of a file is compared; larger ones by size and time."""
_SYSTEM: Final = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/")
_IN_MEMORY: Final = "/dev/shm/"  # noqa: S108 - nothing of ours is there
"""Shared memory, where files are the user's."""
_FROZEN: Final = "<frozen "
_IMPORT: Final = "<frozen importlib"


@dataclass(frozen=True, slots=True)
class FileState:
    """Size of a file in bytes, time of modification in ns, sha256 unless it is large."""

    size: int
    modified: int
    sha256: str | None

    def differs(self, other: FileState) -> bool:
        """Return whether the content differs, as far as known."""
        if self.sha256 is None or other.sha256 is None:
            return (self.size, self.modified) != (other.size, other.modified)
        return self.sha256 != other.sha256


class _Watch:
    """Files opened inside of a `watch_opened` block."""

    def __init__(self, is_left_out: Callable[[str], bool]) -> None:
        self.read: dict[str, set[str]] = {}  # path, and the code that read it
        self.read_write: dict[str, tuple[int, int]] = {}  # size and time before
        self.written: set[str] = set()
        self.older_threads = frozenset(threading.enumerate())
        self.is_left_out = is_left_out


# Per process: files opened in earlier chunks, by the code that may have kept their content.
_opened_before: Final[dict[str, dict[str, FileState]]] = {}
_thread: Final = threading.local()
_watches: Final[list[_Watch]] = []
_processor_threads: Final[weakref.WeakSet[threading.Thread]] = weakref.WeakSet()
"""Threads that processors started, which may outlive a chunk and work for the next one."""
_lock: Final = threading.Lock()
_installed: list[bool] = []


@contextlib.contextmanager
def watch_opened(
    is_left_out: Callable[[str], bool], homes: frozenset[str] = frozenset()
) -> Iterator[Callable[[], dict[str, FileState]]]:
    """Note the files that are opened in the block; yield a function that returns their states.

    ``is_left_out`` tells which paths are not the processor's. Files that earlier chunks opened with
    code of the same ``homes`` (`code_home`) count too, as they may still be in memory. The function
    raises a ProcessorError if one of these has changed and was not opened again.
    """
    with _lock:
        if not _installed:
            sys.addaudithook(_hook)
            _installed.append(True)
    watch = _Watch(is_left_out)
    outer = getattr(_thread, "watch", None)
    _thread.watch = watch
    _watches.append(watch)
    try:
        yield lambda: _with_earlier(watch, homes)
    finally:
        _watches.remove(watch)
        _thread.watch = outer


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _watches:
        return
    path, _, flags = arguments
    if not isinstance(path, str | bytes | os.PathLike) or not isinstance(flags, int):
        return
    own = getattr(_thread, "watch", None)
    for watch in [own] if own is not None else _watches_of(threading.current_thread()):
        _note(watch, os.path.abspath(os.fsdecode(path)), flags)  # noqa: PTH100 - no links resolved


def _watches_of(thread: threading.Thread) -> list[_Watch]:
    """Watches that a thread without one of its own may work for."""
    is_processors = thread in _processor_threads
    watches = [w for w in list(_watches) if is_processors or thread not in w.older_threads]
    if any(frame.f_code.co_filename == socketserver.__file__ for frame in _frames()):
        return []  # a server of this process, for a request
    if watches:
        _processor_threads.add(thread)
    return watches


def code_home(module: str, name: str) -> str:
    """Name under which files that code opened are remembered: its module, or in a script its own.

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
        if not is_python and top_of(module) != OURS:
            homes.add(code_home(module, code.co_qualname))  # the processor's own code
    watch.read.setdefault(path, set()).update(homes)
    if flags & os.O_RDWR and path not in watch.read_write:
        with contextlib.suppress(OSError):
            watch.read_write[path] = _size_and_time(path)


def _size_and_time(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


def _frames() -> Iterator[FrameType]:
    """Calling frames, innermost first: nothing else tells who opens a file."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as above
    while frame is not None:
        yield frame
        frame = frame.f_back


@cache
def _machinery() -> tuple[str, ...]:
    """Folders and files of code whose opened files are not the processor's."""
    ours = Path(__file__).parents[2]
    folders = [ours / part for part in ("columnar", "delivery", "models", "transports")]
    for package, part in (("numba", "core"), ("coffea", "nanoevents")):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folders.append(Path(spec.origin).parent / part)
    files = (str(module.__file__) for module in (linecache, tokenize))
    return (*(f"{folder}{os.sep}" for folder in folders), *files)


def _with_earlier(watch: _Watch, homes: frozenset[str]) -> dict[str, FileState]:
    """States of the files that were opened in a watch, and of those of earlier chunks."""
    opened = file_states(path for path in watch.read if path not in watch.written)
    for path, size_and_time in watch.read_write.items():  # memory maps open files so to read
        if path in opened and size_and_time != (opened[path].size, opened[path].modified):
            del opened[path]
            watch.written.add(path)
    with _lock:
        others = [pair for pair in opened_before(homes) if pair[0] not in {*opened, *watch.written}]
        now = file_states({path for path, _ in others})
        for path, before in others:
            is_open = any(path in other.read for other in _watches)  # in another thread
            if changed_files({path: before}, now) and not is_open:
                raise ProcessorError(
                    f"{path}: changed since this process opened it, and its old content may still "
                    "be in memory; open it in each chunk (clear the cache that keeps it), or "
                    "restart Python and its workers"
                )
        for path, state in opened.items():
            for name in watch.read[path] or homes:
                _opened_before.setdefault(name, {})[path] = state
    return {**now, **opened}


def opened_before(homes: Iterable[str]) -> list[tuple[str, FileState]]:
    """Files that code of any of these opened in this process, as they were then."""
    return [pair for name in homes for pair in _opened_before.get(name, {}).items()]


def forget_opened(module: str) -> None:
    """Forget the files of a module that is loaded again, and so keeps nothing of them."""
    _opened_before.pop(module, None)


def file_states(paths: Iterable[str]) -> dict[str, FileState]:
    """States of files as they are now, by path, without those that are gone."""
    return {path: state for path in paths if (state := _state(path)) is not None}


def _state(path: str) -> FileState | None:
    try:
        status = Path(path).stat()
        if not Path(path).is_file():
            return None
        sha256 = _sha256(path, status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError:
        return None
    return FileState(status.st_size, status.st_mtime_ns, sha256)


@lru_cache(maxsize=1024)
def _sha256(path: str, size: int, _modified: int, _inode: int) -> str | None:
    return digest(Path(path).read_bytes()) if size <= LARGEST else None


def to_plain(files: Mapping[str, FileState]) -> dict[str, dict[str, Any]]:
    """States of files for JSON."""
    return {path: asdict(state) for path, state in files.items()}


def from_plain(files: Mapping[str, Mapping[str, Any]]) -> dict[str, FileState]:
    """Undo `to_plain`."""
    return {path: FileState(**state) for path, state in files.items()}


def changed_files(before: Mapping[str, FileState], now: Mapping[str, FileState]) -> list[str]:
    """Paths of files that are gone, or differ from before."""
    return [path for path, state in before.items() if path not in now or state.differs(now[path])]
