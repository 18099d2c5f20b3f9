"""Figures of runs, fits and models, drawn with matplotlib and mplhep."""
