"""Errors of replicas, by what may help."""

from __future__ import annotations


class ReplicaError(Exception):
    """A replica can't be read now; another one may work."""


class TransientError(ReplicaError):
    """A retry may help: no answer, a broken connection, a server that restarts."""


class PermanentError(ReplicaError):
    """A retry can't help: no such file, no permission, no such host."""


class CorruptError(ReplicaError):
    """The replica is damaged or cut off."""


class MismatchError(CorruptError):
    """The replica is another file than the fileset or another replica says."""


class ChangedError(MismatchError):
    """The replica is another file than when it was inspected."""


class ReplacedError(TransientError):
    """The file was replaced or overwritten while it was read."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(f"it was replaced or changed while it was read{reason and ': '}{reason}")
