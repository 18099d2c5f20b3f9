"""Fits of random workspaces, compared with Minuit's.

python benchmarks/fits.py [--number 300] [-o RECORD.json] [--figure FIGURE.png]

Four shapes of workspaces in turn (SHAPES), each drawn from a seed of its own: what it predicts,
how it is uncertain, where it starts, and its data. Minuit gets pyhf's own likelihood, computed by
numpy, and jax's gradient; its Hesse then gives the uncertainties. Where these are off by more than
UNCERTAINTY, differences of the gradient decide between the two. Each fit ends as one of VERDICTS.
The outcome is written as JSON and drawn; exit code 1 if any differs.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

from agc_ml.errors import FitError  # noqa: E402
from agc_ml.statistics.fit_result import versions  # noqa: E402
from agc_ml.statistics.likelihood import likelihood as lk  # noqa: E402
from agc_ml.statistics.likelihood import pyhf_model  # noqa: E402
from agc_ml.statistics.likelihood.minimization import Minimum, minimise  # noqa: E402
from agc_ml.statistics.workspace.unreachable_bins import without_unreachable  # noqa: E402

RESULTS: Final = ROOT / "benchmarks" / "results" / "fits.json"
FIGURE: Final = ROOT / "docs" / "fits" / "minuit.png"

VALUE: Final = 1e-3
"""How far values may be apart, in uncertainties."""
UNCERTAINTY: Final = 1e-2
"""How far uncertainties may be apart, relative."""
SAME: Final = 1e-4
"""Difference of twice the negative log-likelihood between one minimum and another."""

VERDICTS: Final = {
    "agrees": "values within 0.001 of an uncertainty, uncertainties within 1 %",
    "mirrored": "Minuit found the mirror image, as good, of what acts alike up and down",
    "covariance": "values agree; of the uncertainties differences of the gradient confirm ours",
    "lower": "Minuit stopped at a higher point, or is not valid; started near ours it agrees",
    "refused": "there is a line that says why there is no result",
    "differs": "none of these",
}

_Array = np.ndarray[Any, np.dtype[np.float64]]
_Spec = dict[str, Any]


def counting(rng: np.random.Generator) -> _Spec:
    """Single bins with uncertain normalisations."""
    channels = []
    for index in range(rng.integers(1, 5)):
        signal, backgrounds = rng.uniform(1, 50), rng.uniform(0.5, 200, size=2)
        channels.append(
            (
                f"c{index}",
                [
                    _sample("signal", [signal], _factor("mu"), *_norms(rng, "a", "lumi")),
                    _sample("one", [backgrounds[0]], *_norms(rng, "a", "b", "c", "lumi")),
                    _sample("two", [backgrounds[1]], *_norms(rng, "b", "d")),
                ],
            )
        )
    return _workspace(rng, channels, start=1, low=rng.choice([0, -5]))


def shapes(rng: np.random.Generator) -> _Spec:
    """Two regions with uncertain shapes, statistics of the simulation, and a free background."""
    n, x = 8, np.linspace(0, 1, 8)
    scale = 10 ** rng.uniform(1, 4)
    channels = []
    for index in range(2):
        signal = scale * 0.2 * rng.uniform(0.5, 2) * np.exp(-((x - 0.6) ** 2) / 0.03)
        wide, flat = scale * np.exp(-2 * x), scale * rng.uniform(0.05, 0.5) * np.ones(n)
        channels.append(
            (
                f"r{index}",
                [
                    _sample("signal", signal, _factor("mu"), *_shape(rng, signal, "a")),
                    _sample("wide", wide, *_shape(rng, wide, "a"), *_shape(rng, wide, "b")),
                    _sample("flat", flat, _factor("k"), *_shape(rng, flat, "c")),
                ],
            )
        )
        errors = rng.uniform(0.01, 0.1)
        for _, samples in channels[-1:]:
            for sample in samples:
                spread = (errors * np.sqrt(np.asarray(sample["data"]) * scale / 10)).tolist()
                sample["modifiers"].append(
                    {"name": f"staterror_r{index}", "type": "staterror", "data": spread}
                )
    return _workspace(rng, channels, start=1)


def sparse(rng: np.random.Generator) -> _Spec:
    """Many bins with few events: a peak on a falling background."""
    n = int(rng.choice([50, 200, 400]))
    x = (np.arange(n) + 0.5) / n
    background = np.exp(-3 * x)
    background *= rng.uniform(5, 100) / background.sum()
    signal = np.exp(-((x - rng.uniform(0.2, 0.8)) ** 2) / (2 * 0.03**2))
    signal *= rng.uniform(3, 30) / signal.sum()
    background[rng.random(n) < 0.1] = 0  # noqa: PLR2004 - of ten bins one is empty
    channels = [
        (
            "r",
            [
                _sample("signal", signal, _factor("mu"), *_norms(rng, "a")),
                _sample("background", background, *_norms(rng, "b"), *_shape(rng, background, "c")),
            ],
        )
    ]
    return _workspace(rng, channels, start=rng.choice([0, 1]), high=50)


def one_sided(rng: np.random.Generator) -> _Spec:
    """Variations that act alike up and down, or nearly, and a bin that only the signal fills."""
    n = 6
    signal = rng.uniform(1, 30, size=n)
    wide, other = rng.uniform(20, 300, size=n), rng.uniform(10, 100, size=n)
    wide[-1] = other[-1] = 0
    samples = [
        _sample("signal", signal, _factor("mu")),
        _sample("wide", wide, *_alike(rng, wide, "a"), *_norms(rng, "lumi")),
        _sample("other", other, *_alike(rng, other, "b"), *_norms(rng, "lumi")),
    ]
    samples[2]["modifiers"].append(
        {"name": "free", "type": "shapesys", "data": (rng.uniform(0.02, 0.2) * other).tolist()}
    )
    return _workspace(rng, [("r", samples)], start=rng.choice([0, 1]), high=20, pull=1.5)


SHAPES: Final[tuple[Callable[[np.random.Generator], _Spec], ...]] = (
    *(counting, shapes),
    *(sparse, one_sided),
)


def draw(index: int) -> tuple[str, _Spec]:
    """Draw the workspace of a number, and name its shape."""
    shape = SHAPES[index % len(SHAPES)]
    return shape.__name__, shape(np.random.default_rng([2026, index]))


def _sample(name: str, data: Any, *modifiers: _Spec) -> _Spec:
    return {
        "name": name,
        "data": np.asarray(data, dtype=np.float64).tolist(),
        "modifiers": list(modifiers),
    }


def _factor(name: str) -> _Spec:
    return {"name": name, "type": "normfactor", "data": None}


def _norms(rng: np.random.Generator, *names: str) -> list[_Spec]:
    found = []
    for name in names:
        up, down = rng.normal(0, 0.1, size=2)
        down = -up if rng.random() < 0.5 else down  # noqa: PLR2004 - half are symmetric
        data = {"hi": max(1 + up, 0.5), "lo": max(1 + down, 0.5)}
        found.append({"name": name, "type": "normsys", "data": data})
    return found


def _shape(rng: np.random.Generator, nominal: _Array, name: str) -> list[_Spec]:
    """Tilt a template, and scale it."""
    tilt = rng.normal(0, 0.15) * np.linspace(-1, 1, len(nominal))
    up, down = nominal * (1 + tilt), nominal * (1 - tilt * rng.uniform(0.5, 1.5))
    data = {"hi_data": up.tolist(), "lo_data": down.tolist()}
    return [{"name": name, "type": "histosys", "data": data}, *_norms(rng, name)]


def _alike(rng: np.random.Generator, nominal: _Array, name: str) -> list[_Spec]:
    """Change a template in the same way up and down, in half of the cases but for a few percent."""
    change = rng.normal(0, 0.3, size=len(nominal))
    nearly = rng.choice([0, 0, 0.02, 0.1]) * rng.normal(size=len(nominal))
    up, down = nominal * np.maximum(1 + change, 0.1), nominal * np.maximum(1 + change + nearly, 0.1)
    data = {"hi_data": up.tolist(), "lo_data": down.tolist()}
    return [{"name": name, "type": "histosys", "data": data}]


def _workspace(
    rng: np.random.Generator,
    channels: list[tuple[str, list[_Spec]]],
    *,
    start: float,
    low: float = 0,
    high: float = 20,
    pull: float = 1.0,
) -> _Spec:
    """Make a workspace of channels with data drawn from it, at random values of its parameters."""
    spec: _Spec = {
        "version": "1.0.0",
        "channels": [{"name": name, "samples": samples} for name, samples in channels],
        "observations": [
            {"name": name, "data": [0.0] * len(samples[0]["data"])} for name, samples in channels
        ],
        "measurements": [
            {
                "name": "m",
                "config": {
                    "poi": "mu",
                    "parameters": [
                        {
                            "name": "mu",
                            "inits": [float(start)],
                            "bounds": [[float(low), float(high)]],
                        }
                    ],
                },
            }
        ],
    }
    model, _ = pyhf_model.model_and_data(spec)
    true = np.asarray(model.config.suggested_init(), dtype=np.float64)
    with pyhf_model.backend("numpy"):
        for name, kind in model.config.modifiers:
            index = model.config.par_slice(name).start
            if kind in ("normsys", "histosys"):
                true[index] = np.clip(pull * rng.normal(), -2, 2)
        true[model.config.poi_index] = rng.choice([0, 0.5, 1, 2])
        rates = np.asarray(model.expected_actualdata(true))
    data = rng.poisson(np.maximum(rates, 0)).astype(np.float64)
    for one in spec["observations"]:
        one["data"] = data[model.config.channel_slices[one["name"]]].tolist()
    return spec


class Outcome(NamedTuple):
    """Comparison of a fit with Minuit's: the largest differences, and one of VERDICTS."""

    shape: str
    verdict: str
    value: float
    uncertainty: float
    line: str


def compare(index: int) -> Outcome:
    """Fit the workspace of a number, and compare with Minuit."""
    shape, spec = draw(index)
    edges = {one["name"]: np.arange(len(one["data"]) + 1.0) for one in spec["observations"]}
    spec = without_unreachable(spec, edges).spec
    try:
        likelihood = lk.build(spec)
        ours = minimise(likelihood)
    except FitError as error:
        return Outcome(shape, "refused", np.nan, np.nan, str(error))
    line = "; ".join(ours.notes)
    if not ours.converged or not ours.uncertainties.any():
        return Outcome(shape, "refused", np.nan, np.nan, line)
    theirs = _minuit(likelihood, spec, ours, likelihood.start)
    found = _compared(likelihood, ours, theirs)
    if found[0] != "differs" or (theirs.valid and theirs.fval < ours.twice_nll + SAME):
        return Outcome(shape, *found, line)
    # from the same start Minuit went elsewhere, and not as deep: from near by it must come to ours
    near = ours.values + 0.2 * ours.uncertainties
    near = np.clip(near, likelihood.lower, likelihood.upper)
    verdict, *apart = _compared(likelihood, ours, _minuit(likelihood, spec, ours, near))
    return Outcome(shape, "differs" if verdict == "differs" else "lower", *apart, line)


def _compared(likelihood: lk.Likelihood, ours: Minimum, theirs: Any) -> tuple[str, float, float]:
    """A verdict, and the largest differences of values and of uncertainties."""
    free = ours.uncertainties > 0  # not fixed, and not at a bound
    widths, values = ours.uncertainties[free], np.array(theirs.values)[free]
    value = float(np.max(np.abs(values - ours.values[free]) / widths))
    uncertainty = float(np.max(np.abs(np.array(theirs.errors)[free] - widths) / widths))
    mirrored = np.max(np.abs(np.abs(values) - np.abs(ours.values[free])) / widths)
    is_same = uncertainty <= UNCERTAINTY
    if value <= VALUE and is_same:
        verdict = "agrees"
    elif not is_same and np.max(_by_differences(likelihood, ours)) > UNCERTAINTY:
        verdict = "differs"
    elif value <= VALUE:
        verdict = "covariance"
    elif abs(theirs.fval - ours.twice_nll) <= SAME and mirrored <= VALUE:
        verdict = "mirrored"
    else:
        verdict = "differs"
    return verdict, float(mirrored) if verdict == "mirrored" else value, uncertainty


def _minuit(likelihood: lk.Likelihood, spec: _Spec, ours: Minimum, start: _Array) -> Any:
    """Minuit on pyhf's likelihood, from a start; what ended at a bound for us is fixed there."""
    import iminuit  # noqa: PLC0415 - heavy

    model, data = pyhf_model.model_and_data(spec)
    assert likelihood.derivatives is not None  # noqa: S101 - jax is here
    derivatives = likelihood.derivatives

    def value(parameters: _Array) -> float:
        with np.errstate(all="ignore"):
            found = float(-2 * model.logpdf(parameters, data)[0])
        return found if np.isfinite(found) else 1e9

    with pyhf_model.backend("numpy"):
        minuit = iminuit.Minuit(
            value,
            start,
            name=likelihood.names,
            grad=lambda parameters: derivatives(np.asarray(parameters))[1],
        )
        minuit.errordef = iminuit.Minuit.LEAST_SQUARES
        minuit.limits = list(zip(likelihood.lower, likelihood.upper, strict=True))
        at_bound = (ours.uncertainties == 0) & ~likelihood.fixed
        minuit.fixed = likelihood.fixed | at_bound
        for index in np.flatnonzero(at_bound):
            minuit.values[int(index)] = ours.values[index]
        minuit.strategy, minuit.tol = 2, 1e-4
        minuit.migrad(ncall=20_000)
        minuit.hesse()
    return minuit


def _by_differences(likelihood: lk.Likelihood, ours: Minimum) -> _Array:
    """Relative differences to uncertainties from differences of the gradient."""
    assert likelihood.derivatives is not None  # noqa: S101 - jax is here
    free = np.flatnonzero(ours.uncertainties > 0)
    hessian = np.zeros((len(free), len(free)))
    for row, index in enumerate(free):
        move = np.zeros(len(ours.values))
        move[index] = 1e-4 * ours.uncertainties[index]
        up, down = (likelihood.derivatives(ours.values + side * move)[1] for side in (1, -1))
        hessian[row] = (up - down)[free] / (2 * move[index])
    found = np.sqrt(np.diag(2 * np.linalg.inv((hessian + hessian.T) / 2)))
    return np.abs(found - ours.uncertainties[free]) / ours.uncertainties[free]


def figure(outcomes: list[Outcome], path: Path) -> None:
    """Draw how far values and uncertainties are apart, by shape."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - heavy

    canvas = Figure(figsize=(9, 4), layout="constrained")
    axes = canvas.subplots(1, 2, sharey=True)
    panels = (
        ("value", VALUE, "largest difference of a value / its uncertainty"),
        ("uncertainty", UNCERTAINTY, "largest relative difference of an uncertainty"),
    )
    compared = [one for one in outcomes if np.isfinite(one.value)]
    colours = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2")
    for panel, (field, limit, label) in zip(axes, panels, strict=True):
        sizes = [
            [
                min(max(getattr(one, field), 1e-8), 99)
                for one in compared
                if one.shape == shape.__name__
            ]
            for shape in SHAPES
        ]
        panel.hist(
            sizes,
            bins=np.logspace(-8, 2, 31).tolist(),
            stacked=True,
            color=colours,
            label=[shape.__name__.replace("_", " ") for shape in SHAPES],
        )
        panel.axvline(limit, color="black", linestyle=":", label="must agree to")
        panel.set_xscale("log")
        panel.set_xlabel(label)
    axes[0].set_ylabel("workspaces")
    axes[0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=110, metadata={"Software": ""})


def main() -> int:
    """Compare, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    given = parser.parse_args()
    started, outcomes = time.monotonic(), []
    for index in range(given.number):
        outcome = compare(index)
        outcomes.append(outcome)
        if outcome.verdict != "agrees":
            print(index, *outcome, flush=True)
    counts = {
        shape.__name__: dict(
            collections.Counter(one.verdict for one in outcomes if one.shape == shape.__name__)
        )
        for shape in SHAPES
    }
    record = {
        "workspaces": given.number,
        "verdicts": VERDICTS,
        "outcome": counts,
        "others": [
            {"number": number, **outcome._asdict()}
            for number, outcome in enumerate(outcomes)
            if outcome.verdict != "agrees"
        ],
        "versions": versions(),
    }
    given.output.write_text(json.dumps(record, indent=1, default=str) + "\n")
    figure(outcomes, given.figure)
    print(json.dumps(counts), f"{time.monotonic() - started:.0f} s")
    return int(any(one.verdict == "differs" for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
