"""A processor that adds up a column."""

from __future__ import annotations

from typing import Any

from coffea.processor import ProcessorABC

from agc_ml.columnar.events import blocks


class Sum(ProcessorABC):
    columns = ("x",)
    flat = True

    def process(self, events: Any) -> dict[str, float]:
        return {"sum": sum(float(block.x.sum()) for block in blocks(events))}
