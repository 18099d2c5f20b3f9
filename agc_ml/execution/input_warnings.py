"""Warnings about the inputs of a run, for the readers of its result."""

from __future__ import annotations

from collections.abc import Iterator

from agc_ml.execution import normalisation
from agc_ml.execution.state.run_state import RunState
from agc_ml.inputs.datasets import plain_tree
from agc_ml.transports.base import is_same_version


def input_warnings(state: RunState) -> tuple[str, ...]:
    """Notes of the fileset, odd inputs, and missing chunks, a line each."""
    return (
        *state.fileset.notes,
        *_empty_files(state),
        *_alike_datasets(state),
        *_shared_files(state),
        *normalisation.normalisation_notes(state),
        *_misread_columns(state),
        *_lacking_columns(state),
        *_several_versions(state),
        *state.processor.notes,
        *state.notes,
        *(f"missing: {reason}" for reason in state.reasons()),
    )


def _empty_files(state: RunState) -> Iterator[str]:
    empty = [dataset for dataset in state.fileset.datasets if state.is_empty(dataset)]
    for dataset in empty:
        yield f"dataset {dataset.name}: no events in any of its files; it is not in the result"
    for dataset, file, info in state.inspected_files():
        if not info.entries and dataset not in empty:
            yield f"{dataset.name}: {file.lfn}: no events in it"


def _alike_datasets(state: RunState) -> Iterator[str]:
    """Datasets that look like parts of one sample, each scaled to the whole cross-section."""
    alike: dict[tuple[str, str, float], list[str]] = {}
    for dataset in state.fileset.datasets:
        if dataset.xsec is not None and not dataset.is_data:
            key = (dataset.process, dataset.variation, dataset.xsec)
            alike.setdefault(key, []).append(dataset.name)
    for (process, _, xsec), names in alike.items():
        if len(names) > 1:
            yield (
                f"datasets {' and '.join(names)} are all {process} with {xsec:g} pb and add up: if "
                "they are parts of one sample, make them one dataset"
            )


def _shared_files(state: RunState) -> Iterator[str]:
    owners: dict[tuple[str, str], list[str]] = {}
    for dataset, file, info in state.inspected_files():
        key = (info.uuid, plain_tree(file.tree))
        owners.setdefault(key, []).append(f"{dataset.name}: {file.lfn}")
    for first, *others in owners.values():
        if others:
            more = ", ..." if len(others) > 1 else ""
            yield f"the same file is in {len(others) + 1} datasets: {first} and {others[0]}{more}"


def _lacking_columns(state: RunState) -> Iterator[str]:
    """Optional columns that some files of a dataset lack."""
    for dataset in state.fileset.datasets:
        infos = [info for owner, _, info in state.inspected_files() if owner is dataset]
        for name in state.wanted(dataset).optional:
            n = sum(name in info.lacking for info in infos)
            if n:
                files = "its files" if n == len(infos) else f"{n} of {len(infos)} files"
                yield f"{dataset.name}: no branch {name} in {files}, which is optional"


def _several_versions(state: RunState) -> Iterator[str]:
    """Files of one UUID and size that a URL gave in several versions."""
    stamps: dict[tuple[str, str], list[str]] = {}
    for chunk in state.chunks:
        receipt = state.done.get(chunk)
        if receipt is not None:
            known = stamps.setdefault((chunk.lfn, receipt.url), [])
            if not any(is_same_version(receipt.stamp, stamp) for stamp in known):
                known.append(receipt.stamp)
    urls = [url for (_, url), known in stamps.items() if len(known) > 1]
    if urls:
        yield (
            f"{len(urls)} files came with several times or tags, such as {urls[0]}: mirrors behind "
            "one name, or rewritten with the same UUID and size; check with --verify-checksums"
        )


def _misread_columns(state: RunState) -> Iterator[str]:
    for dataset, file, info in state.inspected_files():
        if info.misread:
            yield (
                f"{dataset.name}: {file.lfn}: {', '.join(info.misread)} have an unexpected layout, "
                "so uproot reads them, slower: please report this"
            )
