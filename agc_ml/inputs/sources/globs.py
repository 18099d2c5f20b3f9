"""Filesets of files that match patterns, on local disks and on servers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from agc_ml.errors import CatalogueError, UsageError
from agc_ml.inputs.datasets import EVENTS, File
from agc_ml.inputs.fileset import Fileset
from agc_ml.inputs.folders import first_few, is_root_file, not_root_files
from agc_ml.inputs.paths import is_url, logical_name, resolve, split_tree
from agc_ml.inputs.sources.assembly import SourceFiles, assemble, split_pairs
from agc_ml.transports import xrootd

TIMEOUT_S: Final = 20.0
"""Time limit for the listing of a folder."""

_SCHEMES: Final = ("root", "http", "https")
_MAGIC: Final = re.compile(r"[*\[]")  # in URLs a question mark begins the query
_MISSING: Final = "[3011]"  # of XRootD
_NOT_FOUND: Final = 404


def from_patterns(wanted: Iterable[str]) -> Fileset:
    """Make a fileset of files that match patterns, given as ``NAME=PATTERN``.

    A pattern is a path or a URL (root, http, https) with ``*``, ``[abc]`` and ``**`` for folders at
    any depth, and perhaps a tree behind it (``*.root:Events``). Hidden files and folders are left
    out; a note counts files that are not called like ROOT files. Web servers have to list their
    folders as pages of links, which do not tell files from folders: there, only the last part of
    the path can be a pattern.

    Raises
    ------
    UsageError
        A pair makes no sense, a scheme is not known, or no file matches.
    CatalogueError
        A client library is missing, or a server can't be reached, does not answer or refuses.
    FilesetError
        A file matches twice, or a variable in a path is not set.
    """
    return assemble(split_pairs(wanted, "PATTERN"), _find)


def _find(pattern: str) -> SourceFiles:
    return _remote(pattern) if is_url(pattern) else _local(pattern)


def _local(pattern: str) -> SourceFiles:
    match = resolve(pattern, Path.cwd(), "the command line")
    if match.problem or match.is_missing:
        raise _no_files(pattern, match.problem or "no file matches")
    files = []
    for _, url in match.locations:
        path = Path(url)  # may be a broken link
        size = path.stat().st_size if path.exists() else None
        files.append(_file(url, url, size, match.tree))
    return SourceFiles(tuple(files), (match.note,) if match.note else ())


def _remote(pattern: str) -> SourceFiles:
    pattern, tree = split_tree(pattern)
    scheme, host = _server(pattern)
    import aiohttp  # noqa: PLC0415 - heavy

    try:
        system, path = _opened(pattern, scheme)
        sizes = {entry["name"]: entry["size"] for entry in _matches(system, path)}
    except (OSError, ValueError, aiohttp.ClientError) as error:
        if _is_missing(error):
            raise _no_files(pattern, "no file matches") from error
        raise CatalogueError(
            f"{pattern}: {scheme}://{host} does not list it ({_reason(error)}); check its address "
            "and the network"
        ) from error
    # a single file may have any name, files of a pattern only those of ROOT files
    is_named = not _MAGIC.search(path)
    others = [] if is_named else [name for name in sorted(sizes) if not is_root_file(name)]
    names = [name.rpartition("/")[2] for name in others]
    if len(others) == len(sizes):
        only = f"; only {first_few(names)} there" if others else ""
        raise _no_files(pattern, f"no file matches{only}")
    files = []
    for name in sorted(sizes.keys() - others):
        url = name if is_url(name) else f"{scheme}://{host}/{name}"
        files.append(_file(logical_name(url), url, sizes[name], tree))
    note = f"{pattern}: skipped {not_root_files(names)}"
    return SourceFiles(tuple(files), (note,) if others else ())


def _file(lfn: str, url: str, size: int | None, tree: str | None) -> File:
    return File(lfn, (url,), tree or EVENTS, size=size)


def _no_files(pattern: str, problem: str) -> UsageError:
    return UsageError(f"{pattern}: {problem}; FOLDER/*.root matches the files of a folder")


def _server(pattern: str) -> tuple[str, str]:
    """Return scheme and host of a pattern, if files can be listed there."""
    try:
        scheme, host, path, *_ = urlsplit(pattern)
    except ValueError as error:
        raise UsageError(f"{pattern}: not a URL ({error})") from error
    if scheme not in _SCHEMES:
        raise UsageError(
            f"{pattern}: unknown scheme {scheme!r}; known are {', '.join(_SCHEMES)} and paths"
        )
    if not host:
        raise UsageError(f"{pattern}: no host in it; {scheme}://HOST//PATH is needed")
    folder, _, last = path.rpartition("/")
    if scheme != "root" and ("**" in last or _MAGIC.search(folder)):
        raise UsageError(
            f"{pattern}: over {scheme}, only the last part can be a pattern, and not '**'; name "
            "each folder, or use root://"
        )
    return scheme, host


def _is_missing(error: Exception) -> bool:
    """Return whether there is no such file; fsspec says so for any error of a web server."""
    if isinstance(error, FileNotFoundError):
        return error.__cause__ is None or getattr(error.__cause__, "status", None) == _NOT_FOUND
    return _MISSING in str(error)


def _opened(url: str, scheme: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    xrootd.prepare()
    import aiohttp  # noqa: PLC0415 - heavy
    import fsspec  # noqa: PLC0415 - heavy

    limit = aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=5)
    options: dict[str, Any] = (
        # its cache of listings fails on the topmost folder
        {"timeout": int(TIMEOUT_S), "use_listings_cache": False}
        if scheme == "root"
        else {"client_kwargs": {"timeout": limit}}
    )
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise CatalogueError(
            f"{url}: XRootD's client is needed for it ({error}): pip install 'agc-ml[xrootd]'"
        ) from error
    # not from the URL as a whole: two colons in it, as in a host's number, would be a chain
    host = kind._get_kwargs_from_urls(url)  # noqa: SLF001 - as fsspec does it
    system = kind(skip_instance_cache=True, **host, **options)
    return system, str(kind._strip_protocol(url))  # noqa: SLF001


def _matches(system: Any, path: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of matching files.

    Folders are listed one by one: the file system's own search treats a folder that can't be
    listed as empty, and would lose files silently.
    """
    parts = path.split("/")
    start = 3 if is_url(path) else 0  # a host may have brackets
    first = next((i for i in range(start, len(parts)) if _MAGIC.search(parts[i])), None)
    if first is None:
        entry = _tidy(system.info(path))
        if entry["type"] == "file":
            yield entry
    else:
        yield from _below(system, "/".join(parts[:first]) or "/", parts[first:])


def _below(system: Any, folder: str, parts: list[str]) -> Iterator[dict[str, Any]]:
    part, *rest = parts
    if part == "**":
        yield from _below(system, folder, rest or ["*"])
    for entry in _listed(system, folder):
        name = entry["name"]
        if name.rpartition("/")[2].startswith(".") and not part.startswith("."):
            continue
        is_folder = entry["type"] == "directory"
        if part == "**":
            if is_folder:
                yield from _below(system, name, parts)
        elif fnmatchcase(name.rpartition("/")[2], part):
            if rest and is_folder:
                yield from _below(system, name, rest)
            elif not rest and not is_folder:
                yield entry


def _listed(system: Any, folder: str) -> list[dict[str, Any]]:
    # web servers need a slash
    listed = system.ls(f"{folder}/" if is_url(folder) else folder, detail=True)
    entries = [_tidy(entry) for entry in listed]
    itself = [entry for entry in entries if entry["name"] == folder]
    if any(entry["type"] == "directory" for entry in itself):  # XRootD's answer without permission
        raise PermissionError(f"{folder} may not be listed")
    return [entry for entry in entries if entry not in itself]


def _tidy(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry whose name has no double slash and none at its end, as servers write them."""
    scheme, sign, rest = str(entry["name"]).rpartition("://")
    return {**entry, "name": f"{scheme}{sign}{re.sub('/+', '/', rest).rstrip('/')}"}


def _reason(error: Exception) -> str:
    """Return the text of an error without the function names that XRootD's file system adds."""
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    if isinstance(error, FileNotFoundError):
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    text = re.sub(r"^.*?\[(FATAL|ERROR)\] ", "", " ".join(str(error).split()))
    return text[:200] or type(error).__name__
