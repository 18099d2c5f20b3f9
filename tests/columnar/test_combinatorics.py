from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agc_ml.columnar import combinatorics
from agc_ml.columnar.jagged import offsets_of
from agc_ml.columnar.kinematics import cartesian, pair_mass
from processors.ttbar import features


def jets(counts: list[int], seed: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(seed)
    offsets = offsets_of(np.array(counts, np.int64))
    n = int(offsets[-1])
    return offsets, (
        30 + rng.exponential(50, n),
        rng.uniform(-2.4, 2.4, n),
        rng.uniform(-np.pi, np.pi, n),
        rng.exponential(10, n),
    )


def test_permutations_are_those_of_itertools() -> None:
    first, table = features.FIRST, features.PERMUTATIONS
    for n, number in ((4, 12), (5, 60), (6, 180)):
        expected = [p for p in permutations(range(n), 4) if p[0] > p[1]]
        found = table[first[n - 4] : first[n - 3]]
        assert found.tolist() == [list(p) for p in expected]
        assert len(found) == number
    assert features.n_permutations(np.array([4, 5, 6, 7, 12])).tolist() == [
        *(12, 60, 180, 180, 180)
    ]


@given(counts=st.lists(st.integers(0, 8), max_size=8), seed=st.integers(0, 99))
def test_the_best_trijet_is_the_hardest_with_a_tag(counts: list[int], seed: int) -> None:
    offsets, polar = jets(counts, seed)
    tagged = np.random.default_rng(seed).random(offsets[-1]) < 0.3
    momenta = cartesian(*polar)
    found = combinatorics.best_trijet_mass(offsets, *momenta, tagged)
    for event, n in enumerate(counts):
        best, mass = -1.0, 0.0
        for places in combinations(range(offsets[event], offsets[event] + n), 3):
            x, y, z, t = (component[list(places)].sum() for component in momenta)
            if tagged[list(places)].any() and np.hypot(x, y) > best:
                best, mass = np.hypot(x, y), np.sqrt(t**2 - x**2 - y**2 - z**2)
        assert found[event] == pytest.approx(mass, rel=1e-9)


@given(counts=st.lists(st.integers(4, 9), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_features_are_what_their_names_say(counts: list[int], seed: int) -> None:
    offsets, polar = jets(counts, seed)
    pt, eta, phi, _ = polar
    rng = np.random.default_rng(seed + 1)
    btag, qgl, of_lepton, with_lepton = rng.random((4, len(pt)))
    momenta = np.array(cartesian(*polar))
    rows = offsets_of(features.n_permutations(np.array(counts)))
    for wraps in (False, True):
        found = features.assignment_features(
            offsets,
            (*momenta, pt, eta, phi, btag, qgl),
            (of_lepton, with_lepton),
            wraps,
            features.FIRST,
            features.PERMUTATIONS,
            rows,
        )
        assert found.shape == (rows[-1], 20)
        for event, n in enumerate(counts):
            table = [p for p in permutations(range(min(n, 6)), 4) if p[0] > p[1]]
            for row in rng.choice(len(table), 5):
                w1, w2, had, lep = (offsets[event] + place for place in table[row])

                def delta_r(i: int, j: int) -> float:
                    angle = phi[i] - phi[j]
                    if wraps:  # noqa: B023 - called at once
                        angle = np.arctan2(np.sin(angle), np.cos(angle))
                    return float(np.hypot(eta[i] - eta[j], angle))

                def system(*places: int) -> tuple[float, float]:
                    x, y, z, t = momenta[:, list(places)].sum(axis=1)
                    return float(np.sqrt(t**2 - x**2 - y**2 - z**2)), float(np.hypot(x, y))

                four = [w1, w2, had, lep]
                expected = [
                    *(of_lepton[lep], delta_r(w1, w2), delta_r(w1, had), delta_r(w2, had)),
                    *(with_lepton[lep], system(w1, w2)[0], *system(w1, w2, had)),
                    *pt[four],
                    *btag[four],
                    *qgl[four],
                ]
                np.testing.assert_allclose(found[rows[event] + row], expected, rtol=1e-5)


def test_the_highest_score_wins_and_the_first_of_two() -> None:
    rows = np.array([0, 3, 5])
    scores = np.array([0.1, 0.7, 0.7, 0.2, 0.2], np.float32)
    assert combinatorics.highest(rows, scores).tolist() == [1, 3]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_mass_of_pairs(dtype: type) -> None:
    """Added in polar or in Cartesian coordinates, it is the same but for rounding."""
    _, polar = jets([40], 3)
    first, second = (
        tuple(x[part].astype(dtype) for x in polar) for part in (np.s_[:20], np.s_[20:])
    )
    sums = [a + b for a, b in zip(cartesian(*first), cartesian(*second), strict=True)]
    expected = np.sqrt(sums[3] ** 2 - sums[0] ** 2 - sums[1] ** 2 - sums[2] ** 2)
    found = pair_mass(first, second)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=2e-4 if dtype is np.float32 else 1e-12)


def test_a_negative_mass_is_one_of_a_negative_square() -> None:
    one = (np.array([10.0]), np.array([0.0]), np.array([0.0]), np.array([-3.0]))
    assert cartesian(*one).t[0] == pytest.approx(np.sqrt(100 - 9))
