"""Hard events and vetoes: two random streams, and what the vetoes stop."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import awkward as ak
import numpy as np
import pytest

from agc_ml.errors import GenerateError
from agc_ml.simulation.samples import SAMPLES, Vetoes, sample
from agc_ml.simulation.truth import hooks
from agc_ml.simulation.truth.pythia import Batch, Source

TTBAR = sample("ttbar__nominal")


def hard_tops(batch: Batch) -> dict[int, tuple[float, float]]:
    """Transverse momentum [GeV] of the two tops of the hard process, by attempt."""
    particles = batch.particles
    is_top = (abs(particles.id) == 6) & (particles.status == -22)
    px, py = particles.p.px[is_top], particles.p.py[is_top]
    pairs = ak.to_numpy(np.hypot(px, py))
    return dict(zip(batch.attempts.tolist(), map(tuple, pairs.tolist()), strict=True))


def shared(one: dict[int, tuple[float, float]], other: dict[int, tuple[float, float]]) -> set[int]:
    return one.keys() & other.keys()


def test_hard_events_do_not_depend_on_vetoes_or_showers() -> None:
    every = hard_tops(Source(TTBAR, 9, 0, enforced=None).batch(150))
    assert sorted(every) == list(range(150))
    vetoed = hard_tops(Source(TTBAR, 9, 0).batch(25))
    varied = hard_tops(Source(sample("ttbar__scaledown"), 9, 0).batch(25))
    for other in (vetoed, varied):
        assert len(shared(every, other)) > 15
        assert all(every[k] == other[k] for k in shared(every, other))


def test_units_and_samples_are_independent() -> None:
    first = hard_tops(Source(TTBAR, 9, 0, enforced=None).batch(20))
    for source in (
        Source(TTBAR, 9, 1, enforced=None),
        Source(TTBAR, 10, 0, enforced=None),
        Source(sample("ttbar__ME_var"), 9, 0, enforced=None),
    ):
        assert not set(first.values()) & set(hard_tops(source.batch(20)).values())


def test_batches_do_not_matter() -> None:
    one, many = Source(TTBAR, 9, 0), Source(TTBAR, 9, 0)
    whole = one.batch(12)
    parts = [many.batch(n) for n in (1, 4, 7)]
    assert whole.attempts.tolist() == [k for part in parts for k in part.attempts]
    momenta = ak.concatenate([part.particles.p.px for part in parts])
    assert ak.array_equal(whole.particles.p.px, momenta)


def test_threads_do_not_matter() -> None:
    def attempts(unit: int) -> list[int]:
        found: list[int] = Source(TTBAR, 9, unit).batch(80).attempts.tolist()
        return found

    finders = [Source(TTBAR, 9, unit)._hooks._jets(15.0, 2.9) for unit in (0, 1)]
    assert finders[0] is not finders[1]  # they hold what they found
    alone = [attempts(unit) for unit in (0, 1)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(attempts, (0, 1))) == alone
    finally:
        sys.setswitchinterval(interval)


def test_vetoes_that_look_on_mark_what_they_would_stop() -> None:
    batch = Source(TTBAR, 9, 0, enforced=None).batch(200)
    leptons = ak.any(
        (abs(batch.particles.id) >= 11) & (abs(batch.particles.id) <= 16)
        & (abs(batch.particles.status) == 23),
        axis=1,
    )  # fmt: skip
    refused = batch.refused
    assert np.all(refused[~ak.to_numpy(leptons)])  # all-hadronic
    assert 0.6 < refused.mean() < 0.95
    loose = Vetoes(muon_pt=10, tau_pt=10, jets=4, jet_pt=10, hard_jet_pt=10)
    marked = Source(TTBAR, 9, 0, enforced=loose).batch(40)
    assert 0 < marked.refused.mean() < 1
    assert not Source(TTBAR, 9, 0).batch(20).refused.any()


def test_without_muons() -> None:
    electrons = replace(TTBAR, vetoes=replace(TTBAR.vetoes, muons=False))
    particles = Source(electrons, 9, 0).batch(40).particles
    code = abs(particles.id)
    from_hard_process = (abs(particles.status) == 23) & ((code == 11) | (code == 15))
    assert ak.all(ak.any(from_hard_process, axis=1))


def test_a_unit_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "MAX_ATTEMPTS", 50)
    hopeless = replace(TTBAR, vetoes=Vetoes(jets=40))
    with pytest.raises(GenerateError, match="50 attempts, too few events"):
        Source(hopeless, 1, 0).batch(5)


@pytest.mark.parametrize("name", [s.name for s in SAMPLES])
def test_every_sample_starts_and_gives_events(name: str) -> None:
    batch = Source(sample(name), 2, 0, enforced=None).batch(3)
    assert len(batch.particles) == 3
    assert np.all(ak.num(batch.particles) > 100)
