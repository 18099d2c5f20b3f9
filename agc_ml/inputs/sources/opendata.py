"""Filesets of records of the CERN Open Data portal.

A record comes from the portal, through CERN's own client, or from a file that holds

- the record from the portal's API, or its metadata as the client prints them;
- an index of files (``..._file_index.json``), or the text of one;
- the output of ``cernopendata-client get-file-locations --protocol xrootd --verbose``.
"""

from __future__ import annotations

import http.client
import importlib.util
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from agc_ml import documents
from agc_ml.errors import AgcError, CatalogueError, FilesetError, UsageError
from agc_ml.inputs.datasets import File
from agc_ml.inputs.fileset import Fileset
from agc_ml.inputs.folders import first_few, is_root_file, not_root_files
from agc_ml.inputs.formats.schema import first_problem
from agc_ml.inputs.paths import is_url, logical_name
from agc_ml.inputs.sources.assembly import SourceFiles, assemble, split_pairs

PORTAL: Final = "https://opendata.cern.ch"
TIMEOUT_S: Final = 60.0
"""Time limit for a record."""

_XROOTD: Final = "root://eospublic.cern.ch/"
_HOSTS: Final = ("eospublic.cern.ch", "opendata.cern.ch")
_CHECKSUM: Final = "adler32:"
_ONLINE: Final = "online"
_INDEX: Final = re.compile(r"_file_?(index|list)\.(json|txt)$", re.IGNORECASE)
_CLIENT: Final = "from cernopendata_client.cli import cernopendata_client; cernopendata_client()"


def _location(text: str) -> str:
    urlsplit(text)  # raises ValueError, an error of this field for pydantic
    return text


def _checksum(text: str | None) -> str | None:
    is_adler32 = (text or "").lower().startswith(_CHECKSUM)
    if text and is_adler32 and not re.fullmatch("(?i)[0-9a-f]{1,8}", text[len(_CHECKSUM) :]):
        raise ValueError("up to eight hexadecimal digits are needed")
    return text


class _Listed(BaseModel):
    """A file as records and indexes list it."""

    uri: Annotated[str, Field(min_length=1), AfterValidator(_location)]
    size: int | None = Field(None, ge=0)
    checksum: Annotated[str | None, AfterValidator(_checksum)] = None
    availability: Any = None


class _Index(BaseModel):
    """An index, with the files that it lists."""

    key: str = ""
    number_files: int | None = None
    files: list[_Listed] = []


class _Kind(BaseModel):
    """Kinds of a record: ``Collision`` or ``Simulated``, among others."""

    secondary: list[str] = []


class _Distribution(BaseModel):
    """Number of files that a record states."""

    number_files: int | None = None


class _Record(BaseModel):
    """Metadata of a record, as far as needed here."""

    title: str | None = None
    experiment: list[str] | str = []
    kind: _Kind = Field(_Kind(), alias="type")
    distribution: _Distribution = _Distribution()
    files: list[_Listed] = []
    indexes: list[_Index] = Field([], alias="_file_indices")


def from_records(wanted: Iterable[str], *, server: str = PORTAL) -> Fileset:
    """Make a fileset of records, given as ``NAME=RECORD``: a number, or a file that holds one.

    Only ROOT files are taken, those of all indexes; an index that is not part of the record is read
    from ``server``. Replicas of files are at the portal's XRootD server and at ``server``.

    Raises
    ------
    UsageError
        A pair, the server's address or a file's name is not valid.
    CatalogueError
        The client is not installed, or the portal can't be reached, does not answer in time, has
        no such record, or does not give one of its indexes.
    FilesetError
        A record can't be understood, or lists no ROOT file.
    """
    if not re.match(r"https?://[^/]", server):
        raise UsageError(f"--server {server}: an address such as {PORTAL} is needed")
    return assemble(split_pairs(wanted, "RECORD"), partial(_find, server=server.rstrip("/")))


def _find(record: str, *, server: str) -> SourceFiles:
    if record.isascii() and record.isdecimal():
        label = f"record {record} of {server}"
        content = _metadata(record, server)
    else:
        label, path = record, Path(record).expanduser()
        if not path.is_file():
            raise UsageError(f"{record}: neither the number of a record nor a file")
        content = _read(path)
    # the portal's record, and all files that it lists
    parsed = _validated(label, content)
    listed = _listed(label, parsed, server)
    kinds = set(parsed.kind.secondary)
    others = [name for name in map(_name, listed) if not is_root_file(name)]
    notes = [f"{label}{f', {parsed.title}' if parsed.title else ''}"]
    if others:
        notes.append(f"skipped {not_root_files(others)}")
    if len(others) == len(listed):
        only = f", only {first_few(others)}" if others else ""
        raise FilesetError(f"{label}: no .root files are listed{only}")
    chosen = [file for file in listed if is_root_file(_name(file))]
    stated = parsed.distribution.number_files or 0
    if len(listed) < stated:
        notes.append(f"{label}: only {len(listed)} of the {stated} files that it states are listed")
    offline = [file.availability for file in chosen if file.availability not in {None, _ONLINE}]
    if offline:
        notes.append(
            f"{label}: {len(offline)} of {len(chosen)} files are not online ({offline[0]}); have "
            "the portal stage them, on the page of the record"
        )
    return SourceFiles(
        _merged(label, (_file(file, server) for file in chosen)),
        notes=tuple(notes),
        is_data=True if "Collision" in kinds else False if "Simulated" in kinds else None,
        label=_events_label(parsed.experiment),
    )


def _events_label(experiment: list[str] | str) -> str | None:
    """Return the label of an experiment's events, None if the record names not exactly one."""
    names = [experiment] if isinstance(experiment, str) else experiment
    return f"{names[0]} Open Data" if len(names) == 1 and names[0] else None


def _validated(label: str, content: Any) -> _Record:
    try:
        return _Record.model_validate(content)
    except ValidationError as error:
        raise FilesetError(f"{label}: not a record of files: {first_problem(error)}") from error


def _name(listed: _Listed) -> str:
    return listed.uri.partition("?")[0].rpartition("/")[2]


def _listed(label: str, record: _Record, server: str) -> list[_Listed]:
    """Return the files of a record and of all its indexes, which may exist in several forms."""
    files: list[_Listed] = []
    missing: dict[str, list[_Listed]] = {}
    for index in record.indexes:
        if index.number_files not in {None, len(index.files)}:
            raise FilesetError(
                f"{label}: its index {index.key} lists {len(index.files)} of "
                f"{index.number_files} files; ask for the record again"
            )
    known = {_stem(index.key) for index in record.indexes}
    # an index among the files is read only if the record does not include its content
    for file in (*record.files, *(file for index in record.indexes for file in index.files)):
        if not _INDEX.search(_name(file)):
            files.append(file)
        elif _stem(_name(file)) not in known:
            missing.setdefault(_stem(_name(file)), []).append(file)
    only = "only indexes of its files are listed, and " if not files else ""
    for forms in missing.values():
        files += _indexed(f"{label}: {only}", forms, server)
    return files


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _indexed(label: str, forms: list[_Listed], server: str) -> list[_Listed]:
    """Fetch the files of an index, in the first form that can be read."""
    problem: AgcError | None = None
    for form in sorted(forms, key=lambda form: form.uri):  # json before txt: it has more fields
        try:
            return _validated(_name(form), _content(_name(form), _fetch(form, server))).files
        except (CatalogueError, FilesetError) as error:
            problem = problem or error
    raise CatalogueError(
        f"{label}an index can't be read: {problem}; fetch all of them with 'cernopendata-client "
        "download-files', and give these files instead of the record"
    ) from problem


def _fetch(index: _Listed, server: str) -> str:
    url = _replicas(index.uri, server)[-1]
    if not url.startswith(("http://", "https://")):
        raise CatalogueError(f"{url} is not available over http")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - see above
            return str(answer.read().decode("utf-8-sig"))
    except urllib.error.HTTPError as error:
        error.close()
        raise CatalogueError(f"{url}: {error}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise CatalogueError(f"{url}: {str(reason) or type(error).__name__}") from error


def _file(listed: _Listed, server: str) -> File:
    checksum = (listed.checksum or "").lower()
    replicas = _replicas(listed.uri, server)
    return File(
        lfn=logical_name(replicas[0]),
        replicas=replicas,
        size=listed.size,
        adler32=(
            checksum.removeprefix(_CHECKSUM).zfill(8) if checksum.startswith(_CHECKSUM) else None
        ),
    )


def _replicas(uri: str, server: str) -> tuple[str, ...]:
    """Return all replicas of a file: files of the portal are available by XRootD and by https."""
    if is_url(uri) and urlsplit(uri).hostname not in _HOSTS:
        return (uri,)
    path = logical_name(uri.partition("?")[0])
    return (f"{_XROOTD}{path}", f"{server}{path}")


def _merged(label: str, files: Iterable[File]) -> tuple[File, ...]:
    """Merge the replicas of a file that a record lists at several servers or in several indexes."""
    merged: dict[str, File] = {}
    for file in files:
        twin = merged.setdefault(file.lfn, file)
        for field in ("size", "adler32"):
            first, second = getattr(twin, field), getattr(file, field)
            if None not in {first, second} and first != second:
                raise FilesetError(
                    f"{label}: {file.lfn} is listed with the {field} {first} and with {second}; "
                    "remove one"
                )
        merged[file.lfn] = replace(
            twin,
            replicas=tuple(dict.fromkeys((*twin.replicas, *file.replicas))),
            size=file.size if twin.size is None else twin.size,
            adler32=twin.adler32 or file.adler32,
        )
    return tuple(merged.values())


def _metadata(record: str, server: str) -> Any:
    """Return the metadata of a record from the portal.

    The client runs as a process: it has no time limit, and prints and exits on errors.
    """
    if importlib.util.find_spec("cernopendata_client") is None:
        raise CatalogueError(
            f"record {record}: CERN's client is needed: pip install 'agc-ml[opendata]'"
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
    """Return the client's own error message, or the last line of its traceback."""
    own = re.search(r"==> ERROR: (.*)", done.stdout)
    if own:
        return own[1].strip().rstrip(".")
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    system = re.search(r"\[Errno -?\d+\] ([^)'\"]+)", last)
    return f"it can't be reached ({system[1]})" if system else last[:200]


def _read(path: Path) -> Any:
    try:
        text = documents.text(path)
    except (OSError, ValueError) as error:
        raise FilesetError(f"{path}: can't be read ({error})") from error
    return _content(str(path), text)


def _content(label: str, text: str) -> Any:
    """Return a record's metadata from JSON, or from lines."""
    if text.lstrip().startswith(("{", "[")):
        content = _parsed(text, label)
    else:
        content = {"files": list(_locations(label, text))}
    if isinstance(content, list):
        return {"files": content}
    return content.get("metadata", content)


def _parsed(text: str, label: str) -> Any:
    try:
        return documents.json_of(text)
    except ValueError as error:
        raise FilesetError(f"{label}: can't be read as JSON ({error})") from error


def _locations(label: str, text: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of the client or of an index: location, and perhaps size and checksum."""
    for number, line in enumerate(text.splitlines(), 1):
        uri, *facts = line.strip().split("\t")
        if not uri:
            continue
        if not (is_url(uri) or uri.startswith("/")) or " " in uri:
            raise FilesetError(
                f"{label}: line {number}: {uri[:80]!r} is not a file location; the output of "
                "'cernopendata-client get-file-locations --verbose' or a record's JSON is needed"
            )
        yield {"uri": uri, **dict(zip(("size", "checksum"), facts, strict=False))}
