"""Histograms that a fit configuration asks for: their files, their names, and what each is for.

InputPath names them as in cabinetry, with placeholders for region, sample and variation. With
placeholders before its colon it names the files, too; without, the histograms are in the one source
that a fit is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import hist

from agc_ml.errors import FitError, UsageError
from agc_ml.results import templates
from agc_ml.statistics.workspace.fit_config import Config

LONGEST: Final = 255
"""Bytes that the name of a file may have."""


class Need(NamedTuple):
    """A histogram that a configuration asks for, and what cabinetry calls it.

    ``file`` is the one that InputPath names, empty where it has no placeholder. ``side`` is the
    template of a systematic, "Up" or "Down", and empty for the nominal one.
    """

    file: str
    histogram: str
    cabinetry: str
    region: str
    sample: str
    systematic: str
    side: str
    is_data: bool

    @property
    def key(self) -> str:
        """Name of the histogram among the templates: with its file, if it has one."""
        return f"{self.file}:{self.histogram}" if self.file else self.histogram

    def __str__(self) -> str:
        systematic = f", systematic '{self.systematic} ({self.side})'" if self.side else ""
        return f"region {self.region!r}, sample {self.sample!r}{systematic}"


def needs(config: Config) -> list[Need]:
    """List the histograms that a checked configuration asks for.

    Raises
    ------
    FitError
        A path is missing, or two items lead to one histogram and would be fitted as two.
    """
    import cabinetry  # noqa: PLC0415 - heavy

    wanted: list[Need] = []

    def note(region: Config, sample: Config, systematic: Config, template: str | None) -> None:
        file, histogram = _paths(config, region, sample, systematic, template)
        wanted.append(
            Need(
                file=file,
                histogram=histogram,
                cabinetry=cabinetry.histo.name(region, sample, systematic, template=template),
                region=region["Name"],
                sample=sample["Name"],
                systematic=systematic["Name"] if template else "",
                side=template or "",
                is_data=sample.get("Data", False),
            )
        )

    cabinetry.route.apply_to_all_templates(config, note)
    names = [need.cabinetry for need in wanted]
    names += [f"{name}_modified" for name in names]  # what cabinetry calls smoothed ones
    for need in wanted:
        if len(f"{need.cabinetry}_modified.npz".encode()) > LONGEST:
            raise FitError(f"fit configuration: {need}: names are too long to be those of a file")
        if names.count(need.cabinetry) > 1:
            raise FitError(
                f"fit configuration: {need}: cabinetry calls it {need.cabinetry}, and another one "
                "too; choose names that differ in more than blanks and underscores"
            )
    problem = next(_shared(wanted, config), None)
    if problem is not None:
        raise FitError(f"fit configuration: {problem}")
    return wanted


def names_files(config: Config) -> bool:
    """Return whether InputPath has placeholders before its colon, and so names the files."""
    return "{" in str(config["General"]["InputPath"]).rpartition(":")[0]


def _paths(
    config: Config, region: Config, sample: Config, systematic: Config, template: str | None
) -> tuple[str, str]:
    """File and name of a histogram: InputPath with its placeholders filled in."""
    override = systematic.get(template, {}) if template else {}
    parts = {
        "RegionPath": override.get("RegionPath", region.get("RegionPath")),
        "SamplePath": override.get("SamplePath", sample.get("SamplePath")),
        "VariationPath": override.get("VariationPath", config["General"].get("VariationPath", "")),
    }
    path = str(config["General"]["InputPath"])
    for field, value in parts.items():
        if f"{{{field}}}" not in path:
            continue
        if not isinstance(value, str):
            item = region if field == "RegionPath" else sample
            raise FitError(
                f"fit configuration: {item['Name']}: {field} is missing, or more than one name; "
                f"InputPath ({config['General']['InputPath']!r}) asks for it"
            )
        path = path.replace(f"{{{field}}}", value)
    file, _, histogram = path.rpartition(":")
    return (file if names_files(config) else ""), histogram.lstrip("/")


def _shared(wanted: list[Need], config: Config) -> Iterator[str]:
    """Histograms that would enter a fit twice, as if they were two.

    Up and Down of a systematic may be the same (it acts on one side), and regions may have parts of
    one histogram whose Binning does not overlap.
    """
    input_path = config["General"]["InputPath"]
    first: dict[str, list[Need]] = {}
    for need in wanted:
        for other in first.setdefault(need.key, []):
            is_same_sample = (need.region, need.sample) == (other.region, other.sample)
            if is_same_sample and need.side and need.systematic == other.systematic:
                continue
            if need.region != other.region and _are_apart(config, need.region, other.region):
                continue
            pair = f"{other} and {need} lead to one histogram, {need.key}"
            if is_same_sample and not other.side:
                yield (
                    f"{pair}: the variation is the nominal one; give {need.side} a path of its own "
                    f"for a placeholder of InputPath ({input_path!r})"
                )
            yield f"{pair}, by InputPath {input_path!r}; give each a path of its own"
        first[need.key].append(need)


def _are_apart(config: Config, first: str, second: str) -> bool:
    """Return whether the Binning of two regions says that they share no bin."""
    given = [
        region.get("Binning") for region in config["Regions"] if region["Name"] in (first, second)
    ]
    if any(binning is None for binning in given):
        return False
    (low, high), (other_low, other_high) = ((min(edges), max(edges)) for edges in given)
    return bool(high <= other_low or other_high <= low)


def collect(config: Config, source: Path) -> dict[str, hist.Hist[Any]]:
    """Read the histograms of a configuration that names their files, by `Need.key`.

    ``source`` is the folder that the files are in, or one of the files.

    Raises
    ------
    FitError
        The configuration is wrong, two of its files are one, or pseudodata are to be made, which
        takes one source.
    HistogramError
        A file can't be read.
    UsageError
        ``source`` is neither.
    """
    wanted = needs(config)
    base = _base(source, {need.file for need in wanted}, str(config["General"]["InputPath"]))
    content: dict[str, Mapping[str, hist.Hist[Any]]] = {}
    histograms = {}
    names: dict[tuple[Path, str], str] = {}
    for need in wanted:
        first = names.setdefault(((base / need.file).resolve(), need.histogram), need.key)
        if first != need.key:
            raise FitError(
                f"fit configuration: {need}: {need.key} is the same as {first}, by another name of "
                "its file; give each a path of its own"
            )
        if need.file not in content:
            content[need.file] = templates.load(base / need.file)
        if need.histogram in content[need.file]:
            histograms[need.key] = content[need.file][need.histogram]
    return histograms


def _base(source: Path, files: set[str], input_path: str) -> Path:
    """The folder that the files of InputPath are relative to."""
    if (source / "run.json").exists():
        raise UsageError(
            f"{source}: a run directory, whose histograms are in one file; InputPath "
            f"({input_path!r}) names several, so give the folder they are in"
        )
    if source.is_dir():
        return source
    if source.is_file():
        for folder in source.absolute().parents:
            named = [folder / file for file in files]
            if any(one.is_file() and one.samefile(source) for one in named):
                return folder
    raise UsageError(
        f"{source}: none of the files that InputPath ({input_path!r}) names, such as "
        f"{min(files)}; give one of them, or the folder they are relative to"
    )
