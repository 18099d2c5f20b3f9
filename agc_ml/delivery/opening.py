"""Opening files with uproot, wherever their replicas are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from agc_ml.errors import DeliveryError
from agc_ml.inputs.datasets import ExpectedFile, File
from agc_ml.transports.credentials import redacted


@contextmanager
def open_file(
    file: File, failures: dict[str, str] | None = None, expected: ExpectedFile | None = None
) -> Iterator[Any]:
    """Open a file as an uproot directory, for the context.

    It has to be the file that the fileset describes, and that was inspected (``expected``).

    Its ``file.source`` is a `agc_ml.delivery.replica_source.ReplicaSource`, which records in
    ``failures`` why replicas failed, by their URL. An error inside the context counts as a fault of
    the replica: whoever opens the file again gets another one, if there is one.

    Raises
    ------
    DeliveryError
        No replica can be read.
    """
    import uproot  # noqa: PLC0415 - heavy

    from agc_ml.delivery.replica_source import ReplicaSource  # noqa: PLC0415 - it needs uproot

    sources: list[ReplicaSource] = []
    options = {
        "listed": file,
        "on_open": sources.append,
        "failures": failures,
        "expected": expected,
    }
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


def failure_notes(failures: Mapping[str, str]) -> list[str]:
    """Return a note on each replica that failed, for the reader of a result that lacks nothing."""
    return [
        f"{redacted(url)} failed while it was read ({reason}); the rest came from another replica, "
        "or from it later"
        for url, reason in failures.items()
    ]
