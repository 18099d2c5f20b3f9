"""Systematic variations of the ttbar measurement.

Source of the numbers: the CMS Open Data ttbar analysis of the IRIS-HEP Analysis Grand Challenge,
version 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

import numpy as np

from agc_ml import NOMINAL
from agc_ml.inputs.variations import DIRECTIONS, Direction, WeightVariation, variation_name

JET_ENERGY_SCALE: Final = 1.03
JET_ENERGY_RESOLUTION: Final = 0.05
B_TAG_UNCERTAINTY: Final = 0.075  # at 50 GeV, rising linearly with pt
W_SCALE_UNCERTAINTY: Final = 0.025
N_B_TAG_SOURCES: Final = 4


Variation = Callable[[Any, Any, Any], Any]
"""Of events, the rows of those with candidate jets, and these jets: the jets with another pt."""


def kinematic(variation: str, seed: int | None) -> dict[str, Variation]:
    """Kinematic variations of the jets by name; nominal, which comes first, changes nothing.

    A dataset that is itself a variation has only that one. ``seed`` asks for the reference's
    smearing; None gives the reproducible one.
    """
    if variation != NOMINAL:
        return {variation: lambda events, rows, jets: jets}  # noqa: ARG005 - as the others
    smearing = resolution_smearing if seed is None else global_smearing(seed)
    return {
        NOMINAL: lambda events, rows, jets: jets,  # noqa: ARG005 - as the others
        "pt_scale_up": lambda events, rows, jets: scaled(jets, JET_ENERGY_SCALE),  # noqa: ARG005
        "pt_res_up": lambda events, rows, jets: scaled(jets, smearing(events, rows, jets)),
    }


def scaled(jets: Any, factor: Any) -> Any:
    """Jets with their pt times a factor, in double precision, and their mass unchanged."""
    return jets.replaced(pt=jets.pt.astype(np.float64) * factor)


def resolution_smearing(events: Any, rows: Any, jets: Any) -> Any:
    """Factor N(1, 0.05) on each jet's pt, from a generator keyed on the event and the jet's index.

    The same for any chunking, order and worker: run, luminosity block, both halves of the event
    number and the index are hashed to seed a draw of their own (correctionlib's HashPRNG).
    """
    event = events.event[rows].astype(np.uint64)
    keys = (
        events.run[rows],
        events.luminosityBlock[rows],
        event >> np.uint64(32),
        event & np.uint64(0xFFFFFFFF),
    )
    per_jet = [np.repeat(key.astype(np.float64), jets.counts) for key in keys]
    place = jets.index - np.repeat(events.Jet.offsets[rows], jets.counts)
    return 1 + JET_ENERGY_RESOLUTION * _keyed_normal().evaluate(*per_jet, place.astype(np.float64))


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


def global_smearing(seed: int) -> Variation:
    """Factor N(1, 0.05) on each jet's pt as the reference draws it: one generator, in order."""
    generator = np.random.RandomState(seed)

    def smearing(events: Any, rows: Any, jets: Any) -> Any:  # noqa: ARG001 - as the other one
        normal = generator.standard_normal(events.Jet.offsets[-1])
        return 1 + JET_ENERGY_RESOLUTION * normal[jets.index]

    return smearing


def b_tag(index: int) -> WeightVariation:
    """b-tag efficiency of the ``index``-th selected jet: 7.5 % for every 50 GeV of its nominal pt.

    The down weight is negative above 667 GeV: kept, as the reference keeps it.
    """

    def factor(jets: Any, direction: Direction) -> Any:
        sign = 1 if direction == "up" else -1
        pt = jets.pt[jets.offsets[:-1] + index].astype(np.float64)
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


def weights(process: str, variation: str) -> dict[str, Callable[[Any], Any]]:
    """Factor on the weights of nominal jets' events, by variation; none for varied datasets."""
    return {
        variation_name(weight.source, direction): weight.along(direction)
        for weight in WEIGHTS
        if variation == NOMINAL and weight.applies_to(process)
        for direction in DIRECTIONS
    }


def reweighted(
    weight: Any, jets: Any, factors: Mapping[str, Callable[[Any], Any]]
) -> dict[str, Any]:
    """Weights of events with nominal ``jets``, by variation, each of shape ``(n_events,)``."""
    return {variation: weight * factor(jets) for variation, factor in factors.items()}
