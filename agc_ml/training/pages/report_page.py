"""The page by which people decide whether a bundle is promoted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from agc_ml.models.model import Parity
from agc_ml.presentation.page import FigureInfo, Notice, Page, Table
from agc_ml.presentation.report import write_page
from agc_ml.training.bundles import TrainingRecord
from agc_ml.training.gates import Judged, Seen
from agc_ml.training.trainers.trials import TrialResult

REPORT = "report.html"


def write(
    folder: Path,
    name: str,
    found: tuple[Judged, Seen],
    trained: TrainingRecord,
    trials: Mapping[Parity, list[TrialResult]],
) -> None:
    """Draw the figures in ``folder/figures`` and write ``folder/report.html``.

    Raises
    ------
    StoreError
        There is no space, or no permission.
    """
    from agc_ml.presentation.figures import model_quality  # noqa: PLC0415 - heavy

    judged, seen = found
    facts = model_quality.Facts(
        roc=seen.roc,
        events_of=seen.events_of,
        calibration=(seen.calibration.score, seen.calibration.fraction, seen.calibration.number),
        multiplicity=seen.multiplicity,
        variations={name: (one.auc, one.jet_score) for name, one in seen.variations.items()},
        confusion=seen.confusion,
        kinds=seen.kinds,
        importance=seen.importance,
        curve={parity: one.curve for parity, one in trained.models.items()},
        history={
            parity: [(one.quality.jet_score, not one.pruned) for one in attempts]
            for parity, attempts in trials.items()
        },
    )
    figures = model_quality.draw(facts, folder / "figures")
    write_page(_page(name, judged, trained, seen.events_of, figures), folder / REPORT)


def _page(
    name: str,
    judged: Judged,
    trained: TrainingRecord,
    events_of: str | None,
    figures: Sequence[FigureInfo],
) -> Page:
    failed = [gate for gate in judged.gates if not gate.passed]
    notices = [
        Notice(
            "It may not be promoted without a reason",
            tuple(f"{gate.title}: no. {gate.detail}" for gate in failed),
        )
    ]
    against = (
        f"compared with the champion, version {judged.against}"
        if judged.against
        else "there is no champion to compare with"
    )
    auc, jet, right = (judged.quality[key] for key in ("auc", "jet_score", "fully_right"))
    return Page(
        title=f"{name}: {trained.kind}",
        status="passes all gates" if judged.passed else f"fails {len(failed)} gates",
        good=judged.passed,
        subtitle=f"judged on {judged.events:,} events{f' ({events_of})' if events_of else ''}, "
        f"each scored by the model that never saw it; {against}",
        notices=notices if failed else [],
        headline=("jet score", f"{jet:.4f}", f"AUC {auc:.4f}; all four jets right: {right:.1%}"),
        tables=[_gates(judged), _comparison(judged)] if judged.champion else [_gates(judged)],
        figures=figures,
        details=[_parameters(trained), _origin(judged, trained)],
    )


def _gates(judged: Judged) -> Table:
    rows = [
        (
            gate.title,
            "passed" if gate.passed else "FAILED",
            gate.detail,
            f"{gate.value:.4g}",
            f"{gate.limit:.4g}",
        )
        for gate in judged.gates
    ]
    return Table("Gates", ("gate", "verdict", "what was found", "number", "limit"), rows, words=3)


def _comparison(judged: Judged) -> Table:
    titles = {"auc": "AUC", "jet_score": "jet score", "fully_right": "all four jets right"}
    rows = []
    for key, title in titles.items():
        mine, its = judged.quality[key], judged.champion[key]
        rows.append((title, f"{mine:.4f}", f"{its:.4f}", f"{mine - its:+.4f}"))
    columns = ("on the same events", "this bundle", f"champion ({judged.against})", "difference")
    return Table("Against the champion", columns, rows, words=1)


def _parameters(trained: TrainingRecord) -> Table:
    both = trained.models.values()
    names = dict.fromkeys(key for one in both for key in one.params)
    rows = [
        (name, *(f"{one.params[name]:.4g}" if name in one.params else None for one in both))
        for name in names
    ]
    rows += [
        (f"{key} (validation)", *(f"{one.validation[key]:.4f}" for one in both))
        for key in ("auc", "jet_score", "fully_right")
    ]
    rows += [
        (key, *(str(getattr(one, name)) for one in both))
        for key, name in (("trials", "trials"), ("trials that failed", "failed"), ("seed", "seed"))
    ]
    columns = ("parameter", *(f"trained on {parity}" for parity in trained.models))
    return Table("Parameters that the search found", columns, rows, words=1)


def _origin(judged: Judged, trained: TrainingRecord) -> Table:
    rows = [
        ("job", trained.job),
        ("trained on the training set", trained.dataset),
        ("with jets", trained.variation),
        ("judged on the training set", judged.dataset),
        *((name, version) for name, version in trained.versions.items()),
    ]
    return Table("What it was made of", ("", ""), rows)
