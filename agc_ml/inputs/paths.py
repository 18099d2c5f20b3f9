"""Paths, folders, patterns and URLs as users write them, perhaps with a tree: ``a.root:Events``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from agc_ml.errors import FilesetError
from agc_ml.inputs.datasets import check_text
from agc_ml.inputs.folders import exists, is_pattern, list_files
from agc_ml.transports.base import local_path
from agc_ml.transports.credentials import redacted

_WITH_TREE: Final = re.compile(
    r"(?P<file>.+\.root(\.\d+)?):/?(?P<tree>[^:]+)", re.IGNORECASE | re.DOTALL
)
_REMOTE_PATTERN: Final = re.compile(r"[*\[]")  # in URLs a question mark begins the query
_SPECIAL: Final = re.compile(r"[*?\[$]|^~")
_WEB_SPECIAL: Final = re.compile(r"[*\[#]")
_VARIABLE: Final = re.compile(r"\$(\w+|\{\w+\})")
_OF_SECRETS: Final = re.compile(r"(?i)\$\{?(\w+_)?(token|secret|password|passwd)(_\w+)?\b")
_SECRET: Final = re.compile(
    r"(?i)(authz|access_token|x-amz-[a-z-]+|awsaccesskeyid|signature|sig|xrdhttptk)="
)
_WITH_HOST: Final = {"root", "roots", "xroot", "xroots", "http", "https"}


class Location(NamedTuple):
    """Logical name of a file, and the URL or absolute path to read it from."""

    lfn: str
    url: str


class ResolvedPath(NamedTuple):
    """Files that a path, folder, pattern or URL stands for, and the tree that it names.

    ``note`` is a remark for readers; ``problem`` the reason why there are no files.
    ``is_missing``: a single file that does not exist, or is not visible from here.
    """

    locations: tuple[Location, ...]
    tree: str | None = None
    note: str | None = None
    problem: str | None = None
    is_missing: bool = False


def is_url(text: str) -> bool:
    """Return whether a text names another machine or a protocol."""
    return local_path(text) is None


def logical_name(url: str) -> str:
    """Return the path of a URL without scheme and host, which is the same at all servers."""
    if not is_url(url):
        return str(local_path(url)) if url.lower().startswith("file:/") else url
    parts = urlsplit(url, allow_fragments=False)  # XRootD allows '#' in names
    query = "&".join(part for part in parts.query.split("&") if not _SECRET.match(part))
    return re.sub("/+", "/", parts.path) + (f"?{query}" if query else "")


def expand(path: str, where: str) -> str:
    """Expand ``~`` and ``$VARIABLES`` in a local path; a URL stays unchanged.

    The author of a fileset need not be its reader: a URL with the reader's variables would send
    their values to its server. Errors begin with ``where``, the place that names the path.

    Raises
    ------
    FilesetError
        A variable is not set, turns the path into a URL or is named like a secret; or the path is
        empty.
    """
    if is_url(path):
        return path
    if secret := _OF_SECRETS.search(path):  # paths are printed, and kept in run directories
        name = secret[0].strip("${}")
        raise FilesetError(f"{where}: {path}: ${name} may be a secret, and is not expanded")
    expanded = os.path.expandvars(path)
    if not expanded:
        raise FilesetError(f"{where}: {path!r} is empty; name a file")
    unset = _VARIABLE.search(expanded)
    if unset:
        raise FilesetError(f"{where}: {path}: the variable {unset[0]} is not set")
    if is_url(expanded):
        raise FilesetError(
            f"{where}: {path}: variables are expanded in paths only, and this would be a URL; "
            "write the URL out"
        )
    if expanded.lower().startswith("file:"):
        return expanded
    try:
        return str(Path(expanded).expanduser())
    except RuntimeError as error:
        raise FilesetError(f"{where}: {path}: {error}") from error


def split_tree(text: str) -> tuple[str, str | None]:
    """Split a path or URL from the name of its tree: ``a.root:Events``."""
    host = re.match(r"\w+://[^/]*", text)  # it may end in .root and have a port
    match = _WITH_TREE.fullmatch(text, 0 if host is None else host.end())
    return (text, None) if match is None else (text[: match.end("file")], match["tree"])


def resolve(text: str, folder: Path, where: str) -> ResolvedPath:
    """Find the files that a URL, a path, a folder or a pattern stands for.

    Relative paths are relative to ``folder``, and so are the logical names of the files there.
    Errors begin with ``where``. A file that really is called ``a.root:Events`` or ``[1].root`` goes
    before other readings.

    Raises
    ------
    FilesetError
        A variable can't be expanded, it is a pattern on a server or not a valid URL, or a folder
        can't be listed.
    """
    expanded = expand(text, where)
    local = local_path(expanded)
    check_text(f"{where}: {text!r}", str(local or expanded))
    if local is None:
        url, tree = split_tree(expanded)
        _check_url(url, where)
        return ResolvedPath((Location(logical_name(url), url),), tree)
    try:
        return _on_disk(text, expanded, folder)
    except OSError as error:
        place = error.filename or text
        raise FilesetError(
            f"{where}: {str(place)[:200]}: can't be read ({error.strerror or error})"
        ) from error


def _on_disk(text: str, expanded: str, folder: Path) -> ResolvedPath:
    local, tree = Path(local_path(expanded) or ""), None
    path = _absolute(folder, local)
    if not exists(path):
        # before a URL is decoded: escaped characters are not part of a pattern or a tree
        expanded, tree = split_tree(expanded)
        path = _absolute(folder, Path(local_path(expanded) or ""))
    if not path.is_dir() and not is_pattern(path, expanded):
        name = logical_name(text if tree is None else split_tree(text)[0])
        return ResolvedPath((Location(name, str(path)),), tree, is_missing=not path.exists())
    listing = list_files(path)
    # logical names stay relative if the path was
    names = [str(file) for file in listing.files]
    if not local.is_absolute():
        names = [os.path.relpath(name, folder.absolute()) for name in names]
    locations = (Location(name, str(file)) for name, file in zip(names, listing.files, strict=True))
    return ResolvedPath(tuple(locations), tree, listing.note(text), listing.problem)


def escaped(url: str) -> str:
    """Return a replica as a fileset lists it: `resolve` finds no variable, pattern or tree in it.

    Raises
    ------
    FilesetError
        It would need escapes, and the protocol of its server has none.
    """
    local = local_path(url)
    if local is not None:
        name = str(local)
        return local.absolute().as_uri() if _SPECIAL.search(name) or split_tree(name)[1] else url
    scheme, sign, rest = url.partition("://")
    host, slash, path = rest.partition("/")  # a host may have brackets
    if scheme.lower() in {"http", "https"}:
        escaped = _WEB_SPECIAL.sub(lambda match: f"%{ord(match[0]):02X}", path)
        return f"{scheme}{sign}{host}{slash}{escaped}"
    if _REMOTE_PATTERN.search(path):
        raise FilesetError(
            f"{redacted(url)}: with '*' or '[' in its name a fileset can't list it; rename it"
        )
    return url


def _absolute(folder: Path, path: Path) -> Path:
    whole = (folder / path).absolute()
    if ".." not in whole.parts:
        return whole
    normal = os.path.normpath(whole)
    # after a link, '..' is not the folder that the name suggests
    return Path(normal) if os.path.realpath(normal) == os.path.realpath(whole) else whole


def _check_url(url: str, where: str) -> None:
    shown = redacted(url)
    if url.lower().startswith("file:"):
        raise FilesetError(
            f"{where}: {shown}: a file on another machine; one on this machine is file:///PATH"
        )
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise FilesetError(f"{where}: {shown}: not a URL ({error})") from error
    if _VARIABLE.search(parts.netloc):
        raise FilesetError(
            f"{where}: {shown}: variables are expanded in paths only, not in URLs; write it out"
        )
    has_host = parts.netloc or parts.scheme.lower() not in _WITH_HOST
    if not has_host or not logical_name(url) or re.search(r"[\t\r\n]", url):
        raise FilesetError(
            f"{where}: {shown}: not a URL; SCHEME://HOST/PATH is needed, without tabs"
        )
    if parts.fragment and parts.scheme.lower() in {"http", "https"}:
        raise FilesetError(
            f"{where}: {shown}: text after '#' is not sent to servers; write '#' in a name as %23"
        )
    if _REMOTE_PATTERN.search(parts.path):
        raise FilesetError(
            f"{where}: {shown}: a pattern on a server; list its matches first, with "
            f"'agc-ml fileset from-glob NAME={shown} TARGET'"
        )
