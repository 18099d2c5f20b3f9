"""Tokens: each has a role and may expire; only digests are stored."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from typing import Final, Literal

from agc_ml.errors import UsageError
from agc_ml.training.service.database import Database, Token

Role = Literal["read", "train", "promote"]
# Each includes those before it
ROLES: Final[tuple[Role, ...]] = ("read", "train", "promote")

_PREFIX: Final = "agcml_"  # for secret scanners of repositories


def issue(database: Database, name: str, role: Role, expires: float | None) -> str:
    """Make a token, and store its digest; ``expires`` in seconds since 1970, None for never.

    Raises
    ------
    UsageError
        The name has other characters than a name may have.
    TrainingError
        A token has this name already.
    """
    if not re.fullmatch(r"[\w.@-]{1,64}", name):
        raise UsageError(f"token {name!r}: a name of letters, digits, '.', '@', '-' is needed")
    token = _PREFIX + secrets.token_urlsafe(32)
    database.add_token(
        Token(name=name, role=role, created=time.time(), expires=expires), digest(token)
    )
    return token


def digest(token: str) -> str:
    """Return the sha256 of a token, which is stored."""
    return hashlib.sha256(token.encode()).hexdigest()


def valid_token(database: Database, secret: str) -> Token | None:
    """Return the record of a token, None if it is unknown or has expired."""
    token = database.token_of(digest(secret))
    if token is None or (token.expires is not None and token.expires <= time.time()):
        return None
    return token


def includes(token: Token, role: Role) -> bool:
    """Return whether a token's role includes another one."""
    return ROLES.index(token.role) >= ROLES.index(role)
