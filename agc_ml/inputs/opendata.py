"""Records of the CERN Open Data portal.

A record comes from the portal, through CERN's own client, or from a file that holds

- the record as the portal's API gives it, or its metadata as the client prints them;
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
from agc_ml.inputs.assembly import Found, assembled, named
from agc_ml.inputs.fileset import File, Fileset
from agc_ml.inputs.formats import first_problem
from agc_ml.inputs.paths import is_root_file, is_url, logical_name, some

PORTAL: Final = "https://opendata.cern.ch"
TIMEOUT_S: Final = 60.0
"""How long the portal may take for a record."""

_DOOR: Final = "root://eospublic.cern.ch/"
_HOSTS: Final = ("eospublic.cern.ch", "opendata.cern.ch")
_CHECKSUM: Final = "adler32:"
_ONLINE: Final = "online"
_INDEX: Final = re.compile(r"_file_?(index|list)\.(json|txt)$", re.IGNORECASE)
_CLIENT: Final = "from cernopendata_client.cli import cernopendata_client; cernopendata_client()"


def _location(text: str) -> str:
    urlsplit(text)  # raises what pydantic takes for an error of this field
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
    """What a record is of: ``Collision`` or ``Simulated``, among others."""

    secondary: list[str] = []


class _Distribution(BaseModel):
    """How much a record says that it has."""

    number_files: int | None = None


class _Record(BaseModel):
    """What is needed of a record's metadata."""

    title: str | None = None
    experiment: list[str] | str = []
    kind: _Kind = Field(_Kind(), alias="type")
    distribution: _Distribution = _Distribution()
    files: list[_Listed] = []
    indexes: list[_Index] = Field([], alias="_file_indices")


def from_records(wanted: Iterable[str], *, server: str = PORTAL) -> Fileset:
    """Make a fileset of records, given as ``NAME=RECORD``: a number, or a file that holds one.

    Only ROOT files are taken, those of all indexes; an index that is not part of the record is read
    from ``server``. Replicas of files are the portal's XRootD door and ``server``.

    Raises
    ------
    UsageError
        A pair, the server's address or a file's name makes no sense.
    CatalogueError
        The client is not installed, or the portal can't be reached, does not answer in time, has
        no such record, or does not give one of its indexes.
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
    parsed = _validated(label, content)
    listed = _listed(label, parsed, server)
    kinds = set(parsed.kind.secondary)
    others = [name for name in map(_name, listed) if not is_root_file(name)]
    notes = [f"{label}{f', {parsed.title}' if parsed.title else ''}"]
    if others:
        notes.append(f"passed over {len(others)} not called *.root ({some(others)})")
    if len(others) == len(listed):
        there = some(others) or "nothing"
        raise FilesetError(f"{label}: no .root files are listed; there is {there}")
    chosen = [one for one in listed if is_root_file(_name(one))]
    stated = parsed.distribution.number_files or 0
    if len(listed) < stated:
        notes.append(f"{label}: only {len(listed)} of the {stated} files that it states are listed")
    offline = [one.availability for one in chosen if one.availability not in {None, _ONLINE}]
    if offline:
        notes.append(
            f"{label}: {len(offline)} of {len(chosen)} files are not online ({offline[0]}); have "
            "the portal stage them, on the page of the record"
        )
    return Found(
        _once(label, (_file(one, server) for one in chosen)),
        notes=tuple(notes),
        is_data=True if "Collision" in kinds else False if "Simulated" in kinds else None,
        label=_whose(parsed.experiment),
    )


def _whose(experiment: list[str] | str) -> str | None:
    """Label of events of an experiment, where the record names one."""
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
    """Files of a record and of all its indexes, each of which may be there in several forms."""
    files: list[_Listed] = []
    missing: dict[str, list[_Listed]] = {}
    for index in record.indexes:
        if index.number_files not in {None, len(index.files)}:
            raise FilesetError(
                f"{label}: its index {index.key} lists {len(index.files)} of "
                f"{index.number_files} files; ask for the record again"
            )
    known = {_stem(index.key) for index in record.indexes}
    for one in (*record.files, *(file for index in record.indexes for file in index.files)):
        if not _INDEX.search(_name(one)):
            files.append(one)
        elif _stem(_name(one)) not in known:
            missing.setdefault(_stem(_name(one)), []).append(one)
    only = "only indexes of its files are listed, and " if not files else ""
    for forms in missing.values():
        files += _indexed(f"{label}: {only}", forms, server)
    return files


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _indexed(label: str, forms: list[_Listed], server: str) -> list[_Listed]:
    """Files of an index that is to be fetched, in whichever form can be read."""
    problem: AgcError | None = None
    for form in sorted(forms, key=lambda form: form.uri):  # json before txt: it says more
        try:
            return _validated(_name(form), _content(_name(form), _fetched(form, server))).files
        except (CatalogueError, FilesetError) as error:
            problem = problem or error
    raise CatalogueError(
        f"{label}an index can't be read: {problem}; fetch all of them with 'cernopendata-client "
        "download-files', and name them in place of the record"
    ) from problem


def _fetched(index: _Listed, server: str) -> str:
    url = _replicas(index.uri, server)[-1]
    if not url.startswith(("http://", "https://")):
        raise CatalogueError(f"{url} is not to be had over http")
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
    """Every door to a file: what the portal stores is to be had by XRootD and by https."""
    if is_url(uri) and urlsplit(uri).hostname not in _HOSTS:
        return (uri,)
    path = logical_name(uri.partition("?")[0])
    return (f"{_DOOR}{path}", f"{server}{path}")


def _once(label: str, files: Iterable[File]) -> tuple[File, ...]:
    """Each file once: a record may list it at several doors, and in several indexes."""
    found: dict[str, File] = {}
    for file in files:
        twin = found.setdefault(file.lfn, file)
        for field in ("size", "adler32"):
            one, other = getattr(twin, field), getattr(file, field)
            if None not in {one, other} and one != other:
                raise FilesetError(
                    f"{label}: {file.lfn} is listed with the {field} {one} and with {other}; "
                    "remove one"
                )
        found[file.lfn] = replace(
            twin,
            replicas=tuple(dict.fromkeys((*twin.replicas, *file.replicas))),
            size=file.size if twin.size is None else twin.size,
            adler32=twin.adler32 or file.adler32,
        )
    return tuple(found.values())


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
        text = documents.text(path)
    except (OSError, ValueError) as error:
        raise FilesetError(f"{path}: can't be read ({error})") from error
    return _content(str(path), text)


def _content(label: str, text: str) -> Any:
    """A record's metadata of JSON, or of lines."""
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
    """Lines of the client, or of an index: the location, and perhaps size and checksum."""
    for number, line in enumerate(text.splitlines(), 1):
        uri, *facts = line.strip().split("\t")
        if not uri:
            continue
        if not (is_url(uri) or uri.startswith("/")) or " " in uri:
            raise FilesetError(
                f"{label}: line {number}: {uri[:80]!r} is no location of a file; the output of "
                "'cernopendata-client get-file-locations --verbose' is needed, or a record's JSON"
            )
        yield {"uri": uri, **dict(zip(("size", "checksum"), facts, strict=False))}
