"""Steps after a run: figures, fit and report, and `measure`, which takes all of them.

A run directory passes between them: figures go to ``figures/``, the fit to ``fit/``, the page to
``report.html``. The kind of pseudodata belongs to the run (``measurement.json``): a command stores
it as the default of the following ones, and a page has one kind only.
"""

from agc_ml.measurement.cross_section import Measurement, measure
from agc_ml.measurement.fitting import fit, fit_folder
from agc_ml.measurement.plotting import plot
from agc_ml.measurement.reporting import report

__all__ = ["Measurement", "fit", "fit_folder", "measure", "plot", "report"]
