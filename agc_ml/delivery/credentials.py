"""Bearer tokens and X.509 proxies: finding them, and keeping them out of what is printed.

Tokens are looked for as the WLCG's Bearer Token Discovery says (doi:10.5281/zenodo.3937438): the
variable BEARER_TOKEN, the file named by BEARER_TOKEN_FILE, the file bt_u<uid> in XDG_RUNTIME_DIR,
and the same in /tmp. They are sent over connections that are encrypted, or stay on this machine.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from agc_ml.delivery.faults import PermanentError

VARIABLES: Final = (
    *("BEARER_TOKEN", "BEARER_TOKEN_FILE"),
    *("X509_USER_PROXY", "X509_USER_CERT", "X509_USER_KEY", "X509_CERT_DIR"),
)
"""What a worker needs of the driver's environment to be let in where the driver is."""
_ENCRYPTED: Final = {"https", "roots", "xroots"}
_HERE: Final = {"localhost", "127.0.0.1", "::1"}
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


def token(url: str) -> str | None:
    """The bearer token to send to a server; None if there is none, or it would travel in clear.

    Raises
    ------
    PermanentError
        The file that should hold it can't be read.
    """
    parts = urlsplit(url)
    if parts.scheme not in _ENCRYPTED and parts.hostname not in _HERE:
        return None
    stated = os.environ.get("BEARER_TOKEN", "").strip()
    if stated:
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
    found = token(url)
    if found is None or "authz=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}authz={quote(f'Bearer {found}')}"


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
