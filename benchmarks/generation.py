"""What generating events costs, and what its vetoes lose.

    python benchmarks/generation.py rates [--seconds 20]
    python benchmarks/generation.py veto-loss DATASET [--events 20000] [--seed 101]

CPU time of one process, events/s; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any
from unittest import mock

import awkward as ak
import numpy as np

from agc_ml.simulation import nanoaod, unit
from agc_ml.simulation.detector import response as detector
from agc_ml.simulation.samples import SAMPLES, Sample, Vetoes, sample
from agc_ml.simulation.truth import hooks, record
from agc_ml.simulation.truth.pythia import Source
from processors.ttbar import selection

# events/s of one core: without vetoes, and after them, by process
SPECIFIED = {
    "ttbar__nominal": (450, 456),
    "single_top_s_chan__nominal": (1000, 141),
    "single_top_t_chan__nominal": (726, 44),
    "single_top_tW__nominal": (180, 88),
    "wjets__nominal": (None, 76),
}
DETECTOR = 2000
LOOSE = Vetoes(
    hard_lepton_pt=3, hard_tau_pt=8, hard_lepton_eta=6, electron_pt=3, muon_pt=15, tau_pt=15,
    lepton_eta=3, partons=2, jets=4, jet_pt=10, hard_jet_pt=10, jet_rapidity=3.2,
)  # fmt: skip


def repeated(work: Any, seconds: float) -> tuple[int, float]:
    """Call until the CPU time is used up; the sum of what the calls return, and the time."""
    total, start = 0, time.process_time()
    while (spent := time.process_time() - start) < seconds:
        total += work()
    return total, spent


def of_source(chosen: Sample, seconds: float) -> float:
    """Events/s that Pythia and what it calls give."""
    source = Source(chosen, 1, 0)
    source.batch(20)
    given, spent = repeated(lambda: len(source.batch(50).attempts), seconds)
    return given / spent


def rates(chosen: Sample, seconds: float) -> dict[str, float]:
    """Events/s of each step; a warm-up is left out."""
    with mock.patch.object(hooks.Hooks, "_stops", return_value=False):  # looking costs time, too
        found = {"full": of_source(chosen, seconds)}
    found["vetoed"] = of_source(chosen, seconds)
    work = unit.Unit(chosen, seed=1, number=1, events=1)
    source = Source(chosen, 1, 1)
    unit.part(work, source, 50)
    kept, spent = repeated(lambda: len(unit.part(work, source, 50).events), seconds)
    found["kept"] = kept / spent
    batch = source.batch(100)
    response = detector.Response(1, chosen.name)
    numbers = batch.attempts.astype(np.uint64)

    def measure() -> int:
        truth = detector.understand(record.flatten(batch.particles), batch.info)
        return len(response.measure(truth, numbers, 1))

    measure()
    measured, spent = repeated(measure, min(seconds, 5))
    found["detector"] = measured / spent
    return found


def veto_loss(chosen: Sample, events: int, seed: int) -> dict[str, float]:
    """Selected events that a veto would have stopped, both lepton flavours.

    Without vetoes no W+jets event would be selected in a day: there they are loose ones.
    """
    source = Source(chosen, seed, 0, enforced=LOOSE if chosen.vetoes.partons > 1 else None)
    selected = refused = skimmed = 0
    for _ in range(events // 250):
        batch = source.batch(250)
        truth = detector.understand(record.flatten(batch.particles), batch.info)
        numbers = batch.attempts.astype(np.uint64)
        measured = detector.Response(seed, chosen.name).measure(truth, numbers, 1)
        mask = passes(measured)
        selected += int(mask.sum())
        refused += int((mask & batch.refused).sum())
        skimmed += int((mask & ~unit.skim(measured, muons=True)).sum())
    return {"selected": selected, "refused": refused, "skimmed": skimmed}


def passes(events: Any) -> Any:
    """The selection of the ttbar measurement, without variations."""
    arrays = nanoaod.branches_of(nanoaod.stored(events))
    jets = arrays["Jet"]
    leptons = ak.sum(selection.electrons(arrays["Electron"]), axis=1)
    leptons = leptons + ak.sum(selection.muons(arrays["Muon"]), axis=1)
    jets = jets[selection.jets(jets) & selection.hard(jets)]
    n_btags = ak.sum(selection.b_tagged(jets), axis=1)
    regions = selection.regions(ak.num(jets), n_btags)
    return ak.to_numpy((leptons == 1) & (regions["4j1b"] | regions["4j2b"]))


def print_rates(seconds: float) -> None:
    """A table, and the JSON line."""
    table = {}
    print(f"{'dataset':28}{'full':>9}{'vetoed':>9}{'kept':>9}{'detector':>10}  specified")
    for chosen in SAMPLES:
        if chosen.name not in SPECIFIED:
            continue
        found = rates(chosen, seconds)
        table[chosen.name] = {key: round(value, 1) for key, value in found.items()}
        full, vetoed = SPECIFIED[chosen.name]
        numbers = "".join(f"{found[key]:>9.0f}" for key in ("full", "vetoed", "kept"))
        print(
            f"{chosen.name:28}{numbers}{found['detector']:>10.0f}"
            f"  full {full or '-'}, vetoed {vetoed}, detector {DETECTOR}"
        )
    print(json.dumps(table))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    modes = parser.add_subparsers(dest="mode", required=True)
    modes.add_parser("rates").add_argument("--seconds", type=float, default=20)
    loss = modes.add_parser("veto-loss")
    loss.add_argument("dataset")
    loss.add_argument("--events", type=int, default=20_000)
    loss.add_argument("--seed", type=int, default=101)
    given = parser.parse_args()
    if given.mode == "rates":
        print_rates(given.seconds)
        return
    chosen = sample(given.dataset)
    found = veto_loss(chosen, given.events, given.seed)
    n = max(found["selected"], 1)
    print(
        f"{chosen.name}: vetoes lose {found['refused'] / n:.2%} of {n:,} selected events, the skim "
        f"{found['skimmed'] / n:.2%} (+- {100 * (max(found['refused'], 1) ** 0.5) / n:.2f} %)"
    )
    print(json.dumps({"dataset": chosen.name, "events": given.events, **found}))


if __name__ == "__main__":
    main()
