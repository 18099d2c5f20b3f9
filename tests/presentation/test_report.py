"""The report: what is in it, that it needs nothing from outside, that a browser shows it."""

from __future__ import annotations

import html
import re
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import factories
import numpy as np
import pytest
from PIL import Image

from agc_ml.errors import RunDirectoryError, StoreError
from agc_ml.presentation.page import FigureInfo
from agc_ml.presentation.report import write_report
from agc_ml.results import variances
from agc_ml.results.ledger import Ledger
from agc_ml.statistics.fit import GoodnessOfFit

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Parsed(HTMLParser):
    """Tags with their attributes, visible text, and whether tags are closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(source)
        assert self.open == []
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "nav", "title"} & set(self.open):
            self.text += f" {data}"

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Two made-up figures, one of them wide."""
    folder = tmp_path_factory.mktemp("figures")
    found = []
    for name, width in (("square", 800), ("wide", 1500)):
        info = FigureInfo(
            name, f"{name} <1>", "Caption & more", folder / f"{name}.png", folder / "x"
        )
        Image.new("RGB", (width, 600), "orange").save(info.png)
        found.append(info)
    return found


@pytest.fixture
def written(tmp_path):
    """Write a report and read it back."""

    def write(result, fit, figures=()):
        path = tmp_path / "report.html"
        write_report(result, fit, figures, path)
        return Parsed(path.read_text(encoding="utf-8"))

    return write


def test_numbers_are_those_of_the_run_and_the_fit(written, figures):
    text = written(factories.run_result(), factories.fit_result(), figures).text
    for expected in (
        "ttbar_norm = 0.96 ± 0.11",
        "χ² = 12.34 for 21 degrees of freedom",
        "0.9293",
        "141.33353",
        "complete run, fit converged",
        "fitted to reference pseudodata",
        "single top is missing from the pseudodata",
        "60,012.5 ± 346.4",  # yield of ttbar
        "one lepton",
        "61.2 s",
        "123.5 MB",
        "65.4 events/s",
        "3,378 /pb",
        "sha256:templates",
        "sha256:model",
        "abcdef0123456789 with uncommitted changes",
        "agc-ml run ttbar",
        "coffea 2026.9.0",
        "729.84 pb",
    ):
        assert expected in text
    assert (
        text.index("ttbar_norm =")
        < text.index("Figures square")
        < text.index("Cutflow (events, nominal) dataset")
    )


def test_every_parameter_is_in_the_table(written):
    fit = factories.fit_result()
    text = written(None, fit).text
    for parameter in fit.parameters:
        assert f"{parameter.name} {parameter.value:.4f} {parameter.uncertainty:.4f}" in text


@pytest.mark.parametrize("with_fit", [True, False])
def test_page_asks_for_nothing_from_outside(written, figures, with_fit):
    page = written(factories.partial_run(), factories.fit_result() if with_fit else None, figures)
    sources = [
        s for name in ("src", "href", "srcset", "data", "action") for s in page.attributes(name)
    ]
    assert sources
    assert all(source.startswith(("#", "data:")) for source in sources)
    assert not {"script", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'")


def test_page_names_no_address_and_loads_no_style(tmp_path, figures):
    path = tmp_path / "report.html"
    write_report(factories.run_result(), factories.fit_result(), figures, path)
    source = re.sub(r"data:image/png;base64,[^\"]+", "", path.read_text(encoding="utf-8"))
    assert not re.search(r"https?:|@import|url\(|ftp:", source)


def test_page_is_accessible(written, figures):
    page = written(factories.partial_run(), factories.fit_result(), figures)
    ids = Counter(page.attributes("id"))
    assert max(ids.values()) == 1
    assert {href[1:] for href in page.attributes("href") if href[0] == "#"} <= set(ids)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert [(i["alt"], i["width"], i["height"]) for i in images] == [
        ("square <1>", "800", "600"),
        ("wide <1>", "1500", "600"),
    ]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert np.max(np.diff(levels)) == 1
    assert dict(page.tags)["html"] == {"lang": "en"}
    assert "width=device-width" in str(page.attributes("content"))


def test_text_from_outside_is_escaped(written):
    nasty = '<script>alert("1")</script> & \'<b>"'
    entry = factories.entry(0, lfn=f"/{nasty}.root", attempts=2, errors=(nasty,))
    result = factories.run_result(
        warnings=(nasty,),
        cutflow={nasty: {nasty: 1}},
        ledger=Ledger((entry,)),
        outputs={nasty: nasty},
        provenance=factories.provenance(command=("agc-ml", nasty), versions={nasty: nasty}),
    )
    fit = factories.fit_result(notes=(nasty,), inputs={nasty: nasty}, pseudodata=nasty)
    page = written(result, fit)
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert page.text.count(nasty) >= 12


def test_partial_run_says_first_what_is_missing(written):
    text = written(factories.partial_run(warnings=("all muon IDs are false",)), None).text
    assert "partial run" in text
    notice = "The run is partial: 2 of 5 ranges are not in the histograms"
    assert text.index(notice) < text.index("Result Yields")
    assert "/store/ttbar/file1.root [1000, 2000)" in text
    assert "/store/ttbar/file2.root [0, end)" in text
    assert "OSError: truncated file" in text
    assert "OSError: timed out; OSError: <reset> & gone 3 1.5 s" in text  # the retried chunk
    assert "ttbar__nominal 3 3 2 3,000 1,000 + ?" in text  # the account of the dataset
    assert text.index("all muon IDs are false") < text.index("Result Yields")


def test_thousands_of_missing_ranges_are_counted_not_listed(written):
    entries = tuple(factories.entry(n, status="missing") for n in range(3000))
    text = written(factories.partial_run(ledger=Ledger(entries)), None).text
    assert "and 2,990 more" in text
    assert "2,800 more are in ledger.jsonl" in text
    assert len(text) < 50_000


def test_account_that_does_not_add_up_is_told(written):
    twice = Ledger((factories.entry(0), factories.entry(0), factories.entry(1)))
    text = written(factories.run_result(ledger=twice), None).text
    assert "The account of events does not add up" in text
    assert "counted twice" in text


def test_run_without_fit_begins_with_yields(written):
    text = written(factories.run_result(), None).text
    assert "Result Yields process 4j1b 4j2b ttbar 60,012.5" in text
    assert "ttbar_norm" not in text
    assert "missing from the pseudodata" not in text


def test_unknown_uncertainties_are_told(written):
    hists = {
        name: variances.filled(h.axes, h.values(flow=True), None)
        for name, h in factories.ttbar_hists(["wjets"]).items()
    }
    text = written(factories.run_result(hists), None).text
    assert "± ?" in text
    assert "keeps no variances" in text


def test_run_without_anything(written):
    result = factories.run_result(
        {},
        cutflow={},
        ledger=Ledger(()),
        status="failed",
        provenance=factories.provenance(
            luminosity=None, git=None, command=(), models={}, datasets=()
        ),
    )
    text = written(result, None).text
    assert "failed run" in text
    assert "there are no yields" in text
    assert "from Python" in text


def test_fit_that_did_not_converge_is_told_first(written):
    text = written(None, factories.fit_result(converged=False)).text
    assert text.index("The fit did not converge") < text.index("ttbar_norm =")
    assert "Fit of histograms" in text
    assert "Provenance" not in text


def test_agreement_in_what_was_not_fitted(written):
    none = GoodnessOfFit(0.0, 0, None)
    carried = (
        factories.carried_over("mass_w1w2"),
        factories.carried_over("deltar_w1w2", prefit_test=none, postfit_test=none),
    )
    text = written(None, factories.fit_result(carried_over=carried)).text
    assert "observable χ² before χ² after p-value mass_w1w2 31.2 / 22 17.5 / 22 0.73" in text
    assert "deltar_w1w2 – – –" in text  # noqa: RUF001
    assert "Pseudodata are mixed" in text
    recorded = factories.fit_result(carried_over=carried, pseudodata="data")
    text = written(None, recorded).text
    assert "fitted to data" in text
    assert "Pseudodata" not in text
    assert "not fitted" not in written(None, factories.fit_result()).text


def test_yields_of_many_histograms_stay_in_their_file(tmp_path):
    hists = {**factories.ttbar_hists(), **factories.ml_hists(events=100)}
    path = tmp_path / "report.html"
    write_report(factories.run_result(hists), None, [], path, large=("4j1b", "4j2b"))
    text = Parsed(path.read_text(encoding="utf-8")).text
    assert "process 4j1b 4j2b ttbar 60,012.5 ± 346.4" in text
    assert "Those of 20 more histograms are in run.json." in text


def test_fit_without_a_p_value(written):
    fit = factories.fit_result()
    page = written(None, replace(fit, goodness_of_fit=replace(fit.goodness_of_fit, p_value=None)))
    assert "p-value –" in page.text  # noqa: RUF001


def test_figure_that_is_gone(tmp_path, figures):
    gone = figures[0]._replace(png=tmp_path / "gone.png")
    with pytest.raises(RunDirectoryError, match=r"gone\.png: can't be read .* 'agc-ml plot'"):
        write_report(None, factories.fit_result(), [gone], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(StoreError, match=r"report\.html: can't be written"):
        write_report(None, factories.fit_result(), [], tmp_path / "none" / "report.html")


def browse(chromium, page, profile, *options):
    """Show a page in a headless browser; gives the page as it is then, and what it complains of."""
    quiet = ["no-first-run", "disable-background-networking", "disable-component-update"]
    command = [str(chromium), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += [f"--{option}" for option in (*quiet, "disable-sync")]
    command += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    done = subprocess.run(
        [*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_browser_shows_it_without_complaint(chromium, tmp_path, figures):
    path = tmp_path / "report.html"
    write_report(factories.partial_run(), factories.fit_result(), figures, path)
    shown, complaints = browse(chromium, path, tmp_path / "profile")
    assert complaints == []
    assert "0.96 ± 0.11" in shown


def test_page_fits_a_phone(chromium, tmp_path, figures):
    path = tmp_path / "report.html"
    long = Ledger((factories.entry(0, status="missing", lfn="/store" + "/a_long_name" * 20),))
    write_report(factories.partial_run(ledger=long), factories.fit_result(), figures, path)
    # The page allows no scripts. A copy of it in a frame (no window is that narrow) tells how wide
    # it is, and whether its pictures fit and are loaded.
    measure = """<script>
      const fits = i => i.naturalWidth > 0 && i.width > 0 && i.width < innerWidth;
      const good = [...document.images].every(fits);
      parent.document.title = [innerWidth, document.documentElement.scrollWidth, good].join(" ");
    </script></body>"""
    source = re.sub(r"<meta http-equiv[^>]+>", "", path.read_text(encoding="utf-8"))
    frame = html.escape(source.replace("</body>", measure))
    path.write_text(
        f'<!doctype html><title></title><iframe width=390 height=800 srcdoc="{frame}"></iframe>'
    )
    shown, _ = browse(chromium, path, tmp_path / "profile")
    inner, scroll, good = re.search(r"<title>(.*?)</title>", shown)[1].split()
    assert int(inner) == 390
    assert int(scroll) <= 390
    assert good == "true"
