"""Detector response: from generated particles to NanoAOD's columns, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from agc_ml.simulation.detector import constituents, jets, leptons
from agc_ml.simulation.detector.parameters import DETECTOR, Detector
from agc_ml.simulation.events import Array, Collection, Events, collect
from agc_ml.simulation.kernel_cache import kernel
from agc_ml.simulation.truth import genjets, genpart
from agc_ml.simulation.truth.genjets import GenJets
from agc_ml.simulation.truth.randomness import event_seeds, stream_key
from agc_ml.simulation.truth.record import NEUTRINOS, Record, heavy_hadrons

GEN_JET_PT: Final = 10.0  # GeV, as in NanoAOD
_RUN: Final = 1  # as CMS numbers the runs of simulation
_MET_JET_PT: Final = 15.0


@dataclass(frozen=True, slots=True)
class Truth:
    """Generated events: particles, their ancestry, heavy hadrons, jets."""

    record: Record
    lineage: genpart.Ancestry
    hadrons: Array
    jets: GenJets
    info: Any


def understand(record: Record, info: Any) -> Truth:
    """Truth of a record; ``info`` is Pythia's, one entry an event."""
    hadrons = heavy_hadrons(record)
    lineage = genpart.ancestry(record)
    return Truth(record, lineage, hadrons, genjets.cluster(record, hadrons), info)


@dataclass(frozen=True, slots=True)
class Response:
    """A detector and its random numbers.

    ``seed`` and ``dataset`` decide, with an event's number, its random numbers. With
    ``emulate_cms2015_muon_id`` all identification flags of muons are zero, as in CMS's 2015 files.
    ``only_matching`` reduces GenPart to the particles for jet-parton matching; ``constituents``
    adds particles of jets and secondary vertices (the record needs its vertices).
    """

    seed: int
    dataset: str
    detector: Detector = DETECTOR
    emulate_cms2015_muon_id: bool = False
    only_matching: bool = False
    constituents: bool = False

    def measure(self, truth: Truth, numbers: Array, luminosity_block: int) -> Events:
        """Measure events; ``numbers`` are their event numbers, shape ``(n_events,)``."""
        parts = genpart.gen_parts(truth.record, truth.lineage, only_matching=self.only_matching)
        measured = jets.measure(
            truth.jets, self._seeds("jets", numbers), self.detector.jets, self.detector.tags
        )
        n_events = truth.record.n_events
        return Events(
            {
                "run": np.full(n_events, _RUN, np.uint32),
                "luminosityBlock": np.full(n_events, luminosity_block, np.uint32),
                "event": numbers.astype(np.uint64),
                "genWeight": np.ones(n_events, np.float32),
                **self._whole_events(truth, measured, numbers),
                **_generator(truth.info),
            },
            {
                "Electron": self._electrons(truth, parts.place, numbers),
                "Muon": self._muons(truth, parts.place, numbers),
                "Jet": self._jets(truth.jets, measured),
                "GenJet": _gen_jets(truth.jets),
                "GenPart": parts.collection,
                **(self._constituents(truth, numbers) if self.constituents else {}),
            },
        )

    def _constituents(self, truth: Truth, numbers: Array) -> dict[str, Collection]:
        p = self.detector.constituents
        jet_places, _ = _gen_jet_places(truth.jets)
        return {
            "PFCand": constituents.candidates(
                truth.record, truth.jets, jet_places, self._seeds("candidates", numbers), p
            ),
            "SV": constituents.vertices(
                truth.record, truth.hadrons, self._seeds("vertices", numbers), p
            ),
        }

    def _seeds(self, collection: str, numbers: Array) -> Array:
        key = np.uint64(stream_key(self.seed, self.dataset, collection))
        seeds: Array = event_seeds(key, numbers.astype(np.uint64))
        return seeds

    def _jets(self, true: GenJets, measured: jets.Jets) -> Collection:
        places, event = _gen_jet_places(true)
        p = self.detector.jets
        fields = {
            "pt": measured.pt,
            "eta": measured.eta,
            "phi": measured.phi,
            "mass": measured.mass,
            "btagCSVV2": measured.btag,
            "qgl": measured.qgl,
            "jetId": measured.jet_id,
            "puId": measured.pileup_id,
            "hadronFlavour": true.hadron_flavour,
            "partonFlavour": true.parton_flavour,
            "genJetIdx": places.astype(np.int32),
            "nConstituents": measured.n_constituents,
            "chHEF": measured.charged_hadron,
            "neHEF": measured.neutral_hadron,
            "neEmEF": measured.photon,
            "chEmEF": measured.electron,
            "muEF": measured.muon,
        }
        keep = (measured.pt > p.min_pt) & (np.abs(measured.eta) < p.max_eta)
        return collect(fields, event, len(true.offsets) - 1, keep, order="pt")

    def _electrons(self, truth: Truth, place: Array, numbers: Array) -> Collection:
        p = self.detector.electrons
        gen = leptons.find(
            truth.record, truth.lineage.flags, leptons.ELECTRON, p.min_pt, p.max_eta,
            p.isolation_cone, p.fsr_cone,
        )  # fmt: skip
        pt, seen, cut_based, track = leptons.measure_electrons(
            gen, truth.record.eta[gen.particle], self._seeds("electrons", numbers), p,
            self.detector.tracks, self.detector.event,
        )  # fmt: skip
        fields = {
            **_lepton(truth.record, gen, place, pt, track, p.mass),
            "cutBased": cut_based,
            "pfRelIso03_all": track.isolation,
            "pfRelIso03_chg": track.charged_isolation,
            "convVeto": np.ones(len(pt), bool),
        }
        return collect(fields, gen.event, truth.record.n_events, seen, order="pt")

    def _muons(self, truth: Truth, place: Array, numbers: Array) -> Collection:
        p = self.detector.muons
        gen = leptons.find(
            truth.record, truth.lineage.flags, leptons.MUON, p.min_pt, p.max_eta,
            p.isolation_cone, 0.0,
        )  # fmt: skip
        pt, seen, tight, medium, layers, track = leptons.measure_muons(
            gen, truth.record.eta[gen.particle], self._seeds("muons", numbers), p,
            self.detector.tracks, self.detector.event,
        )  # fmt: skip
        identified = not self.emulate_cms2015_muon_id
        fields = {
            **_lepton(truth.record, gen, place, pt, track, p.mass),
            "pfRelIso04_all": track.isolation,
            "tightId": tight & identified,
            "mediumId": medium & identified,
            "looseId": np.full(len(pt), identified),
            "softId": tight & identified,
            "isGlobal": np.ones(len(pt), bool),
            "isPFcand": np.ones(len(pt), bool),
            "nTrackerLayers": layers,
        }
        return collect(fields, gen.event, truth.record.n_events, seen, order="pt")

    def _whole_events(self, truth: Truth, measured: jets.Jets, numbers: Array) -> dict[str, Array]:
        """Missing momentum, true and measured [GeV], and numbers of vertices."""
        record, n_events, p = truth.record, truth.record.n_events, self.detector.event
        # True missing momentum: neutrinos. Measured: with a share of the jets' mismeasurement, and
        # noise.
        unseen = np.flatnonzero((record.status > 0) & np.isin(np.abs(record.pdg), NEUTRINOS))
        of_event, jet_event = record.event[unseen], truth.jets.event
        true_x = np.bincount(of_event, record.px[unseen], n_events)
        true_y = np.bincount(of_event, record.py[unseen], n_events)
        error = np.where(truth.jets.pt > _MET_JET_PT, measured.pt - truth.jets.pt, 0.0)
        error_x = np.bincount(jet_event, error * np.cos(truth.jets.phi), n_events)
        error_y = np.bincount(jet_event, error * np.sin(truth.jets.phi), n_events)
        noise, vertices = _noise(self._seeds("event", numbers), p.vertices)
        x = true_x - p.met_share * error_x + p.met_spread * noise[0]
        y = true_y - p.met_share * error_y + p.met_spread * noise[1]
        sum_et = np.bincount(jet_event, measured.pt, n_events) + p.sum_et
        return {
            "MET_pt": np.hypot(x, y),
            "MET_phi": np.arctan2(y, x),
            "MET_sumEt": sum_et + p.sum_et_spread * noise[2],
            "GenMET_pt": np.hypot(true_x, true_y),
            "GenMET_phi": np.arctan2(true_y, true_x),
            "PV_npvs": vertices + np.int32(1),
            "PV_npvsGood": vertices,
            "Pileup_nTrueInt": np.full(n_events, p.vertices),
        }


@kernel
def _noise(seeds: Array, vertices: float) -> tuple[Array, Array]:
    """Three standard normal numbers an event, and its number of good vertices, at least 1."""
    normal, good = np.empty((3, len(seeds))), np.empty(len(seeds), np.int32)
    for event in range(len(seeds)):
        np.random.seed(seeds[event])
        for k in range(3):
            normal[k, event] = np.random.standard_normal()
        good[event] = max(1, np.random.poisson(vertices))
    return normal, good


def _lepton(
    record: Record,
    gen: leptons.GenLeptons,
    place: Array,
    pt: Array,
    track: leptons.Track,
    mass: float,
) -> dict[str, Array]:
    index = gen.particle
    return {
        "pt": pt,
        "eta": record.eta[index],
        "phi": record.phi[index],
        "mass": np.full(len(pt), mass),
        "charge": -np.sign(record.pdg[index]).astype(np.int32),
        "pdgId": record.pdg[index].astype(np.int32),
        "dxy": track.dxy,
        "dxyErr": track.dxy_error,
        "dz": track.dz,
        "dzErr": track.dz_error,
        "ip3d": track.ip3d,
        "sip3d": track.sip3d,
        "genPartIdx": place[index],
        "genPartFlav": gen.origin,
    }


def _gen_jet_places(generated: GenJets) -> tuple[Array, Array]:
    """Place of each jet in its event's GenJet, -1 if it is too soft; and its event."""
    event = generated.event
    places = np.arange(len(generated.pt)) - generated.offsets[event]
    return np.where(generated.pt > GEN_JET_PT, places, -1), event


def _gen_jets(generated: GenJets) -> Collection:
    fields = {
        "pt": generated.pt,
        "eta": generated.eta,
        "phi": generated.phi,
        "mass": generated.mass,
        "hadronFlavour": generated.hadron_flavour.astype(np.uint8),
        "partonFlavour": generated.parton_flavour,
    }
    # Jets are sorted by falling pt, so their places among all and among the kept ones agree.
    return collect(fields, generated.event, len(generated.offsets) - 1, generated.pt > GEN_JET_PT)


def _generator(info: Any) -> dict[str, Array]:
    """Scale [GeV] and momentum fractions of the hard process."""
    return {
        "Generator_scalePDF": np.sqrt(np.asarray(info.Q2Fac)),
        "Generator_x1": np.asarray(info.x1),
        "Generator_x2": np.asarray(info.x2),
        "Generator_id1": np.asarray(info.id1).astype(np.int32),
        "Generator_id2": np.asarray(info.id2).astype(np.int32),
    }
