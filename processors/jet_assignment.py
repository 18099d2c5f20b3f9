"""Training sets of jet assignment: all ways to give four jets to quarks, with the right one marked.

Events are those of the region 4j2b of the ttbar measurement, for each kinematic variation of the
jets; features come from the very code that makes the inputs of models in runs.

Source of the truth and of the columns: the training of the CMS Open Data ttbar analysis of the
IRIS-HEP Analysis Grand Challenge, version 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, Final

import numpy as np
from coffea.processor import ProcessorABC

from agc_ml import NOMINAL, ColumnTable, blocks
from agc_ml.columnar.combinatorics import best_trijet_mass
from agc_ml.columnar.jagged import Collection
from agc_ml.columnar.kinematics import cartesian
from processors.ttbar import assignment, selection, systematics, truth
from processors.ttbar.features import FEATURES, named_spectra, spectra

TRIJETS: Final = np.array(list(combinations(range(truth.N_JETS), 3)))
N_ROWS: Final = len(truth.PERMUTATIONS)


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
        """Cut that services may apply; none where the generator has to draw for all events."""
        return "" if self.compat else selection.PRESELECTION

    @property
    def about(self) -> dict[str, Any]:
        """Description of the training set."""
        return {
            "task": assignment.TASK,
            "features": list(FEATURES),
            "delta_phi": "raw" if self.compat else "wrapped",
            "rows_an_event": N_ROWS,
        }

    def process(self, events: Any) -> dict[str, Any]:
        """Training set, spectra of the inputs of all events, and the cutflow of one chunk."""
        precision = np.float32 if self.compat else np.float64
        kinematic = systematics.kinematic(NOMINAL, self.seed if self.compat else None)
        inputs = spectra(np.empty((0, len(FEATURES)), np.float32))
        cuts = dict.fromkeys(("all events", "one lepton", assignment.REGION, "fully matched"), 0)
        tables = []
        for block in blocks(events):
            cuts["all events"] += len(block)
            if not block.is_selected:
                continue
            leptons = selection.leptons(block, with_muons=self.muons)
            one_lepton = selection.one_lepton(leptons)
            cuts["one lepton"] += int(one_lepton.sum())
            rows, jets = selection.candidates(block, one_lepton, precision)
            for variation, vary in kinematic.items():
                varied = vary(block, rows, jets)
                passed, _, regions = selection.cut_on_jets(varied)
                in_region = regions[assignment.REGION]
                selected, chosen = varied.take(in_region, passed), rows[in_region]
                lepton = assignment.lepton_of(leptons, chosen, precision)
                matched, first = self._extract(block, variation, selected, chosen, lepton)
                tables.append(matched)
                if variation == NOMINAL:
                    inputs += spectra(first)
                    cuts[assignment.REGION] += len(first)
                    cuts["fully matched"] += len(matched) // N_ROWS
        return {
            "training": sum(tables, start=self._empty_table()),
            "inputs": {events.metadata["process"]: inputs},
            "cutflow": {events.metadata["dataset"]: cuts},
        }

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Put nominal events first, whatever the chunks were; add the spectra of the inputs."""
        inputs = named_spectra(accumulator.pop("inputs"))
        columns = accumulator["training"].columns()
        order = np.argsort(columns["variation"], kind="stable")
        ordered = {name: values[order] for name, values in columns.items()}
        return {**accumulator, "training": ColumnTable(ordered, {**self.about, **inputs})}

    def _extract(
        self, events: Any, variation: str, jets: Collection, rows: Any, lepton: tuple[Any, ...]
    ) -> tuple[ColumnTable, Any]:
        """Rows of fully matched events, and the features of the first permutation of all events."""
        n_jets, jets = jets.counts, _leading(jets)
        every_particle = np.ones(len(events.GenPart.pdgId), dtype=bool)
        labels = truth.jet_labels(jets, events.GenPart.take(rows, every_particle))
        is_matched = labels.sum(axis=1) == truth.FULLY_MATCHED
        candidates = assignment.Candidates(jets, lepton, events.event[rows])
        features, of_event = assignment.permutations(candidates, wraps=not self.compat)
        identity = (events.run, events.luminosityBlock, events.event, events.genWeight)
        per_event = [*(values[rows] for values in identity), n_jets, *trijet(jets, labels)]
        by_event = features.reshape(-1, N_ROWS, len(FEATURES))
        matched = self._table(
            variation,
            [values[is_matched] for values in per_event],
            labels[is_matched],
            by_event[is_matched],
        )
        return matched, features[of_event[:-1]]

    def _table(
        self, variation: str, per_event: Sequence[Any], labels: Any, features: Any
    ) -> ColumnTable:
        """Columns of the rows of events; ``per_event`` are run, lumi and all others that repeat."""
        run, lumi, event, weight, n_jets, mass, sum_of_labels = (
            np.repeat(values, N_ROWS) for values in per_event
        )
        label_of = truth.reference_targets if self.compat else truth.targets
        by_feature = features.reshape(-1, len(FEATURES)).T
        columns = {
            "run": run.astype(np.uint32),
            "lumi": lumi.astype(np.uint32),
            "event": event.astype(np.uint64),
            "variation": np.full(len(run), variation.encode()),
            "njet": n_jets.astype(np.int16),
            "weight": weight.astype(np.float32),
            "label": label_of(labels).ravel(),
            **dict(zip(FEATURES, by_feature, strict=True)),
            "observable": mass.astype(np.float32),
            "trijet_label": sum_of_labels.astype(np.int16),
        }
        return ColumnTable(columns, self.about)

    def _empty_table(self) -> ColumnTable:
        features = np.empty((0, N_ROWS, len(FEATURES)), np.float32)
        return self._table(NOMINAL, [np.empty(0)] * 7, np.empty((0, truth.N_JETS)), features)


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
