"""Access tokens: short-lived JSON Web Tokens, signed with HMAC-SHA256."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any, Final

LIFETIME_S: Final = 3600

_HEADER: Final = {"alg": "HS256", "typ": "JWT"}


def issue(secret: str, now: float) -> str:
    """A token that holds for an hour from ``now``, in seconds since 1970."""
    claims = {"iat": int(now), "exp": int(now) + LIFETIME_S}
    signed = f"{_encode(_HEADER)}.{_encode(claims)}"
    return f"{signed}.{_signature(secret, signed)}"


def is_valid(token: str, secret: str, now: float) -> bool:
    """Return whether a token was issued with this secret, and holds still."""
    signed, _, signature = token.rpartition(".")
    expected = _signature(secret, signed)
    if not hmac.compare_digest(signature.encode(), expected.encode()):
        return False
    try:
        claims = json.loads(_decode(signed.partition(".")[2]))
        return bool(claims["exp"] > now)
    except (ValueError, KeyError, TypeError):  # signed with our secret, but none of our tokens
        return False


def _signature(secret: str, signed: str) -> str:
    return _base64(hmac.digest(secret.encode(), signed.encode(), "sha256"))


def _encode(part: dict[str, Any]) -> str:
    return _base64(json.dumps(part, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
