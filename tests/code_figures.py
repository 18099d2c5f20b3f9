"""Figures of the code: sizes, docstrings, comments. Run it on a checkout to see them.

    python tests/code_figures.py [CHECKOUT]

Statements are logical lines of Python without blank lines, comments and docstrings.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PACKAGES: Final = ("agc_ml", "processors")

CLAUSE: Final = re.compile(
    r"(what|whatever|whether|which|who|whose|how|where|when|why|those|that)\b", re.IGNORECASE
)
"""First words of docstrings that begin with a clause where they should name something."""

PRONOUN: Final = re.compile(
    r"(?:return )?(?:what|whatever|whether|which|who|whose|how|where|when|why|those|that|this|these"
    r"|it|they|he|she|we|you|one|ones|both|none|nothing|nobody|everything|everybody|others|another)"
    r"\b|.*[,;:] (?:it|they|he|she|we|you|nobody|everybody)\b",
    re.IGNORECASE,
)
"""First lines of docstrings whose subject is a pronoun or a clause."""

_NO_CODE: Final = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


@dataclass
class Figures:
    """Figures of the Python files of some folders."""

    lines: dict[Path, int] = field(default_factory=dict)
    statements: Counter[str] = field(default_factory=Counter)
    comments: int = 0
    functions: dict[str, int] = field(default_factory=dict)
    first_lines: dict[str, str] = field(default_factory=dict)
    starred: list[str] = field(default_factory=list)

    @property
    def comment_share(self) -> float:
        """Lines with a comment, as a share of all lines."""
        return self.comments / sum(self.lines.values())

    def docstrings(self, pattern: re.Pattern[str]) -> list[str]:
        """Places of docstrings whose first line matches at its beginning."""
        return [place for place, line in self.first_lines.items() if pattern.match(line)]


def figures(root: Path, packages: tuple[str, ...] = PACKAGES) -> Figures:
    """Figures of the packages in a checkout."""
    result = Figures()
    for path in sorted(path for package in packages for path in (root / package).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        where = path.relative_to(root)
        result.lines[where] = text.count("\n")
        documented = 0
        for node in ast.walk(tree):
            if isinstance(node, ast.Starred) and isinstance(node.value, ast.Tuple | ast.List):
                result.starred.append(f"{where}:{node.lineno}")
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                result.functions[f"{where}:{node.lineno} {node.name}"] = length
            if isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ) and (docstring := ast.get_docstring(node)):
                documented += 1
                place = f"{where}:{getattr(node, 'lineno', 1)}"
                result.first_lines[place] = docstring.partition("\n")[0]
        kinds = Counter(token.type for token in _tokens(text))
        result.comments += kinds[tokenize.COMMENT]
        room = "/".join(where.parts[: 2 if len(where.parts) > 2 else 1])
        result.statements[room] += kinds[tokenize.NEWLINE] - documented
    return result


def _tokens(text: str) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(text).readline)


def main(root: Path) -> None:
    """Print the figures of a checkout."""
    found = figures(root)
    for room, number in sorted(found.statements.items()):
        print(f"{number:7,} statements in {room}")
    total = len(found.first_lines)
    print(f"{sum(found.statements.values()):7,} statements in all, {len(found.lines)} files")
    print(f"{max(found.lines.values()):7,} lines in the longest file")
    print(f"{max(found.functions.values()):7,} lines in the longest function")
    print(f"{100 * found.comment_share:7.2f} % of lines have a comment")
    print(f"{100 * len(found.docstrings(CLAUSE)) / total:7.2f} % of docstrings begin with a clause")
    share = 100 * len(found.docstrings(PRONOUN)) / total
    print(f"{share:7.2f} % of docstrings have a pronoun or a clause as subject")
    print(f"{len(found.starred):7,} starred tuples")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
