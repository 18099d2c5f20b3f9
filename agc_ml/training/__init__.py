"""Training models: searches, judgement, a registry, and a service that does it for a group.

Fed with training sets that runs extract (`agc_ml.results.tables`); knows no processors and no runs.
"""
