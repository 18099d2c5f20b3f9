"""Jets of stable visible particles (anti-kt, R = 0.4), with flavour and composition."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import awkward as ak
import numpy as np

from agc_ml.simulation.events import Array
from agc_ml.simulation.kernel_cache import kernel
from agc_ml.simulation.truth.record import Record, distance2, is_charged, is_neutrino

RADIUS: Final = 0.4
MIN_PT: Final = 8.0
"""GeV; the response never lifts softer jets to 15 GeV."""

_MAX_ETA, _MIN_PARTICLE_PT = 5.0, 0.1  # acceptance of the calorimeters
_GHOST_PT: Final = 3.0  # GeV; least pt of a heavy hadron that decides a jet's flavour
_PARTON_PT: Final = 2.0
_ELECTRON, _MUON, _PHOTON, _GLUON, _BOTTOM = 11, 13, 22, 21, 5


class GenJets(NamedTuple):
    """Jets by falling pt, flat; those of event i stand at ``offsets[i]:offsets[i + 1]``.

    ``hadron_flavour`` is 5, 4 or 0, ``parton_flavour`` the PDG id of the hardest parton in the
    cone. Energies in GeV: of charged hadrons, neutral hadrons, photons, electrons and muons.
    ``members`` are the indices in the record of the particles of jet j, at
    ``member_offsets[j]:member_offsets[j + 1]``.
    """

    offsets: Array
    pt: Array
    eta: Array
    phi: Array
    mass: Array
    hadron_flavour: Array
    parton_flavour: Array
    charged_hadron: Array
    neutral_hadron: Array
    photon: Array
    electron: Array
    muon: Array
    n_members: Array
    members: Array
    member_offsets: Array

    @property
    def event(self) -> Array:
        """Index of each jet's event."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


@kernel
def _visible(record: Any) -> Array:
    """Indices of the stable visible particles."""
    visible = np.empty(len(record.pdg), np.int64)
    k = 0
    for i in range(len(record.pdg)):
        if (
            record.status[i] > 0
            and not is_neutrino(record.pdg[i])
            and abs(record.eta[i]) < _MAX_ETA
            and record.pt[i] > _MIN_PARTICLE_PT
        ):
            visible[k] = i
            k += 1
    return visible[:k]


def cluster(record: Record, hadrons: Array) -> GenJets:
    """Cluster a record's visible particles; ``hadrons`` are from `record.heavy_hadrons`.

    FastJet: M. Cacciari, G. P. Salam, G. Soyez, Eur. Phys. J. C 72 (2012) 1896.
    """
    import fastjet  # noqa: PLC0415 - an extra

    # Anti-kt jets, by falling pt.
    seen = _visible(record)
    counts = np.bincount(record.event[seen], minlength=record.n_events)
    momenta = {"px": record.px, "py": record.py, "pz": record.pz, "E": record.energy}
    particles = ak.unflatten(
        ak.zip({k: v[seen] for k, v in momenta.items()}, with_name="Momentum4D"), counts
    )
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, RADIUS)
    clustered = fastjet.ClusterSequence(particles, definition)
    jets = clustered.inclusive_jets(min_pt=MIN_PT)
    constituents = clustered.constituent_index(min_pt=MIN_PT)
    order = ak.argsort(np.hypot(jets.px, jets.py), axis=1, ascending=False)
    jets, constituents = jets[order], constituents[order]
    n_jets = ak.to_numpy(ak.num(jets))
    px, py, pz, energy = (
        ak.to_numpy(ak.flatten(jets[axis])).astype(np.float64) for axis in ("px", "py", "pz", "E")
    )
    pt = np.hypot(px, py)
    # FastJet numbers constituents within the event: convert to indices in the record.
    inner = ak.flatten(constituents, axis=1)
    n_members = ak.to_numpy(ak.num(inner))
    first_seen = np.concatenate([[0], np.cumsum(counts)])[:-1]
    first_of_jet = np.repeat(np.repeat(first_seen, n_jets), n_members)
    geometry = {"offsets": _offsets(n_jets), "eta": np.arcsinh(pz / pt), "phi": np.arctan2(py, px)}
    members = {
        "members": seen[first_of_jet + ak.to_numpy(ak.flatten(inner)).astype(np.int64)],
        "member_offsets": _offsets(n_members),
    }
    hadron, parton = _flavours(*geometry.values(), record, hadrons)
    content = _energies(*members.values(), record)
    return GenJets(
        pt=pt,
        **geometry,
        mass=np.sqrt(np.maximum(energy**2 - px**2 - py**2 - pz**2, 0)),
        hadron_flavour=hadron,
        parton_flavour=parton,
        charged_hadron=content[:, 0],
        neutral_hadron=content[:, 1],
        photon=content[:, 2],
        electron=content[:, 3],
        muon=content[:, 4],
        n_members=n_members,
        **members,
    )


def _offsets(counts: Array) -> Array:
    return np.concatenate([[0], np.cumsum(counts)])


@kernel
def _flavours(
    offsets: Array, eta: Array, phi: Array, record: Any, hadrons: Array
) -> tuple[Array, Array]:
    """Hadron flavour from weakly decaying hadrons in the cone, parton flavour from its partons.

    The hardest parton of the hard process or before hadronisation counts, but bottom and charm
    hadrons have priority, as in CMS's definition of a jet's parton flavour.
    """
    hadron, parton = np.zeros(len(eta), np.int32), np.zeros(len(eta), np.int32)
    particles, pdg, status, pt = record.offsets, record.pdg, record.status, record.pt
    particle_eta, particle_phi = record.eta, record.phi
    # Preselect candidates once: most particles are neither.
    worth = np.zeros(len(pdg), np.bool_)
    for i in range(len(pdg)):
        is_heavy = hadrons[i] > 0 and pt[i] > _GHOST_PT
        worth[i] = is_heavy or (pt[i] > _PARTON_PT and _is_parton(pdg[i], status[i]))
    for event in range(len(offsets) - 1):
        for j in range(offsets[event], offsets[event + 1]):
            hardest = 0.0
            for i in range(particles[event] + 3, particles[event + 1]):
                if not worth[i]:
                    continue
                if distance2(particle_eta[i], particle_phi[i], eta[j], phi[j]) > RADIUS**2:
                    continue
                if hadrons[i] > 0:
                    hadron[j] = max(hadron[j], hadrons[i])
                elif pt[i] > hardest:
                    hardest = pt[i]
                    parton[j] = pdg[i]
            if hadron[j] > 0:
                parton[j] = hadron[j]
    return hadron, parton


@kernel
def _is_parton(pdg: Any, signed_status: Any) -> Any:
    code, status = abs(pdg), abs(signed_status)
    if not (0 < code <= _BOTTOM or code == _GLUON):
        return False
    # Pythia: 23 outgoing of the hard process, 33-69 showers and remnants, 71-79 hadronisation
    return status == 23 or 33 <= status < 70 or 71 <= status <= 79


@kernel
def _energies(members: Array, offsets: Array, record: Any) -> Array:
    """Energy [GeV] by kind of particle, shape ``(n_jets, 5)``, in the order of `GenJets`."""
    energies = np.zeros((len(offsets) - 1, 5))
    for j in range(len(offsets) - 1):
        for i in members[offsets[j] : offsets[j + 1]]:
            code = abs(record.pdg[i])
            if code == _ELECTRON:
                kind = 3
            elif code == _MUON:
                kind = 4
            elif code == _PHOTON:
                kind = 2
            elif is_charged(code):
                kind = 0
            else:
                kind = 1
            energies[j, kind] += record.energy[i]
    return energies
