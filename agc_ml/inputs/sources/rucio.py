"""Filesets of datasets in Rucio: the files of a data identifier, and their replicas."""

from __future__ import annotations

import configparser
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple

from agc_ml.errors import CatalogueError, UsageError
from agc_ml.inputs.datasets import File
from agc_ml.inputs.fileset import Fileset
from agc_ml.inputs.folders import first_few, is_root_file, not_root_files
from agc_ml.inputs.sources.assembly import SourceFiles, assemble, split_pairs
from agc_ml.transports.base import scheme

CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 60.0
"""Longest silence of the server, which needs time for large datasets."""

_SCHEMES: Final = ("root", "davs", "https")
_SET_UP: Final = (
    "set RUCIO_CONFIG to a rucio.cfg whose section [client] has rucio_host, auth_host, account, "
    "auth_type and the credentials for it"
)


def from_dids(wanted: Iterable[str]) -> Fileset:
    """Make a fileset of data identifiers, given as ``NAME=SCOPE:DID``: files or sets of them.

    The replicas of a file are in the order of the server, nearest first. Replicas on tape, inside
    an archive, of other protocols or at sites that can't be read at the moment are left out, and so
    are files that are not ROOT files; notes count both. Server and account are those of Rucio's own
    configuration.

    Raises
    ------
    UsageError
        A pair is not valid.
    CatalogueError
        The client is not installed or configured; the server can't be reached, does not answer in
        time, or refuses; the identifier is unknown, or a file has no replica.
    """
    pairs = split_pairs(wanted, "SCOPE:DID")
    for _, did in pairs:
        scope, _, name = did.partition(":")
        if not scope or not name:
            raise UsageError(f"{did}: a data identifier is SCOPE:NAME")
    with _connected() as client:
        return assemble(pairs, partial(_find, client))


@contextmanager
def _connected() -> Iterator[Any]:
    try:
        from rucio.common import exception  # noqa: F401, PLC0415 - an extra, and heavy
    except ImportError as error:
        raise CatalogueError(
            f"Rucio's client is needed ({error}): pip install 'agc-ml[rucio]'"
        ) from error
    silent = logging.getLogger(f"{__name__}.client")
    silent.setLevel(logging.CRITICAL)  # it also logs its exceptions, once for each attempt
    with _translated("Rucio"):
        from rucio.client import Client  # noqa: PLC0415 - reads its configuration

        client = Client(
            timeout=(CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S), user_agent="agc-ml", logger=silent
        )
    try:
        yield client
    finally:
        client.session.close()


@contextmanager
def _translated(label: str) -> Iterator[None]:
    """Turn the client's exceptions into one line that begins with ``label``."""
    import requests  # noqa: PLC0415 - comes with the client
    from rucio.common import exception as errors  # noqa: PLC0415 - an extra

    try:
        yield
    except (
        errors.ConfigNotFound,
        errors.ConfigLoadingError,
        errors.MissingClientParameter,
        errors.NoAuthInformation,
        errors.ClientProtocolNotFound,
        errors.ClientProtocolNotSupported,
        configparser.Error,
        KeyError,  # without a proxy
    ) as error:
        raise CatalogueError(f"{label}: not configured ({_line(error)}); {_SET_UP}") from error
    except (errors.CannotAuthenticate, errors.AccessDenied) as error:
        raise CatalogueError(
            f"{label}: the server refuses ({_line(error)}); see account and credentials with "
            "'rucio whoami'"
        ) from error
    except errors.DataIdentifierNotFound as error:
        raise CatalogueError(
            f"{label}: Rucio knows no such data identifier; find it with 'rucio did list SCOPE:*'"
        ) from error
    except requests.Timeout as error:
        raise CatalogueError(
            f"{label}: the server does not answer within {ANSWER_TIMEOUT_S:g} s; try again later"
        ) from error
    except (errors.ServerConnectionException, requests.RequestException) as error:
        raise CatalogueError(
            f"{label}: the server at {_hosts()} can't be reached ({_line(error)}); check "
            "rucio_host and auth_host in rucio.cfg, and the network"
        ) from error
    except errors.RucioException as error:
        raise CatalogueError(f"{label}: Rucio's server says: {_line(error)}") from error
    except ValueError as error:
        raise CatalogueError(
            f"{label}: the answer of {_hosts()} is not valid ({_line(error)}); is it a Rucio "
            "server?"
        ) from error


def _hosts() -> str:
    from rucio.common.config import config_get  # noqa: PLC0415 - an extra

    hosts = [str(config_get("client", name)) for name in ("rucio_host", "auth_host")]
    return " and ".join(dict.fromkeys(hosts))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _find(client: Any, did: str) -> SourceFiles:
    from rucio.common.client import detect_client_location  # noqa: PLC0415 - an extra

    scope, _, name = did.partition(":")
    # files of the data identifier, and the replicas of each
    with _translated(did):
        files = _by_name(client.list_files(scope, name))
        replicas = _by_name(
            client.list_replicas(
                [{"scope": scope, "name": name}],
                schemes=list(_SCHEMES),
                ignore_availability=False,
                client_location=detect_client_location(),
            )
        )
    if not files:
        raise CatalogueError(f"{did}: it has no files; name a dataset that has some")
    chosen = [key for key in sorted(files) if is_root_file(key[1])]
    others = [name for _, name in sorted(files.keys() - chosen)]
    if not chosen:
        raise CatalogueError(f"{did}: it has no ROOT files, only {first_few(others)}")
    # replicas by file, in the order of the names
    places = {key: _sorted_replicas(replicas.get(key, {})) for key in chosen}
    lost = [f"{scope}:{name}" for (scope, name), place in places.items() if not place.readable]
    unreadable = [reason for place in places.values() for reason in place.left_out]
    kinds = ", ".join(sorted(set(unreadable)))
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        only = f"; there are others: {kinds}" if kinds else ""
        raise CatalogueError(
            f"{did}: {len(lost)} of {len(chosen)} files have no replica that can be read now: "
            f"{lost[0]}{more}{only}; have them replicated with 'rucio rule add'"
        )
    # notes on everything that was left out
    notes = [f"{did} of Rucio at {client.host}"]
    if others:
        notes.append(f"skipped {not_root_files(others)}")
    if unreadable:
        notes.append(f"left out {len(unreadable)} replicas that can't be read from here ({kinds})")
    listed = (_file(*key, files[key], place.readable) for key, place in places.items())
    return SourceFiles(tuple(listed), tuple(notes))


def _by_name(rows: Iterable[Any]) -> dict[tuple[str, str], dict[str, Any]]:
    by_name = {}
    for row in rows:
        if not isinstance(row, dict) or not {"scope", "name"} <= row.keys():
            raise ValueError(f"not a list of files, but {str(row)[:100]!r}")
        by_name[row["scope"], row["name"]] = row
    return by_name


class _Replicas(NamedTuple):
    """Readable replicas of a file, nearest first, and the reasons why others were left out."""

    readable: tuple[str, ...]
    left_out: tuple[str, ...]


def _sorted_replicas(row: Mapping[str, Any]) -> _Replicas:
    """Sort the replicas of a file: Rucio's priority 1 is the nearest."""
    pfns = row.get("pfns", {})
    reasons = {pfn: _unreadable(pfn, facts) for pfn, facts in pfns.items()}
    usable = [pfn for pfn in pfns if reasons[pfn] is None]
    ordered = sorted(usable, key=lambda pfn: pfns[pfn].get("priority", len(usable)))
    # WebDAV is spoken over https, the scheme that libraries know
    readable = dict.fromkeys(pfn.replace("davs://", "https://", 1) for pfn in ordered)
    return _Replicas(tuple(readable), tuple(filter(None, reasons.values())))


def _unreadable(pfn: str, facts: Mapping[str, Any]) -> str | None:
    if facts.get("type") == "TAPE":
        return "tape"
    if facts.get("client_extract"):
        return "inside an archive"
    kind = scheme(pfn)
    return None if kind in _SCHEMES else f"{kind}://"


def _file(scope: str, name: str, facts: Mapping[str, Any], places: tuple[str, ...]) -> File:
    return File(
        # experiments with paths as names use them without a scope
        lfn=name if name.startswith("/") else f"{scope}:{name}",
        replicas=places,
        size=facts.get("bytes"),
        adler32=facts.get("adler32"),
    )
