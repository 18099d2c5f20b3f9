"""Self-contained HTML report of a run, a fit, or both: the result first, then its origin.

The content is from `agc_ml.presentation.report_content`, the layout from ``report.html.j2``. The
page needs no network and no script, so that it can be mailed, archived and printed.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final, NamedTuple

from agc_ml import documents
from agc_ml._version import __version__
from agc_ml.errors import RunDirectoryError
from agc_ml.files import write
from agc_ml.presentation import report_content
from agc_ml.presentation.page import Amount, FigureInfo, Page

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from agc_ml.results.run_result import RunResult
    from agc_ml.statistics.fit_result import FitResult

__all__ = ["is_whole", "write_page", "write_report"]

PNG_END: Final = b"IEND\xaeB`\x82"
"""Last bytes of a PNG file."""
_MOST: Final = 1 << 28
"""Bytes of a figure, at most."""


class _Image(NamedTuple):
    """A figure in the page: size in pixels, PNG as base64."""

    title: str
    caption: str
    pdf: str
    width: int
    height: int
    data: str


def write_report(
    result: RunResult | None,
    fit: FitResult | None,
    figures: Sequence[FigureInfo],
    path: Path,
    large: Collection[str] | None = None,
) -> None:
    """Write the report of a run, its fit, or a fit of bare histograms (without a run).

    ``large`` are the histograms whose yields are shown, None for all.

    Raises
    ------
    RunDirectoryError
        A figure is gone.
    StoreError
        The page can't be written.
    """
    write_page(report_content.page(result, fit, figures, large), path)


def write_page(page: Page, path: Path) -> None:
    """Write a page with its figures in it.

    Raises
    ------
    RunDirectoryError
        A figure is gone.
    StoreError
        The page can't be written.
    """
    import jinja2  # noqa: PLC0415 - only here

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("agc_ml.presentation", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = _shown
    images = [_image(figure) for figure in page.figures]
    template = environment.get_template("report.html.j2")
    text = template.render(page=page, images=images, version=__version__)
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _shown(cell: object) -> str:
    """Text of a cell of a table."""
    if cell is None:
        return "\N{EN DASH}"
    if isinstance(cell, Amount):
        return cell.text
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if cell == int(cell) else f"{cell:,.2f}"
    return str(cell)


def is_whole(image: Path) -> bool:
    """Return whether a PNG file is there, and not cut off."""
    try:
        return documents.content(image, _MOST).endswith(PNG_END)
    except (OSError, ValueError):
        return False


def _image(figure: FigureInfo) -> _Image:
    try:
        data = documents.content(figure.png, _MOST)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunDirectoryError(
            f"{figure.png}: can't be read ({reason}); draw it again with 'agc-ml plot'"
        ) from error
    if not data.endswith(PNG_END):
        raise RunDirectoryError(f"{figure.png}: cut off; draw it again with 'agc-ml plot'")
    return _Image(
        title=figure.title,
        caption=figure.caption,
        pdf=figure.pdf.name,
        # width and height are at fixed places in a PNG file
        width=int.from_bytes(data[16:20], "big"),
        height=int.from_bytes(data[20:24], "big"),
        data=base64.b64encode(data).decode("ascii"),
    )
