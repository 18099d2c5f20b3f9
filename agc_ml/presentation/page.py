"""Model of a page of results, which the command line prints and the report renders as HTML.

Imports nothing heavy, so that a command can print a table at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

LONG_WORD: Final = 40
"""Characters of a word that is too long for a line of a phone, such as the path of a file."""


class FigureInfo(NamedTuple):
    """A figure on disk: the name of its files without suffix, title and caption in plain text.

    The caption also says what is not shown.
    """

    name: str
    title: str
    caption: str
    png: Path
    pdf: Path


class Amount(NamedTuple):
    """A number for the terminal, and its text with a unit for the report."""

    value: float
    text: str


@dataclass(frozen=True)
class Table:
    """A table with notes under it; the first cell of a row is its heading.

    Cells are text, numbers or amounts, None where there is no value. The first ``words`` columns
    are aligned as text; if not stated, all columns without numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    notes: Sequence[str] = ()
    words: int | None = None

    def is_text(self, column: int) -> bool:
        """Return whether a column is aligned as text."""
        if self.words is not None:
            return column < self.words
        return all(isinstance(row[column], str) for row in self.rows)

    @property
    def heading(self) -> str:
        """The title with a capital letter."""
        return self.title[:1].upper() + self.title[1:]

    @property
    def anchor(self) -> str:
        """Name of the table in links."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")

    @property
    def is_long(self) -> bool:
        """Whether a word is too long for a line of a phone."""
        words = (word for row in self.rows for cell in row for word in str(cell).split())
        return any(len(word) > LONG_WORD for word in words)


class Notice(NamedTuple):
    """Lines that no reader must miss; ``bad`` when they cast doubt on the result."""

    title: str
    lines: Sequence[str]
    bad: bool = True


@dataclass(frozen=True)
class Page:
    """A page: status, headline and lines first, then tables, figures and details.

    ``headline`` is (name, value, comment on the value); ``data`` are the same facts for programs.
    """

    title: str = ""
    status: str = ""
    good: bool = True
    subtitle: str = ""
    headline: tuple[str, str, str] | None = None
    lines: Sequence[str] = ()
    notices: Sequence[Notice] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[FigureInfo] = ()
    details: Sequence[Table] = ()
    data: Any = None
