"""Training sets of jet assignment: all ways to give four jets to quarks, and which one is right.

Events are those of the region 4j2b of the ttbar measurement, for each kinematic variation of the
jets; features are made by the very code that makes them where models score.

Source of the truth and of the columns: the training of the CMS Open Data ttbar analysis of the
IRIS-HEP Analysis Grand Challenge, version 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, Final

import numpy as np
from coffea.processor import ProcessorABC

from agc_ml.columnar.combinatorics import best_trijet_mass
from agc_ml.columnar.events import blocks
from agc_ml.columnar.jagged import Collection
from agc_ml.columnar.kinematics import cartesian
from agc_ml.inputs.variations import NOMINAL
from agc_ml.results.tables import ColumnTable
from processors.ttbar import assignment, selection, systematics, truth
from processors.ttbar.varied import Varied, select

TRIJETS: Final = np.array(list(combinations(range(truth.N_JETS), 3)))


@dataclass(frozen=True)
class JetAssignmentProcessor(ProcessorABC):  # type: ignore[misc]
    """Extract a row for each permutation of the four leading jets of fully matched events.

    Columns: ``run``, ``lumi``, ``event``; ``variation``; ``njet`` of the selected jets;
    ``weight``, the generator's; ``label``, 1 for the right permutation, else 0; the twenty
    features; ``observable``, the mass in GeV of the b-tagged trijet with the highest pt among the
    four jets, and ``trijet_label``, the sum of its labels.

    Parameters
    ----------
    compat
        Do as the reference implementation does: Delta R without wrapping phi, single precision,
        smearing from one global generator, and labels of wrong permutations of -1, but for the last
        one of an event, which has 0.
    muons
        Select muons too.
    seed
        Seed of that generator (with ``compat`` only).
    """

    compat: bool = False
    muons: bool = True
    seed: int = 42

    flat: ClassVar = True
    takes: ClassVar = {"process": "ttbar", "variation": NOMINAL}
    columns: ClassVar = (*selection.COLUMNS, *assignment.COLUMNS, *truth.COLUMNS)
    simulation_columns: ClassVar = ("genWeight",)
    counted_columns: ClassVar = ("genWeight",)

    @property
    def preselection(self) -> str:
        """What events fulfil that it selects. The reference's generator draws for all of them."""
        return "" if self.compat else selection.PRESELECTION

    @property
    def about(self) -> dict[str, Any]:
        """What the training set says of itself."""
        return {
            "task": assignment.TASK,
            "features": list(assignment.FEATURES),
            "delta_phi": "raw" if self.compat else "wrapped",
            "rows_an_event": len(truth.PERMUTATIONS),
        }

    def process(self, events: Any) -> dict[str, Any]:
        """Training set, spectra of the inputs of all events, and the cutflow of one chunk."""
        kinematic = systematics.kinematic(NOMINAL, self.seed if self.compat else None)
        found = [self._rows(*_nothing())]
        spectra = assignment.spectra(np.empty((0, len(assignment.FEATURES)), np.float32))
        cuts = dict.fromkeys(("all events", "one lepton", assignment.REGION, "fully matched"), 0)
        for block in blocks(events):
            cuts["all events"] += len(block)
            if not block.is_selected:
                continue
            leptons = selection.leptons(block, with_muons=self.muons)
            one_lepton = selection.one_lepton(leptons)
            cuts["one lepton"] += int(one_lepton.sum())
            for varied in select(block, one_lepton, kinematic, self._precision):
                rows, first = self._add(block, leptons, varied)
                found.append(rows)
                if varied.variation == NOMINAL:
                    spectra += assignment.spectra(first)
                    cuts[assignment.REGION] += len(first)
                    cuts["fully matched"] += len(rows) // len(truth.PERMUTATIONS)
        return {
            "training": sum(found[1:], start=found[0]),
            "inputs": {events.metadata["process"]: spectra},
            "cutflow": {events.metadata["dataset"]: cuts},
        }

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Put nominal events first, whatever the chunks were; say how inputs are distributed."""
        inputs = assignment.named(accumulator.pop("inputs"))
        columns = accumulator["training"].columns()
        order = np.argsort(columns["variation"], kind="stable")
        ordered = {name: values[order] for name, values in columns.items()}
        return {**accumulator, "training": ColumnTable(ordered, {**self.about, **inputs})}

    @property
    def _precision(self) -> type:
        return np.float32 if self.compat else np.float64

    def _add(self, events: Any, leptons: Any, varied: Varied) -> tuple[ColumnTable, Any]:
        """Rows of fully matched events, and the features of the first permutation of all events."""
        jets, rows = varied.selected(assignment.REGION)
        lepton = selection.lepton(leptons, rows, self._precision)
        njet, jets = jets.counts, _leading(jets)
        every_one = np.ones(len(events.GenPart.pdgId), dtype=bool)
        particles = events.GenPart.take(rows, every_one)
        labels = truth.jet_labels(jets, particles)
        kept = labels.sum(axis=1) == truth.FULLY_MATCHED
        candidates = assignment.Candidates(jets, lepton, events.event[rows])
        features, of_event = assignment.permutations(candidates, wraps=not self.compat)
        ids = (events.run, events.luminosityBlock, events.event, events.genWeight)
        trijet_mass, trijet_label = trijet(jets, labels)
        per_event = (*(values[rows] for values in ids), njet, trijet_mass, trijet_label)
        chosen = features.reshape(-1, len(truth.PERMUTATIONS), len(assignment.FEATURES))[kept]
        return (
            self._rows(
                varied.variation, [values[kept] for values in per_event], labels[kept], chosen
            ),
            features[of_event[:-1]],
        )

    def _rows(self, variation: str, per_event: Any, labels: Any, features: Any) -> ColumnTable:
        n = len(truth.PERMUTATIONS)
        run, lumi, event, weight, njet, mass, sum_of_labels = (np.repeat(v, n) for v in per_event)
        label_of = truth.reference_targets if self.compat else truth.targets
        return ColumnTable(
            {
                "run": run.astype(np.uint32),
                "lumi": lumi.astype(np.uint32),
                "event": event.astype(np.uint64),
                "variation": np.full(len(run), variation.encode()),
                "njet": njet.astype(np.int16),
                "weight": weight.astype(np.float32),
                "label": label_of(labels).ravel(),
                **dict(
                    zip(
                        assignment.FEATURES,
                        features.reshape(-1, len(assignment.FEATURES)).T,
                        strict=True,
                    )
                ),
                "observable": mass.astype(np.float32),
                "trijet_label": sum_of_labels.astype(np.int16),
            },
            self.about,
        )


def _nothing() -> tuple[str, Any, Any, Any]:
    none = np.empty(0)
    shape = (0, len(truth.PERMUTATIONS), len(assignment.FEATURES))
    return NOMINAL, [none] * 7, np.empty((0, truth.N_JETS)), np.empty(shape, np.float32)


def _leading(jets: Collection) -> Collection:
    """The first four jets of each event."""
    place = np.arange(jets.offsets[-1]) - np.repeat(jets.offsets[:-1], jets.counts)
    return jets.take(np.arange(len(jets)), place < truth.N_JETS)


def trijet(jets: Collection, labels: Any) -> tuple[Any, Any]:
    """Mass of the b-tagged trijet with the highest pt among four jets, and the sum of its labels.

    The mass is 0 and the sum that of the first trijet where no jet has a b-tag.
    """
    momenta = cartesian(jets.pt, jets.eta, jets.phi, jets.mass)
    tagged = selection.b_tagged(jets)
    x, y = (values.reshape(-1, truth.N_JETS)[:, TRIJETS].sum(axis=2) for values in momenta[:2])
    has_tag = tagged.reshape(-1, truth.N_JETS)[:, TRIJETS].any(axis=2)
    best = np.where(has_tag, x * x + y * y, -1).argmax(axis=1)
    of_best = np.take_along_axis(labels, TRIJETS[best], axis=1).sum(axis=1)
    return best_trijet_mass(jets.offsets, *momenta, tagged), of_best
