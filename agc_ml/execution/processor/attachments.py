"""Files that a processor brings along: ``files = ("sf.json.gz",)``, the same on every worker.

On a worker they lie in a folder of their own, together with the processor's module if that is a
loose file: there `Path(__file__).parent` finds them as it does where they come from. And
``events.metadata["files"]`` says where each of them is.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from agc_ml.errors import ProcessorError, UsageError
from agc_ml.execution.processor.function_processor import declared, origin
from agc_ml.models.content import Content, content_of, provide

_lock: Final = threading.Lock()
_folders: Final[dict[str, tempfile.TemporaryDirectory[str]]] = {}


def attach(processor: Any) -> dict[str, str]:
    """Read the files that a processor declares: sha256 by name; this process keeps the content.

    They are beside the processor's module, or in the folder where the program was started.

    Raises
    ------
    ProcessorError
        ``files`` is no tuple of names.
    UsageError
        A file is not there.
    """
    names, owner = declared(processor, "files", "names of files"), origin(processor)
    label = getattr(owner, "__name__", type(owner).__name__)
    home = getattr(sys.modules.get(owner.__module__), "__file__", None)
    folders = [Path(home).absolute().parent] if home is not None else []
    found = {}
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ProcessorError(f"{label}.files: {name}: a name inside of its folder is needed")
        places = [folder / name for folder in (*folders, Path.cwd())]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            looked = " or ".join(dict.fromkeys(str(place.parent) for place in places))
            raise UsageError(f"{label}.files: there is no file {name} in {looked}")
        data = path.read_bytes()
        found[name] = hashlib.sha256(data).hexdigest()
        provide({found[name]: Content(data)})
    return found


def contents(files: Mapping[str, str]) -> dict[str, Content]:
    """Content of attached files, by sha256."""
    found = {sha256: content_of(sha256) for sha256 in files.values()}
    return {sha256: content for sha256, content in found.items() if content is not None}


def placed(files: Mapping[str, str]) -> Path | None:
    """Folder of this process with files, whose sha256 are given by name; None if there are none.

    Raises
    ------
    ProcessorError
        Their content never came to this process.
    """
    if not files:
        return None
    key = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
    with _lock:
        if key not in _folders:
            folder = tempfile.TemporaryDirectory(prefix="agc-ml-files-", ignore_cleanup_errors=True)
            for name, sha256 in files.items():
                content = content_of(sha256)
                if content is None:
                    raise ProcessorError(f"the file {name} of the processor never came here")
                path = Path(folder.name) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.data)
                path.chmod(0o400)
            _folders[key] = folder
        return Path(_folders[key].name)
