"""The nine datasets of the ttbar measurement: their Pythia settings, with reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal, NamedTuple

from agc_ml.errors import UsageError
from agc_ml.inputs import agc_published
from agc_ml.inputs.variations import NOMINAL


class Setting(NamedTuple):
    """A line for ``Pythia.readString``, and its reason."""

    line: str
    why: str


Quantity = Literal["selected", "ks_4j1b", "ks_4j2b", "ratio", "factor"]
"""Quantities of a check: number of selected events; Kolmogorov distance of H_T and of m_bjj; ratio
of the two regions over the published ratio, minus 1; yield over the stated factor, minus 1."""


class Shortfall(NamedTuple):
    """A quantity with a known difference from the published sample, its size, and the reason."""

    quantity: Quantity
    value: float
    why: str


@dataclass(frozen=True, slots=True)
class Vetoes:
    """Early stops for events that can't pass the skim; they save time and must not bias.

    Their loss is measured on events without them (``Sample.veto_loss``).

    Attributes
    ----------
    hard_lepton_pt, hard_tau_pt, hard_lepton_eta
        Electron or muon, or tau (pt in GeV), required in the hard process; very loose, as recoil
        against the shower may turn it anywhere.
    electron_pt, muon_pt, tau_pt, lepton_eta
        The same after the shower; electrons are measured with their radiated photons.
    partons, parton_pt, parton_eta
        Number of partons above ``parton_pt`` [GeV] required when the shower reaches that scale; 0
        for no such veto.
    jets, jet_pt, jet_rapidity
        Number of parton jets (anti-kt, R = 0.4) required before hadronisation, with the lepton
        counted as one.
    hard_jet_pt
        One jet less is enough if all are above this pt [GeV] and the lepton is an electron or tau:
        electrons may be reconstructed as jets.
    muons
        True if the lepton may be a muon.
    """

    hard_lepton_pt: float = 6.0
    hard_tau_pt: float = 15.0
    hard_lepton_eta: float = 4.0
    electron_pt: float = 8.0
    muon_pt: float = 22.0
    tau_pt: float = 26.0
    lepton_eta: float = 2.6
    partons: int = 0
    parton_pt: float = 16.0
    parton_eta: float = 2.9
    jets: int = 5
    jet_pt: float = 15.0
    jet_rapidity: float = 2.9
    hard_jet_pt: float = 18.0
    muons: bool = True


@dataclass(frozen=True, slots=True)
class Sample:
    """All that decides the events of a dataset, except seed and detector.

    Attributes
    ----------
    settings
        Pythia settings besides `COMMON`.
    hard_stream
        Name of the random stream of the hard process; samples that share it have the same hard
        events.
    share
        Fraction of the events of a whole set.
    unit
        Events of a unit of work, which takes some ten seconds.
    native
        True for a process of Pythia's own, False for `agc_ml.simulation.truth.topw`.
    factor
        Ratio of yields, generated over published, of both regions together.
    absorbs
        Causes of the factor.
    veto_loss
        Fraction of selected events lost by the vetoes.
    selected
        Fraction of its events with electrons that pass the measurement's selection.
    shortfalls
        Known differences from the published sample beyond the limits.
    """

    process: str
    variation: str
    settings: tuple[Setting, ...]
    hard_stream: str
    share: float
    unit: int
    vetoes: Vetoes
    factor: float
    absorbs: str
    veto_loss: float
    selected: float
    shortfalls: tuple[Shortfall, ...] = ()
    native: bool = True

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return f"{self.process}__{self.variation}"

    @property
    def xsec(self) -> float:
        """Cross-section in pb, from the published analysis."""
        return agc_published.CROSS_SECTIONS[self.process]


COMMON: Final = (
    Setting("Beams:eCM = 13000.", "LHC run 2, in GeV"),
    Setting(
        "Tune:pp = 18", "CUETP8M1, the tune of the published samples (Eur. Phys. J. C 76, 155)"
    ),
    Setting(
        "PartonLevel:MPI = off",
        "four times as fast; the energy of multiparton interactions is in the detector's offsets",
    ),
    Setting("6:m0 = 172.5", "top mass of the published samples, in GeV"),
    Setting("ParticleDecays:limitTau0 = on", "particles that live long reach the detector:"),
    Setting("ParticleDecays:tau0Max = 10.", "those with a mean path of more than 10 mm at rest"),
)

_TTBAR: Final = (
    Setting("Top:gg2ttbar = on", "leading order; the shower is damped above the hard scale, as is"),
    Setting("Top:qqbar2ttbar = on", "Pythia's default for pairs of heavy coloured particles"),
)


def _shower(name: str, value: str, why: str) -> tuple[Setting, Setting]:
    """One setting for both initial- and final-state radiation."""
    return Setting(f"SpaceShower:{name} = {value}", why), Setting(
        f"TimeShower:{name} = {value}", why
    )


_EVERYWHERE: Final = "radiation also above the hard scale, up to the kinematic limit"
_DAMPED: Final = (
    "above that falling as pT^-4, as a matrix element does (Corke, Sjostrand, 1003.2384)"
)

_LO_RATE: Final = (
    "acceptance of leading order with showers over that of the published generator, and "
    "efficiencies of the parametrised detector over those of CMS"
)

SAMPLES: Final = (
    Sample(
        process="ttbar",
        variation=NOMINAL,
        settings=_TTBAR,
        hard_stream="ttbar",
        share=0.20,
        unit=1000,
        vetoes=Vetoes(),
        factor=1.12,
        absorbs=_LO_RATE,
        veto_loss=0.001,
        selected=0.38,
    ),
    Sample(
        process="ttbar",
        variation="ME_var",
        settings=(
            *_TTBAR,
            *_shower("pTmaxMatch", "2", _EVERYWHERE),
            *_shower("pTdampMatch", "1", _DAMPED),
            *_shower("pTdampFudge", "1.2", "from 1.2 times the factorisation scale on"),
            Setting(
                "SpaceShower:alphaSvalue = 0.18",
                "more jets: the published sample is of aMC@NLO, its negative weights ignored",
            ),
        ),
        hard_stream="ttbar ME_var",
        share=0.10,
        unit=1000,
        vetoes=Vetoes(),
        factor=1.02,
        absorbs=_LO_RATE,
        veto_loss=0.0006,
        selected=0.38,
    ),
    Sample(
        process="ttbar",
        variation="PS_var",
        settings=(
            *_TTBAR,
            Setting("SpaceShower:pTdampFudge = 0.5", "damped earlier, as by another ordering"),
            Setting("SpaceShower:alphaSvalue = 0.16", "more and softer jets off the initial state"),
            Setting("TimeShower:renormMultFac = 0.5", "more radiation off the final state"),
        ),
        hard_stream="ttbar PS_var",
        share=0.10,
        unit=1000,
        vetoes=Vetoes(),
        factor=0.99,
        absorbs=_LO_RATE,
        veto_loss=0.005,
        selected=0.38,
        shortfalls=(
            Shortfall(
                "ratio",
                0.10,
                "the published sample is of Herwig++, in which b jets are probably tagged less; "
                "here one detector tags those of all samples alike",
            ),
        ),
    ),
    Sample(
        process="ttbar",
        variation="scaleup",
        settings=(*_TTBAR, *_shower("renormMultFac", "1.5", "the shower's scale, squared")),
        hard_stream="ttbar",
        share=0.08,
        unit=1000,
        vetoes=Vetoes(),
        factor=1.03,
        absorbs=_LO_RATE,
        veto_loss=0.002,
        selected=0.38,
    ),
    Sample(
        process="ttbar",
        variation="scaledown",
        settings=(*_TTBAR, *_shower("renormMultFac", "0.667", "the shower's scale, squared")),
        hard_stream="ttbar",
        share=0.08,
        unit=1000,
        vetoes=Vetoes(),
        factor=1.16,
        absorbs=_LO_RATE,
        veto_loss=0.0014,
        selected=0.38,
    ),
    Sample(
        process="single_top_s_chan",
        variation=NOMINAL,
        settings=(
            Setting("Top:ffbar2tqbar(s:W) = on", "leading order"),
            *_shower("pTmaxMatch", "2", "as for a W: radiation at all scales"),
            Setting("SpaceShower:alphaSvalue = 0.16", "the rate of jets of next-to-leading order"),
        ),
        hard_stream="single_top_s_chan",
        share=0.05,
        unit=250,
        vetoes=Vetoes(partons=1),
        factor=1.44,
        absorbs=_LO_RATE,
        veto_loss=0.01,
        selected=0.3,
    ),
    Sample(
        process="single_top_t_chan",
        variation=NOMINAL,
        settings=(
            Setting("Top:qq2tq(t:W) = on", "leading order, with b quarks in the proton"),
            Setting("SpaceShower:pTmaxMatch = 2", "the second b may be harder than the light jet"),
            Setting("SpaceShower:pTdampMatch = 1", _DAMPED),
            Setting("SpaceShower:pTdampFudge = 4", "from four times the factorisation scale on"),
            Setting("SpaceShower:rapidityOrder = off", "the second b may be central after a gluon"),
            Setting("TimeShower:alphaSvalue = 0.115", "fewer jets off the final state"),
            Setting("SigmaProcess:factorScale2 = 5", "fixed factorisation scale, in GeV^2:"),
            Setting(
                "SigmaProcess:factorFixScale = 10000", "the harder scale made the jet too hard"
            ),
        ),
        hard_stream="single_top_t_chan",
        share=0.09,
        unit=250,
        vetoes=Vetoes(partons=1),
        factor=1.77,
        absorbs=_LO_RATE,
        veto_loss=0.0055,
        selected=0.31,
        shortfalls=(
            Shortfall(
                "ratio",
                0.17,
                "the second b comes from the shower and is too soft; the published sample has it "
                "from a matrix element with four flavours in the proton",
            ),
        ),
    ),
    Sample(
        process="single_top_tW",
        variation=NOMINAL,
        settings=(
            Setting("SpaceShower:pTmaxMatch = 2", _EVERYWHERE),
            Setting("SpaceShower:pTdampMatch = 1", _DAMPED),
            Setting("SpaceShower:pTdampFudge = 4", "from four times the factorisation scale on"),
        ),
        hard_stream="single_top_tW",
        share=0.10,
        unit=250,
        vetoes=Vetoes(),
        factor=1.18,
        absorbs=_LO_RATE,
        veto_loss=0.003,
        selected=0.34,
        native=False,
    ),
    Sample(
        process="wjets",
        variation=NOMINAL,
        settings=(
            Setting("WeakBosonAndParton:qg2Wq = on", "leading order W and one jet"),
            Setting("WeakBosonAndParton:qqbar2Wg = on", "leading order W and one jet"),
            Setting("PhaseSpace:pTHatMin = 30", "GeV; softer ones have no four jets"),
            Setting("24:onMode = off", "of the W's decays"),
            Setting("24:onIfAny = 11 13 15", "only those to leptons"),
            *_shower("pTmaxMatch", "2", "further jets may be harder than the first"),
            *_shower("pTdampMatch", "1", _DAMPED),
            *_shower("pTdampFudge", "2.4", "from 2.4 times the factorisation scale on"),
        ),
        hard_stream="wjets",
        share=0.20,
        unit=100,
        vetoes=Vetoes(partons=3),
        factor=4.5,
        absorbs=(
            "the published cross-section is of all W bosons, these are W bosons with a jet above "
            f"30 GeV; and {_LO_RATE}"
        ),
        veto_loss=0.02,
        selected=0.15,
    ),
)
"""The datasets of the published analysis, by the names of its fileset."""


def sample(name: str) -> Sample:
    """The sample of a dataset.

    Raises
    ------
    UsageError
        There is no such dataset.
    """
    for candidate in SAMPLES:
        if candidate.name == name:
            return candidate
    raise _unknown(name)


def choose(patterns: Sequence[str] | None) -> tuple[Sample, ...]:
    """Samples whose dataset matches one of the shell patterns; None for all.

    Raises
    ------
    UsageError
        A pattern matches no dataset, or there is no pattern.
    """
    if patterns is None:
        return SAMPLES
    if not patterns:
        raise UsageError("no dataset is selected")
    for pattern in patterns:
        if not any(fnmatchcase(sample.name, pattern) for sample in SAMPLES):
            raise _unknown(pattern)
    return tuple(s for s in SAMPLES if any(fnmatchcase(s.name, p) for p in patterns))


def _unknown(name: str) -> UsageError:
    names = ", ".join(sample.name for sample in SAMPLES)
    return UsageError(f"no dataset matches {name!r}; choose from {names}")
