"""Figures of a record of `speed.py`, for docs/performance.md.

python benchmarks/speed_figures.py [RECORD.json] [-o docs/performance]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

ROOT: Final = Path(__file__).resolve().parent.parent
COLOURS: Final = plt.get_cmap("tab10").colors
TITLES: Final = {"3%": "3 % selected", "11%": "11 % selected", "W": "W+jets"}


def stages(record: dict[str, Any]) -> Any:
    """What the time of a chunk goes into, with inference."""
    samples = record["stages_us_per_event"]
    names = [name for name in next(iter(samples.values())) if name != "merge"]
    figure, panels = plt.subplots(1, len(samples), figsize=(11, 3.6), layout="constrained")
    for panel, (sample, cost) in zip(panels, samples.items(), strict=True):
        values = [cost[name] for name in names]
        bars = panel.barh(names, values, color=COLOURS[0])
        panel.bar_label(bars, labels=[f"{v:.3f}" for v in values], padding=3, fontsize=8)
        panel.set(title=TITLES[sample], xlabel="CPU time [us/event]")
        panel.set_xlim(0, 1.25 * max(values))
        panel.invert_yaxis()
    for panel in panels[1:]:
        panel.set_yticklabels([])
    return figure


def growth(record: dict[str, Any]) -> Any:
    """How the cost grows with chunk size, variations and jets."""
    grown = record["growth"]
    figure, (chunks, variations, jets) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    sizes = [int(size) for size in grown["chunk_us_per_event"]]
    for name, label, marker in (("ours", "agc-ml", "o"), ("runner", "baseline", "s")):
        costs = [cost[name] for cost in grown["chunk_us_per_event"].values()]
        chunks.plot(sizes, costs, marker=marker, label=label)
    chunks.set(
        xscale="log",
        yscale="log",
        title="Size of a chunk, with inference",
        xlabel="events of a chunk",
        ylabel="CPU time [us/event]",
    )
    chunks.set_xticks(sizes, [f"{size // 1000}k" for size in sizes])
    chunks.minorticks_off()
    chunks.legend(loc="center right")
    kinds = grown["variations_us_per_event"]
    for shift, (key, label) in enumerate((("no_ml", "without model"), ("ml", "with model"))):
        places = [i + 0.4 * shift - 0.2 for i in range(len(kinds))]
        bars = variations.barh(
            places, [cost[key] for cost in kinds.values()], height=0.38, label=label
        )
        variations.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    variations.set_yticks(range(len(kinds)), list(kinds))
    variations.set(title="Variations", xlabel="CPU time [us/event]")
    variations.set_xlim(0, 1.2 * max(cost["ml"] for cost in kinds.values()))
    variations.invert_yaxis()
    variations.legend()
    of_jets = grown["jets_us"]
    labels = [f"{n}{' or more' if n == '6' else ''}" for n in of_jets]
    bars = jets.bar(labels, list(of_jets.values()), color=COLOURS[2])
    jets.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    jets.margins(y=0.12)
    jets.set(title="Inference by jets", xlabel="selected jets", ylabel="CPU time [us/event]")
    return figure


def main() -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ROOT / "benchmarks" / "results" / "speed.json"
    parser.add_argument("record", type=Path, nargs="?", default=default)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "performance")
    given = parser.parse_args()
    if not given.record.exists():
        sys.exit(f"{given.record}: no record there; make one with 'make bench-speed'")
    record = json.loads(given.record.read_text(encoding="utf-8"))
    given.output.mkdir(parents=True, exist_ok=True)
    for draw in (stages, growth):
        figure = draw(record)
        figure.savefig(given.output / f"{draw.__name__}.png", dpi=110)
        plt.close(figure)


if __name__ == "__main__":
    main()
