"""Parametrised detector response of the simulation."""
