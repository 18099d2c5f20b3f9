"""Bearer tokens and X.509 proxies: finding them, and keeping them out of what is printed.

Tokens are looked for as the WLCG's Bearer Token Discovery says (doi:10.5281/zenodo.3937438): the
variable BEARER_TOKEN, the file named by BEARER_TOKEN_FILE, the file bt_u<uid> in XDG_RUNTIME_DIR,
and the same in /tmp. They are sent over connections that are encrypted, or stay on this machine,
and only to hosts that the user named: a fileset that somebody else wrote may list any.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from agc_ml.errors import UsageError
from agc_ml.transports.replica_errors import PermanentError

HOSTS: Final = "AGC_ML_TOKEN_HOSTS"
"""The variable that names the hosts to which a token may be sent."""
FILES: Final = (
    *("BEARER_TOKEN_FILE", "X509_USER_PROXY", "X509_USER_CERT", "X509_USER_KEY", "X509_CERT_DIR"),
)
"""Variables that name files and folders."""
VARIABLES: Final = ("BEARER_TOKEN", HOSTS, *FILES)
"""What a worker needs of the driver's environment to be let in where the driver is."""
DECOY: Final = "withheld-by-agc-ml"
"""What BEARER_TOKEN holds for the XRootD client, which would give it to any server that asks."""
_ENCRYPTED: Final = {"https", "roots", "xroots"}
_HERE: Final = {"localhost", "127.0.0.1", "[::1]"}
# Strict: libraries differ in what they take for the host of 'https://a\\@b/' or 'roots://a?@b//'.
_ADDRESS: Final = re.compile(
    r"(?P<scheme>https?|x?roots?)://([^@/?#\\\s]*@)?"
    r"(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>\d{1,5}))?(/|$)"
)
_ENTRY: Final = re.compile(
    r"(?P<any>\*\.)?(?P<host>[a-z0-9_-][a-z0-9._-]*|\[[0-9a-f:.]+\])(:(?P<port>\d{1,5}))?"
)
_PORTS: Final = {"http": "80", "https": "443"}
# Behind a slash, or inside a name, these are part of a path, as in /scan/sig=2/a.root.
_IN_TEXT: Final = re.compile(
    r"(?i)((?:(?<!/)authz=|bearer[ +]|bearer%20|authorization: basic "
    r"|(?<!/)access_token[\"']?[=:]\s*[\"']?|security-token=|(?<!/)xrdhttptk="
    r"|(?<![\w./-])sig=|(?<![\w./-])[\w-]*signature=)+)[^\s&\"'),;:]+"
)
_IN_ADDRESS: Final = re.compile(r"(?<=://)[^/\s]+@")


def environment() -> dict[str, str]:
    """The variables that are set here, for workers elsewhere."""
    return {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}


class Host(NamedTuple):
    """Where a token may go.

    ``name`` is a host's or, with a dot before it, that of a domain; ``port`` is None for any.
    """

    name: str
    port: str | None


def allow(hosts: Iterable[str]) -> None:
    """Let tokens go to more hosts, from this process and what it starts: ``HOST``, ``*.DOMAIN``.

    Raises
    ------
    UsageError
        One is no host.
    """
    for host in hosts:
        if not _ENTRY.fullmatch(host.lower()):
            raise _no_host(host)
    stated = ",".join([os.environ.get(HOSTS, ""), *hosts]).strip(",")
    _hosts(stated)
    if stated:
        os.environ[HOSTS] = stated


@functools.lru_cache
def _hosts(stated: str) -> tuple[Host, ...]:
    found = []
    for entry in re.split(r"[,\s]+", stated.strip(", \t\n")) if stated.strip(", \t\n") else ():
        match = _ENTRY.fullmatch(entry.lower())
        if match is None:
            raise _no_host(entry)
        name = match["host"].rstrip(".")
        found.append(Host(f".{name}" if match["any"] else name, match["port"]))
    return tuple(found)


def _no_host(entry: str) -> UsageError:
    return UsageError(
        f"--token-host, {HOSTS}: {entry[:80]!r} is no host; HOST or *.DOMAIN are, "
        "with :PORT behind them if only that is meant"
    )


def _address(url: str) -> tuple[str, str, str] | None:
    """Scheme, host and port of a URL; None where it is not plain which host that is."""
    found = _ADDRESS.match(url.lower())
    if found is None:
        return None
    port = found["port"] or _PORTS.get(found["scheme"], "1094")
    return found["scheme"], found["host"].rstrip("."), port


def _is_listed(host: str, port: str) -> bool:
    return any(
        (host.endswith(one.name) if one.name.startswith(".") else host == one.name)
        and one.port in {None, port}
        for one in _hosts(os.environ.get(HOSTS, ""))
    )


def token(url: str) -> str | None:
    """The bearer token to send to a server; None if there is none, or it may not go there.

    Raises
    ------
    PermanentError
        The file that should hold it can't be read, or what should name hosts names none.
    """
    address = _address(url)
    if address is None or (address[0] not in _ENCRYPTED and address[1] not in _HERE):
        return None
    try:
        return found() if _is_listed(*address[1:]) else None
    except UsageError as error:
        raise PermanentError(str(error)) from error


def withheld(url: str) -> str:
    """Reason that a server that lets nobody in got no token, for the end of a line, or ""."""
    address = _address(url)
    if address is None or token(url) is not None or found() is None:
        return ""
    scheme, host, port = address
    if scheme not in _ENCRYPTED and host not in _HERE:
        return "; no token was sent, since they go over https:// and roots:// only"
    return (
        f"; no token was sent to {host}: if it may have yours, say --token-host {host}:{port}, or "
        f"name it in {HOSTS}"
    )


def found() -> str | None:
    """The user's bearer token; None if there is none.

    Raises
    ------
    PermanentError
        The file that should hold it can't be read.
    """
    stated = os.environ.get("BEARER_TOKEN", "").strip()
    if stated and stated != DECOY:
        return stated
    named = os.environ.get("BEARER_TOKEN_FILE")
    if named:
        try:
            return Path(named).read_text().strip() or None
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise PermanentError(f"the token file {named} (BEARER_TOKEN_FILE): {reason}") from error
    for file in _usual_files():
        with contextlib.suppress(OSError, UnicodeDecodeError):  # most people have none
            return file.read_text().strip() or None
    return None


def _usual_files() -> Iterator[Path]:
    name = f"bt_u{os.geteuid()}"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    for folder in (runtime, "/tmp"):  # noqa: S108 - the standard's own place
        file = Path(folder or "", name)
        # another user may write to /tmp, and would learn what is asked with a token of theirs
        with contextlib.suppress(OSError):
            if folder and file.stat().st_uid == os.geteuid():
                yield file


def with_token(url: str) -> str:
    """A URL for the XRootD client, which takes the token in it."""
    sent = token(url)
    if sent is None or "authz=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}authz={quote(f'Bearer {sent}')}"


def proxy() -> tuple[str, str] | None:
    """Files of certificate and key to show to https servers; None if no variable names them."""
    both = os.environ.get("X509_USER_PROXY")
    if both:
        return both, both
    certificate, key = os.environ.get("X509_USER_CERT"), os.environ.get("X509_USER_KEY")
    return (certificate, key) if certificate and key else None


def redacted(text: str) -> str:
    """The text without tokens, signatures and passwords."""
    return _IN_ADDRESS.sub("***@", _IN_TEXT.sub(r"\1***", text))
