"""Files that a processor brings along: ``files = ("sf.json.gz",)``, the same on every worker.

On a worker they are in a folder of their own, with the processor's module if that is a loose file,
so that `Path(__file__).parent` finds them as it does where they come from.
``events.metadata["files"]`` has the path of each.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from agc_ml.errors import ProcessorError, UsageError
from agc_ml.execution.code.canonical import digest
from agc_ml.execution.code.function_processor import origin, origin_name
from agc_ml.execution.processor.declarations import declared_names
from agc_ml.models.content import Content, content_of, provide

_lock: Final = threading.Lock()
_folders: Final[dict[str, tempfile.TemporaryDirectory[str]]] = {}


def attach(processor: Any) -> dict[str, str]:
    """Read the files that a processor declares, and return their sha256 by name.

    They are beside the processor's module, or in the working directory. This process keeps their
    content.

    Raises
    ------
    ProcessorError
        ``files`` is not a tuple of names.
    UsageError
        A file does not exist.
    """
    names, label = declared_names(processor, "files", "file names"), origin_name(processor)
    home = getattr(sys.modules.get(origin(processor).__module__), "__file__", None)
    folders = [Path(home).absolute().parent] if home is not None else []
    digests = {}
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ProcessorError(f"{label}.files: {name}: a name inside its folder is needed")
        places = [folder / name for folder in (*folders, Path.cwd())]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            looked = " or ".join(dict.fromkeys(str(place.parent) for place in places))
            raise UsageError(f"{label}.files: there is no file {name} in {looked}")
        data = path.read_bytes()
        digests[name] = digest(data)
        provide({digests[name]: Content(data)})
    return digests


def contents(files: Mapping[str, str]) -> dict[str, Content]:
    """Content of attached files, by sha256."""
    return {sha: content for sha in files.values() if (content := content_of(sha)) is not None}


def attachment_folder(files: Mapping[str, str]) -> Path | None:
    """Folder of this process with files, given by name and sha256; None if there are none.

    Raises
    ------
    ProcessorError
        Their content did not reach this process.
    """
    if not files:
        return None
    key = repr(sorted(files.items()))
    with _lock:
        if key not in _folders:
            folder = tempfile.TemporaryDirectory(prefix="agc-ml-files-", ignore_cleanup_errors=True)
            for name, sha256 in files.items():
                content = content_of(sha256)
                if content is None:
                    raise ProcessorError(
                        f"the file {name} of the processor did not reach this worker"
                    )
                path = Path(folder.name) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.data)
                path.chmod(0o400)
            _folders[key] = folder
        return Path(_folders[key].name)
