"""User hooks of Pythia: vetoes, and the switch between two streams of random numbers.

Pythia calls the methods of `Hooks`, under its own names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pythia8mc import SlowJet, UserHooks

from agc_ml.simulation.samples import Vetoes

MAX_ATTEMPTS: Final = 1 << 22
"""Most hard events of a unit: event numbers are unit * MAX_ATTEMPTS + attempt + 1."""

_ELECTRON, _MUON, _TAU, _GLUON, _QUARKS = 11, 13, 15, 21, 6
_SLOWJET_ALL = 2  # SlowJet: cluster all visible particles, with their own masses


class Hooks(UserHooks):  # type: ignore[misc]
    """Vetoes that stop events early, and the switch between two streams of random numbers.

    Attributes
    ----------
    attempt
        Number of the current hard event, from 0; each event carries it as the scale of its first
        particle.
    refused
        Attempts rejected by ``vetoes``. Only ``enforced`` vetoes stop an event: the same ones,
        looser ones, or None.
    """

    def __init__(self, pythia: Any, vetoes: Vetoes, enforced: Vetoes | None) -> None:
        UserHooks.__init__(self)
        self._pythia, self._vetoes, self._enforced = pythia, vetoes, enforced
        self.attempt = -1
        self.refused: set[int] = set()
        self._in_hard_process = True
        self._finders: dict[tuple[float, float], Any] = {}
        self._hard: Any = None
        self._rest: Any = None

    def start(self, hard: int, rest: int) -> None:
        self._pythia.rndm.init(rest)
        self._rest = self._pythia.rndm.getState()
        self._pythia.rndm.init(hard)

    def _stops(self, passes: Callable[[Vetoes], bool]) -> bool:
        """Apply the vetoes to the attempt; return True if it ends here."""
        passed = passes(self._vetoes)
        if not passed:
            self.refused.add(self.attempt)
        if self._enforced is None or self.attempt >= MAX_ATTEMPTS:
            return False
        return not (passed if self._enforced is self._vetoes else passes(self._enforced))

    # Of each event, hooks first see a trial of its hard process, drawn from the stream of the
    # shower. It is dropped, and the stream of the hard process is restored.
    def canModifySigma(self) -> bool:
        return True

    def multiplySigmaBy(self, _process: Any, _phase_space: Any, in_event: bool) -> float:
        if not in_event or self._in_hard_process:
            return 1.0
        self._in_hard_process = True
        self._rest = self._pythia.rndm.getState()
        self._pythia.rndm.setState(self._hard)
        return 0.0

    def canVetoProcessLevel(self) -> bool:
        return True

    def doVetoProcessLevel(self, process: Any) -> bool:
        self.attempt += 1
        if self.attempt >= MAX_ATTEMPTS:
            return False
        # The hard process is complete: continue with the stream of the shower.
        self._in_hard_process = False
        self._hard = self._pythia.rndm.getState()
        self._pythia.rndm.setState(self._rest)
        process[0].scale(float(self.attempt))
        return self._stops(lambda vetoes: _has_lepton(process, vetoes))

    def canVetoPT(self) -> bool:
        return self._vetoes.partons > 0

    def scaleVetoPT(self) -> float:
        return self._vetoes.parton_pt

    def doVetoPT(self, position: int, event: Any) -> bool:
        after_resonances = 3
        if position > after_resonances:
            return False
        return self._stops(lambda vetoes: _count_partons(event, vetoes) >= vetoes.partons)

    def canVetoPartonLevel(self) -> bool:
        return True

    def doVetoPartonLevel(self, event: Any) -> bool:
        return self._stops(lambda vetoes: self._has_jets(event, vetoes))

    def _has_jets(self, event: Any, vetoes: Vetoes) -> bool:
        """Return True if there are a lepton and enough parton jets."""
        leptons = _leptons(event, vetoes)
        if not leptons:
            return False
        jets = self._jets(vetoes.jet_pt, vetoes.jet_rapidity)
        jets.analyze(event)
        if jets.sizeJet() >= vetoes.jets:
            return True
        if leptons == {_MUON}:
            return False
        hard = sum(jets.pT(j) > vetoes.hard_jet_pt for j in range(jets.sizeJet()))
        return bool(hard >= vetoes.jets - 1)

    def _jets(self, pt: float, rapidity: float) -> Any:
        """Pythia's own anti-kt with R = 0.4, of all visible particles.

        It keeps the jets of the last event, so threads must not share one.
        """
        finder = self._finders.get((pt, rapidity))
        if finder is None:
            finder = SlowJet(-1, 0.4, pt, rapidity, _SLOWJET_ALL, _SLOWJET_ALL)
            self._finders[pt, rapidity] = finder
        return finder


def _kinds(vetoes: Vetoes) -> set[int]:
    return {_ELECTRON, _MUON, _TAU} if vetoes.muons else {_ELECTRON, _TAU}


def _has_lepton(record: Any, vetoes: Vetoes) -> bool:
    kinds = _kinds(vetoes)
    for index in range(record.size() - 1, 4, -1):
        particle = record[index]
        kind = abs(particle.id())
        if kind in kinds and abs(particle.eta()) < vetoes.hard_lepton_eta:
            least = vetoes.hard_tau_pt if kind == _TAU else vetoes.hard_lepton_pt
            if particle.pT() > least:
                return True
    return False


def _count_partons(event: Any, vetoes: Vetoes) -> int:
    count = 0
    for index in range(event.size() - 1, 2, -1):
        particle = event[index]
        if particle.isFinal() and abs(particle.id()) in {*range(1, _QUARKS), _GLUON}:
            count += particle.pT() > vetoes.parton_pt and abs(particle.eta()) < vetoes.parton_eta
    return count


def _leptons(event: Any, vetoes: Vetoes) -> set[int]:
    """Kinds of leptons in an event after the shower."""
    least = {_ELECTRON: vetoes.electron_pt, _MUON: vetoes.muon_pt, _TAU: vetoes.tau_pt}
    allowed, kinds = _kinds(vetoes), set()
    for index in range(event.size() - 1, 4, -1):
        particle = event[index]
        kind = abs(particle.id())
        if kind not in allowed or not particle.isFinal():
            continue
        if particle.pT() > least[kind] and abs(particle.eta()) < vetoes.lepton_eta:
            kinds.add(kind)
    return kinds
