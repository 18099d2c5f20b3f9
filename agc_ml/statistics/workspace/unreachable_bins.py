"""Bins of a workspace in which no parameter can predict events.

They have no likelihood: without data they say nothing, and data there can't be explained. So they
are taken out of the workspace, which any other program can fit then, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import FitError

_Mask = NDArray[np.bool_]
_Channel = Mapping[str, Any]


class Reachable(NamedTuple):
    """A workspace without unreachable bins.

    ``kept`` says by region which of its bins are left, shape ``(n_bins,)``; ``notes`` name the
    others, and the data in them.
    """

    spec: dict[str, Any]
    kept: dict[str, _Mask]
    notes: tuple[str, ...]


def without_unreachable(
    spec: Mapping[str, Any], edges: Mapping[str, NDArray[np.float64]]
) -> Reachable:
    """Take out the bins of a pyhf workspace in which nothing can be predicted.

    A sample can predict events where its nominal yield or a variation of it is not zero, unless it
    is scaled by a factor, or varied by a parameter, that is fixed at zero. ``edges`` name the bins,
    shape ``(n_bins + 1,)``.

    Raises
    ------
    FitError
        No bin of a region is left, or different ones of regions that share parameters bin by bin.
    """
    off = _switched_off(spec)
    kept = {channel["name"]: _reachable(channel, off) for channel in spec["channels"]}
    for name, mask in kept.items():
        if not mask.any():
            raise FitError(
                f"region {name!r}: no sample predicts events in any bin, and no parameter can; "
                "process more events, or take the region out of the fit"
            )
    data = {one["name"]: one["data"] for one in spec["observations"]}
    notes = tuple(_notes(kept, data, edges))
    if not notes:
        return Reachable(dict(spec), kept, ())
    _check_shared(spec["channels"], kept)
    masks = _masks(spec["channels"], kept)
    return Reachable(
        {
            **spec,
            "channels": [_channel_of(one, kept[one["name"]]) for one in spec["channels"]],
            "observations": [
                {**one, "data": _only(one["data"], kept[one["name"]])}
                for one in spec["observations"]
            ],
            "measurements": [_measurement_of(one, masks) for one in spec["measurements"]],
        },
        kept,
        notes,
    )


def each_modifier(channels: Iterable[_Channel]) -> Iterator[tuple[_Channel, Any, Any]]:
    """Go through the modifiers of a pyhf workspace's channels: channel, sample, modifier."""
    for channel in channels:
        for sample in channel["samples"]:
            for modifier in sample["modifiers"]:
                yield channel, sample, modifier


def _switched_off(spec: Mapping[str, Any]) -> set[str]:
    """Parameters that are fixed at zero in the measurement that is fitted, the first one.

    A variation is at zero, a factor at one, if no value is stated.
    """
    parameters = spec["measurements"][0]["config"]["parameters"]
    fixed = {one["name"]: one.get("inits") for one in parameters if one.get("fixed")}
    modifiers = [modifier for *_, modifier in each_modifier(spec["channels"])]
    varied = {one["name"] for one in modifiers if one["type"] in ("histosys", "normsys")}
    return {name for name, at in fixed.items() if at == [0] or (at is None and name in varied)}


def _check_shared(channels: Sequence[_Channel], kept: Mapping[str, _Mask]) -> None:
    """Make sure that shape factors stay those of the bins that they were of."""
    first: dict[str, str] = {}
    for channel, _, modifier in each_modifier(channels):
        if modifier["type"] != "shapefactor":
            continue
        other = first.setdefault(modifier["name"], channel["name"])
        if not np.array_equal(kept[other], kept[channel["name"]]):
            raise FitError(
                f"shapefactor {modifier['name']!r} is that of regions {other!r} and "
                f"{channel['name']!r}, in which different bins can't be filled; take such bins out "
                "of both"
            )


def _reachable(channel: _Channel, off: set[str]) -> _Mask:
    reachable = np.zeros(len(channel["samples"][0]["data"]), dtype=np.bool_)
    for sample in channel["samples"]:
        if any(one["type"] == "normfactor" and one["name"] in off for one in sample["modifiers"]):
            continue
        yields = [sample["data"]]
        for modifier in sample["modifiers"]:
            if modifier["type"] == "histosys" and modifier["name"] not in off:
                yields += [modifier["data"]["hi_data"], modifier["data"]["lo_data"]]
        reachable |= np.any(np.asarray(yields) != 0, axis=0)
    return reachable


def _notes(
    kept: Mapping[str, _Mask],
    data: Mapping[str, Sequence[float]],
    edges: Mapping[str, NDArray[np.float64]],
) -> Iterator[str]:
    for region, mask in kept.items():
        bins = [
            _bin(edges[region], data[region], index) for index in np.flatnonzero(~mask).tolist()
        ]
        if bins:
            yield (
                f"{region}: left out, since no parameter can predict events there: the bins "
                f"{', '.join(bins)}"
            )


def _bin(edges: NDArray[np.float64], data: Sequence[float], index: int) -> str:
    where = f"[{edges[index]:g}, {edges[index + 1]:g})"
    return f"{where} with {data[index]:g} in the data" if data[index] > 0 else where


def _channel_of(channel: _Channel, mask: _Mask) -> dict[str, Any]:
    samples = [
        {
            **sample,
            "data": _only(sample["data"], mask),
            "modifiers": [
                {**modifier, "data": _data_of(modifier["data"], mask)}
                for modifier in sample["modifiers"]
            ],
        }
        for sample in channel["samples"]
    ]
    return {**channel, "samples": samples}


def _masks(channels: Sequence[_Channel], kept: Mapping[str, _Mask]) -> dict[str, _Mask]:
    """Masks of the parameters that are kept, where there is one for each bin."""
    by_parameter: dict[str, dict[str, _Mask]] = {}
    in_order = sorted(channels, key=lambda one: str(one["name"]))  # pyhf's
    for channel, _, modifier in each_modifier(in_order):
        if modifier["type"] == "staterror":
            own = by_parameter.setdefault(modifier["name"], {})
            own[channel["name"]] = kept[channel["name"]]
        elif modifier["type"] in ("shapefactor", "shapesys"):  # shared ones are the same
            by_parameter[modifier["name"]] = {"": kept[channel["name"]]}
    return {name: np.concatenate(list(masks.values())) for name, masks in by_parameter.items()}


def _measurement_of(measurement: Mapping[str, Any], masks: Mapping[str, _Mask]) -> dict[str, Any]:
    config = measurement["config"]
    parameters = []
    for parameter in config["parameters"]:
        mask = masks.get(parameter["name"])
        cut = {
            field: _only(values, mask)
            for field, values in parameter.items()
            if mask is not None and isinstance(values, list) and len(values) == len(mask)
        }
        parameters.append({**parameter, **cut})
    return {**measurement, "config": {**config, "parameters": parameters}}


def _data_of(data: Any, mask: _Mask) -> Any:
    """Numbers of the kept bins, of a modifier that has some for each bin."""
    if isinstance(data, Mapping):
        return {key: _data_of(value, mask) for key, value in data.items()}
    return _only(data, mask) if isinstance(data, list) else data


def _only(values: Sequence[Any], mask: _Mask) -> list[Any]:
    return [value for value, is_kept in zip(values, mask, strict=True) if is_kept]
