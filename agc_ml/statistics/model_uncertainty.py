"""Uncertainty of a fit from the choice of a machine-learning model.

Runs over the same events with models of other seeds, parameters or kinds give other templates.
Their deviations from the templates of the run are decomposed into principal components, in all
bins, samples and regions together. Each of the largest components becomes a nuisance parameter of
one standard deviation, correlated over all of them, as the model is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import hist
import numpy as np
from numpy.typing import NDArray

from agc_ml import documents
from agc_ml.analysis import shipped_file
from agc_ml.errors import FitError
from agc_ml.results import variances
from agc_ml.results.run_result import RunResult
from agc_ml.statistics.workspace.fit_config import (
    Config,
    check_config,
    shipped_config,
)

_Array = NDArray[np.float64]

FILE_NAME: Final = "fit_ml.yml"
"""Name of the file with the regions that depend on a model, which a processor ships."""

ENOUGH: Final = 0.9
"""Fraction of the scatter that the components have to describe."""

MOST: Final = 3
"""Components at most, even if they describe less than ENOUGH."""

NAME: Final = "ML model {number}"
_VARIATION: Final = "ml_model_{number}_up"


class WithModelUncertainty(NamedTuple):
    """Templates with those of the added systematics, and the configuration that uses them."""

    templates: dict[str, hist.Hist[Any]]
    config: dict[str, Any]
    note: str


def ml_config(processor: str) -> dict[str, Any]:
    """The fit configuration that a processor ships for regions that depend on a model.

    Raises
    ------
    FitError
        It ships none, or it is damaged.
    """
    config = shipped_config(processor)
    file = shipped_file(processor, FILE_NAME)
    if file is None:
        raise FitError(
            f"the processor {processor!r} ships no {FILE_NAME}; give a configuration whose regions "
            "depend on the model: agc-ml fit RUN CONFIG.yml --ml-uncertainty ..."
        )
    try:
        regions = documents.read(file)["Regions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FitError(f"{FILE_NAME} of {processor!r}: can't be read ({error})") from error
    config = {**config, "Regions": regions}
    check_config(config, FILE_NAME)
    return config


def check_alternatives(run: RunResult, alternatives: Sequence[RunResult]) -> None:
    """Make sure that runs differ in their models, and in nothing else.

    Raises
    ------
    FitError
        One has other events or another processor, or the same model, or none.
    """
    mine = run.provenance
    if not mine.models:
        raise FitError(f"{run.path}: it had no model (--model), so there is no uncertainty of one")
    used = {tuple(sorted(mine.models.values())): run.path}
    for other in alternatives:
        its = other.provenance
        if its.fileset != mine.fileset:
            raise FitError(f"{other.path}: it ran over other events than {run.path}")
        if its.processor.code != mine.processor.code or _settings(its) != _settings(mine):
            raise FitError(
                f"{other.path}: its processor had other code or parameters than that of {run.path}"
            )
        if not its.models:
            raise FitError(f"{other.path}: it had no model (--model)")
        models = tuple(sorted(its.models.values()))
        if models in used:
            raise FitError(
                f"{other.path}: the same models as {used[models]}; train some with another seed or "
                "space, and run with those"
            )
        used[models] = other.path


def _settings(provenance: Any) -> dict[str, Any]:
    return {k: v for k, v in provenance.processor.parameters.items() if k != "model"}


def with_model_uncertainty(
    templates: Mapping[str, hist.Hist[Any]],
    config: Config,
    alternatives: Sequence[Mapping[str, hist.Hist[Any]]],
) -> WithModelUncertainty:
    """Add the deviations of alternative templates as systematic uncertainties.

    Raises
    ------
    FitError
        A template is missing, or none of them depends on the model.
    """
    regions = {region["Name"]: str(region.get("RegionPath")) for region in config["Regions"]}
    samples = [one["SamplePath"] for one in config["Samples"] if not one.get("Data", False)]
    names = [f"{path}_{sample}" for path in regions.values() for sample in samples]
    nominal = _contents(templates, names)
    deviations = np.stack([_contents(one, names) - nominal for one in alternatives])
    components, described = _components(deviations)
    if not len(components):
        raise FitError(
            "no template of the fit depends on the model: give a configuration with regions that do"
        )
    added: dict[str, hist.Hist[Any]] = {}
    systematics = []
    ends = np.cumsum([len(templates[name].values(flow=True)) for name in names])
    for number, component in enumerate(components, 1):
        # one template of each sample and region, moved by the component
        shifts = dict(zip(names, np.split(component, ends[:-1]), strict=True))
        variation = _VARIATION.format(number=number)
        for name, shift in shifts.items():
            added[f"{name}_{variation}"] = _shifted(templates[name], shift)
        is_moved = {
            region: any(shifts[f"{path}_{sample}"].any() for sample in samples)
            for region, path in regions.items()
        }
        systematics.append(
            {
                "Name": NAME.format(number=number),
                "Type": "NormPlusShape",
                "Regions": [region for region, moved in is_moved.items() if moved],
                "Up": {"VariationPath": f"_{variation}"},
                "Down": {"Symmetrize": True},
            }
        )
    note = (
        f"uncertainty of the model: {len(components)} directions describe {described:.0%} of the "
        f"scatter of {len(alternatives)} other ones"
    )
    return WithModelUncertainty(
        {**templates, **added},
        {**config, "Systematics": [*config.get("Systematics", []), *systematics]},
        note,
    )


def _components(deviations: _Array) -> tuple[_Array, float]:
    """Principal components of one standard deviation each, and the fraction they describe.

    The mean square is about the run itself, not about the mean of the others: its model is no
    better than theirs. A direction's sign is such that it adds events where it moves most.
    """
    n = len(deviations)
    _, singular, components = np.linalg.svd(deviations / np.sqrt(n), full_matrices=False)
    scatter = singular**2
    if not scatter.sum() > 0:
        return np.empty((0, deviations.shape[1])), 0.0
    fractions = np.cumsum(scatter) / scatter.sum()
    enough = min(int(np.searchsorted(fractions, ENOUGH)) + 1, MOST, n)
    chosen = singular[:enough, None] * components[:enough]
    chosen[:, ~deviations.any(axis=0)] = 0  # but for rounding it is so
    largest = np.abs(chosen).argmax(axis=1)
    signs = np.sign(chosen[np.arange(enough), largest])
    return chosen * signs[:, None], float(fractions[enough - 1])


def _contents(templates: Mapping[str, hist.Hist[Any]], names: Sequence[str]) -> _Array:
    """Return the bins of all templates with flow, concatenated."""
    for name in names:
        if name not in templates:
            raise FitError(
                f"histogram {name} is missing, which the uncertainty of the model needs; run "
                "the processor with --model"
            )
    parts = [np.asarray(templates[name].values(flow=True), np.float64) for name in names]
    return np.concatenate(parts)


def _shifted(histogram: hist.Hist[Any], by: _Array) -> hist.Hist[Any]:
    values = histogram.values(flow=True) + by
    return variances.filled(histogram.axes, values, variances.of(histogram, flow=True))
