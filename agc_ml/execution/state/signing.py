"""Signatures by a key of the user's own, which recognise files that this user wrote.

The key is in ``agc-ml/key`` of XDG_STATE_HOME (~/.local/state), readable by its owner only.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import hmac
import logging
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from agc_ml import files
from agc_ml.errors import UsageError

logger = logging.getLogger(__name__)

_BYTES: Final = 32
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def key_file() -> Path:
    """Path of the key."""
    stated = os.environ.get("XDG_STATE_HOME", "")  # a relative one is to be ignored
    state = Path(stated) if Path(stated).is_absolute() else files.home() / ".local" / "state"
    return state / "agc-ml" / "key"


def signature(content: bytes) -> str:
    """Return the HMAC (SHA-256) of some content by the user's key, which is made if there is none.

    Returns "" where no key can be kept.

    Raises
    ------
    UsageError
        Others can read the key, or it is not a key.
    """
    key = _key(key_file(), make=True)
    return hmac.digest(key, content, hashlib.sha256).hex() if key else ""


def is_own(content: bytes, signed: str) -> bool:
    """Return whether the user's key signed some content.

    Raises
    ------
    UsageError
        Others can read the key, or it is not a key.
    """
    key = _key(key_file(), make=False)
    if not key or not signed.isascii():
        return False
    return hmac.compare_digest(hmac.digest(key, content, hashlib.sha256).hex(), signed)


def _key(file: Path, *, make: bool) -> bytes:
    """The key; b"" if there is none, or none can be made."""
    try:
        if make and not file.exists():
            _make(file)
        with file.open("rb") as opened:
            status = os.fstat(opened.fileno())
            key = opened.read(_BYTES + 1)
    except OSError as error:
        if make:
            _warn_once(str(file), error.strerror or str(error))
        return b""
    if status.st_uid != os.geteuid() or status.st_mode & _OTHERS or len(key) != _BYTES:
        raise UsageError(
            f"{file}: the key that signs checkpoints must be {_BYTES} bytes that only you can read "
            "and write; remove it, and the next run makes a new one"
        )
    return key


def _make(file: Path) -> None:
    """Make a key, whole or not at all: another process may do the same."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(secrets.token_bytes(_BYTES))
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid() or status.st_mode & _OTHERS:
                raise PermissionError(errno.EPERM, "others could read it on this file system")
        with contextlib.suppress(FileExistsError):
            os.link(partial, file)  # unlike a rename, a link never replaces another key
    finally:
        partial.unlink()


@functools.cache
def _warn_once(file: str, reason: str) -> None:
    logger.warning(
        "%s: no key can be kept there (%s), so pickles are not signed: --resume needs --trust",
        file,
        reason,
    )
