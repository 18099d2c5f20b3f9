"""Opening files with uproot, wherever their replicas are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from agc_ml.errors import DeliveryError
from agc_ml.inputs.datasets import ExpectedFile, File
from agc_ml.transports.credentials import redacted


@contextmanager
def opened(
    file: File, failures: dict[str, str] | None = None, known: ExpectedFile | None = None
) -> Iterator[Any]:
    """A file as an uproot directory, as long as the context lasts.

    It has to be what the fileset says, and what is ``known`` from looking into it.

    Its ``file.source`` is a `agc_ml.delivery.replica_source.ReplicaSource`, which notes in
    ``failures`` what was wrong with replicas, by their URL. An error inside the context is taken
    for a fault of the replica: who opens the file again gets another one, if there is one.

    Raises
    ------
    DeliveryError
        No replica can be read.
    """
    import uproot  # noqa: PLC0415 - heavy

    from agc_ml.delivery.replica_source import ReplicaSource  # noqa: PLC0415 - it needs uproot

    sources: list[ReplicaSource] = []
    options = {"wanted": file, "made": sources.append, "failures": failures, "known": known}
    try:
        with closing(
            uproot.open({file.url: None}, handler=ReplicaSource, array_cache=None, **options)
        ) as directory:
            yield directory
    except DeliveryError:
        raise
    except Exception as error:
        for source in sources:
            source.distrust(str(error))
        raise


def told(failures: Mapping[str, str]) -> list[str]:
    """What a reader of a result should know of replicas that failed: nothing is missing for it."""
    return [
        f"{redacted(url)} failed while it was read ({reason}); what was missing came from another "
        "replica, or from it later"
        for url, reason in failures.items()
    ]
