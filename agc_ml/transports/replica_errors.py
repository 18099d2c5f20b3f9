"""What can be wrong with a replica, sorted by what helps."""

from __future__ import annotations


class ReplicaError(Exception):
    """A replica can't be read now; another one may be."""


class TransientError(ReplicaError):
    """It may work in a moment: no answer, a broken connection, a server that starts again."""


class PermanentError(ReplicaError):
    """It will not work until somebody does something: no such file, no permission, no such host."""


class CorruptError(ReplicaError):
    """What is there is damaged, or cut off."""


class MismatchError(CorruptError):
    """What is there is another file than the fileset, or another replica, says."""


class ChangedError(MismatchError):
    """What is there is another file than was looked into before."""


class ReplacedError(TransientError):
    """Another file took its place, or it was written to, while it was read."""
