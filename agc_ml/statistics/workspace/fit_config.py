"""Fit configurations in cabinetry's format: reading, checking, and the ones that are shipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from agc_ml import documents
from agc_ml.analysis import located, registered, shipped_file
from agc_ml.errors import FitError, UsageError
from agc_ml.statistics.likelihood.pyhf_model import quiet

FILE_NAME: Final = "fit.yml"
"""Name of the file with its fit configuration that a processor ships beside its code."""

FACTOR_BOUNDS: Final = (0.0, 10.0)
"""Bounds that pyhf gives to a factor without its own."""
SYSTEMATIC_BOUNDS: Final = (-5.0, 5.0)
"""Bounds that pyhf gives to a systematic uncertainty, in standard deviations."""
PATHS: Final = ("RegionPath", "SamplePath", "VariationPath")
"""Fields of a systematic's templates that lead to their histograms."""

Config = Mapping[str, Any]


def load_config(path: str | Path) -> dict[str, Any]:
    """Read a fit configuration in cabinetry's format.

    Raises
    ------
    UsageError
        There is no such file.
    FitError
        It is no YAML, has a key twice, or does not fit the format; file and field are named.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"{file}: no such file; a fit configuration is a YAML file")
    try:
        config = documents.yaml_of(documents.text(file))
    except (OSError, ValueError) as error:
        raise FitError(f"{file}: can't be read as YAML ({error})") from error
    check_config(config, str(file))
    return dict(config)


def check_config(config: Any, origin: str) -> None:
    """Reject a fit configuration that cabinetry or `agc_ml.statistics.workspace` can't use.

    ``origin`` is named in errors.

    Raises
    ------
    FitError
        The first problem, with its field.
    """
    import cabinetry  # noqa: PLC0415 - heavy

    try:
        with quiet():
            cabinetry.configuration.validate(config)
    except cabinetry.configuration.jsonschema.ValidationError as error:
        where = " -> ".join(str(part) for part in error.absolute_path) or "(top)"
        message = " ".join(error.message.split())[:300]
        raise FitError(
            f"{origin}: field {where}: {message}; see cabinetry's configuration reference"
        ) from error
    except (NotImplementedError, ValueError) as error:
        raise FitError(f"{origin}: {error}") from error
    problem = next(_problems(config), None)
    if problem is not None:
        raise FitError(f"{origin}: {problem}")


def _problems(config: Config) -> Iterator[str]:
    """Yield problems that cabinetry's schema lets pass, but that would go wrong or be ignored."""
    for kind in ("Regions", "Samples", "Systematics"):
        for item in config.get(kind, []):
            if set(item["Name"]) & set("./\\\0"):  # cabinetry makes file names of them
                yield f"{kind} -> {item['Name']}: names can't have '.', '/', '\\' or NUL in them"
    for field in ("Regions", "Samples"):
        for kind in ("Samples", "NormFactors", "Systematics"):
            yield from _unknown(config, kind, field)
    yield from _bad_binning(config)
    for item in config.get("Systematics", []):
        yield from _bad_sides(item, str(config["General"]["InputPath"]))
    yield from _bad_data(config)
    yield from _shared_names(config)
    yield from _bad_parameters(config)
    yield from _nothing_to_measure(config)


def names_in(item: Config, field: str) -> list[str]:
    """Return the names that a field restricts an item to, one or several; empty for all."""
    given = item.get(field, [])
    return [given] if isinstance(given, str) else list(given)


def _bad_binning(config: Config) -> Iterator[str]:
    for region in config["Regions"]:
        edges = np.asarray(region.get("Binning", [0, 1]), dtype=np.float64)
        if len(edges) < 2 or not (np.isfinite(edges).all() and np.all(np.diff(edges) > 0)):  # noqa: PLR2004 - of a bin
            yield f"Regions -> {region['Name']} -> Binning: edges must be finite and rise"


def _shared_names(config: Config) -> Iterator[str]:
    """Yield systematics whose parameter has the name of another one."""
    # names that cabinetry gives to parameters of bins
    of_bins = [f"staterror_{item['Name'].replace(' ', '-')}" for item in config["Regions"]]
    factors = [item["Name"] for item in config["NormFactors"]]
    for item in config.get("Systematics", []):
        field = "ModifierName" if "ModifierName" in item else "Name"
        for names, what in ((factors, "a NormFactor"), (of_bins, "the statistics of bins")):
            if item[field] in names:
                where = f"Systematics -> {item['Name']} -> {field}"
                yield f"{where}: {item[field]!r} is the parameter of {what}; choose another name"


def _nothing_to_measure(config: Config) -> Iterator[str]:
    """Reject a parameter of interest that scales nothing."""
    from cabinetry import configuration  # noqa: PLC0415 - heavy

    poi = next(one for one in config["NormFactors"] if one["Name"] == config["General"]["POI"])
    if not any(
        configuration.region_contains_sample(region, sample)
        and configuration.region_contains_modifier(region, poi)
        and configuration.sample_contains_modifier(sample, poi)
        for region in config["Regions"]
        for sample in config["Samples"]
        if not sample.get("Data", False)
    ):
        yield (
            f"NormFactors -> {poi['Name']}: the parameter of interest scales no sample in any "
            "region; look at its Samples and Regions, and those of the samples"
        )


def _bad_parameters(config: Config) -> Iterator[str]:
    factors = {item["Name"]: item for item in config["NormFactors"]}
    if config["General"].get("POI") not in factors:
        yield f"General -> POI: name what is to be measured, one of {', '.join(factors)}"
    for name, item in factors.items():
        yield from _bad_factor(name, item)
    own = _own_names(config)
    seen: dict[str, str] = {}
    for item in config["General"].get("Fixed", []):
        where = f"General -> Fixed -> {item['Name']}"
        if item["Name"] not in own:
            yield f"{where}: none of {', '.join(sorted(own))}"
        elif own[item["Name"]] in seen:
            yield f"{where}: the parameter is fixed twice, by {seen[own[item['Name']]]} too"
        elif factors.get(item["Name"], {}).get("Nominal", item["Value"]) != item["Value"]:
            yield f"{where}: cabinetry would take its Nominal in NormFactors; make them equal"
        elif not _is_within(item["Value"], factors.get(item["Name"])):
            yield f"{where}: {item['Value']:g} is out of the parameter's bounds; state wider Bounds"
        else:
            seen[own[item["Name"]]] = item["Name"]


def _bad_factor(name: str, item: Config) -> Iterator[str]:
    where = f"NormFactors -> {name}"
    low, high = bounds = item.get("Bounds", FACTOR_BOUNDS)
    if not (np.isfinite(bounds).all() and low < high):
        yield f"{where} -> Bounds: {low:g} is not below {high:g}, or one is not finite"
    nominal = item.get("Nominal", 1.0)
    if not low <= nominal <= high:
        stated = "" if "Nominal" in item else " (the default)"
        own = "its Bounds" if "Bounds" in item else "the default Bounds"
        yield f"{where} -> Nominal: {nominal:g}{stated} is not within {own} [{low:g}, {high:g}]"


def _is_within(value: float, factor: Config | None) -> bool:
    """Return whether a fixed value is in the bounds of its parameter, a factor or a systematic."""
    low, high = SYSTEMATIC_BOUNDS if factor is None else factor.get("Bounds", FACTOR_BOUNDS)
    return bool(low <= value <= high)


def _own_names(config: Config) -> dict[str, str]:
    """Names of parameters in the model, by each name that a configuration may use for them."""
    systematics = config.get("Systematics", [])
    modifiers = {item.get("ModifierName", item["Name"]) for item in systematics}
    return {
        **{item["Name"]: item.get("ModifierName", item["Name"]) for item in systematics},
        **{name: name for name in modifiers},
        **{item["Name"]: item["Name"] for item in config["NormFactors"]},
    }


def fixed_parameters(config: Config) -> dict[str, float]:
    """Values at which systematics are fixed, by the name of their parameter in the model."""
    own = _own_names(config)
    factors = {item["Name"] for item in config["NormFactors"]}
    return {
        own[item["Name"]]: item["Value"]
        for item in config["General"].get("Fixed", [])
        if item["Name"] not in factors
    }


def _unknown(config: Config, kind: str, field: str) -> Iterator[str]:
    """Yield restrictions to regions or samples that don't exist."""
    names = [item["Name"] for item in config[field]]
    for item in config.get(kind, []):
        for part, where in ((item, ""), (item.get("Smoothing", {}), "Smoothing -> ")):
            for name in names_in(part, field):
                if name not in names:
                    yield f"{kind} -> {item['Name']} -> {where}{field}: {name!r} is none of {names}"


def _bad_data(config: Config) -> Iterator[str]:
    """Yield data that are scaled, or lack regions, which would be fitted to nothing."""
    regions = [region["Name"] for region in config["Regions"]]
    data = {sample["Name"] for sample in config["Samples"] if sample.get("Data", False)}
    for kind in ("NormFactors", "Systematics"):
        for item in config.get(kind, []):
            for name in data.intersection(names_in(item, "Samples")):
                where = f"{kind} -> {item['Name']} -> Samples"
                yield f"{where}: {name!r} are the data, which stay as they are"
    for sample in config["Samples"]:
        lacking = set(regions) - set(names_in(sample, "Regions"))
        if sample.get("Data", False) and "Regions" in sample and lacking:
            where = f"Samples -> {sample['Name']} -> Regions"
            yield f"{where}: data are needed in {sorted(lacking)}, too"


def _bad_sides(systematic: Config, input_path: str) -> Iterator[str]:
    """Yield fields of Up and Down that would be ignored, or that are missing."""
    where = f"Systematics -> {systematic['Name']}"
    if systematic["Up"].get("Symmetrize", False):
        yield f"{where} -> Up: can't be the mirror image; give a template, mirror it in Down"
    is_factor = systematic["Type"] == "Normalization"
    if is_factor and "Smoothing" in systematic:
        yield f"{where} -> Smoothing: a Normalization has no template that could be smoothed"
    for side in ("Up", "Down"):
        given = {field for field, value in systematic[side].items() if value not in ("", False)}
        if is_factor:
            yield from _bad_normalization(systematic[side], given, f"{where} -> {side}")
            continue
        if "Symmetrize" in given and given != {"Symmetrize"}:
            others = ", ".join(sorted(given - {"Symmetrize"}))
            yield f"{where} -> {side}: with Symmetrize it has no template, so {others} is not used"
        for field in sorted(given - {*PATHS, "Symmetrize"}):
            yield (
                f"{where} -> {side} -> {field}: not used, since templates are histograms; "
                f"give its histogram by one of {', '.join(PATHS)}"
            )
        for field in PATHS:
            if field in systematic[side] and f"{{{field}}}" not in input_path:
                yield (
                    f"{where} -> {side} -> {field}: not used, since InputPath ({input_path!r}) "
                    f"has no {{{field}}}"
                )
        if "Symmetrize" not in given and not systematic[side].keys() & set(PATHS):
            yield (
                f"{where} -> {side}: no template; give one of {', '.join(PATHS)}"
                + (", or Symmetrize: true" if side == "Down" else "")
            )


def _bad_normalization(template: Config, given: set[str], where: str) -> Iterator[str]:
    if "Normalization" not in template:
        yield f"{where}: Normalization is missing"
    elif not -1 < template["Normalization"] < np.inf:
        yield (
            f"{where} -> Normalization: {template['Normalization']:g} takes all events away; "
            "it must be above -1, and finite"
        )
    for field in sorted(given - {"Normalization"}):
        yield f"{where} -> {field}: not used, since the Type is Normalization"


def shipped_config(processor: str) -> dict[str, Any]:
    """Read the fit configuration that a processor ships as ``fit.yml`` beside its code.

    ``processor`` is a registered name or ``module:Class``.

    Raises
    ------
    FitError
        There is no such processor, or it ships none.
    """
    way_out = "give a configuration: agc-ml fit RUN CONFIG.yml"
    if located(processor) is None:
        known = ", ".join(sorted(registered()))
        raise FitError(f"no processor {processor!r} with a fit ({known} are registered); {way_out}")
    file = shipped_file(processor, FILE_NAME)
    if file is None:
        raise FitError(f"the processor {processor!r} ships no fit configuration; {way_out}")
    return load_config(file)


def region_paths(config: Config) -> tuple[str, ...]:
    """Return the names of regions in the names of histograms."""
    return tuple(region.get("RegionPath", region["Name"]) for region in config["Regions"])
