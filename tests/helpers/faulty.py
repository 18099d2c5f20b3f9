"""Processors that do what goes wrong."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import awkward as ak
import hist
import numpy as np
from coffea.processor import ProcessorABC

from agc_ml.results.histograms import book


@dataclass(frozen=True)
class Spectrum(ProcessorABC):
    """Jet pt with odd weights, so that the order of a sum shows in its bits.

    ``fault`` happens in the chunk of the file whose name contains ``where`` and that holds entry
    ``entry``.
    """

    sleep: float = 0.0
    fault: str = ""
    where: str = "03"
    entry: int = 600
    marker: str = ""

    columns: ClassVar = tuple(f"Jet_{f}" for f in ("pt", "eta", "phi", "mass", "btagCSVV2"))
    simulation_columns: ClassVar = ("genWeight",)

    def process(self, events: Any) -> dict[str, Any]:
        meta = events.metadata
        if self.sleep:
            time.sleep(self.sleep)
        if self.where in meta["filename"].rsplit("/", 1)[-1] and (
            meta["entrystart"] <= self.entry < meta["entrystop"]
        ):
            self.fail()
        gen_weight = np.asarray(events.genWeight).astype(np.float64)
        weight = gen_weight * 0.1234567
        spectrum = book(
            *(40, 0, 400), label="pt [GeV]", process=meta["process"], variations=["nominal"]
        )
        counts = ak.to_numpy(ak.num(events.Jet))
        spectrum.fill(
            observable=ak.to_numpy(ak.flatten(events.Jet.pt)),
            process=meta["process"],
            variation="nominal",
            weight=np.repeat(weight, counts) * ak.to_numpy(ak.flatten(events.Jet.btagCSVV2)),
        )
        return {
            "pt": spectrum,
            "cutflow": {meta["dataset"]: {"all": len(events)}},
            "sumw": float(gen_weight.sum()),
        }

    def fail(self) -> None:
        if self.fault == "raise":
            raise KeyError("no such working point")
        if self.fault == "exit":
            os._exit(11)
        if self.fault == "kill once" and not Path(self.marker).exists():
            Path(self.marker).touch()
            time.sleep(1)  # in the middle of the chunk, not before its start is known
            os.kill(os.getpid(), signal.SIGKILL)


class Strange(ProcessorABC):
    """Returns nothing."""

    def process(self, events: Any) -> Any:
        del events


class Plain(ProcessorABC):
    """A coffea processor that knows nothing of this project: nested output, no columns."""

    def process(self, events: Any) -> dict[str, Any]:
        name = events.metadata["dataset"]
        mass = hist.Hist.new.Reg(10, 0, 100, name="pt").Weight()
        mass.fill(pt=ak.flatten(events.Jet.pt))
        return {name: {"pt": mass, "entries": len(events)}}

    def postprocess(self, accumulator: Any) -> None:
        pass
