"""Figures: they are drawn for whatever a run or a fit holds, without a warning."""

from __future__ import annotations

import logging
from dataclasses import replace

import factories
import hist
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from agc_ml.analysis import analysis_of
from agc_ml.errors import HistogramError, StoreError
from agc_ml.presentation.figures import distributions, stack, style, unfitted_observables
from agc_ml.presentation.figures.distributions import draw_run, draw_templates
from agc_ml.presentation.figures.fit_figures import draw_fit
from agc_ml.presentation.page import FigureInfo
from agc_ml.results import variances
from agc_ml.results.categories import flatten
from agc_ml.results.histograms import book
from agc_ml.results.run_record import DatasetSummary
from agc_ml.statistics.fit import GoodnessOfFit


def is_drawn(figure: FigureInfo) -> bool:
    """Both files are there, and the picture is neither blank nor tiny."""
    with Image.open(figure.png) as image:
        pixels = np.asarray(image.convert("L"), dtype=float)
    dark = np.mean(pixels < 128)
    return (
        figure.pdf.read_bytes().startswith(b"%PDF")
        and min(pixels.shape) > 300
        and 0.0005 < dark < 0.9
        and pixels.std() > 10
    )


def names(figures: list[FigureInfo]) -> list[str]:
    return [figure.name for figure in figures]


def small_run(**values):
    """One region and two processes, for tests that look at one thing."""
    hists = factories.ttbar_hists(["wjets", "single_top_tW"])
    return factories.run_result({"4j2b": hists["4j2b"]}, **values)


@pytest.fixture(scope="module")
def fit_figures(tmp_path_factory):
    return draw_fit(factories.fit_result(), tmp_path_factory.mktemp("fit"), 3378.0)


def test_run_gives_a_stack_and_the_variations_of_each_process(tmp_path):
    result = small_run()
    figures = draw_run(result, tmp_path / "new" / "folder", factories.pseudodata(result.hists))
    assert names(figures) == [
        "4j2b_stack",
        "4j2b_wjets_variations",
        "4j2b_single_top_tW_variations",
    ]
    assert all(is_drawn(figure) for figure in figures)
    assert "pseudodata" in figures[0].caption
    assert "Not shown: 25 events" in figures[0].caption  # 12.5 in each overflow bin


def test_many_histograms_share_an_overview(tmp_path):
    few = ["wjets", "single_top_tW"]
    names_of_small = [*factories.CARRIED, "btag_w1", "qgl_w1"]
    small = factories.ml_hists(names_of_small, few, events=1000)
    small["qgl_w1"].reset()
    hists = {"4j2b": factories.ttbar_hists(few)["4j2b"], **small}
    data = factories.pseudodata(hists)
    figures = draw_run(factories.run_result(hists), tmp_path, data, large=["4j2b"])
    assert names(figures) == [
        "4j2b_stack",
        "overview",
        "4j2b_wjets_variations",
        "4j2b_single_top_tW_variations",
    ]
    assert all(is_drawn(figure) for figure in figures)
    assert figures[1].title == "9 more observables"
    assert figures[1].caption.startswith(f"Row by row: {', '.join(names_of_small)}. ")
    assert "Points: pseudodata" in figures[1].caption


def test_overview_of_one_histogram(tmp_path):
    figures = draw_run(small_run(), tmp_path, large=[])
    assert names(figures) == ["overview"]
    assert is_drawn(figures[0])


def test_matplotlib_is_left_as_it_was(tmp_path):
    before = dict(mpl.rcParams)
    draw_run(small_run(), tmp_path)
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


def test_same_result_gives_the_same_bytes(tmp_path):
    result = small_run()
    first, second = (draw_run(result, tmp_path / name)[0] for name in ("a", "b"))
    assert first.png.read_bytes() == second.png.read_bytes()
    assert first.pdf.read_bytes() == second.pdf.read_bytes()


def test_empty_histograms_say_so(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(style, "say_no_events", said.append)
    empty = book(
        25,
        50,
        550,
        label="x [GeV]",
        process="ttbar",
        variations=["nominal", "a_up", "a_down", "b_up"],
    )
    result = factories.run_result({"empty": empty}, templates=flatten({"empty": empty}))
    figures = draw_run(result, tmp_path)
    assert names(figures) == ["empty_stack", "empty_ttbar_variations"]
    assert len(said) == 3  # the stack and two panels


def test_negative_and_spiky_contents_are_drawn(tmp_path):
    negative = book(5, 0, 5, label="x", process="p", variations=["nominal", "a_up"])
    negative.fill(observable=[0.5, 1.5], process="p", variation="nominal", weight=[-1, -3])
    spiky = book(240, 0, 120, label=r"$m_{\mu\mu}$ [GeV]", process="data", variations=["nominal"])
    random = np.random.default_rng(0)
    masses = np.concatenate([random.uniform(0, 120, 5_000), random.normal(3.1, 0.05, 50_000)])
    spiky.fill(observable=masses, process="data", variation="nominal")
    hists = {"negative": negative, "dimuon_mass": spiky}
    figures = draw_run(factories.run_result(hists, templates=flatten(hists)), tmp_path)
    assert names(figures) == ["negative_stack", "dimuon_mass_stack", "negative_p_variations"]
    assert all(is_drawn(figure) for figure in figures)


def test_recorded_collisions_are_points(tmp_path):
    spectrum = book(
        24, 0, 120, label=r"$m_{\mu\mu}$ [GeV]", process="doublemuon", variations=["nominal"]
    )
    spectrum.fill(observable=np.arange(120), process="doublemuon", variation="nominal")
    dataset = DatasetSummary(
        name="d", process="doublemuon", variation="nominal", is_data=True, xsec=None,
        files=1, events=120,
    )  # fmt: skip
    provenance = factories.provenance(datasets=(dataset,), luminosity=None)
    result = factories.run_result({"mass": spectrum}, provenance=provenance)
    (figure,) = draw_run(result, tmp_path)
    assert is_drawn(figure)
    assert "Points: data" in figure.caption
    assert "simulation" not in figure.caption


def unknown(histogram):
    return variances.filled(histogram.axes, histogram.values(flow=True), None)


def test_unknown_variances_are_drawn_without_a_band(tmp_path):
    made = small_run()
    hists = {name: unknown(h) for name, h in made.hists.items()}
    result = factories.run_result(hists)
    figures = draw_run(result, tmp_path, factories.pseudodata(made.hists))
    assert all(is_drawn(figure) for figure in figures)
    assert all("There is no band" in figure.caption for figure in figures)
    assert not any("hatched" in figure.caption or "grey" in figure.caption for figure in figures)
    processes = distributions._processes("4j2b", hists["4j2b"], result.templates)
    content = distributions._stack(
        distributions.Region("4j2b", processes),
        distributions._Points({}, "pseudodata", {}, {}, is_pseudo=True),
    )
    assert content.uncertainty is None
    figure = stack.draw(content, style.Label(None, simulation=True))
    words = [text.get_text() for text in figure.axes[0].texts]
    assert any(style.UNKNOWN in word for word in words)
    _, labels = figure.axes[0].get_legend_handles_labels()
    assert content.uncertainty_label not in labels


def test_overview_names_those_without_a_band(tmp_path):
    hists = factories.ml_hists(["btag_w1", "qgl_w1"], ["wjets"], events=1000)
    hists["qgl_w1"] = unknown(hists["qgl_w1"])
    (figure,) = draw_run(factories.run_result(hists), tmp_path, large=[])
    assert "No band, as variances are not known: qgl_w1." in figure.caption


def test_recorded_weights_have_no_error_bars(tmp_path):
    dataset = DatasetSummary(
        name="d", process="d", variation="nominal", is_data=True, xsec=None, files=1, events=4,
    )  # fmt: skip
    provenance = factories.provenance(datasets=(dataset,))
    for weight, says in ((None, "with their statistical uncertainty"), (100, "without unc")):
        axes = hist.axis.StrCategory(["d"], name="process"), hist.axis.Regular(2, 0, 2, name="x")
        spectrum = hist.Hist(*axes).fill("d", [0.5, 1.5, 1.5, 1.5], weight=weight)
        made = {"mass": spectrum}
        result = factories.run_result(made, provenance=provenance, templates=flatten(made))
        (figure,) = draw_run(result, tmp_path)
        assert says in figure.caption


def test_other_axes_are_drawn_or_skipped_with_a_line(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="agc_ml")
    hists = {
        "plain": hist.Hist(hist.axis.Regular(10, 0, 1, label="score")).fill([0.1, 0.2]),
        "two": hist.Hist(
            hist.axis.Regular(4, 0, 1, name="a"), hist.axis.Regular(4, 0, 1, name="b")
        ),
        "cuts": hist.Hist(hist.axis.StrCategory(["all", "one"], name="cut")),
        "a/b": hist.Hist(
            hist.axis.Variable([0, 1, 3], name="n", label="$broken_{ [GeV]"),
            hist.axis.StrCategory(["$x$_<é>", "y$"], name="dataset"),
            hist.axis.IntCategory([11, 13], name="lepton"),
        ).fill([0.5, 2], "y$", 11),
    }
    templates = flatten({name: h for name, h in hists.items() if name != "cuts"})
    figures = draw_run(factories.run_result(hists, templates=templates), tmp_path)
    assert names(figures) == ["plain_stack", "a_b_stack-8b600a"]
    assert figures[1].png.name == "a_b_stack-8b600a.png"
    assert all(is_drawn(figure) for figure in figures)
    assert "two: 2 numeric axes, not drawn" in caplog.text
    assert "cuts: 0 numeric axes, not drawn" in caplog.text


def test_names_that_would_be_one_file_are_two(tmp_path):
    histogram = hist.Hist(hist.axis.Regular(10, 0, 1, label="score")).fill([0.1, 0.2])
    hists = dict.fromkeys(["jet/pt", "jet_pt", "jet pt"], histogram)
    figures = draw_run(factories.run_result(hists, templates=hists), tmp_path)
    assert len({figure.png for figure in figures}) == len(list(tmp_path.glob("*.png"))) == 3


def test_run_without_histograms_gives_no_figures(tmp_path):
    assert draw_run(factories.run_result({}), tmp_path / "figures") == []
    assert (tmp_path / "figures").is_dir()


def test_process_without_nominal_is_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="agc_ml")
    only = book(5, 0, 5, label="x", process="ttbar", variations=["ME_var"])
    result = factories.run_result({"r": only}, templates=flatten({"r": only}))
    assert draw_run(result, tmp_path) == []
    assert "ttbar has no nominal histogram" in caplog.text


def test_templates_go_to_the_longest_name(tmp_path, caplog):
    templates = {
        name: hist.Hist(hist.axis.Regular(5, 0, 5), storage=hist.storage.Weight()).fill([1, 2, 3])
        for name in ("r_top", "r_top_a_up", "r_top_tW", "r_top_tW_a_up", "r_other", "q_top")
    }
    figures = draw_templates(templates, tmp_path, ["top", "top_tW"], ["r"], luminosity=3378.0)
    assert "not drawn, as they are not of the regions and samples" in caplog.text
    assert "2 histograms (r_other, q_top)" in caplog.text
    assert names(figures) == ["r_stack", "r_top_variations", "r_top_tW_variations"]
    assert all(is_drawn(figure) for figure in figures)


def test_data_of_other_bins_are_refused(tmp_path):
    data = {"4j2b": hist.Hist(hist.axis.Regular(7, 50, 550))}
    with pytest.raises(HistogramError, match="4j2b: data is binned differently"):
        draw_run(small_run(), tmp_path, data)


def test_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be written"):
        draw_run(small_run(), tmp_path / "file" / "figures")


def test_fit_gives_all_figures(fit_figures):
    assert names(fit_figures) == [
        "4j1b_pre-fit",
        "4j2b_pre-fit",
        "4j1b_post-fit",
        "4j2b_post-fit",
        "pulls",
        "ranking",
        "correlations",
    ]
    assert all(is_drawn(figure) for figure in fit_figures)
    captions = {figure.name: figure.caption for figure in fit_figures}
    assert "the 20 largest of 33" in captions["ranking"]
    assert "parameters without a larger one are hidden" in captions["correlations"]


def test_what_a_fit_was_carried_over_to(tmp_path):
    carried = tuple(factories.carried_over(name) for name in factories.CARRIED[3:5])
    fit = factories.fit_result(prefit=(), postfit=(), carried_over=carried)
    figures = draw_fit(fit, tmp_path, 3378.0)[:2]
    assert names(figures) == ["mass_leptonbtoplep_carried_over", "mass_w1w2_carried_over"]
    assert all(is_drawn(figure) for figure in figures)
    assert figures[1].title == "mass_w1w2: before and after the fit"
    assert "mass_w1w2, which was not fitted" in figures[1].caption
    assert "pseudodata with the square root" in figures[1].caption


def test_both_panels_have_the_same_scales_and_say_what_the_test_gives():
    carried = factories.carried_over("mass_w1w2", postfit_test=GoodnessOfFit(0.0, 0, None))
    with style.applied():
        figure = unfitted_observables.draw(carried, "data", style.Label(None, simulation=False))
    before, after, *ratios = figure.axes[1:5]
    assert before.get_ylim() == after.get_ylim()
    assert ratios[0].get_ylim() == ratios[1].get_ylim()
    texts = [text.get_text() for axes in (before, after) for text in axes.texts]
    assert "before the fit\n$\\chi^2$ = 31.2 / 22,  p = 0.091" in texts
    assert "after the fit\ntoo few events for a test" in texts


def test_what_was_added_to_empty_bins_is_not_drawn():
    yields = factories.carried_over("mass_w1w2").prefit
    drawn = unfitted_observables._stack(yields, "", "data")
    assert (yields.total[-3:] > 0).all()
    assert (drawn.total[-3:] == 0).all()
    np.testing.assert_array_equal(drawn.total[:-3], yields.total[:-3])
    assert (drawn.uncertainty[-3:] == 0).all()
    assert (drawn.data[-3:] == 0).all()


def test_fit_without_constraints_or_impacts(tmp_path):
    fit = factories.fit_result()
    alone = replace(
        fit,
        parameters=fit.parameters[:1],
        correlation=np.eye(1),
        impacts=(),
        prefit=(),
        pseudodata="data",
    )
    figures = draw_fit(alone, tmp_path, None)
    assert names(figures) == ["4j1b_post-fit", "4j2b_post-fit"]
    assert "data with the square root" in figures[0].caption


def test_failed_fit_is_drawn_without_a_warning(tmp_path):
    fit, nan = factories.fit_result(), float("nan")
    broken = replace(
        fit,
        parameters=tuple(replace(p, value=nan, uncertainty=nan) for p in fit.parameters),
        impacts=tuple(replace(i, postfit_up=nan, postfit_down=nan) for i in fit.impacts),
        correlation=np.full_like(fit.correlation, nan),
        prefit=(),
        postfit=tuple(replace(r, uncertainty=nan * r.uncertainty) for r in fit.postfit),
    )
    assert names(draw_fit(broken, tmp_path, None))[-2:] == ["pulls", "ranking"]


def test_processes_keep_their_colours_and_others_differ():
    with style.applied(analysis_of().processes):
        colors = style.process_colors(["new", "ttbar", "wjets", "other"])
        assert len(set(colors.values())) == 4
        assert style.process_colors(["W+jets"])["W+jets"] == colors["wjets"]  # sample of the fit
        assert colors["ttbar"] == style.process_colors(["ttbar"])["ttbar"]
    assert style.process_colors(["wjets"])["wjets"] == style.PETROFF[0]  # undeclared: in order
    assert len(style.process_colors(map(str, range(30)))) == 30


@pytest.mark.parametrize(
    ("text", "drawn"),
    [("$H_T$ [GeV]", "$H_T$ [GeV]"), ("$broken_{", r"\$broken_{"), ("price $", r"price \$")],
)
def test_labels_that_are_no_mathematics_are_drawn_as_they_are(text, drawn):
    assert style.formula(text) == drawn


def test_pdf_and_png_share_their_names(fit_figures):
    assert all(f.png.stem == f.pdf.stem == f.name for f in fit_figures)
