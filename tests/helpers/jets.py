"""A processor that needs little: a spectrum of jets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from coffea.processor import ProcessorABC

from agc_ml.columnar.events import blocks
from agc_ml.results.histograms import book
from agc_ml.results.tables import ColumnTable


@dataclass(frozen=True)
class Spectrum(ProcessorABC):
    """Jet pt, event by event with its weight; how many jets events have."""

    columns: ClassVar = ("Jet_pt", "genWeight")
    flat: ClassVar = True

    def process(self, events: Any) -> dict[str, Any]:
        meta = events.metadata
        names = {"process": meta["process"], "variations": ["nominal"]}
        spectrum, number = (
            book(400, 0, 400, label="pt", **names),
            book(40, 0, 40, label="n", **names),
        )
        n_events = 0
        for block in blocks(events):
            weight = np.asarray(block.genWeight).astype(np.float64)
            lengths = np.diff(block.Jet.offsets)
            for histogram, values, weights in (
                (spectrum, block.Jet.pt, np.repeat(weight, lengths)),
                (number, lengths, weight),
            ):
                histogram.fill(
                    observable=np.asarray(values),
                    process=meta["process"],
                    variation="nominal",
                    weight=weights,
                )
            n_events += len(block)
        return {"jets": spectrum, "n": number, "cutflow": {meta["dataset"]: {"all": n_events}}}


@dataclass(frozen=True)
class Everything(Spectrum):
    """The same, and what else a run directory can hold: arrays, lists of histograms, a table."""

    def process(self, events: Any) -> dict[str, Any]:
        found = super().process(events)
        n = found["cutflow"][events.metadata["dataset"]]["all"]
        return {
            **found,
            "array": np.array([n]),
            "list": [found["n"].copy()],
            "table": ColumnTable({"x": np.arange(n, dtype=np.float32)}, {"what": "numbers"}),
        }


class OwnDict(dict[str, int]):
    """A mapping of the user's own, which no form without code gives back."""


@dataclass(frozen=True)
class Owner(Spectrum):
    """The same, with something of its own."""

    def process(self, events: Any) -> dict[str, Any]:
        return {**super().process(events), "own": OwnDict(a=1)}

    def postprocess(self, accumulator: Any) -> Any:
        accumulator.pop("own")
        return accumulator
