"""Secrets of an endpoint, made once for its folder so that clients survive a restart."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

import jwt
from pydantic import BaseModel, ConfigDict, ValidationError

from agc_ml import documents, files
from agc_ml.errors import RunDirectoryError, UsageError
from agc_ml.servicex_endpoint.signatures import AccessKeys

FILE: Final = "credentials.json"
ACCESS_TOKEN_LIFETIME_S: Final = 3600
_ALGORITHM: Final = "HS256"
_MAX_TOKEN_FILE: Final = 1 << 16  # bytes


class EndpointCredentials(BaseModel):
    """The refresh ``token`` of clients, the secret of access tokens, and the keys of objects."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    token: str
    signing_secret: str
    access_key: str
    secret_key: str

    @property
    def keys(self) -> AccessKeys:
        """Keys that sign requests for objects."""
        return AccessKeys(self.access_key, self.secret_key)

    def issue_access_token(self, now: float) -> str:
        """Return a JSON Web Token that is valid for an hour from ``now``, in s since 1970."""
        claims = {"iat": int(now), "exp": int(now) + ACCESS_TOKEN_LIFETIME_S}
        return jwt.encode(claims, self.signing_secret, _ALGORITHM)

    def accepts(self, access_token: str) -> bool:
        """Return whether an access token was issued here, and has not expired."""
        # A clock that was set back makes no token invalid.
        options: jwt.types.Options = {"require": ["exp"], "verify_iat": False}
        try:
            jwt.decode(access_token, self.signing_secret, [_ALGORITHM], options=options)
        except jwt.InvalidTokenError:
            return False
        return True


def load_credentials(folder: Path, token: str | None = None) -> EndpointCredentials:
    """Return the credentials of a folder, random ones if it has none, with another ``token``.

    Raises
    ------
    RunDirectoryError
        The file in the folder is damaged.
    """
    file = folder / FILE
    if file.exists():
        try:
            credentials = EndpointCredentials.model_validate_json(file.read_text())
        except (ValidationError, UnicodeDecodeError) as error:
            raise RunDirectoryError(f"{file}: damaged; remove it, and restart clients") from error
    else:
        credentials = EndpointCredentials(
            token=secrets.token_urlsafe(32),
            signing_secret=secrets.token_urlsafe(32),
            access_key=secrets.token_hex(10).upper(),
            secret_key=secrets.token_urlsafe(30),
        )
        files.write_private(file, credentials.model_dump_json(indent=2) + "\n")
    return credentials if token is None else credentials.model_copy(update={"token": token})


def read_token(token_file: Path) -> str:
    """Read the refresh token from a file.

    Raises
    ------
    UsageError
        It can't be read, or is empty.
    """
    try:
        token = documents.content(token_file, _MAX_TOKEN_FILE).decode().strip()
    except (OSError, ValueError) as error:
        is_binary = isinstance(error, UnicodeDecodeError)
        reason = "not a text file" if is_binary else getattr(error, "strerror", None) or error
        raise UsageError(f"--token {token_file}: can't be read ({reason})") from error
    if not token:
        raise UsageError(f"--token {token_file}: empty; write a long random word into it")
    return token
