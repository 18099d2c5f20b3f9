"""Generated events against the published histograms: shapes, ratio of the regions, yields.

Electrons only, as the published histograms are. What has to be reached is in `DEMANDS`; where a
sample falls short of it, the sample says so, and the check fails only where it is worse than that.
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
from agc_ml.inputs import agc_published
from agc_ml.simulation import manifest as manifests
from agc_ml.simulation import samples
from agc_ml.simulation.production import OtherRequestError, generate
from agc_ml.simulation.samples import Quantity, Sample

REGIONS: Final = ("4j1b", "4j2b")
FOLDER: Final = "check"
"""Where figures and facts go, inside the folder of the set."""

Array = NDArray[np.float64]
Verdict = Literal["good", "stated shortfall", "worse than stated", "too few events"]


class Demand(NamedTuple):
    """What a sample has to reach: least number of selected events, and largest distances."""

    selected: int
    ks: float
    ratio: float = 0.05  # relative, beside two standard errors
    factor: float = 0.10  # relative to the stated factor


_ERRORS: Final = 2
"""So many standard errors beyond a limit are allowed where the demands have them."""

_TTBAR: Final = Demand(selected=10_000, ks=0.04)
_OTHERS: Final = Demand(selected=2_000, ks=0.06)
DEMANDS: Final[Mapping[str, Demand]] = {
    **{s.name: _OTHERS for s in samples.SAMPLES},
    **{f"ttbar__{variation}": _TTBAR for variation in ("nominal", "ME_var", "PS_var")},
}


class Line(NamedTuple):
    """One comparison: what was found, what is allowed, and the verdict.

    ``limit`` is what is allowed, or what a stated shortfall adds up to where that is more.
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
        """Number of generated events that are selected."""
        return int(sum(counts.sum() for counts in self.generated.values()))


class Checked(NamedTuple):
    """Outcome of a check."""

    seed: int
    comparisons: tuple[Comparison, ...]
    lines: tuple[Line, ...]

    @property
    def is_good(self) -> bool:
        """Whether nothing is worse than demanded, or than stated."""
        return all(line.verdict in {"good", "stated shortfall"} for line in self.lines)

    @property
    def facts(self) -> dict[str, Any]:
        """What stands in ``check.json``."""
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
    """Events to generate of each dataset, with electrons only, for a check with some to spare."""
    spare = 1.08
    return {s.name: round(spare * DEMANDS[s.name].selected / s.selected) for s in datasets}


def make_set(folder: Path, seed: int, *, site: str, workers: int | None, quiet: bool) -> None:
    """Generate the events that a check needs; goes on where it was interrupted.

    Raises
    ------
    UsageError
        The folder holds events of other settings or versions.
    AgcError
        As of `production.generate`.
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
        The folder holds no whole set.
    AgcError
        The events can't be processed.
    """
    made = manifests.load(folder)
    manifests.verify(folder, made)
    for name in made.datasets:
        if name not in DEMANDS:
            raise GenerateError(
                f"{folder}: dataset {name} is unknown; there are: {', '.join(DEMANDS)}"
            )
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
    """Selected events of each dataset and region, from the measurement's own processor."""
    from agc_ml.execution.run import run  # noqa: PLC0415 - heavy

    with tempfile.TemporaryDirectory() as scratch:
        result = run(
            "ttbar",
            str(folder / manifests.FILESET),
            settings={"muons": "false"},
            output=Path(scratch) / "run",
            **options,
        )
    found: dict[str, dict[str, Array]] = {}
    for dataset in result.provenance.datasets:
        suffix = "" if dataset.variation == "nominal" else f"_{dataset.variation}"
        for region in REGIONS:
            template = result.templates[f"{region}_{dataset.process}{suffix}"]
            view: Any = template.view(flow=True)  # sums of w and of w^2; all events have the same w
            total = view["value"].sum()
            weight = view["variance"].sum() / total if total > 0 else 1.0
            counts = np.round(view["value"] / weight)
            found.setdefault(dataset.name, {})[region] = np.asarray(counts, np.float64)
    return found


def _scale(name: str, generated: int) -> float:
    """Published events that one generated event stands for, at the same cross-section."""
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
    """Largest difference of two binned distribution functions, flow bins included."""
    difference = np.cumsum(counts) / counts.sum() - np.cumsum(reference) / reference.sum()
    return float(np.abs(difference).max())


def write(checked: Checked, folder: Path) -> Path:
    """Write ``check.json`` and the figures into the set's folder; gives the folder of both.

    Raises
    ------
    StoreError
        It can't be written.
    """
    from agc_ml.files import write as write_file  # noqa: PLC0415 - heavy
    from agc_ml.simulation import figures  # noqa: PLC0415 - heavy

    where = folder / FOLDER
    figures.draw(checked.comparisons, where)
    text = json.dumps(checked.facts, indent=1)
    write_file(where / "check.json", lambda path: path.write_text(text + "\n"))
    return where


def raise_if_bad(checked: Checked) -> None:
    """Fail where a demand is not met and no shortfall is stated, or a lesser one.

    Raises
    ------
    GenerateError
        How many there are and the worst of them, in one line.
    """
    bad = [line for line in checked.lines if line.verdict not in {"good", "stated shortfall"}]
    few = [line for line in bad if line.verdict == "too few events"]
    if few:
        named = ", ".join(f"{x.dataset} {x.found:,.0f} of {x.allowed:,.0f}" for x in few)
        raise GenerateError(
            f"too few selected events to judge: {named}; generate more, or leave DIR out and the "
            "check makes what it needs"
        )
    if bad:
        worst = max(bad, key=lambda line: abs(line.found) / line.limit)
        raise GenerateError(
            f"comparisons worse than stated: {len(bad)} of {len(checked.lines)}, the worst "
            f"{worst.dataset}: {worst.quantity} is {worst.found:+.3f}, at most {worst.limit:.3f} "
            "is allowed; see the table"
        )
