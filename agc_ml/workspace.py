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
from typing import Any, NamedTuple

import hist
import numpy as np
from numpy.typing import NDArray

from agc_ml import variances
from agc_ml.errors import FitError
from agc_ml.fitconfig import Config, check_config
from agc_ml.likelihood import quiet
from agc_ml.templates import PSEUDODATA, Pseudodata, check, merge, pseudodata

_log = logging.getLogger(__name__)


class Workspace(NamedTuple):
    """A pyhf workspace, and what it does not say itself.

    ``edges`` are those of each region by name, shape ``(n_bins + 1,)``; ``templates`` the
    histograms that entered, as they came; ``data`` is the kind of pseudodata, or "data".
    """

    spec: dict[str, Any]
    edges: dict[str, NDArray[np.float64]]
    templates: dict[str, hist.Hist[Any]]
    data: str
    notes: tuple[str, ...]


def build_workspace(
    templates: Mapping[str, hist.Hist[Any]], config: Config, pseudodata: Pseudodata = "published"
) -> dict[str, Any]:
    """Build the pyhf workspace of templates under a fit configuration.

    What had to be left out is logged as a warning; see `prepare`.
    """
    workspace = prepare(templates, config, pseudodata)
    for note in workspace.notes:
        _log.warning(note)
    return workspace.spec


class _Need(NamedTuple):
    """A histogram that the configuration asks for, and what cabinetry calls it."""

    histogram: str
    cabinetry: str
    region: str
    sample: str
    systematic: str
    is_data: bool

    def __str__(self) -> str:
        systematic = f", systematic {self.systematic!r}" if self.systematic else ""
        return f"region {self.region!r}, sample {self.sample!r}{systematic}"


def prepare(
    templates: Mapping[str, hist.Hist[Any]],
    config: Config,
    kind: Pseudodata = "published",
    regions: Collection[str] | None = None,
) -> Workspace:
    """Build a workspace; ``kind`` says which pseudodata, if the configuration wants any.

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
    needs = _needs(config)
    of_model = [need for need in needs if not need.is_data]
    of_data = [need for need in needs if need.is_data]
    model = _entering(of_model, templates)
    _check_statistics(of_model, model, config)
    sample = next(sample for sample in config["Samples"] if sample.get("Data", False))
    is_pseudo = sample.get("SamplePath") == PSEUDODATA
    made = _pseudodata(templates, config, kind) if is_pseudo else {}
    data = _entering(of_data, {**templates, **made})
    edges: dict[str, NDArray[np.float64]] = {}
    content = {**model, **data}
    merged = {need: _merged(need, content[need.histogram], config, edges) for need in needs}
    spec = _build(merged, config)
    notes = [*_negative_data(spec, edges, is_pseudo=is_pseudo), *_take_out_undefined(spec)]
    _check_something_left(spec, config)
    return Workspace(
        spec=spec,
        edges=edges,
        templates=model if is_pseudo else content,
        data=kind if is_pseudo else "data",
        notes=tuple(notes),
    )


def _entering(
    needs: list[_Need], content: Mapping[str, hist.Hist[Any]]
) -> dict[str, hist.Hist[Any]]:
    """Take what is needed, checked."""
    for need in needs:
        if need.histogram not in content:
            near = difflib.get_close_matches(need.histogram, content, n=1, cutoff=0)
            nearest = f" (nearest is {near[0]})" if near else ""
            raise FitError(
                f"histogram {need.histogram} is missing{nearest}, and needed for {need}; run over "
                "its dataset, or change the fit configuration"
            )
    found = {need.histogram: content[need.histogram] for need in needs}
    check(found)
    return found


def _check_statistics(
    needs: list[_Need], content: Mapping[str, hist.Hist[Any]], config: Config
) -> None:
    """Make sure that variances are known where the simulation's statistics enter the fit."""
    exact = {one["Name"] for one in config["Samples"] if one.get("DisableStaterror", False)}
    for need in needs:
        if need.systematic or need.sample in exact:
            continue
        if variances.of(content[need.histogram]) is None:
            raise FitError(
                f"histogram {need.histogram}: its variances are not known, because it was filled "
                f"with weights or scaled and has no storage for them, and needed for {need}; "
                f"{variances.ADVICE}, or write its ROOT file with Sumw2"
            )


def _pseudodata(
    templates: Mapping[str, hist.Hist[Any]], config: Config, kind: Pseudodata
) -> dict[str, hist.Hist[Any]]:
    """Make the pseudodata of the configured regions; others may lack templates for it."""
    regions = tuple(f"{region.get('RegionPath')}_" for region in config["Regions"])
    return pseudodata({name: h for name, h in templates.items() if name.startswith(regions)}, kind)


def _needs(config: Config) -> list[_Need]:
    import cabinetry  # noqa: PLC0415 - heavy

    found: list[_Need] = []

    def note(region: Config, sample: Config, systematic: Config, template: str | None) -> None:
        found.append(
            _Need(
                histogram=_histogram_name(config, region, sample, systematic, template),
                cabinetry=cabinetry.histo.name(region, sample, systematic, template=template),
                region=region["Name"],
                sample=sample["Name"],
                systematic=f"{systematic['Name']} ({template})" if template else "",
                is_data=sample.get("Data", False),
            )
        )

    cabinetry.route.apply_to_all_templates(config, note)
    names = [need.cabinetry for need in found]
    for need in found:
        if names.count(need.cabinetry) > 1:
            raise FitError(
                f"fit configuration: {need}: cabinetry calls it {need.cabinetry}, and another one "
                "too; choose names that differ in more than blanks and underscores"
            )
    return found


def _histogram_name(
    config: Config, region: Config, sample: Config, systematic: Config, template: str | None
) -> str:
    """Name of a histogram: InputPath after its colon, with the placeholders filled in."""
    general = config["General"]
    override = systematic.get(template, {}) if template else {}
    parts = {
        "RegionPath": region.get("RegionPath"),
        "SamplePath": override.get("SamplePath", sample.get("SamplePath")),
        "VariationPath": override.get("VariationPath", general.get("VariationPath", "")),
    }
    name = str(general["InputPath"]).rpartition(":")[2]
    for field, value in parts.items():
        if f"{{{field}}}" not in name:
            continue
        if not isinstance(value, str):
            item = region if field == "RegionPath" else sample
            raise FitError(
                f"fit configuration: {item['Name']}: {field} is missing, or more than one name; "
                f"InputPath ({general['InputPath']!r}) asks for it"
            )
        name = name.replace(f"{{{field}}}", value)
    return name


def _merged(
    need: _Need,
    histogram: hist.Hist[Any],
    config: Config,
    edges: dict[str, NDArray[np.float64]],
) -> hist.Hist[Any]:
    """Merge to the region's Binning, or to the bins of its first histogram."""
    region = next(item for item in config["Regions"] if item["Name"] == need.region)
    if need.region not in edges:
        wanted = region.get("Binning", histogram.axes[0].edges)
        edges[need.region] = np.asarray(wanted, dtype=np.float64)
    name = f"region {need.region!r}, histogram {need.histogram}"
    return merge(histogram, list(edges[need.region]), name=name)


def _build(merged: Mapping[_Need, hist.Hist[Any]], config: Config) -> dict[str, Any]:
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
        # ratios of empty histograms are undefined; _take_out_undefined takes them out
        with np.errstate(divide="ignore", invalid="ignore"):
            cabinetry.templates.postprocess(local)
            spec: dict[str, Any] = cabinetry.workspace.build(local, with_validation=False)
    return spec


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


def _take_out_undefined(spec: dict[str, Any]) -> Iterator[str]:
    """Take out of each region samples without events, and effects that have no finite size."""
    for channel in spec["channels"]:
        for sample in list(channel["samples"]):
            where = f"{channel['name']}, {sample['name']}"
            if not any(sample["data"]):
                channel["samples"].remove(sample)
                yield f"{where}: no events, the sample is left out of this region"
                continue
            bad = {m["name"] for m in sample["modifiers"] if not _is_defined(m)}
            sample["modifiers"] = [m for m in sample["modifiers"] if m["name"] not in bad]
            if bad:
                yield (
                    f"{where}: with so few events a varied yield, or its mirror image, is not "
                    f"positive; left out there: {', '.join(sorted(bad))}"
                )


def _is_defined(modifier: Config) -> bool:
    """Whether a modifier's yields are finite, and those of a normalisation positive."""
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
    samples = [sample for channel in spec["channels"] for sample in channel["samples"]]
    if not any(modifier["name"] == poi for sample in samples for modifier in sample["modifiers"]):
        raise FitError(
            f"{poi}: the samples that it scales have no events in any region, so it can't be "
            "measured; process more events"
        )
