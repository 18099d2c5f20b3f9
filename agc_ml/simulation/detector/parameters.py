"""Parameters of the detector: CMS in 2015, for a generator without multiparton interactions.

One set for all processes, variations and regions. Numbers without a source were tuned to the
published histograms of the nominal ttbar sample (shapes, ratio of the two regions, yield); the
b-tagging efficiencies balance the ratios of all samples.
"""

from __future__ import annotations

from typing import Final, NamedTuple

Knots = tuple[tuple[float, ...], tuple[float, ...]]
"""Ascending values of a discriminator, and the fraction of jets above each."""

_VALUES: Final = (0.0, 0.1, 0.2, 0.3, 0.46, 0.5, 0.8, 0.935, 0.98, 0.995, 1.0)
_LIGHT_VALUES: Final = (0.0, 0.07, 0.1, 0.15, 0.2, 0.3, 0.46, 0.5, 0.8, 0.935, 0.98, 0.995, 1.0)


class JetParameters(NamedTuple):
    """Response of jets; pt in GeV.

    ``noise``, ``stochastic`` and ``constant`` are the terms of the relative resolution
    sqrt((N / pt)^2 + S^2 / pt + C^2), of the size in JINST 12 (2017) P02014. ``offset`` is the pt
    of multiparton interactions in a jet. ``pileup_neutral`` is the pt of neutral particles from
    other collisions: part of a jet's composition, but subtracted from its energy.
    """

    noise: float = 3.0
    stochastic: float = 0.85
    constant: float = 0.04
    scale: float = 1.02
    offset: float = 1.0
    offset_spread: float = 0.8
    forward_slope: float = 0.08  # growth of the resolution per unit of |eta| above 1.3
    lepton_resolution: float = 0.35  # of the resolution, where a lepton makes up the jet
    direction_spread: float = 0.02  # in eta and phi
    mass_spread: float = 0.06  # relative
    min_response: float = 0.2
    max_response: float = 3.0
    pileup_neutral: float = 2.6
    pileup_spread: float = 0.5  # relative
    pileup_hadronic: float = 0.45  # part of it that is neutral hadrons, the rest photons
    offset_charged: float = 0.6
    charged_spread: float = 0.02  # relative
    neutral_spread: float = 0.25  # relative
    extra_constituents: float = 2.0
    min_pt: float = 15.0  # NanoAOD's slimmedJets
    max_eta: float = 4.7
    tracker_eta: float = 2.5


class TagParameters(NamedTuple):
    """CSVv2 by flavour, as inverse survival functions, and the quark-gluon likelihood.

    The points 0.46, 0.80 and 0.935 are CMS's loose, medium and tight working points of 2015,
    defined by 10, 1 and 0.1 % of light jets; the measurement cuts at 0.5, and only values near it
    were tuned.
    """

    bottom: Knots = (
        _VALUES,
        (1.0, 0.985, 0.945, 0.905, 0.832, 0.82, 0.697, 0.5002, 0.328, 0.1312, 0.0),
    )
    charm: Knots = (
        _VALUES,
        (1.0, 0.96, 0.76, 0.60, 0.37, 0.34, 0.1768, 0.068, 0.0272, 0.0068, 0.0),
    )
    light: Knots = (
        _LIGHT_VALUES,
        (
            1.0,
            0.985,
            0.93,
            0.62,
            0.40,
            0.22,
            0.124,
            0.112,
            0.02128,
            0.00392,
            0.000896,
            0.000112,
            0.0,
        ),
    )
    no_vertex_heavy: float = 0.008  # jets without any track for it have the value -10
    no_vertex_soft: float = 0.22  # light jets below 30 GeV
    no_vertex_light: float = 0.05
    quark_likelihood: tuple[float, float] = (1.05, 0.55)  # of a beta distribution
    gluon_likelihood: tuple[float, float] = (0.65, 1.35)
    heavy_likelihood: tuple[float, float] = (0.8, 1.1)
    other_likelihood: tuple[float, float] = (0.9, 0.9)


class ElectronParameters(NamedTuple):
    """Response and identification of electrons; pt in GeV.

    The tight cut-based identification passes ``tight_plateau`` * (1 - exp(-pt / ``tight_turn_on``))
    in the barrel and ``endcap`` of that outside, JINST 10 (2015) P06005; its isolation is below
    ``barrel_isolation`` or ``endcap_isolation``, twice the nominal cut, as no pile-up is subtracted
    here.
    """

    noise: float = 0.9
    stochastic: float = 0.11
    constant: float = 0.012
    endcap_resolution: float = 1.6
    tight_plateau: float = 0.84
    tight_turn_on: float = 22.0
    endcap: float = 0.82
    medium: float = 0.10  # more than tight
    loose: float = 0.16
    veto: float = 0.18
    barrel_isolation: float = 0.0708
    endcap_isolation: float = 0.1292
    loosest_isolation: float = 0.2
    efficiency: float = 0.96  # of reconstruction, above 20 GeV
    soft_efficiency: float = 0.85
    barrel_eta: float = 1.48
    crack: tuple[float, float] = (1.4442, 1.566)  # between barrel and endcap, no tight electrons
    fsr_cone: float = 0.1  # photons that are measured with the electron
    isolation_cone: float = 0.3
    min_pt: float = 5.0
    max_eta: float = 2.5
    mass: float = 0.000511


class MuonParameters(NamedTuple):
    """Response and identification of muons; pt in GeV (resolution: JINST 13 (2018) P06015)."""

    constant: float = 0.01
    per_gev: float = 1.2e-4
    endcap_resolution: float = 1.5  # above |eta| = 1.2
    efficiency: float = 0.985  # of reconstruction
    tight: float = 0.95
    medium: float = 0.5  # of those that are not tight
    isolation_cone: float = 0.4
    min_pt: float = 3.0
    max_eta: float = 2.4
    mass: float = 0.10566


class ImpactParameters(NamedTuple):
    """Impact parameters of leptons, in cm: resolution a + b / pt, mean displacement by origin."""

    transverse: float = 0.0015
    transverse_per_gev: float = 0.02
    longitudinal: float = 0.003
    from_hadron: float = 0.02
    from_tau: float = 0.004


class EventParameters(NamedTuple):
    """Isolation noise, missing momentum and pile-up of an event; GeV."""

    isolation: float = 0.35  # mean of an exponential, less its offset: pile-up after correction
    isolation_offset: float = 0.25
    charged_isolation: float = 0.12
    charged_isolation_offset: float = 0.1
    met_spread: float = 11.0  # an axis
    met_share: float = 0.8  # of the jets' mismeasurement
    sum_et: float = 250.0
    sum_et_spread: float = 60.0
    vertices: float = 11.0  # mean of a Poisson distribution


class ConstituentParameters(NamedTuple):
    """Particles of jets and secondary vertices: resolutions, relative in pt, positions in cm."""

    charged: float = 0.01
    photon: float = 0.03
    photon_stochastic: float = 0.05
    neutral: float = 0.1
    neutral_stochastic: float = 0.8
    transverse: float = 0.0012  # at high pt; below 5 GeV it grows
    track_efficiency: float = 0.92
    vertex_efficiency: float = 0.85
    vertex_transverse: float = 0.0015
    vertex_longitudinal: float = 0.003
    vertex_error: float = 0.003
    min_significance: float = 3.0  # of a vertex's flight distance


class Detector(NamedTuple):
    """All parameters; `DETECTOR` is the one in use."""

    jets: JetParameters = JetParameters()
    tags: TagParameters = TagParameters()
    electrons: ElectronParameters = ElectronParameters()
    muons: MuonParameters = MuonParameters()
    tracks: ImpactParameters = ImpactParameters()
    event: EventParameters = EventParameters()
    constituents: ConstituentParameters = ConstituentParameters()


DETECTOR: Final = Detector()
