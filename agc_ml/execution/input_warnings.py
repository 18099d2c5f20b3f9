"""What a reader of a result should know about its inputs."""

from __future__ import annotations

from collections.abc import Iterator

from agc_ml.execution import normalisation
from agc_ml.execution.state.run_state import Account
from agc_ml.inputs.datasets import plain_tree
from agc_ml.transports.base import is_same_version


def remarks(account: Account) -> tuple[str, ...]:
    """Notes of the fileset, odd inputs, and what is missing, a line each."""
    return (
        *account.fileset.notes,
        *_empty_files(account),
        *_alike_datasets(account),
        *_shared_files(account),
        *normalisation.lines(account),
        *_misread_columns(account),
        *_lacking_columns(account),
        *_several_versions(account),
        *account.shipment.notes,
        *account.notes,
        *(f"missing: {reason}" for reason in account.reasons()),
    )


def _empty_files(account: Account) -> Iterator[str]:
    empty = [dataset for dataset in account.fileset.datasets if account.is_empty(dataset)]
    for dataset in empty:
        yield f"dataset {dataset.name}: no events in any of its files; it is not in the result"
    for dataset, file in account.all_files():
        info = account.files.get((dataset.name, file.lfn))
        if info is not None and not info.entries and dataset not in empty:
            yield f"{dataset.name}: {file.lfn}: no events in it"


def _alike_datasets(account: Account) -> Iterator[str]:
    """Datasets that would be the same sample cut in two, each scaled to the whole cross-section."""
    alike: dict[tuple[str, str, float], list[str]] = {}
    for dataset in account.fileset.datasets:
        if dataset.xsec is not None and not dataset.is_data:
            key = (dataset.process, dataset.variation, dataset.xsec)
            alike.setdefault(key, []).append(dataset.name)
    for (process, _, xsec), names in alike.items():
        if len(names) > 1:
            yield (
                f"datasets {' and '.join(names)} are all {process} with {xsec:g} pb and add up: if "
                "they are parts of one sample, make them one dataset"
            )


def _shared_files(account: Account) -> Iterator[str]:
    homes: dict[tuple[str, str], list[str]] = {}
    for dataset, file in account.all_files():
        info = account.files.get((dataset.name, file.lfn))
        if info is not None:
            key = (info.uuid, plain_tree(file.tree))
            homes.setdefault(key, []).append(f"{dataset.name}: {file.lfn}")
    for first, *others in homes.values():
        if others:
            more = ", ..." if len(others) > 1 else ""
            yield (f"the same file is in {len(others) + 1} datasets: {first} and {others[0]}{more}")


def _lacking_columns(account: Account) -> Iterator[str]:
    """Optional columns that are not in all files of a dataset."""
    for dataset in account.fileset.datasets:
        keys = [(dataset.name, file.lfn) for file in dataset.files]
        infos = [account.files[key] for key in keys if key in account.files]
        for name in account.wanted(dataset).optional:
            n = sum(name in info.lacking for info in infos)
            if n:
                some = "its files" if n == len(infos) else f"{n} of {len(infos)} files"
                yield f"{dataset.name}: no branch {name} in {some}, which is optional"


def _several_versions(account: Account) -> Iterator[str]:
    """Files of which one URL gave several versions, of one UUID and size."""
    stamps: dict[tuple[str, str], list[str]] = {}
    for chunk in account.chunks:
        receipt = account.done.get(chunk)
        if receipt is not None:
            known = stamps.setdefault((chunk.lfn, receipt.url), [])
            if not any(is_same_version(receipt.stamp, stamp) for stamp in known):
                known.append(receipt.stamp)
    urls = [url for (_, url), found in stamps.items() if len(found) > 1]
    if urls:
        yield (
            f"{len(urls)} files came with several times or tags, such as {urls[0]}: mirrors behind "
            "one name, or made anew with the same UUID and size; --verify-checksums tells"
        )


def _misread_columns(account: Account) -> Iterator[str]:
    for dataset, file in account.all_files():
        info = account.files.get((dataset.name, file.lfn))
        if info is not None and info.misread:
            yield (
                f"{dataset.name}: {file.lfn}: {', '.join(info.misread)} are not what they seem, "
                "so uproot reads them, slower: please report this"
            )
