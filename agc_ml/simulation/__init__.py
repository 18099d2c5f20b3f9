"""Events of our own: Pythia 8, FastJet and a parametrised detector, written as NanoAOD.

::

    samples (settings) -> pythia -> record -> genpart, genjets -> detector -> unit (kept events)
    plan (units, files) -> production -> manifest, fileset -> check (against published histograms)

Needs the extra ``generate`` (pythia8mc, fastjet). `production.generate` is the way in; the same
seed gives the same events on any number of workers.
"""
