"""Made-up results of runs and fits, small and always the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import hist
import numpy as np

from agc_ml.results.categories import flatten
from agc_ml.results.histograms import book
from agc_ml.results.ledger import Entry, Ledger
from agc_ml.results.run_record import (
    ClusterSummary,
    DatasetSummary,
    GitState,
    Metrics,
    ProcessorSummary,
    Provenance,
)
from agc_ml.results.run_result import RunResult
from agc_ml.statistics.fit import (
    CarriedOver,
    FitResult,
    GoodnessOfFit,
    Impact,
    Parameter,
    RegionYields,
)

REGIONS = {"4j1b": "$H_T$ [GeV]", "4j2b": "$m_{bjj}$ [GeV]"}
YIELDS = {
    "ttbar": 60_000,
    "single_top_s_chan": 300,
    "single_top_t_chan": 6_000,
    "single_top_tW": 5_000,
    "wjets": 20_000,
}
ML_RANGES = {
    "deltar_leptonbtoplep": (0, 6, r"$\Delta R(\ell, b_{lep})$"),
    "deltar_w1w2": (0, 6, r"$\Delta R(W_1, W_2)$"),
    "deltar_w1btophad": (0, 6, r"$\Delta R(W_1, b_{had})$"),
    "deltar_w2btophad": (0, 6, r"$\Delta R(W_2, b_{had})$"),
    "mass_leptonbtoplep": (50, 300, r"$m(\ell, b_{lep})$ [GeV]"),
    "mass_w1w2": (50, 300, "$m(W_1, W_2)$ [GeV]"),
    "mass_w1w2btophad": (50, 550, "$m(W_1, W_2, b_{had})$ [GeV]"),
    "pt_w1w2btophad": (50, 550, "$p_T(W_1, W_2, b_{had})$ [GeV]"),
    "pt_w1": (25, 300, "$p_T(W_1)$ [GeV]"),
    "pt_w2": (25, 300, "$p_T(W_2)$ [GeV]"),
    "pt_btophad": (25, 300, "$p_T(b_{had})$ [GeV]"),
    "pt_btoplep": (25, 300, "$p_T(b_{lep})$ [GeV]"),
    "btag_w1": (0, 1, "b-tag of $W_1$"),
    "btag_w2": (0, 1, "b-tag of $W_2$"),
    "btag_btophad": (0, 1, "b-tag of $b_{had}$"),
    "btag_btoplep": (0, 1, "b-tag of $b_{lep}$"),
    "qgl_w1": (-1, 1, "quark-gluon likelihood of $W_1$"),
    "qgl_w2": (-1, 1, "quark-gluon likelihood of $W_2$"),
    "qgl_btophad": (-1, 1, "quark-gluon likelihood of $b_{had}$"),
    "qgl_btoplep": (-1, 1, "quark-gluon likelihood of $b_{lep}$"),
}
CARRIED = (
    *("deltar_leptonbtoplep", "deltar_w1w2", "deltar_w1btophad", "mass_leptonbtoplep"),
    *("mass_w1w2", "mass_w1w2btophad", "pt_w1w2btophad"),
)
TWO_SIDED = ("btag_var_0", "btag_var_1", "btag_var_2", "btag_var_3")
ONE_SIDED = ("pt_scale_up", "pt_res_up")
OWN = {
    "ttbar": ("ME_var", "PS_var", "scaleup", "scaledown"),
    "wjets": ("scale_var_up", "scale_var_down"),
}


def variations_of(process: str) -> list[str]:
    """All variations of a process of the ttbar measurement, nominal first."""
    pairs = [f"{source}_{side}" for source in TWO_SIDED for side in ("up", "down")]
    return ["nominal", *ONE_SIDED, *pairs, *OWN.get(process, ())]


def shape(process: str, variation: str, n_bins: int = 25) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Contents of a template: a falling spectrum, moved a little by the variation."""
    x = np.linspace(0.1, 4, n_bins)
    spectrum = x * np.exp(-x * (1 + 0.1 * len(process) / 10))
    values = YIELDS.get(process, 1_000) * spectrum / spectrum.sum()
    if variation == "nominal":
        return values
    sign = -1 if variation.endswith("down") else 1
    size = 0.02 + 0.002 * (sum(map(ord, variation)) % 40)
    return values * (1 + sign * size * (x - 1))


def ttbar_hists(processes: Iterable[str] = YIELDS) -> dict[str, hist.Hist[Any]]:
    """Histograms of both regions, as a run of the ttbar processor leaves them."""
    hists = {}
    for region, label in REGIONS.items():
        parts = []
        for process in processes:
            names = variations_of(process)
            part = book(
                *(25, 50, 550), label=label, process=process, variations=names, counts="Events"
            )
            for index, name in enumerate(names):
                values = shape(process, name)
                part.view(flow=True)["value"][1:-1, 0, index] = values
                part.view(flow=True)["variance"][1:-1, 0, index] = 2 * values
            part.view(flow=True)["value"][-1, 0, :] = 12.5
            parts.append(part)
        hists[region] = sum(parts[1:], start=parts[0])
    return hists


def _draws(name: str, process: str, number: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What a feature could be in simulated events; shape ``(number,)``."""
    random = np.random.default_rng([len(name), *map(ord, name), *map(ord, process)])
    has_w = process.startswith(("ttbar", "single_top_tW"))
    if name.startswith("deltar"):
        return random.gamma(4 if "lepton" in name else 6, 0.4, number)
    if name.startswith("btag"):
        tail = random.beta(0.4, 4, number)
        is_b = random.uniform(size=number) < (0.9 if "top" in name else 0.15)
        return np.where(is_b, 1 - tail, tail)
    if name.startswith("qgl"):
        return np.where(random.uniform(size=number) < 0.07, -1, random.beta(2, 0.8, number))
    if "btop" in name and name.startswith("mass"):
        peak, width = (172, 25) if "w1" in name else (110, 35)
        return 40 + np.abs(random.normal(peak - 40, width * (1 if has_w else 3), number))
    if name == "mass_w1w2":
        return np.abs(random.normal(82, 15 if has_w else 50, number))
    return 30 + random.exponential(60, number)


def ml_hists(
    names: Iterable[str] = ML_RANGES,
    processes: Iterable[str] = YIELDS,
    *,
    events: int = 40_000,
) -> dict[str, hist.Hist[Any]]:
    """Histograms of features of the best assignment of jets, of some 40,000 ttbar events.

    The processes have event weights, the datasets of other generators their own events, and b-tag
    weights some negative ones.
    """
    hists = {}
    for name in names:
        low, high, label = ML_RANGES[name]
        parts = []
        for process in processes:
            labels = variations_of(process)
            part = book(25, low, high, label=label, process=process, variations=labels)
            number = max(events * YIELDS[process] // YIELDS["ttbar"] // 3, 1)
            for variation in labels:
                own = variation in OWN["ttbar"]
                values = _draws(name, process + variation * own, number)
                factors = _factors(variation, number)
                part.fill(
                    observable=values * (1.03 if variation == "pt_scale_up" else 1.0),
                    process=process,
                    variation=variation,
                    weight=shape(process, variation).sum() * factors / factors.sum(),
                )
            parts.append(part)
        hists[name] = sum(parts[1:], start=parts[0])
    return hists


def _factors(variation: str, number: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Weight of each event in a variation, but for a factor; some of b-tagging are negative."""
    pt = np.random.default_rng(4).exponential(60, number)
    sign = -1 if variation.endswith("down") else 1
    return 1 + sign * 0.075 * pt / 50 * variation.startswith("btag")


def true_templates(hists: Mapping[str, hist.Hist[Any]]) -> dict[str, hist.Hist[Any]]:
    """Take histograms apart, without the combinations that no dataset has."""
    if not set(hists) <= {*REGIONS, *ML_RANGES}:
        return flatten(hists)
    names = {
        f"{region}_{process}" + ("" if variation == "nominal" else f"_{variation}")
        for region in hists
        for process in hists[region].axes["process"]
        for variation in variations_of(process)
    }
    return {name: template for name, template in flatten(hists).items() if name in names}


def pseudodata(hists: Mapping[str, hist.Hist[Any]]) -> dict[str, hist.Hist[Any]]:
    """Sum of the nominal templates of each region, 3 percent up."""
    return {
        region: sum(histogram[:, name, "nominal"] for name in histogram.axes["process"]) * 1.03
        for region, histogram in hists.items()
    }


def entry(number: int, **values: Any) -> Entry:
    """A chunk of 1000 events, done unless ``values`` say otherwise."""
    defaults: dict[str, Any] = {
        "dataset": "ttbar__nominal",
        "lfn": f"/store/ttbar/file{number // 2}.root",
        "uuid": f"uuid{number // 2}",
        "entries": 2000,
        "start": 1000 * (number % 2),
        "stop": 1000 * (number % 2 + 1),
        "status": "done",
        "attempts": 1,
        "worker": "tcp://127.0.0.1:4000",
        "seconds": 1.5,
        "bytes": 100_000,
    }
    return Entry(**{**defaults, **values})


def provenance(**values: Any) -> Provenance:
    """Provenance of a run of the ttbar processor."""
    defaults: dict[str, Any] = {
        "fileset": "sha256:0123456789abcdef",
        "luminosity": 3378.0,
        "datasets": tuple(
            DatasetSummary(
                name=f"{process}__nominal",
                process=process,
                variation="nominal",
                is_data=False,
                xsec=729.84,
                files=2,
                events=4000,
            )
            for process in YIELDS
        ),
        "processor": ProcessorSummary(
            name="ttbar", parameters={"compat": False, "seed": 42}, code="sha256:code"
        ),
        "models": {"jet-assignment": "sha256:model"},
        "versions": {"python": "3.11.2", "coffea": "2026.9.0"},
        "git": GitState(commit="abcdef0123456789", dirty=True),
        "cluster": ClusterSummary(kind="local", workers=4),
        "chunk_size": 1000,
        "start": "2026-01-02T03:04:05Z",
        "stop": "2026-01-02T03:05:06Z",
        "command": ("agc-ml", "run", "ttbar"),
    }
    return Provenance(**{**defaults, **values})


def run_result(hists: Mapping[str, hist.Hist[Any]] | None = None, **values: Any) -> RunResult:
    """A complete run of the ttbar processor over all processes."""
    hists = ttbar_hists() if hists is None else hists
    defaults: dict[str, Any] = {
        "status": "complete",
        "hists": hists,
        "templates": true_templates(hists),
        "cutflow": {"ttbar__nominal": {"all events": 4000, "one lepton": 900, "4j1b": 120}},
        "ledger": Ledger(tuple(entry(number) for number in range(4))),
        "metrics": Metrics(
            events=4000,
            chunks=4,
            wall_s=61.2,
            cpu_s=180.4,
            events_per_s=65.4,
            bytes_read=123_456_789,
            peak_memory_mb=512.3,
            workers=4,
        ),
        "provenance": provenance(),
        "scales": {f"{process}__nominal": 1.0 for process in YIELDS},
    }
    return RunResult(**{**defaults, **values})


def partial_run(**values: Any) -> RunResult:
    """A run with a chunk that was retried, one that is missing, and a file that never opened."""
    entries = (
        entry(0),
        entry(1, attempts=3, errors=("OSError: timed out", "OSError: <reset> & gone")),
        entry(2),
        entry(3, status="missing", attempts=4, worker="", errors=("OSError: truncated file",)),
        entry(
            4,
            status="missing",
            uuid=None,
            entries=None,
            start=0,
            stop=None,
            errors=("FileNotFoundError: no such file",),
        ),
    )
    return run_result(**{"status": "partial", "ledger": Ledger(entries), **values})


NUISANCES = (
    *("ME variation", "PS variation", "tt scale variations", "Jet energy scale"),
    *("Jet energy resolution", "b-tag NP 1", "b-tag NP 2", "b-tag NP 3", "b-tag NP 4"),
    *("W+jets scale variations", "Luminosity"),
)


def _parameters() -> tuple[Parameter, ...]:
    random = np.random.default_rng(1)
    found = [Parameter("ttbar_norm", 0.9608, 0.1082, None)]
    for name in NUISANCES:
        value = float(random.normal(0, 0.4))
        found.append(Parameter(name, value, float(random.uniform(0.1, 1)), value))
    for region in REGIONS:
        for index in range(11):
            value = float(random.normal(1, 0.01))
            name = f"staterror_{region}[{index}]"
            found.append(Parameter(name, value, 0.015, (value - 1) / 0.02))
    return tuple(found)


def _correlation(count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    random = np.random.default_rng(2)
    factors = random.normal(0, 1, (count, 2)) * (random.uniform(0, 1, (count, 1)) < 0.6)
    covariance = factors @ factors.T + 2 * np.eye(count)
    scale = np.sqrt(np.diag(covariance))
    return covariance / np.outer(scale, scale)


def _yields(region: str, factor: float, relative: float) -> RegionYields:
    samples = {process: factor * shape(process, "nominal", 11) for process in YIELDS}
    total = np.sum(list(samples.values()), axis=0)
    return RegionYields(
        region=region,
        label=REGIONS[region],
        edges=np.linspace(110, 550, 12),
        samples=samples,
        uncertainty=relative * total,
        data=total * (1 + 0.03 * np.sin(np.arange(11))) / factor,
    )


def carried_over(name: str, **values: Any) -> CarriedOver:
    """A fit carried over to a feature, whose last bins hold nothing but what is added to each."""
    low, high, label = ML_RANGES[name]
    edges = np.linspace(low, high, 26)
    samples = {process: shape(process, "nominal") / 2 for process in YIELDS}
    for contents in samples.values():
        contents[-3:] = 1e-6
    total = np.sum(list(samples.values()), axis=0)
    data = total * (1 + 0.1 * np.cos(np.arange(25)))
    yields = [
        RegionYields(
            name, label, edges, {p: f * v for p, v in samples.items()}, relative * f * total, data
        )
        for f, relative in ((1.1, 0.15), (1.0, 0.04))
    ]
    tests = (GoodnessOfFit(31.25, 22, 0.0912), GoodnessOfFit(17.5, 22, 0.7346))
    return replace(CarriedOver(*yields, *tests), **values)


def fit_result(**values: Any) -> FitResult:
    """A fit of the ttbar cross-section with its 34 parameters."""
    parameters = _parameters()
    random = np.random.default_rng(3)
    impacts = tuple(
        Impact(p.name, size, -size, 0.7 * size * p.uncertainty, -0.7 * size * p.uncertainty)
        for p, size in zip(parameters[1:], random.normal(0, 0.05, 33).tolist(), strict=True)
    )
    defaults: dict[str, Any] = {
        "poi": parameters[0],
        "parameters": parameters,
        "correlation": _correlation(len(parameters)),
        "goodness_of_fit": GoodnessOfFit(12.34, 21, 0.9293),
        "twice_nll": 141.33353,
        "minimizer": "newton",
        "converged": True,
        "pseudodata": "reference",
        "impacts": impacts,
        "prefit": tuple(_yields(region, 1.0, 0.12) for region in REGIONS),
        "postfit": tuple(_yields(region, 0.97, 0.02) for region in REGIONS),
        "workspace": {},
        "inputs": {"histograms.root": "sha256:templates"},
        "notes": ("single top is missing from the pseudodata",),
        "widths": {p.name: 0.02 if "staterror" in p.name else 1.0 for p in parameters[1:]},
    }
    return FitResult(**{**defaults, **values})
