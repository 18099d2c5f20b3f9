"""Protection against DNS rebinding and foreign web pages: checks of Host and Origin."""

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

# Methods that only read
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

_AUTHORITY: Final = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[^\s:/@\[\]]+)(:(?P<port>\d{1,5}))?")
_USUAL_PORTS: Final = {"http": "80", "https": "443"}


@dataclass(frozen=True)
class HostNames:
    """Host names of a service: all of them, and those of proxies in front of it."""

    ours: frozenset[str]
    proxies: frozenset[str]


def host_names(host: str, given: Iterable[str] = ()) -> HostNames:
    """Return the names of a service on ``host``; ``given`` are those of proxies in front of it.

    Raises
    ------
    UsageError
        One of them is not a host name.
    """
    proxies = set()
    for name in given:
        authority = _AUTHORITY.fullmatch(name.lower())
        if authority is None or authority["port"] is not None:
            raise UsageError(f"--host-name {name}: a host name is needed, such as ml.example.org")
        proxies.add(_plain(authority["host"]))
    here = socket.gethostname()
    ours = {"localhost", "127.0.0.1", "::1", _plain(host), here, here.partition(".")[0]}
    if not is_loopback(host):
        ours.add(socket.getfqdn())
    return HostNames(frozenset(name.lower() for name in ours) | proxies, frozenset(proxies))


def refusal(scope: Scope, names: HostNames) -> tuple[HTTPStatus, str] | None:
    """Return why a request is rejected, None if it is accepted.

    A foreign page can make a browser send requests with the user's password: to a host name that
    resolves to this machine (DNS rebinding), or to change something. Ports are compared for pages,
    where another port is another service, but not for hosts, as tunnels and proxies have their own.
    """
    headers = Headers(scope=scope)
    host = headers.get("host")
    target = _AUTHORITY.fullmatch((host or "").lower())
    if host is not None and (
        target is None or _plain(target["host"]) not in names.ours | {_local(scope)}
    ):
        why = (
            f"{host[:80]!r} is not a name of this service; start it with --host-name NAME, or use "
            "the address it listens on"
        )
        return HTTPStatus.MISDIRECTED_REQUEST, why
    if scope["method"] in SAFE:
        return None
    origin = headers.get("origin")
    is_foreign = origin is not None and not _is_ours(origin.lower(), target, names)
    if is_foreign or headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        who = (origin or "another site")[:80]
        why = (
            f"the request comes from a page of {who!r}; only pages of the service itself may "
            "change something"
        )
        return HTTPStatus.FORBIDDEN, why
    return None


def _is_ours(origin: str, target: re.Match[str] | None, names: HostNames) -> bool:
    scheme, _, rest = origin.partition("://")
    page = _AUTHORITY.fullmatch(rest)
    if page is None or scheme not in _USUAL_PORTS:
        return False
    if _plain(page["host"]) in names.proxies:
        return True
    usual = _USUAL_PORTS[scheme]
    return target is not None and (_plain(page["host"]), page["port"] or usual) == (
        _plain(target["host"]),
        target["port"] or usual,
    )


def _local(scope: Scope) -> str:
    """Return the address of this machine to which the client is connected."""
    server = scope.get("server")
    return "" if server is None else _plain(str(server[0]))


def _plain(host: str) -> str:
    """Return a host without brackets and final dot; addresses in their canonical form."""
    bare = host.strip("[]").removesuffix(".")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return bare


def is_loopback(host: str) -> bool:
    """Return whether a host is reachable from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
