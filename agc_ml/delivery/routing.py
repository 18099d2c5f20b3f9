"""Ways to the events: which replicas of each file are asked, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from agc_ml.errors import FilesetError, UsageError
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset
from agc_ml.transports.base import has_host, scheme

_SCHEMES: Final = {
    "local": {"file"},
    "https": {"http", "https"},
    "xrootd": {"root", "roots", "xroot", "xroots"},
}
SERVICEX: Final = "servicex"
USAGE: Final = "local, https[=URL], xrootd[=URL], xcache=URL[,URL...], servicex[=ENDPOINT]"


@dataclass(frozen=True, slots=True)
class Way:
    """How files are reached: by ``kind``, from ``places``: URLs that the file's path follows.

    Of ``servicex`` these are its endpoint.
    """

    kind: str
    places: tuple[str, ...] = ()


class Needs(NamedTuple):
    """What a processor reads of a dataset: branches, and of which events.

    ``preselection`` is an expression of branches, in uproot's language, that all events fulfil
    which the processor selects; ``counted`` are the branches that it needs of the others. Without
    one it needs them all.
    """

    columns: tuple[str, ...] = ()
    preselection: str = ""
    counted: tuple[str, ...] = ()


def parse(text: str) -> Way:
    """Read a way as it is typed: ``local``, ``https``, ``xrootd=root://host``, ``xcache=...``.

    Raises
    ------
    UsageError
        There is no such way, or its servers are of another protocol.
    """
    kind, equals, rest = text.partition("=")
    if kind == SERVICEX:
        return Way(kind, (rest,) if rest else ())
    places = tuple(part.strip() for part in rest.split(",") if part.strip())
    if kind not in {*_SCHEMES, "xcache"}:
        raise UsageError(f"--via {text}: no such way; there are {USAGE}")
    if kind == "xcache" and not places:
        raise UsageError("--via xcache: which cache? xcache=root://HOST:PORT, several with commas")
    if (
        (equals and not places)
        or (kind == "local" and places)
        or (kind != "xcache" and len(places) > 1)
    ):
        raise UsageError(f"--via {text}: {USAGE} are known")
    expected = _SCHEMES["xrootd" if kind == "xcache" else kind]
    for place in places:
        if scheme(place) not in expected or not has_host(place):
            known = " or ".join(f"{name}://HOST" for name in sorted(expected))
            raise UsageError(f"--via {text}: {place} should be {known}")
    return Way(kind, places)


def deliver(
    fileset: Fileset,
    way: Way | None,
    needs_of: Callable[[Dataset], Needs] = lambda _: Needs(),
) -> Fileset:
    """The same files, with the replicas of a way first. None leaves them as they are listed.

    The others stay behind them, and are read when those fail; but ``local`` reads from disks only.
    A cache is asked first; which one of several is decided by a hash of the file's name, so that
    each file is kept by one. ``servicex`` gives other files, with only what is needed of each
    dataset.

    Raises
    ------
    FilesetError
        A file has no replica of that kind.
    UsageError
        There is no such endpoint, or no columns.
    DeliveryError
        ServiceX could not deliver every file.
    """
    if way is None:
        return fileset
    if way.kind == SERVICEX:
        from agc_ml.delivery import servicex  # noqa: PLC0415 - it needs an extra

        return servicex.delivered(fileset, next(iter(way.places), None), needs_of)
    arrange = _BY_KIND.get(way.kind, _of_kind)
    datasets = tuple(
        replace(d, files=tuple(arrange(way, d, file) for file in d.files)) for d in fileset.datasets
    )
    return replace(fileset, datasets=datasets)


def _of_kind(way: Way, dataset: Dataset, file: File) -> File:
    right = tuple(url for url in file.replicas if scheme(url) in _SCHEMES[way.kind])
    if way.places:
        right = (_below(way.places[0], file.lfn), *right)
    if not right:
        kinds = ", ".join(sorted({f"{scheme(url)}://" for url in file.replicas}))
        hint = "" if way.kind == "local" else f", or say where: --via {way.kind}=URL"
        raise FilesetError(
            f"dataset {dataset.name}: {file.lfn} has no replica for --via {way.kind}, only "
            f"{kinds}; leave the option out{hint}"
        )
    others = () if way.kind == "local" else file.replicas
    return replace(file, replicas=tuple(dict.fromkeys((*right, *others))))


def _cached(way: Way, _dataset: Dataset, file: File) -> File:
    origins = [url for url in file.replicas if scheme(url) in _SCHEMES["xrootd"]]
    place = max(way.places, key=lambda cache: _weight(cache, file.lfn))
    if "{url}" in place:
        cached = tuple(place.replace("{url}", url) for url in origins[:1])
    else:
        cached = (_below(place, urlsplit(origins[0]).path if origins else file.lfn),)
    return replace(file, replicas=tuple(dict.fromkeys((*cached, *file.replicas))))


def _weight(cache: str, lfn: str) -> bytes:
    """Highest random weight: a cache that is added or lost moves no file between the others.

    Source: D. G. Thaler and C. V. Ravishankar, IEEE/ACM Trans. Netw. 6 (1998) 1.
    """
    return hashlib.sha256(f"{cache}\n{lfn}".encode()).digest()


def _below(place: str, path: str) -> str:
    slashes = "//" if scheme(place) in _SCHEMES["xrootd"] else "/"
    return f"{place.rstrip('/')}{slashes}{path.lstrip('/')}"


_BY_KIND: Final[dict[str, Callable[[Way, Dataset, File], File]]] = {"xcache": _cached}
