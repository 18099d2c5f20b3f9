"""Training sets and truth labels, as tests look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import uproot

from agc_ml.columnar.jagged import Collection, offsets_of
from agc_ml.results import tables
from processors.ttbar import selection, truth


def columns_of(path: Path, variation: str) -> dict[str, Any]:
    """Columns of a training set, of the rows of a variation."""
    columns = tables.read(path).columns
    chosen = columns["variation"] == variation.encode()
    return {name: values[chosen] for name, values in columns.items()}


def flat(path: Path, collection: str, fields: tuple[str, ...], stop: int | None) -> Collection:
    """A collection of a file as flat columns, read by uproot."""
    with uproot.open(path) as file:
        arrays = file["Events"].arrays(
            [f"{collection}_{field}" for field in fields], entry_stop=stop, library="np"
        )
    lists = {field: arrays[f"{collection}_{field}"] for field in fields}
    counts = np.array([len(one) for one in lists[fields[0]]])
    columns = {field: np.concatenate(list(values)) for field, values in lists.items()}
    return Collection(offsets_of(counts), columns.__getitem__)


PARTICLES = ("pdgId", "genPartIdxMother", "statusFlags", "eta", "phi")


def labels_of_all_jets(path: Path, stop: int) -> Any:
    """Labels of all jets, events of as many jets together, in the order of the events."""
    jets = flat(path, "Jet", ("eta", "phi"), stop)
    particles = flat(path, "GenPart", PARTICLES, stop)
    labels = np.empty(jets.offsets[-1], np.int16)
    for n in set(jets.counts.tolist()) - {0}:
        events = np.flatnonzero(jets.counts == n)
        some = jets.take(events, np.ones(jets.offsets[-1], bool))
        own = particles.take(events, np.ones(particles.offsets[-1], bool))
        labels[some.index] = truth.jet_labels(some, own).ravel()
    return labels


def matched(path: Path) -> Any:
    """Of each event in 4j2b: fractions of the kinds of labels, and whether it is fully matched."""
    fields = ("pt", "eta", "phi", "btagCSVV2", "jetId")
    jets = flat(path, "Jet", fields, None)
    leptons = [
        (kind, chosen(kind))
        for kind, chosen in (
            (flat(path, "Electron", ("pt", "eta", "cutBased", "sip3d"), None), selection.electrons),
            (
                flat(path, "Muon", ("pt", "eta", "tightId", "sip3d", "pfRelIso04_all"), None),
                selection.muons,
            ),
        )
    ]
    selected = jets.take(np.arange(len(jets)), selection.jets(jets) & selection.hard(jets))
    tags = np.add.reduceat(
        np.append(selection.b_tagged(selected), False).astype(int), selected.offsets[:-1]
    ) * (selected.counts > 0)
    passed = selection.one_lepton(leptons) & selection.regions(selected.counts, tags)["4j2b"]
    events = np.flatnonzero(passed)
    mine = selected.take(events, np.ones(selected.offsets[-1], bool))
    place = np.arange(mine.offsets[-1]) - np.repeat(mine.offsets[:-1], mine.counts)
    leading = mine.take(np.arange(len(mine)), place < truth.N_JETS)
    particles = flat(path, "GenPart", PARTICLES, None)
    own = particles.take(events, np.ones(particles.offsets[-1], bool))
    labels = truth.jet_labels(leading, own)
    kinds = [(labels == kind).mean(axis=1) for kind in (24, 6, -6, 100)]
    return np.array([*kinds, labels.sum(axis=1) == truth.FULLY_MATCHED])
