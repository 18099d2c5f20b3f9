"""pyhf workspaces as files: reading, patching, fitting."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import cabinetry
import numpy as np
import pyhf
import pytest
from commandline import agc

from agc_ml.cli.validation import validate
from agc_ml.errors import FitError, UsageError
from agc_ml.statistics import fit
from agc_ml.statistics.likelihood.likelihood import build
from agc_ml.statistics.likelihood.pyhf_model import quiet
from agc_ml.statistics.workspace import histfactory


def workspace(*, signal: bool = True, kinds: bool = False) -> dict[str, Any]:
    """Make a workspace of two channels; ``kinds`` gives it every kind of modifier."""
    channels = []
    for name, scale in (("one", 1.0), ("two", 2.0)):
        background: dict[str, Any] = {
            "name": "background",
            "data": [50.0 * scale, 60.0 * scale],
            "modifiers": [{"name": "b", "type": "normsys", "data": {"hi": 1.1, "lo": 0.9}}],
        }
        if kinds:
            background["modifiers"] += [
                {"name": "lumi", "type": "lumi", "data": None},
                {"name": f"free_{name}", "type": "shapesys", "data": [5.0, 7.0]},
                {"name": f"staterror_{name}", "type": "staterror", "data": [2.0, 3.0]},
                {
                    "name": "shape",
                    "type": "histosys",
                    "data": {
                        "hi_data": [55.0 * scale, 58.0 * scale],
                        "lo_data": [46.0 * scale, 61.0 * scale],
                    },
                },
            ]
        samples = [background]
        if signal:
            samples.insert(
                0,
                {
                    "name": "signal",
                    "data": [12.0, 11.0],
                    "modifiers": [{"name": "mu", "type": "normfactor", "data": None}],
                },
            )
        channels.append({"name": name, "samples": samples})
    parameters: list[dict[str, Any]] = []
    if kinds:
        parameters.append(
            {
                "name": "lumi",
                "auxdata": [1.0],
                "sigmas": [0.02],
                "bounds": [[0.5, 1.5]],
                "inits": [1.0],
            }
        )
    return {
        "version": "1.0.0",
        "channels": channels,
        "observations": [
            {"name": "one", "data": [62.0, 69.0]},
            {"name": "two", "data": [115.0, 131.0]},
        ],
        "measurements": [{"name": "m", "config": {"poi": "mu", "parameters": parameters}}],
    }


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def patch() -> list[dict[str, Any]]:
    """Make the patch that adds the signal to a workspace of background only."""
    whole = workspace()["channels"]
    return [
        {"op": "add", "path": f"/channels/{index}/samples/0", "value": channel["samples"][0]}
        for index, channel in enumerate(whole)
    ]


def patch_set(background: dict[str, Any]) -> dict[str, Any]:
    """Make a set of two patches for a workspace, as HEPData has them."""
    half = copy.deepcopy(patch())
    for one in half:
        one["value"]["data"] = [value / 2 for value in one["value"]["data"]]
    return {
        "metadata": {
            "references": {"hepdata": "ins1234567"},
            "description": "made up",
            "digests": {"sha256": pyhf.utils.digest(background, algorithm="sha256")},
            "labels": ["mass"],
        },
        "patches": [
            {"metadata": {"name": "whole", "values": [1]}, "patch": patch()},
            {"metadata": {"name": "half", "values": [2]}, "patch": half},
        ],
        "version": "1.0.0",
    }


@pytest.mark.parametrize("kinds", [False, True])
def test_is_fitted_as_cabinetry_does(kinds: bool, tmp_path: Path) -> None:
    path = written(tmp_path / "ws.json", workspace(kinds=kinds))
    result = fit.fit(path)
    with quiet():
        model, data = cabinetry.model_utils.model_and_data(workspace(kinds=kinds))
        expected = cabinetry.fit.fit(model, data, strategy=2)
    for parameter in result.parameters:
        index = expected.labels.index(parameter.name)
        width = expected.uncertainty[index]
        assert parameter.value == pytest.approx(expected.bestfit[index], abs=5e-3 * width)
        assert parameter.uncertainty == pytest.approx(width, rel=0.02)
    assert result.twice_nll == pytest.approx(expected.best_twice_nll, abs=1e-3)
    assert (result.poi.name, result.pseudodata, result.cross_section) == ("mu", "data", None)
    assert [region.edges.tolist() for region in result.postfit] == [[0, 1, 2]] * 2
    assert result.workspace == workspace(kinds=kinds)
    if kinds:  # in units of what each is uncertain by before the fit
        lumi = next(p for p in result.parameters if p.name == "lumi")
        assert lumi.pull == pytest.approx((lumi.value - 1) / 0.02)
        assert result.widths["lumi"] == pytest.approx(0.02)


def test_patches(tmp_path: Path) -> None:
    background = workspace(signal=False)
    base = written(tmp_path / "bkgonly.json", background)
    single = written(tmp_path / "patch.json", patch())
    several = written(tmp_path / "set.json", patch_set(background))
    for given in (str(single), f"{several}:whole"):
        made, inputs = histfactory.read(base, given)
        assert made.spec == workspace()
        assert set(inputs) == {"workspace", "patch"}
    whole = fit.fit(written(tmp_path / "whole.json", workspace()))
    half = fit.fit(base, patch=f"{several}:half")
    assert half.poi.value == pytest.approx(2 * whole.poi.value, rel=1e-6)


def test_wrong_patches(tmp_path: Path) -> None:
    background = workspace(signal=False)
    base = written(tmp_path / "bkgonly.json", background)
    several = written(tmp_path / "set.json", patch_set(background))
    with pytest.raises(
        UsageError, match=r"a set of patches; say which: .*:NAME, one of whole, half"
    ):
        fit.fit(base, patch=str(several))
    with pytest.raises(UsageError, match=r"no patch 'third' in it; there are whole, half"):
        fit.fit(base, patch=f"{several}:third")
    with pytest.raises(UsageError, match=r"gone.json: no such file; a patch is a JSON file"):
        fit.fit(base, patch=str(tmp_path / "gone.json"))
    single = written(tmp_path / "patch.json", patch())
    with pytest.raises(UsageError, match="one patch, not a set with names such as 'whole'"):
        fit.fit(base, patch=f"{single}:whole")
    lost = written(tmp_path / "lost.json", [{"op": "remove", "path": "/nothing"}])
    with pytest.raises(FitError, match=r"lost.json: can't be applied to .*bkgonly.json"):
        fit.fit(base, patch=str(lost))
    other = written(tmp_path / "other.json", {**background, "version": "1.0.0", "more": 1})
    with pytest.raises(FitError, match="made for another workspace than"):
        fit.fit(other, patch=f"{several}:whole")
    damaged = written(tmp_path / "damaged.json", {**patch_set(background), "patches": [1]})
    with pytest.raises(FitError, match=r"damaged.json: not a set of patches"):
        fit.fit(base, patch=f"{damaged}:whole")


def test_of_background_only_there_is_nothing_to_measure(tmp_path: Path) -> None:
    base = written(tmp_path / "bkgonly.json", workspace(signal=False))
    with pytest.raises(FitError, match=r"interest 'mu' changes nothing: .*--patch FILE\[:NAME\]"):
        fit.fit(base)


@pytest.mark.parametrize(
    ("modifier", "message"),
    [
        (
            {"name": "s", "type": "histosys", "data": {"hi_data": [1.0], "lo_data": [1.0, 2]}},
            "histosys 's': 1 bins, and the sample has 2",
        ),
        ({"name": "e", "type": "staterror", "data": [1.0, 2, 3]}, "staterror 'e': 3 bins, and the"),
        ({"name": "n", "type": "normsys", "data": {"hi": 1.1, "lo": 0.0}}, "0 takes all events"),
        (
            {"name": "n", "type": "normsys", "data": {"hi": float("inf"), "lo": 0.9}},
            "its numbers are not all finite",
        ),
        (
            {"name": "lumi", "type": "lumi", "data": None},
            "parameter 'lumi': the settings of a luminosity have no defaults; state its inits, b",
        ),
        ({"name": "mu", "type": "normsys", "data": {"hi": 1.1, "lo": 0.9}}, "pyhf makes no model"),
    ],
)
def test_modifiers_that_make_no_model(
    modifier: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = workspace()
    content["channels"][0]["samples"][0]["modifiers"].append(modifier)
    path = written(tmp_path / "ws.json", content)
    with pytest.raises(FitError, match=message) as caught:
        fit.fit(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert validate(path).problem == str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([{"name": "mu", "bounds": [[5.0, 0.0]]}], "parameter 'mu': bounds 5 to 0 don't rise"),
        (
            [{"name": "mu", "inits": [1.0]}] * 2,
            "parameter 'mu' has settings twice|InvalidNameReuse",
        ),
        ([{"name": "mu", "inits": [float("nan")]}], "parameter 'mu': its inits are not all finite"),
        ([{"name": "b", "auxdata": [float("inf")]}], "'b': its auxdata are not all finite"),
        ([{"name": "b", "sigmas": [0.0]}], "parameter 'b': its sigmas are not all above 0"),
        ([{"name": "b", "sigmas": [-1.0]}], "parameter 'b': its sigmas are not all above 0"),
    ],
)
def test_settings_that_make_no_sense(
    settings: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    content = workspace()
    content["measurements"][0]["config"]["parameters"] = settings
    with pytest.raises(FitError, match=message):
        histfactory.read(written(tmp_path / "ws.json", content))


@pytest.mark.parametrize(
    "operations",
    [
        [{"op": "nonsense", "path": "/channels", "value": 1}],
        [{"path": "/channels"}],
        [1, 2],
        [{"op": "add", "path": 5, "value": 1}],
        [{"op": "add", "path": "channels", "value": 1}],
        [{"op": "replace", "path": "", "value": []}],
        [{"op": "replace", "path": "", "value": None}],
        "text",
    ],
)
def test_patches_that_make_no_sense(operations: Any, tmp_path: Path) -> None:
    base = written(tmp_path / "bkgonly.json", workspace(signal=False))
    given = written(tmp_path / "patch.json", operations)
    with pytest.raises(FitError, match=r"patch\.json") as caught:
        fit.fit(base, patch=str(given))
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observations": []}, "not a workspace that pyhf takes|observations of it 0 times"),
        ({"version": "2.0.0"}, "pyhf knows no workspaces of version '2.0.0'"),
        ({"channels": workspace()["channels"] * 2}, "channel 'one' is there 2 times"),
        (
            {"observations": [*workspace()["observations"], {"name": "three", "data": [1.0]}]},
            "channel 'three' is there 0 times, and observations of it 1 times",
        ),
        (
            {
                "channels": [
                    {**channel, "samples": [*channel["samples"], channel["samples"][1]]}
                    for channel in workspace()["channels"]
                ]
            },
            "channel 'one': sample 'background' is there twice, and one would be ignored",
        ),
        ({"measurements": []}, "not a workspace that pyhf takes"),
        ({"channels": [{"name": "one"}]}, "not a workspace that pyhf takes"),
        (
            {
                "observations": [
                    {"name": "one", "data": [62.0]},
                    {"name": "two", "data": [1.0, 2.0]},
                ]
            },
            r"channel 'one': samples and observations have \[1, 2\] bins",
        ),
        (
            {
                "observations": [
                    {"name": "one", "data": [62.0, -1.0]},
                    {"name": "two", "data": [1.0, 2.0]},
                ]
            },
            "channel 'one': the data are -1 in a bin",
        ),
    ],
)
def test_what_is_no_good_workspace(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "ws.json", {**workspace(), **change})
    with pytest.raises(FitError, match=message) as caught:
        histfactory.read(path)
    assert "\n" not in str(caught.value)
    verdict = validate(path)
    assert verdict.kind == "pyhf workspace"
    assert verdict.problem is not None


def test_shape_factors_of_channels_of_different_sizes(tmp_path: Path) -> None:
    content = workspace()
    content["observations"][1]["data"].append(1.0)
    for channel in content["channels"]:
        for sample in channel["samples"]:
            sample["data"] += [1.0] if channel["name"] == "two" else []
        channel["samples"][1]["modifiers"].append(
            {"name": "f", "type": "shapefactor", "data": None}
        )
    path = written(tmp_path / "ws.json", content)
    with pytest.raises(FitError, match="shapefactor 'f' is that of channels one, two, of differen"):
        fit.fit(path)
    assert validate(path).problem is not None


def test_statistics_that_channels_share(tmp_path: Path) -> None:
    """They are those of each bin still, as pyhf has it; where it has not, that is said."""
    shared, apart = workspace(), workspace()
    for name, content in (("st", shared), (None, apart)):
        for channel in content["channels"]:
            channel["samples"][1]["modifiers"].append(
                {"name": name or channel["name"], "type": "staterror", "data": [4.0, 6.0]}
            )
    one = fit.fit(written(tmp_path / "shared.json", shared))
    other = fit.fit(written(tmp_path / "apart.json", apart))
    assert one.poi.value == pytest.approx(other.poi.value, rel=1e-9)
    assert one.poi.uncertainty == pytest.approx(other.poi.uncertainty, rel=1e-6)
    shared["channels"][1]["samples"][1]["name"] = "another"
    with pytest.raises(FitError, match="pyhf makes no model of it"):
        fit.fit(written(tmp_path / "ws.json", shared))


def test_settings_of_bins_go_with_them(tmp_path: Path) -> None:
    """A bin that nothing can fill leaves settings of the others."""
    content = workspace()
    content["observations"][0]["data"].insert(0, 0.0)
    for sample in content["channels"][0]["samples"]:
        sample["data"].insert(0, 0.0)
    content["channels"][0]["samples"][1]["modifiers"] += [
        {"name": "st", "type": "staterror", "data": [0.0, 4.0, 6.0]},
        {"name": "sh", "type": "shapesys", "data": [0.0, 3.0, 5.0]},
    ]
    content["measurements"][0]["config"]["parameters"] = [
        {"name": "st", "inits": [1.0, 1.1, 0.9], "bounds": [[0.0, 2.0], [0.1, 3.0], [0.2, 4.0]]},
        {"name": "sh", "auxdata": [1.0, 250.0, 160.0]},
        {"name": "mu", "inits": [0.5], "bounds": [[0.0, 8.0]]},
    ]
    spec = histfactory.read(written(tmp_path / "ws.json", content))[0].spec
    build(spec)  # which pyhf takes
    assert spec["measurements"][0]["config"]["parameters"] == [
        {"name": "st", "inits": [1.1, 0.9], "bounds": [[0.1, 3.0], [0.2, 4.0]]},
        {"name": "sh", "auxdata": [250.0, 160.0]},
        {"name": "mu", "inits": [0.5], "bounds": [[0.0, 8.0]]},
    ]


def test_settings_of_bins_that_regions_share(tmp_path: Path) -> None:
    """They are in the order of the channels' names, in whichever order these are written."""
    content = workspace()
    content["channels"].reverse()
    content["observations"].reverse()
    content["observations"][1]["data"].insert(0, 0.0)
    for channel in content["channels"]:
        for sample in channel["samples"]:
            sample["data"][:0] = [0.0] if channel["name"] == "one" else []
        errors = [0.0, 4.0, 6.0] if channel["name"] == "one" else [8.0, 9.0]
        channel["samples"][1]["modifiers"] = [{"name": "st", "type": "staterror", "data": errors}]
    settings = {"name": "st", "inits": [1.0, 1.1, 1.2, 1.3, 1.4]}
    content["measurements"][0]["config"]["parameters"] = [settings]
    spec = histfactory.read(written(tmp_path / "ws.json", content))[0].spec
    likelihood = build(spec)
    assert dict(zip(likelihood.names, likelihood.start, strict=True)) == {
        "mu": 1.0,
        **{f"st[{index}]": value for index, value in enumerate((1.1, 1.2, 1.3, 1.4))},
    }
    rates = likelihood.model.expected_actualdata(likelihood.start)
    np.testing.assert_allclose(
        rates, [12 + 50 * 1.1, 11 + 60 * 1.2, 12 + 100 * 1.3, 11 + 120 * 1.4]
    )


def test_settings_may_be_whole_numbers(tmp_path: Path) -> None:
    """What a fit predicts is not rounded to them: data that are matched are matched."""
    content = workspace()
    for channel in content["channels"]:
        channel["samples"][1]["modifiers"] = [{"name": "k", "type": "normfactor", "data": None}]
        del channel["samples"][1]["data"][1], channel["samples"][0]["data"][1]
    for one in content["observations"]:
        del one["data"][1]
    settings = [{"name": name, "inits": [1], "bounds": [[0, 10]]} for name in ("mu", "k")]
    content["measurements"][0]["config"]["parameters"] = settings
    result = fit.fit(written(tmp_path / "ws.json", content))
    for region in result.postfit:
        np.testing.assert_allclose(region.total, region.data, rtol=1e-6)
        np.testing.assert_allclose(region.uncertainty, np.sqrt(region.data), rtol=1e-3)


def test_a_fixed_parameter_needs_no_room(tmp_path: Path) -> None:
    content = workspace()
    settings = {"name": "b", "inits": [0.5], "bounds": [[0.5, 0.5]], "fixed": True}
    content["measurements"][0]["config"]["parameters"] = [settings]
    assert fit.fit(written(tmp_path / "ws.json", content)).states == {"b": "fixed"}
    settings["fixed"] = False
    with pytest.raises(FitError, match=r"bounds 0.5 to 0.5 don't rise"):
        fit.fit(written(tmp_path / "ws.json", content))


def test_shape_factors_stay_those_of_their_bins(tmp_path: Path) -> None:
    """The first bin of one channel and the last of the other can't be filled."""
    content = workspace()
    for channel, observed, empty in zip(
        content["channels"], content["observations"], (0, 2), strict=True
    ):
        observed["data"].append(50.0)
        for sample in channel["samples"]:
            sample["data"].append(10.0)
            sample["data"][empty] = 0.0
        channel["samples"][1]["modifiers"] = [{"name": "f", "type": "shapefactor", "data": None}]
    path = written(tmp_path / "ws.json", content)
    with pytest.raises(FitError, match="shapefactor 'f' is that of regions 'one' and 'two', in wh"):
        fit.fit(path)
    for channel in content["channels"]:  # where the same one can't, all is well
        for sample in channel["samples"]:
            sample["data"] = [0.0, 30.0, 20.0]
    content["channels"][0]["samples"][0]["data"] = [0.0, 5.0, 9.0]
    content["channels"][1]["samples"][0]["data"] = [0.0, 9.0, 5.0]
    result = fit.fit(written(tmp_path / "same.json", content))
    assert [region.total[0] for region in result.postfit] == [0, 0]


def test_a_factor_of_one_bin_may_be_measured(tmp_path: Path) -> None:
    content = workspace()
    for channel, observed in zip(content["channels"], content["observations"], strict=True):
        observed["data"].pop()
        for sample in channel["samples"]:
            sample["data"].pop()
        channel["samples"][0]["modifiers"][0]["type"] = "shapefactor"
    result = fit.fit(written(tmp_path / "ws.json", content))
    assert result.poi.name == "mu[0]"
    fit.save(result, tmp_path / "fit")
    assert str(fit.load(tmp_path / "fit")) == str(result)


def test_what_is_written_starts_where_the_fit_did(tmp_path: Path) -> None:
    """Settings of a shape factor are of all its bins at once."""
    content = workspace()
    content["channels"][0]["samples"][1]["modifiers"] = [
        {"name": "f", "type": "shapefactor", "data": None}
    ]
    content["measurements"][0]["config"]["parameters"] = [{"name": "f", "inits": [1.0, 20.0]}]
    result = fit.fit(written(tmp_path / "ws.json", content))
    assert any(note.startswith("the fit starts at f[1] = 10") for note in result.notes)
    (settings,) = result.workspace["measurements"][0]["config"]["parameters"]
    assert settings == {"name": "f", "inits": [1.0, 10.0]}
    again = fit.fit(written(tmp_path / "again.json", result.workspace))
    assert again.notes == ()
    assert again.poi == result.poi


def test_what_it_does_not_take(tmp_path: Path) -> None:
    path = written(tmp_path / "ws.json", workspace())
    for given in ({"config": {}}, {"pseudodata": "complete"}):
        with pytest.raises(UsageError, match="a pyhf workspace says itself what is fitted"):
            fit.fit(path, **given)
    (tmp_path / "cut.json").write_text(json.dumps(workspace())[:-20])
    called = agc("fit", tmp_path / "cut.json", "-o", tmp_path / "out")
    assert called.code == 1
    assert "cut.json" in called.error
    with pytest.raises(UsageError, match="only a pyhf workspace can be patched"):
        fit.fit({}, patch="p.json")


def test_other_measurements_and_settings_are_told(tmp_path: Path) -> None:
    content = workspace()
    content["measurements"] *= 2
    content["measurements"][1] = {**content["measurements"][1], "name": "other"}
    content["measurements"][0]["config"]["parameters"].append({"name": "alpha_b", "fixed": True})
    notes = histfactory.read(written(tmp_path / "ws.json", content))[0].notes
    assert "fitted is the measurement m, the first of 2: the others are other" in notes
    assert "settings of parameters that the model does not have: alpha_b" in notes


def test_an_empty_bin_is_left_out_and_told(tmp_path: Path) -> None:
    content = workspace()
    for channel in content["channels"]:
        for sample in channel["samples"]:
            sample["data"].append(0.0)
    for one in content["observations"]:
        one["data"].append(3.0)
    found = histfactory.read(written(tmp_path / "ws.json", content))[0]
    assert (
        "one: left out, since no parameter can predict events there: the bins [2, 3) with 3 in the "
        "data" in found.notes
    )
    assert found.spec == workspace()
    result = fit.fit(tmp_path / "ws.json")
    assert result.workspace == workspace()
    assert [region.total[2] for region in result.postfit] == [0, 0]


def test_names_are_no_commands_of_a_terminal(tmp_path: Path) -> None:
    base = written(tmp_path / "bkgonly.json", workspace())
    base.write_text(base.read_text().replace('"mu"', '"mu\\u001b]0;owned\\u0007[/x]"'))
    called = agc("fit", base, "-o", tmp_path / "out")
    assert called.code == 0, called.err
    assert called.out.startswith("mu\\x1b]0;owned\\x07[/x] = ")


def test_from_the_command_line(tmp_path: Path) -> None:
    base = written(tmp_path / "bkgonly.json", workspace(signal=False))
    several = written(tmp_path / "set.json", patch_set(workspace(signal=False)))
    called = agc("fit", base, "--patch", f"{several}:whole", "-o", tmp_path / "out", "-q")
    assert called.code == 0, called.err
    assert called.out.splitlines()[0].startswith("mu = ")
    assert called.err == ""
    assert (tmp_path / "out" / "figures" / "one_post-fit.png").exists()
    assert agc("fit", base, "-o", tmp_path / "none").code == 1
    assert agc("fit", base, "--patch", several, "-o", tmp_path / "none").code == 2
    assert agc("report", tmp_path / "out").code == 0
    called = agc("validate", base, several)
    assert "set.json: pyhf patch, good: 2 patches: whole, half" in called.out
    assert "bkgonly.json: pyhf workspace, good: 2 regions, 4 bins, of background only" in called.out
    assert np.isclose(fit.load(tmp_path / "out").poi.value, 0.7, atol=0.5)
