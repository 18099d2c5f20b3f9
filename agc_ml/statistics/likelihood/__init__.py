"""Binned likelihoods and their minimisation."""
