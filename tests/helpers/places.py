"""Folders of the checkout that tests use."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
TESTS: Final = ROOT / "tests"
HELPERS: Final = TESTS / "helpers"
REFERENCE: Final = TESTS / "reference"
