"""Records of the CERN Open Data portal.

A record comes from the portal, through CERN's own client, or from a file that holds

- the record as the portal's API gives it, or its metadata as the client prints them;
- an index of files (``..._file_index.json``), or the text of one;
- the output of ``cernopendata-client get-file-locations --protocol xrootd --verbose``.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from agc_ml.datasets import File, Fileset
from agc_ml.errors import CatalogueError, FilesetError, UsageError
from agc_ml.formats import first_problem
from agc_ml.paths import is_url, logical_name
from agc_ml.sources.assembly import Found, assembled, named

PORTAL: Final = "https://opendata.cern.ch"
TIMEOUT_S: Final = 60.0
"""How long the portal may take for a record."""

_DOOR: Final = "root://eospublic.cern.ch/"
_HOSTS: Final = ("eospublic.cern.ch", "opendata.cern.ch")
_CHECKSUM: Final = "adler32:"
_CLIENT: Final = "from cernopendata_client.cli import cernopendata_client; cernopendata_client()"


def _location(text: str) -> str:
    urlsplit(text)  # raises what pydantic takes for an error of this field
    return text


class _Listed(BaseModel):
    """A file as records and indexes list it."""

    uri: Annotated[str, Field(min_length=1), AfterValidator(_location)]
    size: int | None = Field(None, ge=0)
    checksum: str | None = None


class _Index(BaseModel):
    """An index, with the files that it lists."""

    files: list[_Listed] = []


class _Kind(BaseModel):
    """What a record is of: ``Collision`` or ``Simulated``, among others."""

    secondary: list[str] = []


class _Record(BaseModel):
    """What is needed of a record's metadata."""

    title: str | None = None
    kind: _Kind = Field(_Kind(), alias="type")
    files: list[_Listed] = []
    indexes: list[_Index] = Field([], alias="_file_indices")

    def listed(self) -> Iterator[_Listed]:
        """All files, those of indexes too."""
        yield from self.files
        for index in self.indexes:
            yield from index.files


def from_records(wanted: Iterable[str], *, server: str = PORTAL) -> Fileset:
    """Make a fileset of records, given as ``NAME=RECORD``: a number, or a file that holds one.

    Only ROOT files are taken. Their replicas are the portal's XRootD door and ``server``.

    Raises
    ------
    UsageError
        A pair, the server's address or a file's name makes no sense.
    CatalogueError
        The client is not installed, or the portal can't be reached, does not answer in time or has
        no such record.
    FilesetError
        A record can't be understood, or lists no ROOT file.
    """
    if not re.match(r"https?://[^/]", server):
        raise UsageError(f"--server {server}: an address such as {PORTAL} is needed")
    return assembled(named(wanted, "RECORD"), partial(_find, server=server.rstrip("/")))


def _find(record: str, *, server: str) -> Found:
    if record.isascii() and record.isdecimal():
        label = f"record {record} of {server}"
        content = _asked(record, server)
    else:
        label, path = record, Path(record).expanduser()
        if not path.is_file():
            raise UsageError(f"{record}: neither the number of a record nor a file")
        content = _read(path)
    try:
        parsed = _Record.model_validate(content)
    except ValidationError as error:
        raise FilesetError(f"{label}: not a record of files: {first_problem(error)}") from error
    kinds = set(parsed.kind.secondary)
    return Found(
        _files(label, parsed, server),
        note=f"{label}{f', {parsed.title}' if parsed.title else ''}",
        is_data=True if "Collision" in kinds else False if "Simulated" in kinds else None,
    )


def _files(label: str, record: _Record, server: str) -> tuple[File, ...]:
    listed = list(record.listed())
    # an index is often there in several forms, which list the same files
    files = dict.fromkeys(_file(one, server) for one in listed if one.uri.endswith(".root"))
    if files:
        return tuple(files)
    names = ", ".join(one.uri.rpartition("/")[2] for one in listed[:3]) or "nothing"
    if any("_file_index." in one.uri for one in listed):
        raise FilesetError(
            f"{label}: only indexes of its files are listed ({names}): fetch one with "
            "'cernopendata-client download-files' and name it in place of the record"
        )
    raise FilesetError(f"{label}: no .root files are listed; there is {names}")


def _file(listed: _Listed, server: str) -> File:
    checksum = (listed.checksum or "").lower()
    return File(
        lfn=logical_name(listed.uri),
        replicas=_replicas(listed.uri, server),
        size=listed.size,
        adler32=checksum.removeprefix(_CHECKSUM) if checksum.startswith(_CHECKSUM) else None,
    )


def _replicas(uri: str, server: str) -> tuple[str, ...]:
    """Every door to a file: what the portal stores is to be had by XRootD and by https."""
    if is_url(uri) and urlsplit(uri).hostname not in _HOSTS:
        return (uri,)
    path = logical_name(uri)
    return (f"{_DOOR}{path}", f"{server}{path}")


def _asked(record: str, server: str) -> Any:
    """Metadata of a record, from the portal.

    The client runs as a process: it knows no time limit, and it prints and exits where it fails.
    """
    if importlib.util.find_spec("cernopendata_client") is None:
        raise CatalogueError(
            f"record {record}: CERN's client is needed for it: pip install 'agc-ml[opendata]'"
        )
    arguments = ["get-metadata", "--recid", record, "--server", server]
    try:
        done = subprocess.run(  # noqa: S603 - the number is digits, the server a URL
            [sys.executable, "-P", "-c", _CLIENT, *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CatalogueError(
            f"record {record}: {server} does not answer within {TIMEOUT_S:g} s; try again later"
        ) from error
    if done.returncode:
        raise CatalogueError(
            f"record {record}: {server}: {_complaint(done)}; look at {server}/record/{record} in a "
            "browser, or give a file that holds the record"
        )
    return _parsed(done.stdout, f"record {record} of {server}")


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    """What the client says is wrong: its own error, or the last line of its traceback."""
    own = re.search(r"==> ERROR: (.*)", done.stdout)
    if own:
        return own[1].strip().rstrip(".")
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    system = re.search(r"\[Errno -?\d+\] ([^)'\"]+)", last)
    return f"it can't be reached ({system[1]})" if system else last[:200]


def _read(path: Path) -> Any:
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise FilesetError(f"{path}: can't be read ({error})") from error
    if text.lstrip().startswith(("{", "[")):
        content = _parsed(text, str(path))
    else:
        content = {"files": list(_locations(path, text))}
    if isinstance(content, list):
        return {"files": content}
    return content.get("metadata", content)


def _parsed(text: str, label: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FilesetError(f"{label}: can't be read as JSON ({error})") from error


def _locations(path: Path, text: str) -> Iterator[dict[str, Any]]:
    """Lines of the client, or of an index: the location, and perhaps size and checksum."""
    for number, line in enumerate(text.splitlines(), 1):
        uri, *facts = line.strip().split("\t")
        if not uri:
            continue
        if not (is_url(uri) or uri.startswith("/")) or " " in uri:
            raise FilesetError(
                f"{path}: line {number}: {uri[:80]!r} is no location of a file; the output of "
                "'cernopendata-client get-file-locations --verbose' is needed, or a record's JSON"
            )
        yield {"uri": uri, **dict(zip(("size", "checksum"), facts, strict=False))}
