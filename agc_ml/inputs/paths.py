"""Where files are, as people write it: paths, folders, patterns and URLs, perhaps with a tree.

Folders and patterns behave alike: links are followed, each real file is taken once, hidden files
and folders are left out, and ROOT files are known by their ending.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from agc_ml.errors import FilesetError
from agc_ml.inputs.fileset import check_text
from agc_ml.transports.base import local_path
from agc_ml.transports.credentials import redacted

_ROOT: Final = re.compile(r".*\.root(\.\d+)?", re.IGNORECASE | re.DOTALL)
_WITH_TREE: Final = re.compile(
    r"(?P<file>.+\.root(\.\d+)?):/?(?P<tree>[^:]+)", re.IGNORECASE | re.DOTALL
)
_MAGIC: Final = re.compile(r"[*?\[]")
_REMOTE_MAGIC: Final = re.compile(r"[*\[]")  # in URLs a question mark begins the query
_SIGNS: Final = re.compile(r"[*?\[$]|^~")
_REMOTE_SIGNS: Final = re.compile(r"[*\[]")
_WEB_SIGNS: Final = re.compile(r"[*\[#]")
_VARIABLE: Final = re.compile(r"\$(\w+|\{\w+\})")
_OF_SECRETS: Final = re.compile(r"(?i)\$\{?(\w+_)?(token|secret|password|passwd)(_\w+)?\b")
_SECRET: Final = re.compile(
    r"(?i)(authz|access_token|x-amz-[a-z-]+|awsaccesskeyid|signature|sig|xrdhttptk)="
)
_WITH_HOST: Final = {"root", "roots", "xroot", "xroots", "http", "https"}
_NAMED: Final = 3


class Place(NamedTuple):
    """A file: its logical name, and the URL or absolute path where it can be read."""

    lfn: str
    url: str


class Meant(NamedTuple):
    """Files that a text means, and the tree that it names, as in ``a.root:Events``.

    ``note`` is what a reader should know of them; ``problem`` why there are none. ``is_missing``:
    it names one file that is not there, or not seen from here.
    """

    places: tuple[Place, ...]
    tree: str | None = None
    note: str | None = None
    problem: str | None = None
    is_missing: bool = False


def is_url(text: str) -> bool:
    """Return whether it is of another machine, or names a protocol."""
    return local_path(text) is None


def is_root_file(name: str) -> bool:
    """Whether it is called as ROOT files are: ``.root``, or ``.root.1`` as ATLAS has them."""
    return _ROOT.fullmatch(name) is not None


def some(names: Sequence[str]) -> str:
    """The first of many names, for a line."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def logical_name(url: str) -> str:
    """Path of a URL without scheme and host: the same file at any door has the same."""
    if not is_url(url):
        return str(local_path(url)) if url.lower().startswith("file:/") else url
    parts = urlsplit(url, allow_fragments=False)  # XRootD has names with '#'
    query = "&".join(part for part in parts.query.split("&") if not _SECRET.match(part))
    return re.sub("/+", "/", parts.path) + (f"?{query}" if query else "")


def expand(path: str, where: str) -> str:
    """Expand ``~`` and ``$VARIABLES`` in a path of this machine; a URL stays as it is.

    Whoever wrote it need not be who reads it: a URL with the reader's variables in it would tell
    its server what they hold. ``where`` says in errors what names the path.

    Raises
    ------
    FilesetError
        A variable is not set, makes a URL of the path or is called like a secret; or the path is
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
    """Take the name of a tree off a path or URL: ``a.root:Events``."""
    door = re.match(r"\w+://[^/]*", text)  # a host may end in .root and have a port
    found = _WITH_TREE.fullmatch(text, 0 if door is None else door.end())
    return (text, None) if found is None else (text[: found.end("file")], found["tree"])


def meant(text: str, folder: Path, where: str) -> Meant:
    """Find the files that are meant by a URL, a path, a folder or a pattern.

    Relative paths are relative to ``folder``, and so are the logical names of what is found there;
    ``where`` says in errors what names the files. A file that really is called ``a.root:Events`` or
    ``[1].root`` is meant before others.

    Raises
    ------
    FilesetError
        A variable can't be expanded, it is a pattern on a server or no URL, or a folder can't be
        listed.
    """
    expanded = expand(text, where)
    local = local_path(expanded)
    check_text(f"{where}: {text!r}", str(local or expanded))
    if local is None:
        url, tree = split_tree(expanded)
        _check_url(url, where)
        return Meant((Place(logical_name(url), url),), tree)
    try:
        return _on_disk(text, expanded, folder)
    except OSError as error:
        place = error.filename or text
        raise FilesetError(
            f"{where}: {str(place)[:200]}: can't be looked into ({error.strerror or error})"
        ) from error


def _on_disk(text: str, expanded: str, folder: Path) -> Meant:
    local, tree = Path(local_path(expanded) or ""), None
    path = _absolute(folder, local)
    if not _is_there(path):
        # before a URL is decoded: what is escaped in it is no sign of a pattern or a tree
        expanded, tree = split_tree(expanded)
        path = _absolute(folder, Path(local_path(expanded) or ""))
    has_magic = _MAGIC.search(expanded) and not _is_literal(path, str(path))
    if not path.is_dir() and not has_magic:
        name = logical_name(text if tree is None else split_tree(text)[0])
        return Meant((Place(name, str(path)),), tree, is_missing=not path.exists())
    listing = _listing(path)
    names = [str(file) for file in listing.files]
    if not local.is_absolute():
        names = [os.path.relpath(name, folder.absolute()) for name in names]
    places = (Place(name, str(file)) for name, file in zip(names, listing.files, strict=True))
    return Meant(tuple(places), tree, *listing.told(text))


def written(url: str) -> str:
    """How a fileset names a replica, so that `meant` finds no variable, pattern or tree in it.

    Raises
    ------
    FilesetError
        It is on a server whose URLs have no escapes.
    """
    local = local_path(url)
    if local is not None:
        name = str(local)
        return local.absolute().as_uri() if _SIGNS.search(name) or split_tree(name)[1] else url
    scheme, sign, rest = url.partition("://")
    host, slash, path = rest.partition("/")  # a host may have brackets
    if scheme.lower() in {"http", "https"}:
        escaped = _WEB_SIGNS.sub(lambda found: f"%{ord(found[0]):02X}", path)
        return f"{scheme}{sign}{host}{slash}{escaped}"
    if _REMOTE_SIGNS.search(path):
        raise FilesetError(
            f"{redacted(url)}: with '*' or '[' in its name a fileset can't list it; rename it"
        )
    return url


def _is_there(path: Path) -> bool:
    """Return whether there is such a name; a link need lead nowhere."""
    return path.is_symlink() or path.exists()


def _is_literal(path: Path, pattern: str) -> bool:
    """Whether a pattern is the very name of a file; with a star it is one of all that match."""
    return "*" not in pattern and _is_there(path)


def _absolute(folder: Path, path: Path) -> Path:
    whole = (folder / path).absolute()
    if ".." not in whole.parts:
        return whole
    normal = os.path.normpath(whole)
    # behind a link, '..' is not the folder that the name shows
    return Path(normal) if os.path.realpath(normal) == os.path.realpath(whole) else whole


def _check_url(url: str, where: str) -> None:
    shown = redacted(url)
    if url.lower().startswith("file:"):
        raise FilesetError(
            f"{where}: {shown}: a file of another machine; one of this is file:///PATH"
        )
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise FilesetError(f"{where}: {shown}: no URL ({error})") from error
    if _VARIABLE.search(parts.netloc):
        raise FilesetError(
            f"{where}: {shown}: variables are expanded in paths only, not in URLs; write it out"
        )
    has_host = parts.netloc or parts.scheme.lower() not in _WITH_HOST
    if not has_host or not logical_name(url) or re.search(r"[\t\r\n]", url):
        raise FilesetError(f"{where}: {shown}: no URL; SCHEME://HOST/PATH is needed, without tabs")
    if parts.fragment and parts.scheme.lower() in {"http", "https"}:
        raise FilesetError(
            f"{where}: {shown}: what follows '#' is not sent to servers; in a name it is %23"
        )
    if _REMOTE_MAGIC.search(parts.path):
        raise FilesetError(
            f"{where}: {shown}: a pattern on a server; list what matches first, with "
            f"'agc-ml fileset from-glob NAME={shown} TARGET'"
        )


# -- folders and patterns on disks -----------------------------------------------------------------


class _Listing(NamedTuple):
    """What is in a folder, or matches a pattern; ``others`` and ``again`` are passed over."""

    files: list[Path]
    others: list[str]
    again: list[str]
    is_folder: bool

    def told(self, text: str) -> tuple[str | None, str | None]:
        """A note of what was passed over; a problem, if nothing is left."""
        if not self.files:
            what = "no *.root files in that folder" if self.is_folder else "no file matches"
            return None, what + (f"; only {some(self.others)} there" if self.others else "")
        parts = []
        if self.others:
            parts.append(f"{len(self.others)} not called *.root ({some(self.others)})")
        if self.again:
            links = f"{len(self.again)} link{'s' * (len(self.again) > 1)}"
            parts.append(f"{links} to the same ({some(self.again)})")
        return (f"{text}: passed over {' and '.join(parts)}" if parts else None), None


def _listing(path: Path) -> _Listing:
    """List a folder or a pattern, by name; of several names of a real file one that is no link."""
    is_folder = path.is_dir()
    first = next((i for i, part in enumerate(path.parts) if _MAGIC.search(part)), 0)
    base = path if is_folder else Path(*path.parts[:first])
    parts = ("**", "*") if is_folder else path.parts[first:]
    again: list[Path] = []
    matches = list(_matches(base, parts, again))
    real_base = Path(os.path.realpath(base))
    real = {match: os.path.realpath(match) for match in matches}
    files: dict[str, Path] = {}
    others = []
    for match in sorted(real, key=lambda m: real[m] != str(real_base / m.relative_to(base))):
        if match.is_dir():
            if "**" not in parts:
                others.append(match)
        elif not is_root_file(match.name):
            others.append(match)
        elif files.setdefault(real[match], match) != match:
            again.append(match)
    return _Listing(sorted(files.values()), _unique_names(others), _unique_names(again), is_folder)


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
    """Entries of a folder that match, without hidden ones; a name that is there means itself."""
    itself = folder / pattern
    if not _MAGIC.search(pattern) or _is_literal(itself, pattern):
        return [itself] if _is_there(itself) else []
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.iterdir())
        if fnmatchcase(path.name, pattern)
        and (pattern.startswith(".") or not path.name.startswith("."))
    ]


def _folders(top: Path, loops: list[Path]) -> Iterator[Path]:
    """A folder and all below it: through links, which come last, and each real folder once.

    Links to folders around ``top`` are not followed, and noted in ``loops``.
    """
    around = Path(os.path.realpath(top)).parents
    seen: set[str] = set()
    ahead, links = [top], list[Path]()
    while ahead or links:
        folder = ahead.pop() if ahead else links.pop(0)
        real = os.path.realpath(folder)
        if Path(real) in around:
            loops.append(folder)
        elif real not in seen:
            seen.add(real)
            yield folder
            for path in _entries(folder, "*"):
                if path.is_dir():
                    (links if path.is_symlink() else ahead).append(path)
