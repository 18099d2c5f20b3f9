"""Routes to the events: which replicas of each file are read, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from agc_ml.delivery import servicex
from agc_ml.delivery.servicex import Needs
from agc_ml.errors import FilesetError, UsageError
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset
from agc_ml.transports.base import HTTP, XROOTD, has_host, scheme

_SCHEMES: Final = {"local": {"file"}, "https": HTTP, "xrootd": XROOTD, "xcache": XROOTD}
SERVICEX: Final = "servicex"
USAGE: Final = "local, https[=URL], xrootd[=URL], xcache=URL[,URL...], servicex[=ENDPOINT]"


@dataclass(frozen=True, slots=True)
class Route:
    """Kind of a route, and the URLs below which the paths of files are found.

    For ``servicex`` there is one, its endpoint, or none.
    """

    kind: str
    places: tuple[str, ...] = ()


def parse(text: str) -> Route:
    """Parse a route as users write it: ``local``, ``xrootd=root://host``, ``xcache=...``.

    Raises
    ------
    UsageError
        There is no such route, or its servers speak another protocol.
    """
    kind, equals, rest = text.partition("=")
    if kind == SERVICEX:
        return Route(kind, (rest,) if rest else ())
    places = tuple(part.strip() for part in rest.split(",") if part.strip())
    if kind not in _SCHEMES:
        raise UsageError(f"--via {text}: no such route; use {USAGE}")
    if kind == "xcache" and not places:
        raise UsageError(
            "--via xcache: name a cache, xcache=root://HOST:PORT, or several with commas"
        )
    if (
        (equals and not places)
        or (kind == "local" and places)
        or (kind != "xcache" and len(places) > 1)
    ):
        raise UsageError(f"--via {text}: use {USAGE}")
    for place in places:
        if scheme(place) not in _SCHEMES[kind] or not has_host(place):
            expected = " or ".join(f"{name}://HOST" for name in sorted(_SCHEMES[kind]))
            raise UsageError(f"--via {text}: {place} should be {expected}")
    return Route(kind, places)


def deliver(
    fileset: Fileset,
    route: Route | None,
    needs_of: Callable[[Dataset], Needs] = lambda _: Needs(),
) -> Fileset:
    """Return the same files, with the replicas of a route first; None leaves their order.

    The other replicas follow, and are read when those fail; but ``local`` reads only from disks. Of
    several caches, a hash of the file's name chooses one, so that each file is in one cache only.
    ``servicex`` gives other files, with only the needed columns of each dataset.

    Raises
    ------
    FilesetError
        A file has no replica of that kind.
    UsageError
        There is no such endpoint, or no columns are declared.
    DeliveryError
        ServiceX did not deliver every file.
    """
    if route is None:
        return fileset
    if route.kind == SERVICEX:
        return servicex.deliver_columns(fileset, next(iter(route.places), None), needs_of)
    datasets = []
    for dataset in fileset.datasets:
        if route.kind == "xcache":
            files = [_with_cache_first(route, file) for file in dataset.files]
        else:
            files = [_with_protocol_first(route, dataset.name, file) for file in dataset.files]
        datasets.append(replace(dataset, files=tuple(files)))
    return replace(fileset, datasets=tuple(datasets))


def _with_protocol_first(route: Route, dataset: str, file: File) -> File:
    preferred = [url for url in file.replicas if scheme(url) in _SCHEMES[route.kind]]
    if route.places:
        preferred = [_join(route.places[0], file.lfn), *preferred]
    if not preferred:
        present = ", ".join(sorted({f"{scheme(url)}://" for url in file.replicas}))
        hint = "" if route.kind == "local" else f", or give a server: --via {route.kind}=URL"
        raise FilesetError(
            f"dataset {dataset}: {file.lfn} has no replica for --via {route.kind}, only "
            f"{present}; leave the option out{hint}"
        )
    others = () if route.kind == "local" else file.replicas
    return replace(file, replicas=tuple(dict.fromkeys((*preferred, *others))))


def _with_cache_first(route: Route, file: File) -> File:
    origins = [url for url in file.replicas if scheme(url) in XROOTD]
    cache = max(route.places, key=lambda place: _weight(place, file.lfn))
    if "{url}" in cache:
        cached = tuple(cache.replace("{url}", url) for url in origins[:1])
    else:
        cached = (_join(cache, urlsplit(origins[0]).path if origins else file.lfn),)
    return replace(file, replicas=tuple(dict.fromkeys((*cached, *file.replicas))))


def _weight(cache: str, lfn: str) -> bytes:
    """Highest random weight: a cache that is added or lost moves no file between the others.

    Source: D. G. Thaler and C. V. Ravishankar, IEEE/ACM Trans. Netw. 6 (1998) 1.
    """
    return hashlib.sha256(f"{cache}\n{lfn}".encode()).digest()


def _join(place: str, path: str) -> str:
    slashes = "//" if scheme(place) in XROOTD else "/"
    return f"{place.rstrip('/')}{slashes}{path.lstrip('/')}"
