"""Comparison of generated events with the published histograms: shapes, ratio of regions, yields.

Electrons only, as in the published histograms. `DEMANDS` holds the limits; a sample may state known
shortfalls beyond them, and the check fails only for larger ones.
"""

from __future__ import annotations

import importlib.resources
import json
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import GenerateError, UsageError
from agc_ml.execution.cluster import clusters
from agc_ml.files import write
from agc_ml.inputs import agc_published
from agc_ml.simulation import manifest as manifests
from agc_ml.simulation import samples
from agc_ml.simulation.production import OtherRequestError, generate
from agc_ml.simulation.samples import Quantity, Sample

REGIONS: Final = ("4j1b", "4j2b")
FOLDER: Final = "check"
"""Subfolder of the set for figures and ``check.json``."""

Array = NDArray[np.float64]
Verdict = Literal["good", "stated shortfall", "worse than stated", "too few events"]
_PASSED: Final = {"good", "stated shortfall"}


class Demand(NamedTuple):
    """Limits of a sample: least number of selected events, and largest distances."""

    selected: int
    ks: float
    ratio: float = 0.05  # relative, beside two standard errors
    factor: float = 0.10  # relative to the stated factor


_ERRORS: Final = 2
"""Standard errors allowed beyond a limit."""

_TTBAR: Final = Demand(selected=10_000, ks=0.04)
_OTHERS: Final = Demand(selected=2_000, ks=0.06)
DEMANDS: Final[Mapping[str, Demand]] = {
    **{s.name: _OTHERS for s in samples.SAMPLES},
    **{f"ttbar__{variation}": _TTBAR for variation in ("nominal", "ME_var", "PS_var")},
}


class Line(NamedTuple):
    """One comparison: the measured value, the allowed one, and the verdict.

    ``limit`` is the allowed value, or a stated shortfall with its errors if that is larger.
    """

    dataset: str
    quantity: Quantity
    found: float
    uncertainty: float
    allowed: float
    limit: float
    verdict: Verdict
    why: str


class Comparison(NamedTuple):
    """Selected events of a dataset, generated and published, by region; counts with flow."""

    dataset: str
    generated: Mapping[str, Array]
    published: Mapping[str, Array]
    scale: float

    @property
    def selected(self) -> int:
        """Number of selected generated events."""
        return int(sum(counts.sum() for counts in self.generated.values()))


class Checked(NamedTuple):
    """Outcome of a check."""

    seed: int
    comparisons: tuple[Comparison, ...]
    lines: tuple[Line, ...]

    @property
    def is_good(self) -> bool:
        """Return True if all comparisons are within the limits or stated shortfalls."""
        return all(line.verdict in _PASSED for line in self.lines)

    @property
    def facts(self) -> dict[str, Any]:
        """Content of ``check.json``."""
        return {
            "seed": self.seed,
            "good": self.is_good,
            "selected": {c.dataset: c.selected for c in self.comparisons},
            "lines": [line._asdict() for line in self.lines],
            "counts": {
                c.dataset: {region: counts.tolist() for region, counts in c.generated.items()}
                for c in self.comparisons
            },
        }


@cache
def published() -> dict[str, dict[str, Array]]:
    """Selected events in the published histograms: dataset -> region -> bins with flow."""
    file = importlib.resources.files("agc_ml.simulation") / "agc_counts.json"
    content = json.loads(file.read_text(encoding="utf-8"))["counts"]
    return {
        dataset: {region: np.array(counts, float) for region, counts in regions.items()}
        for dataset, regions in content.items()
    }


def needed(datasets: Iterable[Sample]) -> dict[str, int]:
    """Events to generate of each dataset, with electrons only, for a check; with a margin."""
    margin = 1.08
    return {s.name: round(margin * DEMANDS[s.name].selected / s.selected) for s in datasets}


def make_set(folder: Path, seed: int, *, site: str, workers: int | None, quiet: bool) -> None:
    """Generate the events that a check needs, or resume it.

    Raises
    ------
    UsageError
        The folder holds events of other settings or versions.
    AgcError
        As for `production.generate`.
    """
    try:
        generate(
            folder,
            events=needed(samples.SAMPLES),
            seed=seed,
            content="slim",
            muons=False,
            site=site,
            workers=workers,
            resume=folder.exists(),
            quiet=quiet,
        )
    except OtherRequestError as error:
        raise UsageError(
            f"{folder}: begun with other settings, code or versions; remove it, or choose another "
            "--seed"
        ) from error


def check(
    folder: Path, *, site: str = clusters.LOCAL, workers: int | None = None, quiet: bool = False
) -> Checked:
    """Compare a generated set with the published histograms.

    Raises
    ------
    GenerateError
        The folder holds no complete set.
    AgcError
        The events can't be processed.
    """
    made = manifests.load(folder)
    manifests.verify(folder, made)
    for name in made.datasets:
        if name not in DEMANDS:
            raise GenerateError(
                f"{folder}: dataset {name} is unknown; known are {', '.join(DEMANDS)}"
            )
    # Events selected by the measurement, then all comparisons of each dataset.
    counts = _selected(folder, site=site, workers=workers, quiet=quiet)
    comparisons = tuple(
        Comparison(
            dataset=name,
            generated=counts[name],
            published=published()[name],
            scale=_scale(name, record.generated),
        )
        for name, record in made.datasets.items()
    )
    lines = [line for comparison in comparisons for line in compare(comparison)]
    return Checked(made.request.seed, comparisons, tuple(lines))


def _selected(folder: Path, **options: Any) -> dict[str, dict[str, Array]]:
    """Numbers of selected events of each dataset and region, by the measurement's processor."""
    from agc_ml.execution.run import run  # noqa: PLC0415 - heavy

    with tempfile.TemporaryDirectory() as scratch:
        result = run(
            "ttbar",
            str(folder / manifests.FILESET),
            settings={"muons": "false"},
            output=Path(scratch) / "run",
            **options,
        )
    selected: dict[str, dict[str, Array]] = {}
    for dataset in result.provenance.datasets:
        suffix = "" if dataset.variation == "nominal" else f"_{dataset.variation}"
        for region in REGIONS:
            template = result.templates[f"{region}_{dataset.process}{suffix}"]
            view: Any = template.view(flow=True)  # sums of w and w^2
            # All events of a dataset have the same weight: w = sum(w^2) / sum(w).
            total = view["value"].sum()
            weight = view["variance"].sum() / total if total > 0 else 1.0
            counts = np.round(view["value"] / weight)
            selected.setdefault(dataset.name, {})[region] = np.asarray(counts, np.float64)
    return selected


def _scale(name: str, generated: int) -> float:
    """Published events per generated event, at the same cross-section."""
    sample = samples.sample(name)
    return sum(agc_published.entries(sample.process, sample.variation)) / generated


def compare(comparison: Comparison) -> list[Line]:
    """All comparisons of one dataset."""
    sample = samples.sample(comparison.dataset)
    demand = DEMANDS[comparison.dataset]
    generated, reference = comparison.generated, comparison.published
    totals = {region: generated[region].sum() for region in REGIONS}
    if comparison.selected < demand.selected or not all(totals.values()):
        return [
            Line(
                sample.name, "selected", comparison.selected, 0.0, demand.selected,
                demand.selected, "too few events", "generate more",
            )
        ]  # fmt: skip
    # Ratio of the regions, relative to the published one, and ratio of yields.
    control, signal = REGIONS
    ratio = (totals[signal] / totals[control]) / (
        reference[signal].sum() / reference[control].sum()
    ) - 1
    error = float(np.sqrt(sum(1 / total for total in totals.values())))
    yields = sum(totals.values()) * comparison.scale / sum(reference[r].sum() for r in REGIONS)
    lines = [
        _judged(sample, _KS[region], ks_distance(generated[region], reference[region]), 0.0,
                demand.ks)
        for region in REGIONS
    ]  # fmt: skip
    lines.append(_judged(sample, "ratio", ratio, error, demand.ratio + _ERRORS * error))
    off = yields / sample.factor - 1
    lines.append(_judged(sample, "factor", off, comparison.selected**-0.5, demand.factor))
    return lines


_KS: Final[Mapping[str, Quantity]] = {"4j1b": "ks_4j1b", "4j2b": "ks_4j2b"}


def _judged(
    sample: Sample, quantity: Quantity, found: float, uncertainty: float, allowed: float
) -> Line:
    stated = next((s for s in sample.shortfalls if s.quantity == quantity), None)
    limit = allowed
    if stated is not None:
        limit = max(allowed, stated.value + _ERRORS * uncertainty)
    verdict: Verdict = "good"
    if abs(found) > allowed:
        verdict = "stated shortfall" if abs(found) <= limit else "worse than stated"
    why = "" if stated is None else f"{stated.value:g} is stated: {stated.why}"
    return Line(
        sample.name, quantity, float(found), uncertainty, float(allowed), float(limit), verdict, why
    )


def ks_distance(counts: Array, reference: Array) -> float:
    """Kolmogorov distance of two histograms with flow bins."""
    difference = np.cumsum(counts) / counts.sum() - np.cumsum(reference) / reference.sum()
    return float(np.abs(difference).max())


def save(checked: Checked, directory: Path) -> None:
    """Write ``check.json`` into a directory.

    Raises
    ------
    StoreError
        It can't be written.
    """
    text = json.dumps(checked.facts, indent=1)
    write(directory / "check.json", lambda path: path.write_text(text + "\n"))


def raise_if_bad(checked: Checked) -> None:
    """Fail if a limit is exceeded by more than a stated shortfall.

    Raises
    ------
    GenerateError
        The number of such comparisons, and the worst one.
    """
    bad = [line for line in checked.lines if line.verdict not in _PASSED]
    few = [line for line in bad if line.verdict == "too few events"]
    if few:
        named = ", ".join(f"{x.dataset} {x.found:,.0f} of {x.allowed:,.0f}" for x in few)
        raise GenerateError(
            f"too few selected events to judge: {named}; generate more, or leave out DIR: then the "
            "check generates enough"
        )
    if bad:
        worst = max(bad, key=lambda line: abs(line.found) / line.limit)
        raise GenerateError(
            f"comparisons worse than stated: {len(bad)} of {len(checked.lines)}, the worst "
            f"{worst.dataset}: {worst.quantity} is {worst.found:+.3f}, at most {worst.limit:.3f} "
            "is allowed; see the table"
        )
