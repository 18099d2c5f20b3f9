"""Systematic variations of the ttbar measurement.

Source of the numbers: the CMS Open Data ttbar analysis of the IRIS-HEP Analysis Grand Challenge,
version 2.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import awkward as ak
import numpy as np

from agc_ml.variations import NOMINAL, Direction, WeightVariation

JET_ENERGY_SCALE: Final = 1.03
JET_ENERGY_RESOLUTION: Final = 0.05
B_TAG_UNCERTAINTY: Final = 0.075  # at 50 GeV, rising linearly with pt
W_SCALE_UNCERTAINTY: Final = 0.025
N_B_TAG_SOURCES: Final = 4


def kinematic(events: Any, variation: str, seed: int | None) -> list[tuple[str, Any | None]]:
    """Name and factor on the jets' pt of each kinematic variation; nominal first, without factor.

    A dataset that is itself a variation has only that one. ``seed`` asks for the reference's
    smearing; None gives the reproducible one.
    """
    if variation != NOMINAL:
        return [(variation, None)]
    smearing = resolution_smearing(events) if seed is None else global_smearing(events, seed)
    return [(NOMINAL, None), ("pt_scale_up", JET_ENERGY_SCALE), ("pt_res_up", smearing)]


def resolution_smearing(events: Any) -> Any:
    """Factor N(1, 0.05) on each jet's pt, from a generator keyed on the event and the jet's index.

    The same for any chunking, order and worker: run, luminosity block, both halves of the event
    number and the index are hashed to seed a draw of their own (correctionlib's HashPRNG).
    """
    event = np.asarray(events.event, dtype=np.uint64)
    index = ak.local_index(events.Jet.pt, axis=1)
    keys = (
        np.asarray(events.run),
        np.asarray(events.luminosityBlock),
        event >> np.uint64(32),
        event & np.uint64(0xFFFFFFFF),
    )
    n_jets = ak.to_numpy(ak.num(index))
    per_jet = [np.repeat(key, n_jets).astype(np.float64) for key in keys]
    normal = _keyed_normal().evaluate(*per_jet, ak.to_numpy(ak.flatten(index)).astype(np.float64))
    return ak.unflatten(1 + JET_ENERGY_RESOLUTION * np.asarray(normal), n_jets)


@cache
def _keyed_normal() -> Any:
    from correctionlib import schemav2 as schema  # noqa: PLC0415 - heavy

    keys = ["run", "luminosity_block", "event_high", "event_low", "jet"]
    return schema.Correction(
        name="jet_resolution",
        version=1,
        inputs=[schema.Variable(name=key, type="real") for key in keys],
        output=schema.Variable(name="normal", type="real"),
        data=schema.HashPRNG(nodetype="hashprng", inputs=keys, distribution="normal"),
    ).to_evaluator()


def global_smearing(events: Any, seed: int) -> Any:
    """Factor N(1, 0.05) on each jet's pt as the reference draws it: once, over a whole chunk."""
    n_jets = ak.to_numpy(ak.num(events.Jet.pt))
    draw = np.random.RandomState(seed).normal(1, JET_ENERGY_RESOLUTION, n_jets.sum())
    return ak.unflatten(draw, n_jets)


def b_tag(index: int) -> WeightVariation:
    """b-tag efficiency of the ``index``-th selected jet: 7.5 % for every 50 GeV of its nominal pt.

    The down weight is negative above 667 GeV: kept, as the reference keeps it.
    """

    def factor(jets: Any, direction: Direction) -> Any:
        sign = 1 if direction == "up" else -1
        pt = np.asarray(jets.nominal_pt[:, index], dtype=np.float64)
        return 1 + sign * B_TAG_UNCERTAINTY * pt / 50

    return WeightVariation(f"btag_var_{index}", factor)


def w_scale(jets: Any, direction: Direction) -> Any:
    """Scale uncertainty of W+jets: 2.5 %, the same for all events."""
    sign = 1 if direction == "up" else -1
    return np.full(len(jets), 1 + sign * W_SCALE_UNCERTAINTY)


WEIGHTS: Final = (
    *(b_tag(index) for index in range(N_B_TAG_SOURCES)),
    WeightVariation("scale_var", w_scale, processes=frozenset({"wjets"})),
)


def weights(process: str, variation: str) -> list[WeightVariation]:
    """Weight variations of a dataset: none if it is itself a variation."""
    return [w for w in WEIGHTS if variation == NOMINAL and w.applies_to(process)]
