"""The secrets of an endpoint: made once for its folder, so that clients survive its restart."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from agc_ml import documents, files
from agc_ml.errors import RunDirectoryError, UsageError
from agc_ml.servicex_endpoint.signatures import Keys

FILE: Final = "credentials.json"
_LONGEST: Final = 1 << 16  # bytes of a file with a token


class Credentials(BaseModel):
    """Who may do what: ``token`` lets a client in, the keys let it read objects."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    token: str
    signing_secret: str
    access_key: str
    secret_key: str

    @property
    def keys(self) -> Keys:
        """What requests for objects are signed with."""
        return Keys(self.access_key, self.secret_key)

    @classmethod
    def of(cls, folder: Path, token: str | None = None) -> Credentials:
        """Those of a folder, random ones if it has none; with another token, if one is given.

        Raises
        ------
        RunDirectoryError
            What is in the folder is damaged.
        """
        file = folder / FILE
        if file.exists():
            try:
                known = cls.model_validate_json(file.read_text())
            except (ValidationError, UnicodeDecodeError) as error:
                raise RunDirectoryError(
                    f"{file}: damaged; remove it, and restart clients"
                ) from error
        else:
            known = cls(
                token=secrets.token_urlsafe(32),
                signing_secret=secrets.token_urlsafe(32),
                access_key=secrets.token_hex(10).upper(),
                secret_key=secrets.token_urlsafe(30),
            )
            files.write_private(file, known.model_dump_json(indent=2) + "\n")
        return known if token is None else known.model_copy(update={"token": token})


def read_token(token_file: Path) -> str:
    """The token in a file.

    Raises
    ------
    UsageError
        It can't be read, or is empty.
    """
    try:
        token = documents.content(token_file, _LONGEST).decode().strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"--token {token_file}: can't be read (no text)") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"--token {token_file}: can't be read ({why})") from error
    if not token:
        raise UsageError(f"--token {token_file}: empty; write a long random word into it")
    return token
