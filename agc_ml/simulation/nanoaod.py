"""NanoAOD files: branches with CMS's names and types, the ``Runs`` tree, and their origin."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

import awkward as ak
import numpy as np

from agc_ml.inputs import agc_published
from agc_ml.simulation.events import Array, Collection, Events

CLUSTER: Final = 20_000
"""Events of a cluster, with one basket a branch: a few MB, which reads well."""

ORIGIN: Final = agc_published.ORIGIN
"""Name of the JSON string in each file that describes how it was made."""

_ZLIB_LEVEL: Final = 6
_EXACT_BITS, _COARSE_BITS = 12, 10  # mantissa of momenta, and of other numbers, as in NanoAOD
_EXACT: Final = {"pt", "eta", "phi", "mass"}
_NAMESPACE: Final = uuid.UUID("5d1c8a4e-7a35-4c2e-9a35-0d6f3b2f7c11")

SLIM_VALUES: Final = (
    "run",
    "luminosityBlock",
    "event",
    "genWeight",
    "MET_pt",
    "MET_phi",
    "PV_npvs",
    "PV_npvsGood",
)
SLIM_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "Electron": ("pt", "eta", "phi", "mass", "charge", "cutBased", "sip3d"),
    "Muon": ("pt", "eta", "phi", "mass", "charge", "tightId", "sip3d", "pfRelIso04_all"),
    "Jet": ("pt", "eta", "phi", "mass", "btagCSVV2", "jetId", "qgl"),
}
"""Branches of the slim content: those of the ttbar measurement, missing momentum, vertices."""


def slim(events: Events, *, also: Iterable[str] = ()) -> Events:
    """Keep the branches of the slim content, and the whole collections named in ``also``."""
    collections = {
        name: Collection(
            events.collections[name].counts,
            {field: events.collections[name].fields[field] for field in fields},
        )
        for name, fields in SLIM_FIELDS.items()
    }
    collections |= {name: events.collections[name] for name in also}
    return Events({name: events.values[name] for name in SLIM_VALUES}, collections)


def stored(events: Events) -> Events:
    """Round floating-point columns to what NanoAOD stores: float32 with a short mantissa."""
    return events.mapped(_stored)


def _stored(field: str, values: Array) -> Array:
    if values.dtype.kind != "f":
        return values
    return rounded(values, _EXACT_BITS if field in _EXACT else _COARSE_BITS)


def rounded(values: Array, bits: int = _COARSE_BITS) -> Array:
    """Round to float32 with ``bits`` bits of mantissa; the rest is zero, and compresses well."""
    dropped = 23 - bits
    pattern = np.ascontiguousarray(values, np.float32).view(np.uint32)
    kept = np.uint32((0xFFFFFFFF << dropped) % (1 << 32))
    return ((pattern + np.uint32(1 << (dropped - 1))) & kept).view(np.float32)


def write(
    path: Path, clusters: Iterable[Events], generated: int, origin: Mapping[str, Any], name: str
) -> None:
    """Write events, the ``Runs`` tree with their number of generated events, and their origin.

    Each item of ``clusters`` becomes a cluster of the file, with its UUID from `uuid_of`. The
    weight of each event is one.
    """
    import uproot  # noqa: PLC0415 - heavy

    identity = uuid_of(origin, name)
    with uproot.recreate(
        path, compression=uproot.ZLIB(_ZLIB_LEVEL), uuid_function=lambda: identity
    ) as file:
        tree: Any = None
        for cluster in clusters:
            branches = branches_of(cluster)
            if tree is None:
                with _unsigned_counters():
                    tree = file.mktree("Events", _types(branches), title="Events")
            tree.extend(branches)
        # Normalisation needs the generated events, also those that vetoes and skim dropped.
        runs: dict[str, Array] = {
            "run": np.ones(1, np.uint32),
            "genEventCount": np.array([generated], np.int64),
            "genEventSumw": np.array([float(generated)]),
            "genEventSumw2": np.array([float(generated)]),
        }
        file.mktree("Runs", {key: values.dtype for key, values in runs.items()}).extend(runs)
        file[ORIGIN] = _text(origin)


def uuid_of(origin: Mapping[str, Any], name: str) -> uuid.UUID:
    """UUID of a file: the same for the same events under the same name."""
    return uuid.uuid5(_NAMESPACE, f"{name}\n{_text(origin)}")


def _text(origin: Mapping[str, Any]) -> str:
    return json.dumps(origin, sort_keys=True)


def branches_of(events: Events) -> dict[str, Any]:
    """Events as arrays by branch: numpy, or awkward lists for collections."""
    collections: dict[str, Any] = {
        name: ak.unflatten(
            # a collection of one column of its own name, such as LHEPdfWeight
            fields[name] if list(fields) == [name] else ak.zip(fields),
            collection.counts,
        )
        for name, collection in events.collections.items()
        for fields in [dict(collection.fields)]
    }
    return {**dict(events.values), **collections}


def _types(branches: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: values.dtype if isinstance(values, np.ndarray) else ak.type(values).content
        for name, values in branches.items()
    }


@contextmanager
def _unsigned_counters() -> Iterator[None]:
    """Make uproot book counters (``nJet``) unsigned, as CMS does; it has no option for that."""
    from uproot.writing._cascadetree import Tree  # noqa: PLC0415 - heavy

    signed = Tree._branch_np  # noqa: SLF001 - tested

    def unsigned(tree: Any, name: str, shape: Any, dtype: Any, **options: Any) -> Any:
        if options.get("kind") == "counter":
            shape = dtype = np.dtype(np.uint32)
        return signed(tree, name, shape, dtype, **options)

    with mock.patch.object(Tree, "_branch_np", unsigned):
        yield
