from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agc_ml.inputs.variations import DIRECTIONS, WeightVariation, source_of, variation_name


@given(source=st.text("abcxyz_0123", min_size=1).filter(lambda s: not s.endswith("_")))
def test_names_go_there_and_back(source: str) -> None:
    for direction in DIRECTIONS:
        assert source_of(variation_name(source, direction)) == (source, direction)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nominal", ("nominal", None)),
        ("ME_var", ("ME_var", None)),
        ("scaleup", ("scale", "up")),
        ("scaledown", ("scale", "down")),
        ("up", ("up", None)),
    ],
)
def test_names_from_outside(name: str, expected: tuple[str, str | None]) -> None:
    assert source_of(name) == expected


def test_processes_of_a_variation() -> None:
    def factor(jets: object, direction: object) -> object:
        return jets

    assert WeightVariation("a", factor).applies_to("anything")
    only = WeightVariation("a", factor, processes=frozenset({"wjets"}))
    assert only.applies_to("wjets")
    assert not only.applies_to("ttbar")
