"""Figures of runs, histograms and fits, as PNG and PDF.

Importing this imports matplotlib and mplhep, so import it where something is drawn.
"""

from agc_ml.plots.fit import draw_fit
from agc_ml.plots.style import FigureInfo
from agc_ml.plots.templates import draw_run, draw_templates

__all__ = ["FigureInfo", "draw_fit", "draw_run", "draw_templates"]
