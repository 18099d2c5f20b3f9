"""From templates and a fit configuration to a pyhf workspace.

The configuration is cabinetry's own, and cabinetry builds the workspace. What is added here: the
templates are handed over in memory, merged to the configured bins; names that lead nowhere are
errors; and what small samples leave undefined is taken out, with a note, before it becomes NaN.
"""

from __future__ import annotations

import difflib
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import hist
import numpy as np
from numpy.typing import NDArray

from agc_ml.analysis import Pseudodata, analysis_of
from agc_ml.errors import FitError
from agc_ml.results import variances
from agc_ml.results.templates import PSEUDODATA, check, merge, place, pseudodata
from agc_ml.statistics.likelihood.pyhf_model import quiet
from agc_ml.statistics.workspace.fit_config import Config, check_config, fixed_parameters
from agc_ml.statistics.workspace.fit_inputs import Need, names_files, needs
from agc_ml.statistics.workspace.unreachable_bins import each_modifier, without_unreachable

_log = logging.getLogger(__name__)

LEAST_SMOOTHED: Final = 3
"""Bins that cabinetry's smoothing needs."""
MOST_NAMED: Final = 4


class Workspace(NamedTuple):
    """A pyhf workspace with the binning, data and labels of its regions.

    By region: ``labels`` of the axes, ``edges`` of shape ``(n_bins + 1,)``, ``observed`` data in
    all bins and ``kept``, the bins that are in the workspace, of shape ``(n_bins,)``, and ``units``
    of an entry. ``templates`` are the histograms that entered, before merging; ``data`` is the kind
    of pseudodata, or "data"; ``is_closure``: all that pseudodata are made of is in the model.
    """

    spec: dict[str, Any]
    labels: dict[str, str]
    edges: dict[str, NDArray[np.float64]]
    observed: dict[str, NDArray[np.float64]]
    kept: dict[str, NDArray[np.bool_]]
    units: dict[str, str]
    templates: dict[str, hist.Hist[Any]]
    data: str
    is_closure: bool
    notes: tuple[str, ...]


def build_workspace(
    templates: Mapping[str, hist.Hist[Any]], config: Config, pseudodata: Pseudodata | None = None
) -> dict[str, Any]:
    """Build the pyhf workspace of templates under a fit configuration.

    What had to be left out is logged as a warning; see `prepare`.
    """
    workspace = prepare(templates, config, pseudodata)
    for note in workspace.notes:
        _log.warning(note)
    return workspace.spec


def prepare(
    templates: Mapping[str, hist.Hist[Any]],
    config: Config,
    recipe: Pseudodata | None = None,
    regions: Collection[str] | None = None,
) -> Workspace:
    """Build a workspace.

    ``recipe`` says how pseudodata are mixed, if the configuration wants any; by default those of
    the default analysis.

    ``regions`` are the names of those that enter, None for all of the configuration.

    A sample's data are made of the templates when its SamplePath is "pseudodata", and taken from
    the templates otherwise.

    Raises
    ------
    FitError
        The configuration is wrong, asks for a histogram that is not there, or nothing is left of
        the templates to fit.
    HistogramError
        A histogram holds NaN, or its bins can't be merged to the configured ones.
    """
    check_config(config, "fit configuration")
    if regions is not None:
        config = {**config, "Regions": [r for r in config["Regions"] if r["Name"] in regions]}
    wanted = needs(config)
    of_model = [need for need in wanted if not need.is_data]
    of_data = [need for need in wanted if need.is_data]
    model = _entering(of_model, templates)
    _check_statistics(of_model, model, config)
    # the data: real ones, or made of the templates
    recipe = (recipe or analysis_of().recipe()) if wants_pseudodata(config) else None
    made = templates if recipe is None else _pseudodata(templates, config, recipe)
    data = _entering(of_data, made)
    # one binning a region
    edges: dict[str, NDArray[np.float64]] = {}
    content = {**model, **data}
    merged = {need: _merged(need, content[need.key], config, edges) for need in wanted}
    _check_sides(merged, config)
    spec = _build(merged, config)
    notes = [
        *_same_sides(wanted),
        *_not_applied(config),
        *_negative_data(spec, edges, is_pseudo=recipe is not None),
        *_take_out_empty(spec),
        *_without_effect(spec, config),
    ]
    _check_something_left(spec, config)
    observed = {one["name"]: np.asarray(one["data"], np.float64) for one in spec["observations"]}
    reachable = without_unreachable(spec, edges)
    return Workspace(
        spec=reachable.spec,
        labels={one["Name"]: one.get("Variable", one["Name"]) for one in config["Regions"]},
        edges=edges,
        observed=observed,
        kept=reachable.kept,
        units={need.region: unit_of(content[need.key]) for need in reversed(of_model)},
        templates=content if recipe is None else model,
        data="data" if recipe is None else recipe.kind,
        is_closure=recipe is not None and _is_closure(config, model, recipe),
        notes=(*notes, *reachable.notes),
    )


def unit_of(histogram: hist.Hist[Any]) -> str:
    """Unit of an entry of a histogram, as it says itself; else nothing but an entry."""
    return str(getattr(histogram, "label", None) or "Entries")


def _is_closure(config: Config, model: Mapping[str, Any], recipe: Pseudodata) -> bool:
    """Return whether all templates that pseudodata are made of enter the model."""
    return all(
        f"{region['RegionPath']}_{part}" in model
        for region in config["Regions"]
        for part in recipe.parts
    )


def wants_pseudodata(config: Config) -> bool:
    """Return whether the data of a configuration are made of the templates."""
    sample = next(sample for sample in config["Samples"] if sample.get("Data", False))
    return bool(sample.get("SamplePath") == PSEUDODATA)


def _entering(
    wanted: list[Need], content: Mapping[str, hist.Hist[Any]]
) -> dict[str, hist.Hist[Any]]:
    """Take what is needed, checked."""
    for need in wanted:
        if need.key not in content:
            near = difflib.get_close_matches(need.key, content, n=1, cutoff=0)
            nearest = f" (nearest is {near[0]})" if near else ""
            raise FitError(
                f"histogram {need.key} is missing{nearest}, and needed for {need}; run over "
                "its dataset, or change the fit configuration"
            )
    entering = {need.key: content[need.key] for need in wanted}
    check(entering)
    return entering


def _check_statistics(
    wanted: list[Need], content: Mapping[str, hist.Hist[Any]], config: Config
) -> None:
    """Make sure that variances are known where the simulation's statistics enter the fit."""
    exact = {one["Name"] for one in config["Samples"] if one.get("DisableStaterror", False)}
    for need in wanted:
        if need.systematic or need.sample in exact:
            continue
        if variances.of(content[need.key]) is None:
            raise FitError(
                f"histogram {need.key}: its variances are not known, because it was filled "
                f"with weights or scaled and has no storage for them, and needed for {need}; "
                f"{variances.ADVICE}, or write its ROOT file with Sumw2"
            )


def _pseudodata(
    templates: Mapping[str, hist.Hist[Any]], config: Config, recipe: Pseudodata
) -> dict[str, hist.Hist[Any]]:
    """Make the pseudodata of the configured regions; others may lack templates for it."""
    if names_files(config):
        raise FitError(
            f"fit configuration: SamplePath {PSEUDODATA!r} makes data of the templates of one "
            "file, and InputPath names several; give histograms of the data"
        )
    regions = tuple(f"{region.get('RegionPath')}_" for region in config["Regions"])
    content = {name: h for name, h in templates.items() if name.startswith(regions)}
    return pseudodata(content, recipe)


def _merged(
    need: Need,
    histogram: hist.Hist[Any],
    config: Config,
    edges: dict[str, NDArray[np.float64]],
) -> hist.Hist[Any]:
    """Merge to the region's Binning, or to the bins of its first histogram."""
    region = next(item for item in config["Regions"] if item["Name"] == need.region)
    name = f"region {need.region!r}, histogram {need.key}"
    if need.region not in edges:
        wanted = region.get("Binning", histogram.axes[0].edges)
        edges[need.region] = np.asarray(wanted, dtype=np.float64)
    elif "Binning" not in region and histogram.ndim == 1:
        own, first = np.asarray(histogram.axes[0].edges), edges[need.region]
        if (place(own, first[0]), place(own, first[-1])) != (0, len(own) - 1):
            raise FitError(
                f"{name}: ranges from {own[0]:g} to {own[-1]:g}, and the region's first histogram "
                f"from {first[0]:g} to {first[-1]:g}; what is outside would be dropped: give "
                "histograms of one range, or the region a Binning"
            )
    return merge(histogram, list(edges[need.region]), name=name)


def _check_sides(merged: Mapping[Need, hist.Hist[Any]], config: Config) -> None:
    """Make sure that each varied yield, and its mirror image, is more than nothing.

    cabinetry takes a variation apart into a factor and a shape of the nominal yield, which there is
    none of otherwise.

    Raises
    ------
    FitError
        All that are not, with their yields.
    """
    nominal = {
        (need.region, need.sample): histogram.values().sum()
        for need, histogram in merged.items()
        if not need.side
    }
    mirrored = {
        item["Name"]
        for item in config.get("Systematics", [])
        if item.get("Down", {}).get("Symmetrize", False)
    }
    bad = []
    for need, histogram in merged.items():
        events, varied = nominal[need.region, need.sample], histogram.values().sum()
        if not need.side or not events > 0:
            continue
        if not varied > 0:
            bad.append(f"{need}: {varied:.4g} events for {events:.4g}")
        elif need.systematic in mirrored and not 2 * events - varied > 0:
            bad.append(
                f"{need}: {varied:.4g} events for {events:.4g}, so its mirror image has "
                f"{2 * events - varied:.4g}"
            )
    if bad:
        more = f" (and {len(bad) - MOST_NAMED} more)" if len(bad) > MOST_NAMED else ""
        raise FitError(
            f"varied yields have to be above zero: {'; '.join(bad[:MOST_NAMED])}{more}; process "
            "more events, or restrict the systematic uncertainty to other Samples or Regions"
        )


def _same_sides(wanted: list[Need]) -> Iterator[str]:
    """Tell of systematics whose Up and Down are one histogram."""
    ups = {
        (need.region, need.sample, need.systematic, need.key)
        for need in wanted
        if need.side == "Up"
    }
    same = [
        need.systematic
        for need in wanted
        if need.side == "Down" and (need.region, need.sample, need.systematic, need.key) in ups
    ]
    for name in dict.fromkeys(same):
        yield f"{name}: Up and Down are the same histogram, so it acts on one side only"


def _not_applied(config: Config) -> Iterator[str]:
    """Tell of settings that select events, which histograms have been through already."""
    for kind, fields in (("Regions", ("Filter",)), ("Samples", ("Filter", "Weight", "Tree"))):
        given = [
            (item["Name"], field) for item in config[kind] for field in fields if item.get(field)
        ]
        for field in fields:
            names = [name for name, one in given if one == field]
            if names:
                yield (
                    f"{field} of {kind.lower()} {', '.join(names)} is not applied: histograms are "
                    "taken as they are"
                )


def _build(merged: Mapping[Need, hist.Hist[Any]], config: Config) -> dict[str, Any]:
    """Let cabinetry post-process the templates and build the workspace, in a temporary folder."""
    import cabinetry  # noqa: PLC0415 - heavy

    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        local = {**config, "General": {**config["General"], "HistogramFolder": name}}
        for need, histogram in merged.items():
            spread = variances.of(histogram)
            # unknown ones are of data or variations, whose statistics enter no fit
            stdev = np.full(len(histogram.values()), np.nan) if spread is None else np.sqrt(spread)
            cabinetry.histo.Histogram.from_arrays(
                histogram.axes[0].edges, histogram.values(), stdev
            ).save(folder / need.cabinetry)
        # ratios of empty histograms are undefined; _take_out_empty takes them out, or refuses them
        with np.errstate(divide="ignore", invalid="ignore"):
            cabinetry.templates.postprocess(local)
            spec: dict[str, Any] = cabinetry.workspace.build(local, with_validation=False)
    # cabinetry fixes parameters by the names of systematics, which a ModifierName is another than
    fixed = fixed_parameters(config)
    own = spec["measurements"][0]["config"]
    factors = {item["Name"] for item in config["NormFactors"]}
    own["parameters"] = [
        *(one for one in own["parameters"] if one["name"] in factors),
        *({"name": name, "inits": [value], "fixed": True} for name, value in fixed.items()),
    ]
    _check_once(spec)
    return spec


def _check_once(spec: Mapping[str, Any]) -> None:
    """Make sure that no two systematics give a sample one modifier: pyhf takes the last."""
    for channel in spec["channels"]:
        for sample in channel["samples"]:
            kinds = [(one["type"], one["name"]) for one in sample["modifiers"]]
            twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
            if twice is not None:
                raise FitError(
                    f"{channel['name']}, {sample['name']}: two systematics with the ModifierName "
                    f"{twice[1]!r} act on it, of which one would be ignored; combine them, or "
                    "restrict them to other Samples or Regions"
                )


def _without_effect(spec: Mapping[str, Any], config: Config) -> Iterator[str]:
    """Tell of what is configured and changes nothing."""
    there = {modifier["name"] for *_, modifier in each_modifier(spec["channels"])}
    for item in (*config.get("Systematics", []), *config["NormFactors"]):
        if item.get("ModifierName", item["Name"]) not in there:
            yield f"{item['Name']}: acts on no sample of any region"
    smoothed = [item["Name"] for item in config.get("Systematics", []) if "Smoothing" in item]
    few = [one["name"] for one in spec["observations"] if len(one["data"]) < LEAST_SMOOTHED]
    if smoothed and few:
        yield f"not smoothed in {', '.join(few)}, which has too few bins: {', '.join(smoothed)}"


def _negative_data(
    spec: dict[str, Any], edges: Mapping[str, NDArray[np.float64]], *, is_pseudo: bool
) -> Iterator[str]:
    """Set negative pseudodata to zero; negative data are an error."""
    for observation in spec["observations"]:
        for index, count in enumerate(observation["data"]):
            if count >= 0:
                continue
            low, high = edges[observation["name"]][index : index + 2]
            where = f"{observation['name']}, bin [{low:g}, {high:g})"
            if not is_pseudo:
                raise FitError(f"{where}: the data are {count:g}; numbers of events are 0 or more")
            observation["data"][index] = 0.0
            yield f"{where}: the pseudodata are {count:.3g} (negative weights), taken as 0"


def _take_out_empty(spec: dict[str, Any]) -> Iterator[str]:
    """Take samples that predict nothing out of a region.

    Raises
    ------
    FitError
        A sample has events in sum zero or less, but varied ones.
    """
    for channel in spec["channels"]:
        for sample in list(channel["samples"]):
            where = f"{channel['name']}, {sample['name']}"
            if not any(sample["data"]):
                channel["samples"].remove(sample)
                yield f"{where}: no events, the sample is left out of this region"
                continue
            bad = [m["name"] for m in sample["modifiers"] if not _is_defined(m)]
            if bad:
                raise FitError(
                    f"{where}: its nominal yield is {sum(sample['data']):.4g} or a bin that is "
                    f"smoothed is empty, so {', '.join(dict.fromkeys(bad))} can't be taken apart "
                    "into a factor and a shape; process more events, or restrict it to other "
                    "Samples or Regions"
                )


def _is_defined(modifier: Config) -> bool:
    """Return whether a modifier's yields are finite, and those of a normalisation positive."""
    if modifier["type"] not in ("normsys", "histosys"):
        return True
    values = np.concatenate([np.atleast_1d(value) for value in modifier["data"].values()])
    if modifier["type"] == "normsys":
        return bool(np.all(np.isfinite(values) & (values > 0)))
    return bool(np.all(np.isfinite(values)))


def _check_something_left(spec: Mapping[str, Any], config: Config) -> None:
    for channel in spec["channels"]:
        if not channel["samples"]:
            raise FitError(
                f"region {channel['name']!r}: no sample has events there; process more events, or "
                "take the region out of the fit configuration"
            )
    poi = config["General"]["POI"]
    if not any(modifier["name"] == poi for *_, modifier in each_modifier(spec["channels"])):
        raise FitError(
            f"{poi}: the samples that it scales have no events in any region, so it can't be "
            "measured; process more events"
        )
