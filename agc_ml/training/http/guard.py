"""HostNames under which the service is reached, and pages of others that ask in a browser."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Scope

from agc_ml.errors import UsageError

# Methods that change nothing
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

_AUTHORITY: Final = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[^\s:/@\[\]]+)(:(?P<port>\d{1,5}))?")
_USUAL_PORTS: Final = {"http": "80", "https": "443"}


@dataclass(frozen=True)
class HostNames:
    """Hosts under which a service is reached: all of them, and those of proxies before it."""

    ours: frozenset[str]
    proxies: frozenset[str]


def host_names(host: str, given: Iterable[str] = ()) -> HostNames:
    """HostNames of a service that listens on a host; ``given`` are those of proxies before it.

    Raises
    ------
    UsageError
        One of them is no name.
    """
    proxies = set()
    for name in given:
        found = _AUTHORITY.fullmatch(name.lower())
        if found is None or found["port"] is not None:
            raise UsageError(
                f"--host-name {name}: the name of a host is needed, such as ml.example.org"
            )
        proxies.add(_plain(found["host"]))
    here = socket.gethostname()
    ours = {"localhost", "127.0.0.1", "::1", _plain(host), here, here.partition(".")[0]}
    if not is_loopback(host):
        ours.add(socket.getfqdn())
    return HostNames(frozenset(name.lower() for name in ours) | proxies, frozenset(proxies))


def refusal(scope: Scope, names: HostNames) -> tuple[HTTPStatus, str] | None:
    """Reject requests of foreign hosts and pages; None for a request that may be answered.

    A browser sends a user's password wherever a page of others makes it: under a name that leads
    here (DNS rebinding), or to change something. Ports are not compared of names, as tunnels and
    proxies have their own, but of pages: another port is another service.
    """
    headers = Headers(scope=scope)
    host = headers.get("host")
    asked = _AUTHORITY.fullmatch((host or "").lower())
    if host is not None and (
        asked is None or _plain(asked["host"]) not in names.ours | {_local(scope)}
    ):
        why = (
            f"{host[:80]!r} is no name of this service; start it with --host-name NAME, or ask it "
            "at the address it listens on"
        )
        return HTTPStatus.MISDIRECTED_REQUEST, why
    if scope["method"] in SAFE:
        return None
    origin = headers.get("origin")
    is_foreign = origin is not None and not _is_ours(origin.lower(), asked, names)
    if is_foreign or headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        who = (origin or "another site")[:80]
        why = (
            f"a page of {who!r} asks in a browser; only pages of the service itself may change "
            "something"
        )
        return HTTPStatus.FORBIDDEN, why
    return None


def _is_ours(origin: str, asked: re.Match[str] | None, names: HostNames) -> bool:
    scheme, _, rest = origin.partition("://")
    page = _AUTHORITY.fullmatch(rest)
    if page is None or scheme not in _USUAL_PORTS:
        return False
    if _plain(page["host"]) in names.proxies:
        return True
    usual = _USUAL_PORTS[scheme]
    return asked is not None and (_plain(page["host"]), page["port"] or usual) == (
        _plain(asked["host"]),
        asked["port"] or usual,
    )


def _local(scope: Scope) -> str:
    """The address of ours to which a client is connected."""
    server = scope.get("server")
    return "" if server is None else _plain(str(server[0]))


def _plain(host: str) -> str:
    """A host without brackets or a dot behind it; addresses in their usual form."""
    bare = host.strip("[]").removesuffix(".")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return bare


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, for itself only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
