"""Figures, tables and the report of runs and fits."""
