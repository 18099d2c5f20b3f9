"""Folders and patterns on local disks: all ROOT files in them, each real file once.

Links are followed, and hidden files and folders left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

_MAGIC: Final = re.compile(r"[*?\[]")
_ROOT: Final = re.compile(r".*\.root(\.\d+)?", re.IGNORECASE | re.DOTALL)
_FEW: Final = 3


def is_root_file(name: str) -> bool:
    """Return whether a file is named like ROOT files: ``.root``, or ``.root.1`` as in ATLAS."""
    return _ROOT.fullmatch(name) is not None


def first_few(names: Sequence[str]) -> str:
    """Return the first of many names, for a message."""
    return ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")


def not_root_files(names: Sequence[str]) -> str:
    """Return a note on names that are not called like ROOT files."""
    return f"{len(names)} not called *.root ({first_few(names)})"


def exists(path: Path) -> bool:
    """Return whether there is such a name, be it a broken link."""
    return path.is_symlink() or path.exists()


def is_pattern(path: Path, text: str) -> bool:
    """Return whether a text is a pattern, and not the very name of a file.

    With a star it always is one.
    """
    return _MAGIC.search(text) is not None and ("*" in text or not exists(path))


class Listing(NamedTuple):
    """ROOT files in a folder, or matching a pattern, and the names that were skipped.

    ``others`` are not called like ROOT files, ``links`` lead to files that are listed already.
    """

    files: list[Path]
    others: list[str]
    links: list[str]
    is_folder: bool

    @property
    def problem(self) -> str | None:
        """Reason why there are no files, None if there are."""
        if self.files:
            return None
        reason = "no *.root files in that folder" if self.is_folder else "no file matches"
        return reason + (f"; only {first_few(self.others)} there" if self.others else "")

    def note(self, text: str) -> str | None:
        """Return a note on the names that were skipped under ``text``, None if none were."""
        parts = []
        if self.others:
            parts.append(not_root_files(self.others))
        if self.links:
            links = f"{len(self.links)} link{'s' * (len(self.links) > 1)}"
            parts.append(f"{links} to the same ({first_few(self.links)})")
        return f"{text}: skipped {' and '.join(parts)}" if self.files and parts else None


def list_files(path: Path) -> Listing:
    """List a folder or a pattern, by name; of several names of a real file one that is no link."""
    is_folder = path.is_dir()
    first = next((i for i, part in enumerate(path.parts) if _MAGIC.search(part)), 0)
    base = path if is_folder else Path(*path.parts[:first])
    parts = ("**", "*") if is_folder else path.parts[first:]
    links: list[Path] = []
    matches = list(_matches(base, parts, links))
    real_base = Path(os.path.realpath(base))
    real = {match: os.path.realpath(match) for match in matches}
    files: dict[str, Path] = {}
    others = []
    # names that are no links come first, and stand for the file
    for match in sorted(real, key=lambda m: real[m] != str(real_base / m.relative_to(base))):
        if match.is_dir():
            if "**" not in parts:
                others.append(match)
        elif not is_root_file(match.name):
            others.append(match)
        elif files.setdefault(real[match], match) != match:
            links.append(match)
    return Listing(sorted(files.values()), _unique_names(others), _unique_names(links), is_folder)


def _unique_names(paths: Iterable[Path]) -> list[str]:
    return [path.name for path in sorted(set(paths))]


def _matches(folder: Path, parts: Sequence[str], loops: list[Path]) -> Iterator[Path]:
    part, *rest = parts
    if part == "**":
        for below in _folders(folder, loops):
            yield from _matches(below, rest or ["*"], loops)
        return
    for path in _entries(folder, part):
        if not rest:
            yield path
        elif path.is_dir():
            yield from _matches(path, rest, loops)


def _entries(folder: Path, pattern: str) -> list[Path]:
    """Return the entries of a folder that match, without hidden ones."""
    itself = folder / pattern
    if not is_pattern(itself, pattern):
        return [itself] if exists(itself) else []
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.iterdir())
        if fnmatchcase(path.name, pattern)
        and (pattern.startswith(".") or not path.name.startswith("."))
    ]


def _folders(top: Path, loops: list[Path]) -> Iterator[Path]:
    """Yield a folder and all below it, each real folder once; links are followed last.

    Links to folders above ``top`` are not followed, and noted in ``loops``.
    """
    above = Path(os.path.realpath(top)).parents
    seen: set[str] = set()
    stack, links = [top], list[Path]()
    while stack or links:
        folder = stack.pop() if stack else links.pop(0)
        real = os.path.realpath(folder)
        if Path(real) in above:
            loops.append(folder)
        elif real not in seen:
            seen.add(real)
            yield folder
            for path in _entries(folder, "*"):
                if path.is_dir():
                    (links if path.is_symlink() else stack).append(path)
