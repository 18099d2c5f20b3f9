"""What a reader of a result should know about its inputs."""

from __future__ import annotations

from collections.abc import Iterator

from agc_ml.account import Account


def remarks(account: Account) -> tuple[str, ...]:
    """Notes of the fileset, odd inputs, and what is missing, a line each."""
    return (
        *account.fileset.notes,
        *_empty_files(account),
        *_alike_datasets(account),
        *_shared_files(account),
        *_filtered_files(account),
        *_misread_columns(account),
        *account.shipment.notes,
        *account.notes,
        *(f"missing: {reason}" for reason in account.reasons()),
    )


def _empty_files(account: Account) -> Iterator[str]:
    for dataset, file in account.all_files():
        info = account.files.get((dataset.name, file.lfn))
        if info is not None and not info.entries:
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
            homes.setdefault((info.uuid, file.tree), []).append(f"{dataset.name}: {file.lfn}")
    for first, *others in homes.values():
        if others:
            more = ", ..." if len(others) > 1 else ""
            yield (f"the same file is in {len(others) + 1} datasets: {first} and {others[0]}{more}")


def _misread_columns(account: Account) -> Iterator[str]:
    for dataset, file in account.all_files():
        info = account.files.get((dataset.name, file.lfn))
        if info is not None and info.misread:
            yield (
                f"{dataset.name}: {file.lfn}: {', '.join(info.misread)} are not what they seem, "
                "so uproot reads them, slower: please report this"
            )


def _filtered_files(account: Account) -> Iterator[str]:
    """Datasets that are a part of what was generated, where the fileset does not say so."""
    found: dict[str, tuple[int, int]] = {}
    for dataset, file in account.all_files():
        info = account.files.get((dataset.name, file.lfn))
        if info is None or file.generated is not None or dataset.is_data:
            continue
        if info.generated is not None and info.generated > info.entries:
            entries, generated = found.get(dataset.name, (0, 0))
            found[dataset.name] = entries + info.entries, generated + info.generated
    for name, (entries, generated) in found.items():
        yield (
            f"{name}: a filter kept {entries:,} of {generated:,} generated events "
            "(Runs/genEventCount; the fileset does not state them); a cross-section is of all"
        )
