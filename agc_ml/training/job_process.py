"""A job in a process of its own: from a training set to a judged bundle, in the job's folder.

It is given all it needs in ``setup.json`` and talks to nobody. What it finds it leaves in
``bundle/``, and when that is whole, ``result.json``; or ``error.json``, which says why not. It can
be killed at any time and started again: the search goes on where it was, and everything after that
gives the same again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from agc_ml import files as folders
from agc_ml.errors import AgcError, ClusterError, TrainingError, chain
from agc_ml.execution.cluster.clusters import INLINE, LOCAL
from agc_ml.execution.cluster.connection import ClusterOptions, connect_executor
from agc_ml.execution.cluster.executors import Executor, WorkerDied
from agc_ml.execution.state.provenance import versions
from agc_ml.execution.worker.job import Failure
from agc_ml.files import write
from agc_ml.inputs.variations import NOMINAL
from agc_ml.models.content import Content, provide
from agc_ml.models.model import PARITIES, Parity
from agc_ml.results import tables
from agc_ml.training import bundles, gates, training_set
from agc_ml.training.bundles import Learned, Trained
from agc_ml.training.job_spec import Setup
from agc_ml.training.pages import report_page
from agc_ml.training.search import Attempt, FailedTrial, Plan, best, search
from agc_ml.training.search_spaces import space_of
from agc_ml.training.trainers import trials
from agc_ml.training.trainers.trials import Fit, Fitted, Source, Trial, Tried
from agc_ml.training.training_set import TrainingSet

logger = logging.getLogger(__name__)

SETUP: Final = "setup.json"
RESULT: Final = "result.json"
ERROR: Final = "error.json"
PROGRESS: Final = "progress.json"
STUDY: Final = "study.db"
BUNDLE: Final = "bundle"
GATES: Final = "gates.json"
TRIALS: Final = "trials.json"

_LOOK_S: Final = 1.0
# Of workers under the same trial, before it is given up
_DEATHS: Final = 3


class Progress:
    """How far a job is, in ``progress.json``."""

    def __init__(self, folder: Path, total: int) -> None:
        self._path = folder / PROGRESS
        self._total = total
        self._done = 0

    def step(self, message: str) -> None:
        """Note that one more part is done."""
        self._done += 1
        self.say(message)

    def say(self, message: str) -> None:
        """Note what is done now."""
        logger.info("%s", message)
        text = json.dumps({"done": self._done, "total": self._total, "message": message})
        write(self._path, lambda path: path.write_text(text), durable=False)


def run(folder: Path) -> None:
    """Do the job in a folder.

    Raises
    ------
    AgcError
        It can't be done.
    """
    setup = Setup.model_validate_json((folder / SETUP).read_bytes())
    spec = setup.spec
    n_trials = 0 if spec.kind == "judge" else spec.trials * len(spec.parities)
    progress = Progress(folder, n_trials + (0 if spec.kind == "judge" else len(spec.parities)) + 1)
    path = Path(setup.dataset)
    progress.say("reading the training set")
    table = tables.read(path, TrainingError)
    if table.digest != spec.dataset:
        raise TrainingError(
            f"{path}: its digest is {table.digest[:12]}, not {spec.dataset[:12]}; upload it again"
        )
    sets = _variations(table)
    bundle = folder / BUNDLE
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.mkdir()
    attempts: dict[Parity, list[Attempt]] = {}
    if spec.kind == "judge":
        trained = _gathered(bundle, setup)
    else:
        chosen = training_set.of_table(table, spec.variation)
        attempts, trained = _train(folder, setup, path, chosen, progress)
    _write_trials(bundle, attempts)
    judged = None
    if len(trained.models) == len(PARITIES):
        progress.say("judging the bundle")
        judged = _judge(bundle, setup, sets, trained, attempts)
    progress.step("done")
    _finish(folder, trained, judged)


def _variations(table: tables.StoredTable) -> dict[str, TrainingSet]:
    """The training set of each of its variations; all of them have to be good."""
    names = sorted({value.decode() for value in set(table.columns["variation"].tolist())}
                   if "variation" in table.columns else {NOMINAL})  # fmt: skip
    return {name: training_set.of_table(table, name) for name in dict.fromkeys([NOMINAL, *names])}


def _train(
    folder: Path, setup: Setup, path: Path, data: TrainingSet, progress: Progress
) -> tuple[dict[Parity, list[Attempt]], Trained]:
    spec = setup.spec
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    sources: dict[Parity, Source] = {
        parity: Source(sha256, data.digest, spec.variation, parity) for parity in spec.parities
    }
    kind = spec.trained_kind
    plan = Plan(kind, space_of(kind, spec.space), spec.trials, spec.seed, sources)
    is_alone = setup.site == LOCAL and setup.workers == 1
    site = INLINE if is_alone else setup.site
    workers = setup.workers if site == LOCAL else None
    provide({sha256: Content(content)})
    with connect_executor(ClusterOptions(site=site, workers=workers)) as (executor, _):
        executor.provide({sha256: Content(content)}, partial(trials.forget, sha256))

        def evaluate(waiting: Mapping[str, Trial]) -> Iterator[tuple[str, Tried]]:
            jobs = {key: (trial,) for key, trial in waiting.items()}
            for key, tried in _outcomes(executor, trials.run, jobs):
                yield key, tried if isinstance(tried, Tried) else Tried(-1, error=tried)

        def on_trial(parity: Parity, one: Attempt | FailedTrial) -> None:
            if isinstance(one, FailedTrial):
                progress.step(f"trial {one.number} on {parity} events failed: {one.error}")
                return
            ending = ", stopped early" if one.pruned else ""
            progress.step(
                f"trial {one.number} on {parity} events: jet score {one.quality.jet_score:.4f}, "
                f"AUC {one.quality.auc:.4f}{ending}"
            )

        attempts = search(plan, evaluate, folder / STUDY, on_trial)
        chosen = {parity: best(found) for parity, found in attempts.items()}
        progress.say("training with the best parameters")
        tasks = {
            str(parity): (Fit(kind, sources[parity], one.params, spec.seed),)
            for parity, one in chosen.items()
        }
        fitted: dict[Parity, Fitted] = {}
        for key, outcome in _outcomes(executor, trials.fit, tasks):
            error = outcome if isinstance(outcome, str) else outcome.error
            if error:
                raise TrainingError(f"the {key} model can't be trained: {error}")
            fitted["even" if key == "even" else "odd"] = outcome
            progress.step(f"trained on {key} events")
    learned = {
        parity: Learned(
            params=dict(one.params),
            trials=len(attempts[parity]),
            failed=spec.trials - len(attempts[parity]),
            seed=spec.seed,
            space=spec.space,
            validation=one.quality._asdict(),
            curve=tuple(
                (point.events, point.quality.auc, point.quality.jet_score)
                for point in fitted[parity].curve
            ),
        )
        for parity, one in chosen.items()
    }
    return attempts, _save(folder / BUNDLE, setup, data, learned, fitted)


def _outcomes(executor: Executor, function: Any, jobs: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What became of each job; a line where it can't be done. Those of dead workers run again."""
    deaths = dict.fromkeys(jobs, 0)
    waiting = dict(jobs)
    while waiting:
        lost = {}
        for key, outcome in executor.outcomes(function, waiting):
            if isinstance(outcome, WorkerDied):
                deaths[key] += 1
                logger.warning("%s: its worker died (%d of %d)", key, deaths[key], _DEATHS)
                if deaths[key] < _DEATHS:
                    lost[key] = waiting[key]
                else:
                    yield key, f"its worker died {_DEATHS} times (memory?)"
            elif isinstance(outcome, Failure):
                yield key, outcome.reason
            else:
                yield key, outcome
        waiting = lost


def _save(
    bundle: Path,
    setup: Setup,
    data: TrainingSet,
    learned: dict[Parity, Learned],
    fitted: Mapping[Parity, Fitted],
) -> Trained:
    bundles.write_models(bundle, fitted)
    entries = {parity: bundles.entry_of(parity, one) for parity, one in fitted.items()}
    about = (data.task, data.delta_phi, data.names)
    bundles.write_card(bundle, setup.spec.name, entries, about)
    library = {"xgboost": "xgboost", "keras": "tensorflow"}[setup.spec.kind]
    trained = Trained(
        schema=1,
        kind=setup.spec.kind,
        dataset=data.digest,
        variation=data.variation,
        job=setup.job,
        models=learned,
        versions=_versions(library),
        inputs={p: {f: tuple(n) for f, n in one.items()} for p, one in data.inputs.items()},
    )
    bundles.write_trained(bundle, trained)
    return trained


def _versions(library: str) -> dict[str, str]:
    from agc_ml.execution.code.source_files import version_of  # noqa: PLC0415 - on demand

    found = {name: version for name, version in versions().items()
             if name in {"python", "agc-ml", "numpy"}}  # fmt: skip
    installed = version_of(library)
    return {**found, library: (installed or "unknown").rpartition(" ")[2]}


def _gathered(bundle: Path, setup: Setup) -> Trained:
    """Put two models of other jobs into one bundle."""
    parts: dict[Parity, tuple[Path, Trained]] = {}
    entries = {}
    for parity, known in setup.members.items():
        folder = Path(known.folder)
        trained = bundles.read_trained(folder)
        found = bundles.read_card(folder)
        entry = next((one for one in found.models if one.trained_on == parity), None)
        if entry is None or parity not in trained.models:
            raise TrainingError(
                f"version {known.version} was not trained on {parity} events; name another"
            )
        parts[parity] = (folder, trained)
        entries[parity] = (entry, found)
        for path in folder.iterdir():
            if path.name in {str(entry.file), bundles.GOLDEN.format(parity=parity)} or (
                path.suffix == ".keras" and path.stem == parity
            ):
                shutil.copyfile(path, bundle / path.name)
    even, odd = (entries[parity] for parity in PARITIES)
    abouts = [(card.task, card.delta_phi, card.features) for _, card in (even, odd)]
    if abouts[0] != abouts[1]:
        raise TrainingError("the two models have different tasks or features; they make no bundle")
    bundles.write_card(bundle, setup.spec.name, {"even": even[0], "odd": odd[0]}, abouts[0])
    first, second = (parts[parity][1] for parity in PARITIES)
    for what in ("kind", "dataset", "variation", "versions"):
        of_first, of_second = getattr(first, what), getattr(second, what)
        if of_first != of_second:
            raise TrainingError(
                f"the two models were trained with different {what} ({_brief(of_first)}, "
                f"{_brief(of_second)}); they make no bundle: train one of them anew"
            )
    models = {parity: t.models[parity] for parity, (_, t) in parts.items()}
    trained = first.model_copy(update={"job": setup.job, "models": models})
    bundles.write_trained(bundle, trained)
    return trained


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return str(value)[:12]


def _judge(
    bundle: Path,
    setup: Setup,
    sets: Mapping[str, TrainingSet],
    trained: Trained,
    attempts: Mapping[Parity, list[Attempt]],
) -> gates.Judged:
    champion = None
    if setup.champion is not None:
        folder = Path(setup.champion.folder)
        champion = (setup.champion.version, bundles.read_bundle(folder))
    judged, seen = gates.judge(
        bundle, sets, champion=champion, limits=setup.limits, remote=setup.spec.remote
    )
    text = judged.model_dump_json(by_alias=True, indent=1)
    write(bundle / GATES, lambda path: path.write_text(text + "\n"))
    report_page.write(bundle, setup.spec.name, (judged, seen), trained, attempts)
    return judged


def _write_trials(bundle: Path, attempts: Mapping[Parity, list[Attempt]]) -> None:
    text = json.dumps({p: [one.described() for one in found] for p, found in attempts.items()})
    write(bundle / TRIALS, lambda path: path.write_text(text))


def _finish(folder: Path, trained: Trained, judged: gates.Judged | None) -> None:
    """Write down all files of the bundle with their sha256: from now on it is whole."""
    bundle = folder / BUNDLE
    files = {
        str(path.relative_to(bundle)): training_set.sha256_of(path)
        for path in sorted(bundle.rglob("*"))
        if path.is_file()
    }
    text = json.dumps(
        {
            "files": files,
            "parities": sorted(trained.models),
            "quality": None if judged is None else judged.quality,
            "passed": None if judged is None else judged.passed,
            "against": None if judged is None else judged.against,
            "validation": {p: one.validation for p, one in trained.models.items()},
            "params": {p: one.params for p, one in trained.models.items()},
        }
    )
    write(folder / RESULT, lambda path: path.write_text(text))


@contextmanager
def _sole(folder: Path) -> Iterator[None]:
    """Hold the lock of the job's folder, with the process's number in it: until it dies."""
    with (folder / folders.LOCK).open("a+") as lock:
        deadline = time.monotonic() + _LOOK_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # for a moment also when a service looks whether it is held
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def main(folder: Path) -> int:
    """Do the job in a folder; what can't be done is left there as ``error.json``.

    What is not known to be for ever (a worker died while workers were started, a scheduler is being
    restarted, a fault of a library) leaves none: the job is started again, a few times.
    """
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    for chatty in ("distributed", "bokeh", "matplotlib", "fontTools"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    try:
        with _sole(folder):
            run(folder)
    except BlockingIOError:
        logger.info("another process is at work on it")
        return 0
    except Exception as error:
        logger.exception("failed")
        if any(getattr(one, "errno", None) == errno.ENOSPC for one in chain(error)):
            reason = f"{folder}: no space left on the disk; free some, and submit it again"
        elif isinstance(error, AgcError) and not isinstance(error, ClusterError):
            reason = str(error)
        else:
            return 1
        text = json.dumps({"error": " ".join(reason.split())[:500]})
        try:
            write(folder / ERROR, lambda path: path.write_text(text))
        except AgcError:  # the same full disk: the service reads the last lines of the log
            logger.exception("error.json can't be written")
        return 1
    return 0


if __name__ == "__main__":
    os.nice(10)  # those who ask the service how far it is should not wait for it
    sys.exit(main(Path(sys.argv[1])))
