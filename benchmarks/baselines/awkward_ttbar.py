"""The ttbar measurement as analyses are commonly written: whole records, a pass a variation.

It has the structure of the reference implementation of the Analysis Grand Challenge: objects,
selection, observables and inference run again for every source of uncertainty, seven times (eight
for W+jets), on awkward records of all that NanoAOD holds. It is what `processors.ttbar` is compared
with: its histograms must be the same, and its cost is what speed is counted in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, Final

import awkward as ak
import hist
import numpy as np
from coffea.analysis_tools import PackedSelection
from coffea.processor import ProcessorABC

from agc_ml.inputs.variations import DIRECTIONS, NOMINAL, variation_name

B_TAG: Final = 0.5
KINEMATIC: Final = ("pt_scale_up", "pt_res_up")
B_TAG_SOURCES: Final = tuple(f"btag_var_{i}" for i in range(4))
W_SCALE: Final = "scale_var"

FEATURES: Final = {
    **dict.fromkeys(
        ("deltar_leptonbtoplep", "deltar_w1w2", "deltar_w1btophad", "deltar_w2btophad"), (0, 6)
    ),
    **dict.fromkeys(("mass_leptonbtoplep", "mass_w1w2"), (50, 300)),
    **dict.fromkeys(("mass_w1w2btophad", "pt_w1w2btophad"), (50, 550)),
    **dict.fromkeys(("pt_w1", "pt_w2", "pt_btophad", "pt_btoplep"), (25, 300)),
    **dict.fromkeys(("btag_w1", "btag_w2", "btag_btophad", "btag_btoplep"), (0, 1)),
    **dict.fromkeys(("qgl_w1", "qgl_w2", "qgl_btophad", "qgl_btoplep"), (-1, 1)),
}
PERMUTATIONS: Final = {
    n: [list(p) for p in permutations(range(n), 4) if p[0] > p[1]] for n in range(4, 7)
}


@dataclass
class AwkwardTtbar(ProcessorABC):
    """Fill the two regions, and with models the features of the best permutation.

    ``models`` are xgboost boosters by the parity of the events that they score. ``smearing`` gives
    the factors on the jets' pt for the resolution variation, by default those of one global
    generator that starts from ``seed``.
    """

    models: dict[str, Any] = field(default_factory=dict)
    seed: int = 42
    smearing: Any = None

    def process(self, events: Any) -> dict[str, Any]:
        """Run over one chunk, once for each source of uncertainty."""
        process, variation = events.metadata["process"], events.metadata["variation"]
        sources: tuple[str, ...] = (variation,)
        if variation == NOMINAL:
            sources += KINEMATIC + B_TAG_SOURCES + ((W_SCALE,) if process == "wjets" else ())
            events["pt_scale_up"] = 1.03
            events["pt_res_up"] = (self.smearing or self._global_smearing)(events)
        hists = {region: _book(50, 550) for region in ("4j1b", "4j2b")}
        assigned = {name: _book(*limits) for name, limits in FEATURES.items() if self.models}
        for source in sources:
            self._one_pass(events, process, source, hists, assigned)
        return {**hists, **assigned}

    def _global_smearing(self, events: Any) -> Any:
        counts = ak.num(events.Jet.pt)
        ones = np.ones_like(ak.flatten(events.Jet.pt))
        return ak.unflatten(np.random.RandomState(self.seed).normal(ones, 0.05), counts)

    def _one_pass(
        self, events: Any, process: str, source: str, hists: dict[str, Any], assigned: Any
    ) -> None:
        electrons, muons, jets = events.Electron, events.Muon, events.Jet
        if source in KINEMATIC:
            jets["pt"] = jets.pt * events[source]
        electrons = electrons[
            (electrons.pt > 30)
            & (np.abs(electrons.eta) < 2.1)
            & (electrons.cutBased == 4)
            & (electrons.sip3d < 4)
        ]
        muons = muons[
            (muons.pt > 30)
            & (np.abs(muons.eta) < 2.1)
            & muons.tightId
            & (muons.sip3d < 4)
            & (muons.pfRelIso04_all < 0.15)
        ]
        jets = jets[(jets.pt > 30) & (np.abs(jets.eta) < 2.4) & ((jets.jetId & 4) > 0)]
        n_btags = ak.sum(jets.btagCSVV2 > B_TAG, axis=1)
        cuts = PackedSelection(dtype="uint64")
        cuts.add("one lepton", (ak.num(electrons) + ak.num(muons)) == 1)
        cuts.add("four jets", ak.num(jets) >= 4)
        cuts.add("one b-tag", n_btags == 1)
        cuts.add("two b-tags", n_btags >= 2)
        for region, b_tags in (("4j1b", "one b-tag"), ("4j2b", "two b-tags")):
            selected = cuts.all("one lepton", "four jets", b_tags)
            region_jets = jets[selected]
            region_electrons, region_muons = electrons[selected], muons[selected]
            weights = np.ones(len(region_jets))
            observable = (
                ak.sum(region_jets.pt, axis=-1) if region == "4j1b" else _trijet_mass(region_jets)
            )
            values = [(hists[region], observable)]
            if region == "4j2b" and sum(selected) == 0:  # Python's own sum, as the reference has it
                continue
            if region == "4j2b" and self.models:
                event = np.asarray(events.event[selected])
                best = self._best_features(region_jets, region_electrons, region_muons, event)
                values += [(assigned[name], best[:, i]) for i, name in enumerate(FEATURES)]
            for histogram, content in values:
                for name, factor in _weight_variations(source, region_jets):
                    histogram.fill(
                        observable=content,
                        process=process,
                        variation=name,
                        weight=weights * factor,
                    )

    def _best_features(self, jets: Any, electrons: Any, muons: Any, event: Any) -> Any:
        """Features of each event's permutation with the highest score, ``(n_events, 20)``."""
        if not len(jets):
            return np.empty((0, len(FEATURES)), np.float32)
        features, counts = _features(jets, electrons, muons)
        of_row = np.repeat(event, counts)
        scores = np.empty(len(features), np.float32)
        for parity, rows in (("even", of_row % 2 == 0), ("odd", of_row % 2 == 1)):
            if rows.any():
                scores[rows] = self.models[parity].inplace_predict(features[rows])
        best = ak.argmax(ak.unflatten(scores, counts), axis=1)
        return features[np.cumsum(counts) - counts + np.asarray(best)]

    def postprocess(self, accumulator: Any) -> Any:
        """Leave all as it is."""
        return accumulator


def _book(start: float, stop: float) -> Any:
    return (
        hist.Hist.new.Reg(25, start, stop, name="observable")
        .StrCat([], growth=True, name="process")
        .StrCat([], growth=True, name="variation")
        .Weight()
    )


def _weight_variations(source: str, jets: Any) -> list[tuple[str, Any]]:
    """Names and factors that a pass fills: both directions of a weight's uncertainty."""
    signs = zip(DIRECTIONS, (1, -1), strict=True)
    if source in B_TAG_SOURCES:
        pt = ak.to_numpy(jets.pt[:, int(source[-1])]).astype(np.float64)
        return [(variation_name(source, d), 1 + sign * 0.075 * pt / 50) for d, sign in signs]
    if source == W_SCALE:
        return [(variation_name(source, d), 1 + sign * 0.025) for d, sign in signs]
    return [(source, 1.0)]


def _trijet_mass(jets: Any) -> Any:
    trijet = ak.combinations(jets, 3, fields=["j1", "j2", "j3"])
    trijet["p4"] = trijet.j1 + trijet.j2 + trijet.j3
    trijet["max_btag"] = np.maximum(
        trijet.j1.btagCSVV2, np.maximum(trijet.j2.btagCSVV2, trijet.j3.btagCSVV2)
    )
    trijet = trijet[trijet.max_btag > B_TAG]
    best = trijet["p4"][ak.argmax(trijet.p4.pt, axis=1, keepdims=True)]
    return ak.flatten(best.mass)


def _features(jets: Any, electrons: Any, muons: Any) -> tuple[Any, Any]:
    """Features of each permutation, ``(n_rows, 20)`` float32, and how many an event has."""
    n_jets = np.minimum(np.asarray(ak.num(jets)), 6)
    index = ak.Array([PERMUTATIONS[n] for n in n_jets.tolist()])
    w1, w2, had, lep = (index[..., place] for place in range(4))
    leptons = ak.flatten(ak.concatenate([electrons, muons], axis=1), axis=-1)
    momenta = ak.concatenate([_momenta(electrons), _momenta(muons)], axis=1)
    lepton, jet_momenta = ak.flatten(momenta, axis=-1), _momenta(jets)
    columns = [
        _delta_r(leptons, jets[lep]),
        _delta_r(jets[w1], jets[w2]),
        _delta_r(jets[w1], jets[had]),
        _delta_r(jets[w2], jets[had]),
        (lepton + jet_momenta[lep]).mass,
        (jets[w1] + jets[w2]).mass,
        (jets[w1] + jets[w2] + jets[had]).mass,
        (jets[w1] + jets[w2] + jets[had]).pt,
        *(jets[place].pt for place in (w1, w2, had, lep)),
        *(jets[place].btagCSVV2 for place in (w1, w2, had, lep)),
        *(jets[place].qgl for place in (w1, w2, had, lep)),
    ]
    counts = np.asarray(ak.num(index))
    features = np.empty((counts.sum(), len(FEATURES)), np.float32)
    for i, column in enumerate(columns):
        features[:, i] = ak.to_numpy(ak.flatten(column))
    return features, counts


def _delta_r(first: Any, second: Any) -> Any:
    return np.sqrt((first.eta - second.eta) ** 2 + (first.phi - second.phi) ** 2)


def _momenta(objects: Any) -> Any:
    return ak.zip(
        {name: objects[name] for name in ("pt", "eta", "phi", "mass")}, with_name="Momentum4D"
    )
