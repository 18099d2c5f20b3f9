"""Detector response to jets: energy, direction, identification, b tag."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from agc_ml.simulation.detector.parameters import JetParameters, TagParameters
from agc_ml.simulation.events import Array
from agc_ml.simulation.kernel_cache import kernel
from agc_ml.simulation.truth.genjets import GenJets

TIGHT: Final = 2
TIGHT_LEPTON_VETO: Final = 6
"""Both bits of ``Jet_jetId``: tight, and tight with lepton veto."""

NO_TAG: Final = -10.0
_BOTTOM, _CHARM, _GLUON = 5, 4, 21


class Jets(NamedTuple):
    """Measured jets, one for each generated jet, in the same order; GeV.

    Energy fractions: charged and neutral hadrons, photons, electrons, muons.
    """

    pt: Array
    eta: Array
    phi: Array
    mass: Array
    btag: Array
    qgl: Array
    jet_id: Array
    pileup_id: Array
    n_constituents: Array
    charged_hadron: Array
    neutral_hadron: Array
    photon: Array
    electron: Array
    muon: Array


@kernel
def measure(jets: GenJets, seeds: Array, p: JetParameters, tags: TagParameters) -> Jets:
    """Measure jets; ``seeds``, one an event, have shape ``(n_events,)``."""
    n = len(jets.pt)
    pt, eta, phi, mass = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    btag, qgl, fractions = np.empty(n), np.empty(n), np.empty((n, 5))
    jet_id, pileup_id = np.empty(n, np.int32), np.empty(n, np.int32)
    n_constituents = np.empty(n, np.uint8)
    for event in range(len(seeds)):
        np.random.seed(seeds[event])
        for j in range(jets.offsets[event], jets.offsets[event + 1]):
            # Four-momentum: energy scale and resolution, direction, mass.
            pt[j] = _measured_pt(jets, j, p)
            eta[j] = jets.eta[j] + p.direction_spread * np.random.standard_normal()
            turned = jets.phi[j] + p.direction_spread * np.random.standard_normal()
            phi[j] = (turned + np.pi) % (2 * np.pi) - np.pi
            spread = 1 + p.mass_spread * np.random.standard_normal()
            mass[j] = max(jets.mass[j] * pt[j] / jets.pt[j] * spread, 0.1)
            # Composition, which the identification cuts on.
            _compose(jets, j, p, fractions[j])
            members = jets.n_members[j] + np.random.poisson(p.extra_constituents)
            n_constituents[j] = min(members, 255)
            jet_id[j] = _identify(fractions[j], members, abs(jets.eta[j]))
            # Taggers need tracks; the likelihood also needs three particles.
            in_tracker = abs(eta[j]) <= p.tracker_eta
            btag[j] = _tag(jets.hadron_flavour[j], pt[j], in_tracker, tags)
            qgl[j] = _likelihood(jets.parton_flavour[j], tags)
            if jets.n_members[j] < 3 or not (in_tracker or pt[j] >= 20):
                qgl[j] = -1.0
            pileup_id[j] = _pileup_id(pt[j])
    return Jets(
        pt, eta, phi, mass, btag, qgl, jet_id, pileup_id, n_constituents,
        fractions[:, 0], fractions[:, 1], fractions[:, 2], fractions[:, 3], fractions[:, 4],
    )  # fmt: skip


@kernel
def _measured_pt(jets: GenJets, j: Any, p: JetParameters) -> Any:
    # Offset of multiparton interactions, then resolution sqrt((N / pt)^2 + S^2 / pt + C^2).
    pt = max(jets.pt[j] + p.offset + p.offset_spread * np.random.standard_normal(), 1.0)
    resolution = np.sqrt((p.noise / pt) ** 2 + p.stochastic**2 / pt + p.constant**2)
    resolution *= 1 + p.forward_slope * max(abs(jets.eta[j]) - 1.3, 0.0)
    # A lepton is measured better than a jet.
    hadronic = jets.charged_hadron[j] + jets.neutral_hadron[j] + jets.photon[j]
    if jets.electron[j] + jets.muon[j] > hadronic:
        resolution *= p.lepton_resolution
    response = p.scale * (1 + resolution * np.random.standard_normal())
    return pt * min(max(response, p.min_response), p.max_response)


@kernel
def _compose(jets: GenJets, j: Any, p: JetParameters, fractions: Array) -> None:
    """Fill a jet's energy fractions, with the contribution of pile-up."""
    cosh = np.cosh(jets.eta[j])
    neutral = 1 + p.pileup_spread * np.random.standard_normal()
    pileup = max(p.pileup_neutral * neutral, 0.0) * cosh
    charged = p.offset_charged * abs(np.random.standard_normal()) * cosh
    fractions[0] = jets.charged_hadron[j] + charged
    fractions[1] = jets.neutral_hadron[j] + p.pileup_hadronic * pileup
    fractions[2] = jets.photon[j] + (1 - p.pileup_hadronic) * pileup
    fractions[3] = jets.electron[j]
    fractions[4] = jets.muon[j]
    fractions[0] *= max(1 + p.charged_spread * np.random.standard_normal(), 0.1)
    fractions[1] *= max(1 + p.neutral_spread * np.random.standard_normal(), 0.1)
    fractions /= fractions.sum()


@kernel
def _identify(fractions: Array, members: Any, eta: Any) -> Any:
    """CMS's run-2 jet identification, tight and with lepton veto (CMS-PAS-JME-16-003)."""
    charged, neutral, photon = fractions[0], fractions[1], fractions[2]
    electron, muon = fractions[3], fractions[4]
    central = eta < 2.4
    tight = neutral < 0.9 and photon < 0.9 and members > 1
    if central:
        tight = tight and charged > 0 and electron < 0.99
    if not tight:
        return 0
    vetoed = muon >= 0.8 or (central and electron >= 0.9)
    return TIGHT if vetoed else TIGHT_LEPTON_VETO


@kernel
def _tag(flavour: Any, pt: Any, in_tracker: Any, tags: TagParameters) -> Any:
    """CSVv2 discriminator, drawn from the distribution of the jet's flavour."""
    u, no_vertex = np.random.random(), np.random.random()
    if flavour == _BOTTOM:
        value, lost = _above(u, tags.bottom), tags.no_vertex_heavy
    elif flavour == _CHARM:
        value, lost = _above(u, tags.charm), tags.no_vertex_heavy
    else:
        soft = pt < 30
        value = _above(u, tags.light)
        lost = tags.no_vertex_soft if soft else tags.no_vertex_light
    return value if in_tracker and no_vertex >= lost else NO_TAG


@kernel
def _above(fraction: Any, knots: Any) -> Any:
    """Value exceeded by ``fraction`` of the jets, interpolated between knots."""
    values, survival = knots
    for k in range(1, len(values)):
        if fraction >= survival[k]:
            step = (survival[k - 1] - fraction) / (survival[k - 1] - survival[k])
            return values[k - 1] + step * (values[k] - values[k - 1])
    return values[-1]


@kernel
def _likelihood(parton: Any, tags: TagParameters) -> Any:
    """Quark-gluon likelihood, beta distributed: high for light quarks, low for gluons."""
    code = abs(parton)
    if code == _GLUON:
        a, b = tags.gluon_likelihood
    elif code >= _CHARM:
        a, b = tags.heavy_likelihood
    elif code > 0:
        a, b = tags.quark_likelihood
    else:
        a, b = tags.other_likelihood
    return np.random.beta(a, b)


@kernel
def _pileup_id(pt: Any) -> Any:
    """Bits of the pile-up identification: all three, except for a few soft jets."""
    first, second = np.random.random(), np.random.random()
    if pt > 50 or first < 0.9:
        return 7
    return 6 if second < 0.5 else 4
