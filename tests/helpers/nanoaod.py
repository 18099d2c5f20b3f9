"""Small NanoAOD files with random events, for tests that need many or odd ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot

from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset

COLLECTIONS = {
    "Electron": ("pt", "eta", "phi", "mass", "sip3d", "charge", "cutBased"),
    "Muon": ("pt", "eta", "phi", "mass", "sip3d", "charge", "tightId", "pfRelIso04_all"),
    "Jet": ("pt", "eta", "phi", "mass", "btagCSVV2", "jetId"),
}


def column(field: str, rng: np.random.Generator, n: int) -> Any:
    values = {
        "pt": lambda: rng.exponential(60, n) + 15,
        "eta": lambda: rng.normal(0, 1.2, n),
        "phi": lambda: rng.uniform(-np.pi, np.pi, n),
        "mass": lambda: rng.exponential(8, n),
        "sip3d": lambda: rng.exponential(1.5, n),
        "btagCSVV2": lambda: rng.uniform(0, 1, n),
        "pfRelIso04_all": lambda: rng.exponential(0.1, n),
        "charge": lambda: rng.choice([-1, 1], n).astype(np.int32),
        "cutBased": lambda: rng.choice([0, 2, 4, 4], n).astype(np.int32),
        "jetId": lambda: rng.choice([0, 2, 6, 6], n).astype(np.int32),
        "tightId": lambda: rng.random(n) < 0.8,
    }[field]()
    return values.astype(np.float32) if values.dtype == np.float64 else values


def events(n: int, seed: int, weight: float = 1.0) -> dict[str, Any]:
    """Branches of ``n`` random events; the event numbers start at ``seed`` million."""
    rng = np.random.default_rng(seed)
    branches: dict[str, Any] = {
        "run": np.ones(n, np.uint32),
        "luminosityBlock": np.arange(n, dtype=np.uint32) // 100,
        "event": seed * 1_000_000 + np.arange(n, dtype=np.uint64),
        "genWeight": (weight * rng.choice([1.0, 1.0, 1.0, -0.5], n)).astype(np.float32),
    }
    for name, fields in COLLECTIONS.items():
        counts = rng.poisson(5.5 if name == "Jet" else 0.7, n)
        total = int(counts.sum())
        branches[name] = ak.unflatten(
            ak.zip({field: column(field, rng, total) for field in fields}), counts
        )
    return branches


def write(
    path: Path,
    branches: dict[str, Any],
    tree: str = "Events",
    cluster: int | None = None,
    codec: Any = uproot.ZLIB(1),  # noqa: B008 - a constant
) -> Path:
    """Write branches as uproot writes NanoAOD: one counter a collection.

    ``cluster`` is the number of events whose columns lie together, all of them by default.
    """
    types = {
        name: values.dtype if isinstance(values, np.ndarray) else ak.type(values).content
        for name, values in branches.items()
    }
    with uproot.recreate(path, compression=codec) as file:
        made = file.mktree(
            tree,
            types,
            counter_name=lambda name: f"n{name}",
            field_name=lambda outer, inner: inner if outer == "" else f"{outer}_{inner}",
        )
        n = len(next(iter(branches.values())))
        for start in range(0, n, cluster or max(n, 1)):
            stop = start + (cluster or n)
            made.extend({name: values[start:stop] for name, values in branches.items()})
    return path


def dataset(name: str, paths: list[Path], **options: Any) -> Dataset:
    files = tuple(File(lfn=str(path), replicas=(str(path),)) for path in paths)
    return Dataset(name=name, files=files, **{"process": name, "xsec": 100.0, **options})


def fileset(**datasets: list[Path]) -> Fileset:
    made = tuple(dataset(name, paths) for name, paths in datasets.items())
    return Fileset(made, luminosity=1000.0, luminosity_source="made up")
