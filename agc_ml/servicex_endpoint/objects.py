"""The results on disk: one folder a request, one object an input."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import urlsplit

from agc_ml.servicex_endpoint.requests import ResultFormat

_ENDING: Final[dict[ResultFormat, str]] = {
    "root-file": ".root",
    "root-rntuple": ".root",
    "parquet": ".parquet",
}
_LONGEST_STEM: Final = 80


class Objects:
    """Objects below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def keep(self, request_id: str, name: str, made: Path) -> None:
        """Move what a worker made to its place, replacing what is there."""
        folder = self.root / request_id
        folder.mkdir(parents=True, exist_ok=True)
        made.replace(folder / name)

    def delete(self, request_id: str) -> None:
        """Remove all objects of a request."""
        shutil.rmtree(self.root / request_id, ignore_errors=True)


def name_for(path: str, result_format: ResultFormat) -> str:
    """What the result of an input is called: as the input, and no two alike.

    Letters, digits, dots, dashes and underscores only, as clients replace others, by which two
    names could become one.
    """
    digest = hashlib.sha256(path.encode()).hexdigest()[:12]
    stem = PurePosixPath(urlsplit(path).path).stem
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[-_LONGEST_STEM:].lstrip("._-")
    return f"{plain or 'file'}-{digest}{_ENDING[result_format]}"
