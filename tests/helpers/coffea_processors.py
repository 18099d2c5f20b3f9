"""Processors as coffea's users write them; none of them knows of agc-ml."""

from __future__ import annotations

import abc
import logging
import warnings
from collections import Counter, OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, IntEnum, StrEnum
from functools import cached_property, lru_cache, partial
from typing import Any, ClassVar

import awkward as ak
import correctionlib
import hist
import numpy as np
from coffea.analysis_tools import PackedSelection, Weights
from coffea.nanoevents.methods import candidate, vector
from coffea.processor import (
    ProcessorABC,
    accumulate,
    column_accumulator,
    defaultdict_accumulator,
    dict_accumulator,
    set_accumulator,
    value_accumulator,
)
from correctionlib import schemav2
from hist import Hist

logger = logging.getLogger("an.analysis")


class Simple(ProcessorABC):
    """The result as it is added up."""

    def postprocess(self, accumulator: Any) -> Any:
        return accumulator


class NanoEvents(Simple):
    """Masses of muon pairs by dataset, a flat cutflow, names of workers; looks into the events."""

    def __init__(self, columns: Any = (), canaries: Any = ()) -> None:
        self._columns = list(columns)
        self._canaries = list(canaries)

    @property
    def columns(self) -> list[str]:
        return self._columns

    @property
    def accumulator(self) -> dict[str, Any]:
        dataset = hist.axis.StrCategory([], growth=True, name="dataset", label="Primary dataset")
        return {
            "mass": Hist(dataset, hist.axis.Regular(300, 0.25, 300, name="mass", label=r"$m$")),
            "pt": Hist(dataset, hist.axis.Regular(300, 0.24, 300, name="pt", label="$p_T$ [GeV]")),
            "cutflow": {},
            "worker": set(),
        }

    def process(self, events: Any) -> dict[str, Any]:
        output = self.accumulator
        dataset = events.metadata["dataset"]
        assert events.metadata["tag"] == ["someusermeta", {"of": dataset}]
        assert events.attrs["@events_factory"].file_handle is not None
        pairs = ak.combinations(events.Muon, 2)
        pairs = pairs["0"] + pairs["1"]
        output["pt"].fill(dataset=dataset, pt=ak.flatten(events.Muon.pt))
        output["mass"].fill(dataset=dataset, mass=ak.flatten(pairs.mass))
        output["cutflow"][f"{dataset}_pt"] = ak.sum(ak.num(events.Muon, axis=1))
        output["cutflow"][f"{dataset}_mass"] = ak.sum(ak.num(pairs, axis=1))
        output["worker"].add("one")
        return output


class NanoTest(Simple):
    """Objects zipped of flat branches, histograms in nested dictionaries."""

    def process(self, events: Any) -> dict[str, Any]:
        dataset = events.metadata["dataset"]
        out: dict[str, Any] = {"objects": {}, "cutflow": defaultdict_accumulator(int)}
        for name in ("Muon", "Electron", "Jet"):
            objects = ak.zip(
                {part: events[name][part] for part in ("pt", "eta", "phi", "mass")},
                with_name="PtEtaPhiMLorentzVector",
                behavior=vector.behavior,
            )
            axes = hist.axis.StrCategory([], growth=True, name="dataset")
            pt = Hist(axes, hist.axis.Regular(50, 0, 300, name="pt"))
            pt.fill(dataset=dataset, pt=ak.flatten(objects.pt))
            pz = Hist.new.StrCat([], growth=True, name="dataset").Reg(40, -200, 200, name="pz")
            pz = pz.Weight().fill(dataset, ak.flatten(objects.pz))
            out["objects"][name] = {"pt": pt, "kinematics": {"pz": pz}}
            out["cutflow"][name] += int(ak.sum(ak.num(objects) > 0))
        return out


class Docs(Simple):
    """Of coffea's documentation: entries and dimuon mass of either charge, by dataset."""

    def process(self, events: Any) -> dict[str, Any]:
        dataset = events.metadata["dataset"]
        muons = ak.zip(
            {
                "pt": events.Muon.pt,
                "eta": events.Muon.eta,
                "phi": events.Muon.phi,
                "mass": events.Muon.mass,
                "charge": events.Muon.charge,
            },
            with_name="PtEtaPhiMCandidate",
            behavior=candidate.behavior,
        )
        h_mass = (
            Hist.new.StrCat(["opposite", "same"], name="sign")
            .Log(1000, 0.2, 200.0, name="mass", label=r"$m_{\mu\mu}$ [GeV]")
            .Int64()
        )
        for sign, is_sign in (("opposite", 0), ("same", 2)):
            charge = abs(ak.sum(muons.charge, axis=1))
            cut = (ak.num(muons) == 2) & (charge == is_sign)
            pair = muons[cut][:, 0] + muons[cut][:, 1]
            h_mass.fill(sign=sign, mass=pair.mass)
        return {dataset: {"entries": len(events), "mass": h_mass}}


class Flat(Simple):
    """As coffea's documentation has it, with its schema that leaves branches as they are."""

    def process(self, events: Any) -> dict[str, Any]:
        muons = ak.zip(
            {part: events[f"Muon_{part}"] for part in ("pt", "eta", "phi", "mass", "charge")},
            with_name="PtEtaPhiMCandidate",
            behavior=candidate.behavior,
        )
        pair = muons[ak.num(muons) == 2]
        mass = Hist.new.Log(100, 0.2, 200.0, name="mass").Int64()
        mass.fill((pair[:, 0] + pair[:, 1]).mass)
        fields = {str(name) for name in events.fields if not name.startswith("n")}
        return {events.metadata["dataset"]: {"mass": mass, "n": len(events)}, "fields": fields}


class Benchmarks(Simple):
    """ADL benchmarks 1, 2, 4 and 7."""

    def process(self, events: Any) -> dict[str, Any]:
        jets = events.Jet
        q1 = Hist.new.Reg(100, 0, 200, name="met", label="MET [GeV]").Double().fill(events.MET.pt)
        q2 = Hist.new.Reg(100, 0, 200, name="ptj").Double().fill(ak.flatten(jets.pt))
        has2jets = ak.sum(jets.pt > 40, axis=1) >= 2
        q4 = Hist.new.Reg(100, 0, 200, name="met").Double().fill(events[has2jets].MET.pt)
        close = jets.nearest(events.Muon[events.Muon.pt > 10], threshold=0.4)
        electrons = events.Electron[events.Electron.pt > 10]
        distances = jets.metric_table(electrons)
        clean = ak.is_none(close, axis=1) & ak.all(distances > 0.4, axis=-1) & (jets.pt > 30)
        q7 = Hist.new.Reg(100, 0, 300, name="sumjetpt").Double()
        q7.fill(ak.fill_none(ak.sum(jets[clean].pt, axis=1), 0))
        return {"q1": q1, "q2": q2, "q4": q4, "q7": q7}


class Agc(Simple):
    """The shape of AGC's: booked in ``__init__``, normalised by hand, a loop over variations."""

    def __init__(self, use_inference: bool = False, lumi: float = 3378.0) -> None:
        self.use_inference = use_inference
        self.lumi = lumi
        self.hist_dict = {}
        for region in ("4j1b", "4j2b"):
            self.hist_dict[region] = (
                Hist.new.Reg(bins=25, start=50, stop=550, name="observable", label="observable")
                .StrCat([], name="process", label="Process", growth=True)
                .StrCat([], name="variation", label="Systematic variation", growth=True)
                .Weight()
            )

    def process(self, events: Any) -> dict[str, Any]:
        process = events.metadata["process"]
        x_sec = events.metadata["x_sec"]
        xsec_weight = x_sec * self.lumi / events.metadata["nevts"]
        events["pt_scale_up"] = 1.03
        events["pt_res_up"] = 1.0 + (events.event % 7) / 100
        for variation in ("nominal", "pt_scale_up", "pt_res_up"):
            jets = events.Jet
            if variation != "nominal":
                jets["pt"] = events.Jet.pt * events[variation]
            jets = jets[(jets.pt > 25) & (np.abs(jets.eta) < 2.4)]
            for region, n_b in (("4j1b", 1), ("4j2b", 2)):
                n_btag = ak.sum(jets.btagCSVV2 > 0.5, axis=1)
                select = (ak.num(jets) >= 4) & ((n_btag == 1) if n_b == 1 else (n_btag >= 2))
                observable = ak.sum(jets[select].pt, axis=-1)
                weights = np.full(len(observable), xsec_weight)
                self.hist_dict[region].fill(observable, process, variation, weight=weights)
                if variation == "nominal":
                    for i, direction in enumerate(("up", "down")):
                        self.hist_dict[region].fill(
                            observable,
                            process=process,
                            variation=f"scale_var_{direction}",
                            weight=weights * (1.025, 0.975)[i],
                        )
        return {"nevents": {events.metadata["dataset"]: len(events)}, "hist_dict": self.hist_dict}


class OnSelf(Simple):
    """Keeps the chunk, and what it fills, on itself."""

    def __init__(self) -> None:
        self.n_seen = 0
        self.h = Hist.new.Reg(20, 0, 200, name="met").Weight()
        self.counts = defaultdict(int)

    def process(self, events: Any) -> dict[str, Any]:
        self.events = events
        self._load()
        self._fill()
        self.n_seen += len(self.events)
        return {"h": self.h, "counts": self.counts, "seen": self.n_seen}

    def _load(self) -> None:
        self.met = self.events.MET.pt
        self.counts[self.events.metadata["dataset"]] += len(self.met)

    def _fill(self) -> None:
        self.h.fill(self.met, weight=self.events.genWeight)


class Old(Simple):
    """An accumulator with an identity, as in coffea 0.6."""

    def __init__(self) -> None:
        self._accumulator = dict_accumulator(
            {
                "sumw": defaultdict_accumulator(float),
                "cutflow": defaultdict_accumulator(int),
                "runs": set_accumulator(),
                "total": value_accumulator(float),
                "met": column_accumulator(np.array([], np.float32)),
                "by": defaultdict_accumulator(partial(defaultdict_accumulator, int)),
            }
        )

    @property
    def accumulator(self) -> Any:
        return self._accumulator

    def process(self, events: Any) -> Any:
        output = self.accumulator.identity()
        dataset = events.metadata["dataset"]
        output["sumw"][dataset] += ak.sum(events.genWeight)
        output["cutflow"]["all"] += len(events)
        output["cutflow"]["jets"] += ak.sum(ak.num(events.Jet) > 3)
        output["runs"].add(set(np.unique(events.run).tolist()))
        output["total"].add(float(ak.sum(events.MET.pt > 30)))
        output["met"] += column_accumulator(ak.to_numpy(events.MET.pt))
        output["by"][dataset]["muons"] += ak.sum(ak.num(events.Muon))
        return output


class Selections(Simple):
    """What PackedSelection gives: cutflow and N-1, as results and as histograms."""

    def process(self, events: Any) -> dict[str, Any]:
        selection = PackedSelection()
        selection.add("jets", ak.num(events.Jet) >= 4)
        selection.add("met", events.MET.pt > 20)
        selection.add_multiple({"lepton": ak.num(events.Muon) + ak.num(events.Electron) == 1})
        weights = Weights(len(events), storeIndividual=True)
        weights.add("gen", events.genWeight, events.genWeight * 1.1, events.genWeight * 0.9)
        cuts = selection.cutflow("jets", "met", "lepton", weights=weights)
        nminusone = selection.nminusone("jets", "met", "lepton")
        result = cuts.result()
        onecut, cumulative, labels = cuts.yieldhist()
        weighted = cuts.yieldhist(weighted=True)
        without, its_labels = nminusone.yieldhist()
        plots, _ = nminusone.plot_vars({"pt": events.Jet.pt}, start=[0], stop=[200], bins=[20])
        dataset = events.metadata["dataset"]
        return {
            "cutflow": {dataset: dict(zip(result.labels, result.nevcutflow, strict=True))},
            "one": {dataset: dict(zip(result.labels, map(int, result.nevonecut), strict=True))},
            "yields": {"onecut": onecut, "cumulative": cumulative, "n-1": without},
            "weighted": {"onecut": weighted[0], "cumulative": weighted[1]},
            "labels": {"cuts": set(labels), "n-1": set(its_labels)},
            "arrays": {
                "onecut": np.array(result.nevonecut),
                "n-1": np.array(nminusone.result().nev),
            },
            "result": {k: getattr(result, k) for k in ("labels", "nevonecut", "maskscutflow")},
            "raw": nminusone.result(),
            "plots": plots,
            "names": list(selection.names),
            "both": int(selection.require(jets=True, met=False).sum()),
        }


def unread(column: Any) -> Any:
    """A column as it is."""
    return column


class Accumulators(Simple):
    """coffea's accumulators of values and columns, of numpy and awkward arrays.

    ``read`` gets what may not have been read yet.
    """

    def __init__(self, read: Callable[[Any], Any] = ak.materialize) -> None:
        self.read = read

    def process(self, events: Any) -> Any:
        read = self.read
        good = read(events.Muon[events.Muon.pt > 30])
        return {
            "n": value_accumulator(int, len(events)),
            "names": value_accumulator(list, [events.metadata["dataset"]]),
            "arrays": value_accumulator(list, [read(events.MET.pt[:3])]),
            "runs": set_accumulator({1}),
            "met": column_accumulator(np.asarray(events.MET.pt)),
            "pairs": column_accumulator(np.stack([events.MET.pt, events.MET.phi], axis=1)),
            "pt": column_accumulator(read(events.Jet.pt)),
            "muons": column_accumulator(good),
            "zipped": column_accumulator(ak.zip({"pt": good.pt, "q": good.charge})),
            "firsts": column_accumulator(ak.firsts(good.pt)),
            "empty": column_accumulator(np.zeros((0, 3))),
            "lumis": set(zip(events.run.to_list(), events.luminosityBlock.to_list(), strict=True)),
            "list": [read(events.MET.pt[:2]), np.asarray(events.run)[:1]],
            "tuple": (read(events.MET.phi[:1]), {"n": len(events)}),
        }


def analysis(events: Any, threshold: float = 30.0, label: str = "pt") -> dict[str, Any]:
    """A plain function."""
    pt = ak.flatten(events.Jet.pt[events.Jet.pt > threshold])
    return {label: Hist.new.Reg(30, 0, 300, name="pt").Weight().fill(pt), "n": len(pt)}


hard = partial(analysis, threshold=50.0, label="hard")


class Bare(Simple):
    """Returns nothing but a histogram."""

    def process(self, events: Any) -> Any:
        met = Hist.new.StrCat([], growth=True, name="dataset").Var([0, 10, 50, 200], name="met")
        return met.Double().fill(events.metadata["dataset"], events.MET.pt)


class Cutflow(Simple):
    """A cutflow of one of several shapes."""

    SHAPES: ClassVar[dict[str, Callable[[str, dict[str, int]], Any]]] = {
        "cuts": lambda _, cuts: cuts,
        "datasets": lambda name, cuts: {name: cuts},
        "regions": lambda name, cuts: {name: {"SR": cuts, "CR": cuts | {"last": 0}}},
        "by region": lambda _, cuts: {"SR": dict(cuts), "CR": {"all": 1}},
        "pairs": lambda name, cuts: [(name, *cuts.items())],
        "array": lambda _, cuts: np.array(list(cuts.values())),
        "column": lambda name, cuts: {
            name: {c: column_accumulator(np.array([n])) for c, n in cuts.items()}
        },
        "counter": lambda name, cuts: Counter(**{name: cuts["all"]}),
        "flat and nested": lambda name, cuts: {"all": cuts["all"], name: cuts},
    }

    def __init__(self, shape: str) -> None:
        self.shape = shape

    def process(self, events: Any) -> Any:
        cuts = {"all": len(events), "jets": ak.sum(ak.num(events.Jet) > 4), "none": 0}
        return {"cutflow": self.SHAPES[self.shape](events.metadata["dataset"], cuts)}


class SumOfWeights(Simple):
    """A sum of weights, of one of several shapes, and a histogram that needs it."""

    SHAPES: ClassVar[dict[str, Callable[[str, Any], Any]]] = {
        "number": lambda _, sumw: sumw,
        "datasets": lambda name, sumw: {name: sumw},
        "default": lambda name, sumw: defaultdict_accumulator(float, {name: float(sumw)}),
        "value": lambda _, sumw: value_accumulator(float, float(sumw)),
    }

    def __init__(self, shape: str) -> None:
        self.shape = shape

    def process(self, events: Any) -> Any:
        name, weights = events.metadata["dataset"], events.genWeight
        met = Hist.new.StrCat([], growth=True, name="dataset").Reg(10, 0, 100, name="met").Weight()
        met.fill(name, events.MET.pt, weight=weights)
        return {"met": met, "sumw": self.SHAPES[self.shape](name, ak.sum(weights))}


def listed(events: Any, *, shape: str) -> dict[str, Any]:
    """Histograms in lists and tuples, and a sum of weights that is a number or an array."""
    h = Hist.new.Reg(2, 0, 1, name="x").Weight().fill(np.full(len(events), 0.7))
    sumw = {"number": len(events), "array": np.array([len(events)])}[shape]
    return {"h": h, "list": [h], "deep": {"tuple": ({"h": h},)}, "sumw": sumw}


class Scales(SumOfWeights):
    """Normalises by the sum of weights itself, at the end."""

    def __init__(self) -> None:
        super().__init__("datasets")

    def postprocess(self, accumulator: Any) -> None:
        for name, sumw in accumulator["sumw"].items():
            accumulator["met"].view(flow=True)[accumulator["met"].axes[0].index(name)] *= (
                1000 / sumw
            )


class ByMethod(Scales):
    """By a method."""

    def postprocess(self, accumulator: Any) -> None:
        self.scale(accumulator)

    def scale(self, accumulator: Any) -> None:
        super().postprocess(accumulator)


def scale(accumulator: Any, key: str) -> None:
    """Scale histograms to the sum of weights that stands under a key."""
    for name, sumw in accumulator[key].items():
        accumulator["met"].view(flow=True)[accumulator["met"].axes[0].index(name)] *= 1000 / sumw


KEY = "sumw"


class ByFunction(Scales):
    """By a function of the module, and a key that is a global."""

    def postprocess(self, accumulator: Any) -> None:
        scale(accumulator, KEY)


class ByAttribute(Scales):
    """By a key that is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.key = "sumw"

    def postprocess(self, accumulator: Any) -> None:
        scale(accumulator, self.key)


class Weighted(Simple):
    """Weights with their variations, and their statistics."""

    def process(self, events: Any) -> dict[str, Any]:
        weights = Weights(len(events), storeIndividual=True)
        weights.add("gen", events.genWeight)
        scale = 1 + 0.01 * ak.num(events.Jet)
        weights.add("pu", scale, scale * 1.1, scale * 0.9)
        weights.add_multivariation(
            "ps", np.ones(len(events)), ["isr", "fsr"], [scale, scale], [1 / scale, 1 / scale]
        )
        axis = hist.axis.StrCategory([], growth=True, name="systematic")
        h = Hist(axis, hist.axis.Regular(10, 0, 100, name="met"), storage=hist.storage.Weight())
        for name in [None, *sorted(weights.variations)]:
            h.fill(name or "nominal", events.MET.pt, weight=weights.weight(name))
        h.fill("partial", events.MET.pt, weight=weights.partial_weight(include=["pu"]))
        return {"h": h, "statistics": weights.weightStatistics, "sum": weights.weight().sum()}


# Odd ones


class Slots(Simple):
    """Attributes in slots."""

    __slots__ = ("cut", "h")

    def __init__(self, cut: float = 20.0) -> None:
        self.cut = cut
        self.h = Hist.new.Reg(10, 0, 100, name="met").Double()

    def process(self, events: Any) -> Any:
        return {"h": self.h.fill(events.MET.pt[events.MET.pt > self.cut])}


@dataclass(frozen=True)
class Frozen(ProcessorABC):
    """A frozen dataclass with a cache on its method."""

    cuts: tuple[float, ...] = (20.0, 40.0)
    table: dict[str, float] = field(default_factory=lambda: {"x": 2.0}, hash=False)

    @lru_cache  # noqa: B019 - as people do
    def factor(self, cut: float) -> float:
        return cut * self.table["x"]

    def process(self, events: Any) -> Any:
        return {cut: ak.sum(events.MET.pt > self.factor(cut) / 2) for cut in self.cuts}

    def postprocess(self, accumulator: Any) -> Any:
        accumulator["ratio"] = accumulator[40.0] / accumulator[20.0]
        return accumulator


class Base(ProcessorABC):
    """An abstract base class with a template method."""

    name: str

    def process(self, events: Any) -> Any:
        return {self.name: self.fill(events)}

    @abc.abstractmethod
    def fill(self, events: Any) -> Any: ...

    def postprocess(self, accumulator: Any) -> None:
        accumulator["done"] = True


class Mixin:
    """Objects, from a mixin."""

    LOOKUP: ClassVar[dict[str, float]] = {"loose": 0.2, "tight": 0.8}

    def tagged(self, jets: Any, point: str) -> Any:
        return jets[jets.btagCSVV2 > self.LOOKUP[point]]

    @cached_property
    def edges(self) -> Any:
        return np.linspace(0, 10, 11)


class Derived(Mixin, Base):
    """Made of a mixin and an abstract class."""

    name = "n_tags"

    def fill(self, events: Any) -> Any:
        h = Hist.new.StrCat(list(self.LOOKUP), name="point").Var(self.edges, name="n").Weight()
        for point in self.LOOKUP:
            h.fill(point, ak.num(self.tagged(events.Jet, point)))
        return h


class Corrected(Simple):
    """An evaluator of correctionlib, made in ``__init__``."""

    def __init__(self) -> None:
        correction = schemav2.Correction(
            name="sf",
            version=1,
            inputs=[schemav2.Variable(name="pt", type="real")],
            output=schemav2.Variable(name="w", type="real"),
            data=schemav2.Binning(
                nodetype="binning", input="pt", edges=[0, 50, 1e6], content=[0.5, 2.0], flow="clamp"
            ),
        )
        model = schemav2.CorrectionSet(schema_version=2, corrections=[correction])
        self.evaluator = correctionlib.CorrectionSet.from_string(model.model_dump_json())
        self.sf = self.evaluator["sf"]

    def process(self, events: Any) -> Any:
        weight = self.sf.evaluate(ak.flatten(events.Jet.pt)) * self.evaluator["sf"].evaluate(60.0)
        h = Hist.new.Reg(10, 0, 100, name="pt").Weight()
        return {"h": h.fill(ak.flatten(events.Jet.pt), weight=weight)}


def scaled(factor: float) -> Callable[[Any], Any]:
    """A function with a factor in it."""
    return lambda x: factor * x


class Nested(Simple):
    """Closures, generators and functions in functions."""

    def __init__(self) -> None:
        self.selectors = {f"gt{cut}": lambda pt, cut=cut: pt > cut for cut in (20, 40)}
        self.scale = scaled(2.0)

    def process(self, events: Any) -> Any:
        def regions() -> Iterator[tuple[str, Any]]:
            for name, select in self.selectors.items():
                yield name, events[select(events.MET.pt)]

        return {name: {"n": len(part), "met": self.met(part)} for name, part in regions()}

    def met(self, events: Any) -> Any:
        return Hist.new.Reg(10, 0, 200, name="met").Double().fill(self.scale(events.MET.pt))


class Noisy(Simple):
    """Prints, logs and warns."""

    def process(self, events: Any) -> Any:
        logger.info("%s", events.metadata)
        logger.warning("processing %d", len(events))
        print("chunk", events.metadata["entrystart"])  # noqa: T201 - as people do
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            warnings.warn("this is deprecated", DeprecationWarning, stacklevel=1)
        with np.errstate(all="ignore"):
            ratio = np.log(np.zeros(1))
        return {"n": len(events), "inf": ratio[0]}


class Seeded(Simple):
    """Random numbers that depend on the chunk."""

    def process(self, events: Any) -> Any:
        meta = events.metadata
        seed = int(meta["fileuuid"].replace("-", ""), 16) + meta["entrystart"]
        rng = np.random.default_rng(seed)
        smeared = events.MET.pt * rng.normal(1, 0.1, len(events))
        where = (meta["treename"], meta["entrystart"], meta["entrystop"], meta["fileuuid"])
        return {
            "h": Hist.new.Reg(20, 0, 200, name="met").Double().fill(smeared),
            "chunks": {where},
            "files": {str(meta["filename"])},
            "meta": {meta["dataset"]: {(key, str(meta[key])) for key in ("x_sec", "tag")}},
        }


class Twice(Simple):
    """The same histogram in two places, and a slice of it."""

    def process(self, events: Any) -> Any:
        h = Hist.new.StrCat(["a", "b"], name="cat").Reg(10, 0, 100, name="met").Weight()
        h.fill("a", events.MET.pt)
        h.fill("b", events.MET.pt * 2)
        met = np.asarray(events.MET.pt)
        counts = np.histogram(met, 5, (0, 100))[0]
        return {"h": h, "again": {"h": h}, "view": h["a", :], "counts": counts, "half": counts[:2]}


class Tuples(Simple):
    """Keys that are no text: tuples, numbers, enumerations, numbers of numpy."""

    def process(self, events: Any) -> Any:
        dataset = events.metadata["dataset"]
        h = Hist.new.Reg(10, 0, 100, name="met").Double().fill(events.MET.pt)
        return {
            (dataset, "nominal"): h,
            (dataset, "n"): len(events),
            np.str_("numpy"): {np.int64(3): 1, np.float32(0.5): 2},
            Region.SIGNAL: {Year.RUN2: len(events), Flavour.B: 1},
            Flavour.B: h,
            None: True,
            b"bytes": 1.5,
        }


class Region(str, Enum):  # noqa: UP042 - as people do
    """Text of before Python 3.11."""

    SIGNAL = "signal"


class Flavour(StrEnum):
    """Text."""

    B = "b"


class Year(IntEnum):
    """Numbers."""

    RUN2 = 2015


class Differing(Simple):
    """Empty chunks and other keys in each; mappings of other kinds, arrays of other kinds."""

    def process(self, events: Any) -> Any:
        start, first = events.metadata["entrystart"], int(events.event[0])
        selected = events[events.MET.pt > 1e6]
        if first == 1_000_000:
            return {}
        empty = Hist.new.Reg(10, 0, 100, name="met").Double().fill(selected.MET.pt)
        is_third = first == 2_000_000
        kind = partial(defaultdict, int) if is_third else dict if start else OrderedDict
        return {
            "empty": empty,
            f"from {start}": {"n": len(events)},
            "kinds": kind({"n": len(events)}),
            "array": np.zeros(3, int) if is_third else np.full(3, 0.5),
            "column": column_accumulator(np.asarray(selected.event)),
            "lists": column_accumulator(ak.materialize(selected.Jet.pt)),
            "growing": Hist.new.StrCat([], growth=True).Double().fill([f"c{start}"]),
            "user": UserDict(n=1),
        }


class MyCounter(Counter[str]):
    """A counter of somebody's own."""


class MyDict(dict_accumulator):  # type: ignore[misc]
    """An accumulator of somebody's own."""


class Subclasses(Simple):
    """Subclasses of what coffea and Python have."""

    def process(self, events: Any) -> Any:
        start = events.metadata["entrystart"]
        return {
            "counter": MyCounter(a=1, **{f"c{start}": 2}),
            "dict": MyDict({"a": value_accumulator(int, 1), f"c{start}": set_accumulator({start})}),
            "hist": MyHist.new.Reg(3, 0, 100, name="met").Double().fill(events.MET.pt),
        }


class MyHist(Hist, family="mine"):  # type: ignore[misc, call-arg]
    """A histogram of somebody's own."""


class CrossReferences(Simple):
    """Jets that muons belong to, and arrays as the schema makes them."""

    def process(self, events: Any) -> Any:
        matched = events.Muon.matched_jet
        ratio = ak.flatten(events.Muon.pt / matched.pt)
        leading = ak.firsts(events.Jet[ak.argsort(events.Jet.pt, ascending=False)])
        mass = (events.Jet.sum() if hasattr(events.Jet, "sum") else leading).mass
        return {
            "ratio": Hist.new.Reg(10, 0, 2, name="r").Double().fill(ak.drop_none(ratio)),
            "n": ak.sum(~ak.is_none(matched, axis=1)),
            "dphi": Hist.new.Reg(10, 0, 4, name="dphi")
            .Double()
            .fill(ak.drop_none(np.abs(leading.delta_phi(events.MET)))),
            "mass": Hist.new.Reg(10, 0, 500, name="m").Double().fill(ak.drop_none(mass)),
            "fields": set(events.fields),
        }


class Loose(Simple):
    """Keys that mean something here, with other things in them."""

    def process(self, events: Any) -> Any:
        return {
            "warnings": {"low": 1, "high": 2},
            "sumw": Hist.new.Reg(2, 0, 1, name="x").Weight().fill(np.full(len(events), 0.7)),
            "cutflow": Hist.new.IntCat([0, 1, 2], name="cut").Double().fill([0] * len(events)),
            "events": len(events),
            "outputs": {"hists": 1},
        }


class Sub(Simple):
    """Runs other processors, and adds up what they give."""

    def __init__(self) -> None:
        self.parts = [Bare(), Bare()]

    def process(self, events: Any) -> Any:
        return {"sum": accumulate([part.process(events) for part in self.parts])}


class Everything(ProcessorABC):
    """All of them, in a dictionary."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.parts = {name: PROCESSORS[name]() for name in names}

    def process(self, events: Any) -> dict[str, Any]:
        found = {}
        for name, part in self.parts.items():
            run = getattr(part, "process", part)
            found[name] = run(events[:])  # some add columns to their events
        return found

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        for name, part in self.parts.items():
            finish = getattr(part, "postprocess", lambda output: output)
            changed = finish(accumulator[name])
            accumulator[name] = accumulator[name] if changed is None else changed
        return accumulator


PROCESSORS: dict[str, Callable[[], Any]] = {
    **{
        made.__name__: made
        for made in (NanoEvents, NanoTest, Docs, Benchmarks, Agc, OnSelf, Old, Selections)
    },
    **{made.__name__: made for made in (Accumulators, Bare, Weighted, Slots, Frozen, Derived)},
    **{made.__name__: made for made in (Corrected, Nested, Noisy, Seeded, Twice, Tuples)},
    **{made.__name__: made for made in (Differing, Subclasses, CrossReferences, Loose, Sub)},
    **{made.__name__: made for made in (Scales, ByMethod, ByFunction, ByAttribute)},
    "function": lambda: analysis,
    "partial": lambda: hard,
    **{f"cutflow: {shape}": partial(Cutflow, shape) for shape in Cutflow.SHAPES},
    **{f"sumw: {shape}": partial(SumOfWeights, shape) for shape in SumOfWeights.SHAPES},
}


# What coffea may take, and agc-ml refuses in a line


class Plots(Bare):
    """Has a figure made of it."""

    def postprocess(self, accumulator: Any) -> Any:
        return {"figure": object()}


class Answers(Bare):
    """Has whatever is asked for, as soon as it has its configuration."""

    def __init__(self) -> None:
        self.known = {"x": 1}

    def __getattr__(self, name: str) -> Any:
        if name in self.known:
            return self.known[name]
        raise AttributeError(name)


def declaring(**attributes: Any) -> Any:
    """A processor with attributes of some names."""
    return type("Mine", (Bare,), attributes)()


def returning(make: Callable[[Any], Any]) -> Any:
    """A processor that returns something."""
    return declaring(process=lambda _, events: make(events))


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: declaring(columns={"Jet": ["pt"]}), "Mine.columns: a tuple of branch names is needed"),
    (lambda: declaring(columns=lambda _: ["pt"]), "Mine.columns: a tuple of branch names is neede"),
    (lambda: declaring(files={"sf": "sf.json"}), "Mine.files: a tuple of file names is needed"),
    (
        lambda: declaring(files=3),
        "Mine.files: a tuple of file names is needed; rename the attribute if it",
    ),
    (Answers, "Answers: can't be copied for each chunk: maximum recursion depth"),
    (Plots, "processor Plots: the result of all chunks: output['figure'] is a object, which"),
    (lambda: returning(lambda _: iter([])), "process() returned list_iterator"),
    (lambda: returning(lambda _: {"x": {abc: 1}}), "output['x']: key <module"),
    (
        lambda: returning(lambda _: {"warnings": "careful"}),
        "its 'warnings' must be a list of lines",
    ),
    (
        lambda: returning(lambda events: {"x": np.zeros(1 + int(events.event[0] % 3))}),
        "output['x'] can't be added: arrays of the shapes (1,) and (2,)",
    ),
]
"""Makers of processors, and what is said of these."""
