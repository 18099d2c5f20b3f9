"""Filesets that the options of a command select."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agc_ml.inputs.fileset import Fileset


def load_fileset(source: str | None, dataset: str | None = None) -> Fileset:
    """Load a fileset, by default the embedded demo set."""
    from agc_ml.inputs.fileset import Fileset  # noqa: PLC0415 - on demand
    from agc_ml.inputs.loading import DEMO  # noqa: PLC0415 - on demand

    return Fileset.load(DEMO if source is None else source, dataset=dataset)


def selected_fileset(given: dict[str, Any]) -> Fileset:
    """Load the fileset of a command, and allow tokens for the hosts of --token-host."""
    from agc_ml.transports import credentials  # noqa: PLC0415 - on demand

    credentials.allow_hosts(given["token_hosts"])
    fileset = load_fileset(given["fileset"], given["dataset"])
    if given["datasets"] is not None:
        fileset = fileset.select(name.strip() for name in given["datasets"].split(","))
    return fileset if given["max_files"] is None else fileset.limit(files=given["max_files"])
