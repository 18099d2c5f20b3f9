"""Address of a served model: servers, name and version."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from agc_ml.errors import ModelError

_EXAMPLE: Final = "grpc://host:port[,other:port]/model?version=1"
_SCHEMES: Final = {"grpc": False, "grpcs": True}
_ADDRESS: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


@dataclass(frozen=True)
class Endpoint:
    """A model on servers.

    Attributes
    ----------
    addresses
        ``host:port`` of the servers' gRPC ports, tried in this order.
    model
        Its name on the servers.
    version
        Version, always explicit: a server's newest version may change during a run.
    tls
        True for encrypted connections to servers with verified certificates.
    """

    addresses: tuple[str, ...]
    model: str
    version: str
    tls: bool = False

    def __str__(self) -> str:
        return f"model {self.model} (version {self.version})"

    @classmethod
    def parse(cls, uri: str) -> Endpoint:
        """Read ``grpc://host:port[,other:port]/model?version=1``, or ``grpcs://`` for TLS.

        Raises
        ------
        ModelError
            The URI is malformed, or has no version.
        """
        try:
            parts = urlsplit(uri)
            query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError as error:
            raise _unreadable(uri, str(error)) from None
        if parts.scheme not in _SCHEMES:
            raise _unreadable(uri, "it begins with neither grpc:// nor grpcs://")
        addresses = tuple(parts.netloc.split(","))
        for address in addresses:
            match = _ADDRESS.fullmatch(address)
            if match is None or not 0 < int(match[1]) < 2**16:
                raise _unreadable(uri, f"{address!r} is not host:port")
        if len(set(addresses)) != len(addresses):
            raise _unreadable(uri, "an address is named twice")
        model = unquote(parts.path.removeprefix("/"))
        if not re.fullmatch(r"[^\s/]+", model) or parts.fragment:
            raise _unreadable(uri, "the name of one model must follow the address")
        if [name for name, _ in query] != ["version"] or not re.fullmatch(r"\S+", query[0][1]):
            raise _unreadable(uri, "give the version of the model, and nothing else")
        return cls(addresses, model, query[0][1], _SCHEMES[parts.scheme])


def _unreadable(uri: str, reason: str) -> ModelError:
    return ModelError(f"model {uri}: {reason}; write {_EXAMPLE}")
