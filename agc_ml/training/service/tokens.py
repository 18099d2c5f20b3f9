"""Who may do what: tokens with a role and an end, of which only digests are kept."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from typing import Final, Literal

from agc_ml.errors import UsageError
from agc_ml.training.service.database import Table, Token

Role = Literal["read", "train", "promote"]
ROLES: Final[tuple[Role, ...]] = ("read", "train", "promote")
"""Each may do what those before it may."""

_PREFIX: Final = "agcml_"  # so that scanners of repositories know one when they see it


def issue(table: Table, name: str, role: Role, expires: float | None) -> str:
    """Make a token, which is not kept; ``expires`` in seconds since 1970, None for never.

    Raises
    ------
    UsageError
        The name is none.
    TrainingError
        There is a token of this name.
    """
    if not re.fullmatch(r"[\w.@-]{1,64}", name):
        raise UsageError(f"token {name!r}: a name of letters, digits, '.', '@', '-' is needed")
    token = _PREFIX + secrets.token_urlsafe(32)
    table.add_token(
        Token(name=name, role=role, created=time.time(), expires=expires), digest(token)
    )
    return token


def digest(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def known(table: Table, token: str) -> Token | None:
    """Whose token it is, None if nobody's, or if its time is over."""
    found = table.token_of(digest(token))
    if found is None or (found.expires is not None and found.expires <= time.time()):
        return None
    return found


def may(token: Token, role: Role) -> bool:
    """Return whether a token's role includes another one."""
    return ROLES.index(token.role) >= ROLES.index(role)
