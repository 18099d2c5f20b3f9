"""How all figures look, what they are labelled with, and how they are saved.

Imports matplotlib and mplhep: only `agc_ml.presentation` imports this, and only commands that draw
import that.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import matplotlib as mpl
import mplhep
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from matplotlib.ticker import EngFormatter
from numpy.typing import ArrayLike, NDArray

from agc_ml.analysis import Process
from agc_ml.errors import printable
from agc_ml.files import store_errors, write
from agc_ml.inputs import agc_published
from agc_ml.presentation.page import FigureInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

Array = NDArray[np.float64]

DPI: Final = 120
ENERGY: Final = "13"  # TeV, of the published and of generated events
PB_PER_FB: Final = 1000
LONG: Final = (0.01, 100_000)  # numbers between them are short enough for an axis

# M. Petroff, "Accessible color sequences for data visualization", arXiv:2107.02270: ten colours
# that stay apart for colour-blind readers and in print.
PETROFF: Final = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
UP: Final = PETROFF[2]
DOWN: Final = PETROFF[0]
BAND: Final = "#717581"
UNKNOWN: Final = "stat. uncertainty not known"

_processes: Final[ContextVar[Mapping[str, Process]]] = ContextVar(
    "processes", default=MappingProxyType({})
)

_RC: Final[dict[Any, Any]] = {
    **mplhep.style.CMS,
    "font.family": ["TeX Gyre Heros", "DejaVu Sans"],  # the second for letters it lacks
    "font.size": 13,
    "axes.linewidth": 1.0,
    "xtick.major.size": 6,
    "xtick.minor.size": 3,
    "ytick.major.size": 6,
    "ytick.minor.size": 3,
    "hatch.linewidth": 0.6,
    "text.usetex": False,  # a matplotlibrc in the working directory, whoever's, could run TeX
    "pdf.fonttype": 3,  # outlines: half the time of embedding the OpenType font as such
}


class Label(NamedTuple):
    """What stands above a figure: luminosity in 1/pb (None: unknown), and where events are from.

    ``source`` is whose events they are, None where that is not known.
    """

    luminosity: float | None
    simulation: bool
    source: str | None = None


@contextmanager
def applied(processes: Mapping[str, Process] = MappingProxyType({})) -> Iterator[None]:
    """Use the style for what is drawn and saved inside, and restore matplotlib's settings after.

    ``processes`` have the labels and colours that their analysis declares.
    The settings are those of the whole process: draw in one thread at a time.
    """
    subsetting = logging.getLogger("fontTools.subset")  # has dozens of lines to say on each PDF
    level = subsetting.level
    subsetting.setLevel(logging.WARNING)
    names = {name: one for key, one in processes.items() for name in (key, *one.samples)}
    before = _processes.set(names)
    try:
        with mpl.rc_context(_RC):
            yield
    finally:
        _processes.reset(before)
        subsetting.setLevel(level)


def process_label(process: str) -> str:
    """Legend entry of a process."""
    declared = _processes.get().get(process)
    return formula(declared.label) if declared and declared.label else plain(process)


def process_colors(processes: Iterable[str]) -> dict[str, str]:
    """Colour of each process: those that the analysis declares, others in order."""
    processes = list(processes)
    declared = {name: _processes.get().get(name) for name in processes}
    fixed = {name: one.color for name, one in declared.items() if one and one.color}
    free = [color for color in PETROFF if color not in fixed.values()] or list(PETROFF)
    others = [name for name in processes if name not in fixed]
    return fixed | {name: free[index % len(free)] for index, name in enumerate(others)}


def plain(text: str) -> str:
    """Text that is drawn as it is: names may hold dollar signs, which would start mathematics.

    What no font has, such as control characters, is written out.
    """
    return printable(text).replace("$", r"\$")


def formula(text: str) -> str:
    """Axis label that may hold mathematics; drawn as it is where that can't be parsed."""
    try:
        MathTextParser("path").parse(text)
    except ValueError:
        return plain(text)
    return text


def divide(values: Array, by: Array) -> Array:
    """``values / by``, NaN (not drawn) where ``by`` is not positive."""
    quotient: Array = np.divide(values, by, out=np.full(len(by), np.nan), where=by > 0)
    return quotient


def band(axes: Axes, size: Array, edges: Array, *, light: bool = False) -> None:
    """Draw a relative uncertainty around 1; ``light`` for a wider one behind another."""
    alpha = 0.2 if light else 0.4
    axes.stairs(1 + size, edges, baseline=1 - size, fill=True, color=BAND, alpha=alpha, lw=0)


def largest(*values: ArrayLike) -> float:
    """Largest of all finite values, at least 0: what an axis must hold."""
    return max(float(np.max(v, initial=0, where=np.isfinite(v))) for v in map(np.asarray, values))


def new_figure(width: float, height: float) -> Figure:
    """Make a figure, size in inches, outside of pyplot, with the canvas that mplhep needs."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def header(figure: Figure, margins: Sequence[float], label: Label) -> None:
    """Label the top of a figure of many panels, on invisible axes.

    ``margins``: left, right and top of the panels, in fractions of the figure. Call it before the
    panels are made: mplhep draws the whole figure to place a label.
    """
    left, right, top = margins
    axes = figure.add_axes((left, top - 0.1, right - left, 0.1))
    axes.set_axis_off()
    experiment(axes, label)


def experiment(axes: Axes, label: Label) -> None:
    """Write experiment, luminosity and energy above the axes."""
    # whose events they are is said, never guessed; the energy is known of two kinds
    is_cms = label.source == agc_published.LABEL
    if is_cms:
        text = "Open Data Simulation" if label.simulation else "Open Data"
    elif label.source is not None:
        text = plain(label.source)
    else:
        text = "Simulation" if label.simulation else ""
    # of other events of CMS the energy is another one, such as 8 TeV
    has_energy = label.source == agc_published.GENERATED or (
        is_cms and label.luminosity == agc_published.LUMINOSITY
    )
    has_energy = has_energy and label.luminosity is not None
    mplhep.label.exp_label(
        exp="CMS" if is_cms else "",
        text=text,
        data=True,  # else mplhep puts "Simulation" first
        lumi=None if label.luminosity is None else label.luminosity / PB_PER_FB,
        lumi_format="{0:.4g}",
        com=ENERGY if has_energy else None,
        # no axis here writes a power of ten where the label is; looking for it, mplhep asks pyplot
        scilocator_adjust=False,
        ax=axes,
    )


def set_events_range(axes: Axes, size: float, limits: tuple[float, float]) -> None:
    """Set the range of an axis of events, which ``size`` events fill; a note if there are none.

    Numbers that would need a power of ten are written as 200k for 200000.
    """
    if size == 0:
        axes.set_ylim(0, 1)
        say_no_events(axes)
        return
    axes.set_ylim(limits)
    if not LONG[0] < size < LONG[1]:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def say_no_events(axes: Axes) -> None:
    """Explain an empty frame."""
    axes.text(0.5, 0.5, "no events", transform=axes.transAxes, ha="center", va="center", c="0.4")


def make_folder(directory: Path) -> None:
    """Create the folder of the figures.

    Raises
    ------
    StoreError
        It can't be created.
    """
    with store_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)


def save(figure: Figure, directory: Path, name: str, title: str, caption: str) -> FigureInfo:
    """Write a figure as PNG and PDF.

    A name that files can't have gets some of its digest, so that no other one becomes the same.

    Raises
    ------
    StoreError
        The folder can't be written.
    """
    stem = re.sub(r"[^\w.+-]|^\.", "_", name)
    if stem != name:
        stem += f"-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    png, pdf = directory / f"{stem}.png", directory / f"{stem}.pdf"
    write(png, lambda path: figure.savefig(path, dpi=DPI))
    # without a date the same result gives the same bytes
    write(pdf, lambda path: figure.savefig(path, metadata={"CreationDate": None}))
    return FigureInfo(stem, title, caption, png, pdf)
