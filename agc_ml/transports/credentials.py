"""Bearer tokens and X.509 proxies: finding them, and keeping them out of messages.

Tokens are found by the WLCG's Bearer Token Discovery (doi:10.5281/zenodo.3937438): the variable
BEARER_TOKEN, the file named by BEARER_TOKEN_FILE, the file bt_u<uid> in XDG_RUNTIME_DIR, and the
same in /tmp. They are sent over encrypted connections or within this machine, and only to hosts
that the user named: a fileset that somebody else wrote may list any.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from agc_ml.errors import UsageError
from agc_ml.transports.replica_errors import PermanentError

# The variable that names the hosts to which a token may be sent.
TOKEN_HOSTS: Final = "AGC_ML_TOKEN_HOSTS"  # noqa: S105 - the name of a variable
# Variables that name files and folders.
FILE_VARIABLES: Final = (
    "BEARER_TOKEN_FILE",
    "X509_USER_PROXY",
    "X509_USER_CERT",
    "X509_USER_KEY",
    "X509_CERT_DIR",
)
# A worker needs these of the driver's environment for the same access.
VARIABLES: Final = ("BEARER_TOKEN", TOKEN_HOSTS, *FILE_VARIABLES)
# BEARER_TOKEN as the XRootD client sees it, which would give it to any server that asks.
DECOY: Final = "withheld-by-agc-ml"
_ENCRYPTED: Final = {"https", "roots", "xroots"}
_THIS_MACHINE: Final = {"localhost", "127.0.0.1", "[::1]"}
# Strict: libraries differ in what they take for the host of 'https://a\\@b/' or 'roots://a?@b//'.
_ADDRESS: Final = re.compile(
    r"(?P<scheme>https?|x?roots?)://([^@/?#\\\s]*@)?"
    r"(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>\d{1,5}))?(/|$)"
)
_HOST: Final = re.compile(
    r"(?P<any>\*\.)?(?P<host>[a-z0-9_-][a-z0-9._-]*|\[[0-9a-f:.]+\])(:(?P<port>\d{1,5}))?"
)
_PORTS: Final = {"http": "80", "https": "443"}
# Behind a slash, or inside a name, these are part of a path, as in /scan/sig=2/a.root.
_SECRET_IN_TEXT: Final = re.compile(
    r"(?i)((?:(?<!/)authz=|bearer[ +]|bearer%20|authorization: basic "
    r"|(?<!/)access_token[\"']?[=:]\s*[\"']?|security-token=|(?<!/)xrdhttptk="
    r"|(?<![\w./-])sig=|(?<![\w./-])[\w-]*signature=)+)[^\s&\"'),;:]+"
)
_SECRET_IN_ADDRESS: Final = re.compile(r"(?<=://)[^/\s]+@")


class Host(NamedTuple):
    """A host, or with a dot before it a domain, to which tokens may go; port None is any."""

    name: str
    port: str | None


def environment() -> dict[str, str]:
    """Return the credential variables that are set, for workers elsewhere."""
    return {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}


def allow_hosts(hosts: Iterable[str]) -> None:
    """Let this process and its children send tokens to more hosts: ``HOST`` or ``*.DOMAIN``.

    Raises
    ------
    UsageError
        One is not a host.
    """
    for host in hosts:
        _parse_host(host)
    stated = ",".join([os.environ.get(TOKEN_HOSTS, ""), *hosts]).strip(",")
    _parse_hosts(stated)
    if stated:
        os.environ[TOKEN_HOSTS] = stated


@functools.lru_cache
def _parse_hosts(stated: str) -> tuple[Host, ...]:
    return tuple(_parse_host(entry) for entry in re.split(r"[,\s]+", stated) if entry)


def _parse_host(entry: str) -> Host:
    match = _HOST.fullmatch(entry.lower())
    if match is None:
        raise UsageError(
            f"--token-host, {TOKEN_HOSTS}: {entry[:80]!r} is not a host; give HOST or *.DOMAIN, "
            "followed by :PORT to allow only that port"
        )
    name = match["host"].rstrip(".")
    return Host(f".{name}" if match["any"] else name, match["port"])


def _address(url: str) -> tuple[str, str, str] | None:
    """Return scheme, host and port of a URL; None where the host is ambiguous."""
    match = _ADDRESS.match(url.lower())
    if match is None:
        return None
    port = match["port"] or _PORTS.get(match["scheme"], "1094")
    return match["scheme"], match["host"].rstrip("."), port


def _is_listed(host: str, port: str) -> bool:
    return any(
        (host.endswith(allowed.name) if allowed.name.startswith(".") else host == allowed.name)
        and allowed.port in {None, port}
        for allowed in _parse_hosts(os.environ.get(TOKEN_HOSTS, ""))
    )


def token_for(url: str) -> str | None:
    """Return the bearer token to send to a server; None if there is none or it may not go there.

    Raises
    ------
    PermanentError
        The token file can't be read, or the variable of allowed hosts is malformed.
    """
    address = _address(url)
    if address is None or (address[0] not in _ENCRYPTED and address[1] not in _THIS_MACHINE):
        return None
    try:
        return bearer_token() if _is_listed(*address[1:]) else None
    except UsageError as error:
        raise PermanentError(str(error)) from error


def withheld_hint(url: str) -> str:
    """Return why a server that denied access got no token, for the end of a line, or ""."""
    address = _address(url)
    if address is None or token_for(url) is not None or bearer_token() is None:
        return ""
    scheme, host, port = address
    if scheme not in _ENCRYPTED and host not in _THIS_MACHINE:
        return "; no token was sent, since tokens go over https:// and roots:// only"
    return (
        f"; no token was sent to {host}: if it may have yours, add --token-host {host}:{port}, or "
        f"name it in {TOKEN_HOSTS}"
    )


def bearer_token() -> str | None:
    """Return the user's bearer token; None if there is none.

    Raises
    ------
    PermanentError
        The token file can't be read.
    """
    value = os.environ.get("BEARER_TOKEN", "").strip()
    if value and value != DECOY:
        return value
    named = os.environ.get("BEARER_TOKEN_FILE")
    if named:
        try:
            return Path(named).read_text().strip() or None
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise PermanentError(f"the token file {named} (BEARER_TOKEN_FILE): {reason}") from error
    # The standard's own places, which most users leave empty.
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    for folder in (runtime, "/tmp") if runtime else ("/tmp",):  # noqa: S108 - the standard's
        file = Path(folder, f"bt_u{os.geteuid()}")
        with contextlib.suppress(OSError, UnicodeDecodeError):
            # another user may write to /tmp, and would see our requests with a token of theirs
            if file.stat().st_uid == os.geteuid():
                return file.read_text().strip() or None
    return None


def with_token(url: str) -> str:
    """Add the token to a URL for the XRootD client."""
    sent = token_for(url)
    if sent is None or "authz=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}authz={quote(f'Bearer {sent}')}"


def client_certificate() -> tuple[str, str] | None:
    """Return the files of certificate and key for https servers; None if no variable names any."""
    both = os.environ.get("X509_USER_PROXY")
    if both:
        return both, both
    certificate, key = os.environ.get("X509_USER_CERT"), os.environ.get("X509_USER_KEY")
    return (certificate, key) if certificate and key else None


def redacted(text: str) -> str:
    """Return the text without tokens, signatures and passwords."""
    return _SECRET_IN_ADDRESS.sub("***@", _SECRET_IN_TEXT.sub(r"\1***", text))
