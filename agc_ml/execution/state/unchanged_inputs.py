"""Compare the inputs of a complete run with its ledger."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Final

from agc_ml.errors import DeliveryError
from agc_ml.inputs.datasets import ExpectedFile, File
from agc_ml.inputs.fileset import Fileset
from agc_ml.results.ledger import Entry, Ledger
from agc_ml.transports.credentials import redacted

logger = logging.getLogger(__name__)

AT_ONCE: Final = 16


def changed_input(fileset: Fileset, ledger: Ledger) -> str | None:
    """Open all files of a run, and return a line about one that has changed, None if none has.

    The log has those that can't be reached.
    """
    read = {(entry.dataset, entry.lfn): entry for entry in ledger.done}
    pairs = list(_pairs(fileset, read.values()))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for (dataset, file, _), (is_changed, problem) in zip(
            pairs, pool.map(_compared, pairs), strict=True
        ):
            if is_changed:
                return f"dataset {dataset}: {file.lfn}: {problem}"
            if problem:
                logger.warning(
                    "dataset %s: %s: not compared with what was read: %s",
                    dataset,
                    file.lfn,
                    problem,
                )
    return None


def _pairs(fileset: Fileset, read: Iterable[Entry]) -> Iterator[tuple[str, File, ExpectedFile]]:
    """Files with their former state, of the replica that was read if that is still listed."""
    files = {(d.name, f.lfn): f for d in fileset.datasets for f in d.files}
    for entry in read:
        file = files.get((entry.dataset, entry.lfn))
        if file is not None and entry.uuid is not None and entry.size is not None:
            same = tuple(url for url in file.replicas if redacted(url) == entry.url)
            known = ExpectedFile(entry.url, entry.stamp, entry.size, entry.uuid, entry.entries or 0)
            yield entry.dataset, replace(file, replicas=same or file.replicas), known


def _compared(pair: tuple[str, File, ExpectedFile]) -> tuple[bool, str]:
    """Return whether a file has changed, and why, or why it could not be compared."""
    from agc_ml.delivery.replica_source import ReplicaSource  # noqa: PLC0415 - it needs uproot

    _, file, known = pair
    try:
        with closing(ReplicaSource(file.url, listed=file, expected=known)):
            return False, ""
    except DeliveryError as error:
        return error.may_be_replaced, str(error)
