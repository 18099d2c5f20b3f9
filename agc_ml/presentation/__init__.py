"""Figures of runs, histograms and fits, as PNG and PDF.

Importing this imports matplotlib and mplhep, so import it where something is drawn.
"""

from agc_ml.presentation.distributions import draw_run, draw_templates
from agc_ml.presentation.fit import draw_fit
from agc_ml.presentation.style import FigureInfo

__all__ = ["FigureInfo", "draw_fit", "draw_run", "draw_templates"]
