"""Who comes from whom, what is kept of it, and jets of particles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agc_ml.simulation.truth import genjets, genpart, record
from agc_ml.simulation.truth.record import Record

# A top pair as Pythia writes it: index, PDG id, status, mother, pt. The W+ decays to a tau that
# decays to an electron, the W- to quarks; the b radiates a gluon and forms a hadron.
EVENT = [
    (90, -11, 0, 0.0),  # 0: the system
    (2212, -12, 0, 0.0),
    (2212, -12, 0, 0.0),
    (21, -21, 1, 0.0),  # 3
    (21, -21, 2, 0.0),
    (6, -22, 3, 100.0),  # 5
    (-6, -22, 3, 100.0),
    (6, -62, 5, 101.0),  # 7: last copy
    (-6, -62, 6, 99.0),
    (24, -22, 7, 90.0),  # 9
    (5, -23, 7, 60.0),  # 10
    (-24, -22, 8, 80.0),  # 11
    (-5, -23, 8, 50.0),  # 12
    (-15, -23, 9, 70.0),  # 13: tau
    (16, 23, 9, 30.0),
    (1, -23, 11, 40.0),  # 15
    (-2, -23, 11, 45.0),  # 16
    (5, -51, 10, 55.0),  # 17: the b after radiation
    (21, -51, 10, 8.0),  # 18
    (5, -71, 17, 55.0),  # 19
    (-5, -71, 12, 50.0),  # 20
    (1, -71, 15, 40.0),
    (-2, -71, 16, 45.0),
    (511, -83, 19, 45.0),  # 23: B0
    (-513, -84, 20, 40.0),  # 24: B*
    (-511, -91, 24, 39.0),  # 25: its B0bar
    (-411, -91, 23, 20.0),  # 26: D from the B0
    (-11, 91, 13, 31.0),  # 27: electron from the tau
    (12, 91, 13, 10.0),
    (-16, 91, 13, 20.0),
    (13, 91, 26, 6.0),  # 30: muon from the D
    (211, 83, 21, 30.0),
    (-211, 84, 22, 35.0),
    (22, 91, 25, 4.0),
    (3, -71, 18, 5.0),  # 34: quarks of the gluon that the b radiated
    (-3, -71, 18, 3.0),
]


def record_of(rows: list[tuple[int, int, int, float]], copies: int = 1) -> Record:
    n = len(rows) * copies
    pdg, status, mother, pt = (
        np.array([row[k] for row in rows] * copies, dtype)
        for k, dtype in enumerate((np.int64, np.int64, np.int64, np.float64))
    )
    offsets = np.arange(copies + 1) * len(rows)
    rng = np.random.default_rng(1)
    eta, phi = rng.normal(0, 1, n), rng.uniform(-np.pi, np.pi, n)
    px, py, pz = pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)
    return Record(
        offsets=offsets,
        pdg=pdg,
        status=status,
        mother=record._global_mothers(offsets, mother),
        px=px,
        py=py,
        pz=pz,
        energy=np.sqrt(px**2 + py**2 + pz**2),
        mass=np.zeros(n),
        pt=pt,
        eta=eta,
        phi=phi,
        **dict.fromkeys(("vx", "vy", "vz"), np.zeros(n)),
    )


@pytest.mark.parametrize(
    ("pdg", "quark"),
    [
        (511, 5), (-521, 5), (5122, 5), (513, 5), (10513, 5), (20553, 5), (411, 4), (-4122, 4),
        (443, 4), (431, 4), (211, 1), (2212, 2), (111, 1), (130, 1), (310, 3), (3122, 3),
        (5, 0), (21, 0), (11, 0), (22, 0), (2101, 0), (5503, 0), (1000822080, 0), (90, 0),
    ],
)  # fmt: skip
def test_heaviest_quark_of_hadrons(pdg: int, quark: int) -> None:
    found = record.heaviest_quark(pdg)
    assert found == quark if quark in {0, 4, 5} else 0 < found < 4


def flags(index: int) -> int:
    return int(genpart.ancestry(record_of(EVENT)).flags[index])


def test_copies_of_a_top() -> None:
    assert flags(5) & genpart.FIRST_COPY
    assert not flags(5) & genpart.LAST_COPY
    assert flags(7) & genpart.LAST_COPY
    assert flags(7) & genpart.FROM_HARD_PROCESS
    assert not flags(7) & genpart.HARD_PROCESS


def test_a_quark_that_radiates() -> None:
    first, radiated, last = flags(10), flags(17), flags(19)
    assert first & genpart.LAST_COPY_BEFORE_FSR
    assert first & genpart.FROM_HARD_PROCESS_BEFORE_FSR
    assert not radiated & genpart.LAST_COPY_BEFORE_FSR
    assert last & genpart.LAST_COPY
    assert not last & (genpart.FIRST_COPY | genpart.LAST_COPY_BEFORE_FSR)
    assert all(flag & genpart.PROMPT for flag in (first, radiated, last))


def test_quarks_of_a_radiated_gluon_are_not_of_the_hard_process() -> None:
    assert not flags(34) & genpart.FROM_HARD_PROCESS
    assert flags(34) & genpart.LAST_COPY
    made = record_of(EVENT)
    for only_matching in (True, False):
        _, place = genpart.gen_parts(made, genpart.ancestry(made), only_matching=only_matching)
        assert place[34] == place[35] == -1


def test_status_and_mass_as_nanoaod_has_them() -> None:
    made = record_of(EVENT)
    massive = made._replace(mass=np.full(len(made.pdg), 4.5))
    parts, place = genpart.gen_parts(massive, genpart.ancestry(massive), only_matching=False)
    status, mass = parts.fields["status"], parts.fields["mass"]
    assert status[place[13]] == 2  # the tau, though Pythia has it as outgoing of the hard process
    assert status[place[27]] == 1
    assert status[place[5]] == 22
    assert status[place[23]] == 2
    assert mass[place[13]] == mass[place[10]] == 0
    assert mass[place[5]] == mass[place[9]] == mass[place[23]] == 4.5


def test_a_lepton_from_a_prompt_tau() -> None:
    wanted = (
        genpart.TAU_PRODUCT
        | genpart.PROMPT_TAU_PRODUCT
        | genpart.DIRECT_TAU_PRODUCT
        | genpart.DIRECT_PROMPT_TAU_PRODUCT
        | genpart.HARD_TAU_PRODUCT
        | genpart.DIRECT_HARD_TAU_PRODUCT
    )
    assert flags(27) & wanted == wanted
    assert not flags(27) & genpart.PROMPT
    assert flags(13) & genpart.DECAYED_LEPTON_HADRON


def test_a_lepton_from_a_hadron() -> None:
    assert flags(30) & genpart.DIRECT_HADRON_PRODUCT
    assert not flags(30) & (genpart.PROMPT | genpart.TAU_PRODUCT)
    assert flags(26) & genpart.DECAYED_LEPTON_HADRON


def test_only_weakly_decaying_hadrons_have_a_flavour() -> None:
    found = record.heavy_hadrons(record_of(EVENT))
    assert {int(i): int(found[i]) for i in np.flatnonzero(found)} == {23: 5, 25: 5, 26: 4}


@pytest.mark.parametrize("only_matching", [True, False])
def test_mothers_are_the_nearest_kept(only_matching: bool) -> None:
    made = record_of(EVENT, copies=3)
    lineage = genpart.ancestry(made)
    parts, place = genpart.gen_parts(made, lineage, only_matching=only_matching)
    assert len(set(parts.counts.tolist())) == 1
    codes = parts.fields["pdgId"][: parts.counts[0]].tolist()
    mothers = parts.fields["genPartIdxMother"][: parts.counts[0]].tolist()
    assert all(mother < index for index, mother in enumerate(mothers))
    last_b = place[19]
    assert codes[last_b] == 5
    while codes[last_b] == 5:
        last_b = mothers[last_b]
    assert codes[last_b] == 6
    electron, tau = place[27], place[13]
    if only_matching:
        assert electron == -1
        assert set(map(abs, codes)) == {1, 2, 5, 6, 15, 16, 24}
    else:
        assert mothers[electron] == tau


@st.composite
def chains(draw: Any) -> list[tuple[int, int, int, float]]:
    """Records with any mothers, also ones that stand after their daughters."""
    n = draw(st.integers(4, 25))
    kinds = st.sampled_from([21, 22, 5, -5, 6, 24, 15, 11, 12, 211, 511, 411, 2101])
    status = st.sampled_from([-21, -22, -23, 23, -51, -71, -83, -91, 83, 91, 1])
    return [
        (draw(kinds), draw(status), draw(st.integers(0, n)), draw(st.floats(0.01, 200)))
        for _ in range(n)
    ]


@given(chains())
def test_any_record_can_be_pruned(rows: list[tuple[int, int, int, float]]) -> None:
    made = record_of(rows, copies=2)
    lineage = genpart.ancestry(made)
    last, first = genpart.LAST_COPY, genpart.FIRST_COPY
    mothers = made.mother
    for i, mother in enumerate(mothers):
        is_copy = mother >= 0 and made.pdg[mother] == made.pdg[i]
        assert bool(lineage.flags[i] & first) != is_copy
        if is_copy:
            assert not lineage.flags[mother] & last
    for only_matching in (True, False):
        parts, place = genpart.gen_parts(made, lineage, only_matching=only_matching)
        found = parts.fields["genPartIdxMother"]
        local = np.concatenate([np.arange(n) for n in parts.counts])
        assert np.all(found < local)
        assert np.sum(place >= 0) == parts.counts.sum()


def test_jets_hold_all_that_is_seen() -> None:
    rng = np.random.default_rng(3)
    rows = [(90, -11, 0, 0.0), (2212, -12, 0, 0.0), (2212, -12, 0, 0.0)]
    rows += [(211, 83, 0, float(pt)) for pt in rng.exponential(20, 60) + 1]
    rows += [(12, 1, 0, 200.0)]
    made = record_of(rows, copies=2)
    hadrons = record.heavy_hadrons(made)
    jets = genjets.cluster(made, hadrons)
    assert np.all(jets.pt >= genjets.MIN_PT)
    for event in range(2):
        inside = slice(jets.offsets[event], jets.offsets[event + 1])
        assert np.all(np.diff(jets.pt[inside]) <= 0)
    for j, pt in enumerate(jets.pt):
        members = jets.members[jets.member_offsets[j] : jets.member_offsets[j + 1]]
        assert np.all(made.pdg[members] == 211)
        assert np.all(made.event[members] == jets.event[j])
        assert np.hypot(made.px[members].sum(), made.py[members].sum()) == pytest.approx(pt)
        assert jets.charged_hadron[j] == pytest.approx(made.energy[members].sum())


def test_flavour_of_jets() -> None:
    rows = [
        *EVENT[:3],
        (511, -83, 0, 40.0),
        (211, 83, 3, 40.0),
        (1, -23, 0, 60.0),
        (211, 83, 0, 60),
    ]
    made = record_of(rows)
    made.eta[3:5] = 0.5
    made.phi[3:5] = 0.1
    made.eta[5:7] = -1.0
    made.phi[5:7] = 2.0
    fixed = made._replace(
        px=made.pt * np.cos(made.phi),
        py=made.pt * np.sin(made.phi),
        pz=made.pt * np.sinh(made.eta),
        energy=made.pt * np.cosh(made.eta),
    )
    jets = genjets.cluster(fixed, record.heavy_hadrons(fixed))
    assert jets.hadron_flavour.tolist() == [0, 5]
    assert jets.parton_flavour.tolist() == [1, 5]
