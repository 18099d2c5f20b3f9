"""The ttbar cross-section measurement of the Analysis Grand Challenge, in CMS 2015 Open Data.

One isolated electron or muon and at least four jets; exactly one b-tag makes the control region,
two or more the signal region. `selection` holds the cuts, `observables` what is filled,
`systematics` how it varies, `assignment` what a model says of the jets; `filling` does it all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from coffea.processor import ProcessorABC

from agc_ml.columnar.events import blocks
from agc_ml.models.model import Bundle
from agc_ml.results.histograms import materialised
from processors.ttbar import assignment, selection
from processors.ttbar.filling import Filling

MUON_IDS_FALSE = (
    "{file}: Muon_tightId is false for all {muons} muons, so no muon is selected and the result "
    "rests on electrons alone (in the CMS 2015 Open Data NanoAOD the muon ID flags are all zero)"
)


@dataclass(frozen=True)
class TtbarProcessor(ProcessorABC):  # type: ignore[misc]
    """Fill H_T (4j1b) and m_bjj (4j2b), in GeV, for every systematic variation.

    Parameters
    ----------
    compat
        Do as the reference implementation does: ignore genWeight, keep the files' single-precision
        arithmetic, and draw the resolution smearing from one global generator.
    muons
        Select muons too. Without them other files compare with the published histograms, which rest
        on electrons alone: the muon ID flags of their files are all zero.
    seed
        Seed of that generator (with ``compat`` only). Its draw is defined for a file that is one
        chunk: other chunk sizes give another smearing.
    model
        Assigns jets to quarks in 4j2b; the twenty features of the best assignment are filled too.
    """

    compat: bool = False
    muons: bool = True
    seed: int = 42
    model: Bundle | None = None

    flat: ClassVar = True
    simulation_columns: ClassVar = ("genWeight",)
    counted_columns: ClassVar = ("genWeight", "Muon_tightId")

    def __post_init__(self) -> None:
        """Refuse a model of another kind."""
        if self.model is not None:
            assignment.check(self.model)

    @property
    def columns(self) -> tuple[str, ...]:
        """Branches that it reads."""
        return selection.COLUMNS + (assignment.COLUMNS if self.model is not None else ())

    @property
    def normalised_to(self) -> str:
        """What ``sumw`` is extended to: the reference takes the fileset's number of events."""
        return "nevts" if self.compat else "sumw"

    @property
    def preselection(self) -> str:
        """What events fulfil that it selects. The reference's generator draws for all of them."""
        return "" if self.compat else selection.PRESELECTION

    def process(self, events: Any) -> dict[str, Any]:
        """Select and fill one chunk.

        Gives the histograms, the cutflow, the sum of generator weights ``sumw`` (which asks for
        normalisation to cross-section and luminosity), the numbers of muons with an ID, and, with
        a model, the spectra of what it is given (``inputs``).
        """
        filling = Filling(
            *(events.metadata, self.model), compat=self.compat, muons=self.muons, seed=self.seed
        )
        for block in blocks(events):
            if block.is_selected:
                filling.add(block)
            else:
                filling.count(block)
        return filling.output()

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Turn files in which no muon has an ID into warnings."""
        warnings = [
            MUON_IDS_FALSE.format(file=file, muons=count["muons"])
            for file, count in accumulator.pop("muon_ids").items()
            if count["muons"] and not count["tight"]
        ]
        inputs = assignment.named(accumulator.pop("inputs", {}))
        return {**materialised(accumulator), **inputs, "warnings": warnings}
