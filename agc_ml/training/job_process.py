"""Process of a job: from a training set to a validated bundle, in the job's folder.

``setup.json`` has all inputs. The process writes ``bundle/`` and, once that is complete,
``result.json``; or ``error.json`` with a permanent error. It can be killed at any time and started
again: the search resumes, and the rest gives the same files again.
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

from agc_ml import files
from agc_ml.errors import AgcError, ClusterError, TrainingError, chain
from agc_ml.execution.cluster.clusters import INLINE, LOCAL
from agc_ml.execution.cluster.connection import ClusterOptions, connect_executor
from agc_ml.execution.cluster.executors import Executor, WorkerDied
from agc_ml.execution.state.provenance import versions
from agc_ml.execution.worker.job import Failure
from agc_ml.files import write
from agc_ml.inputs.variations import NOMINAL
from agc_ml.models.cards import CardEntry
from agc_ml.models.content import Content, provide
from agc_ml.models.model import PARITIES, Parity
from agc_ml.results import tables
from agc_ml.training import bundles, gates, training_set
from agc_ml.training.bundles import ModelRecord, TrainingRecord
from agc_ml.training.job_spec import Setup
from agc_ml.training.pages import report_page
from agc_ml.training.search import Plan, best, search
from agc_ml.training.search_spaces import space_of
from agc_ml.training.trainers import trials
from agc_ml.training.trainers.trials import FinalTraining, Source, TrainedModel, Trial, TrialResult
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

_LOCK_S: Final = 1.0
# Deaths of workers after which a trial fails
_MAX_DEATHS: Final = 3


class Progress:
    """Progress of a job, in ``progress.json``."""

    def __init__(self, folder: Path, total: int) -> None:
        self._path = folder / PROGRESS
        self._total = total
        self._done = 0

    def step(self, message: str) -> None:
        """Note that one more step is done."""
        self._done += 1
        self.note(message)

    def note(self, message: str) -> None:
        """Note the current action."""
        logger.info("%s", message)
        text = json.dumps({"done": self._done, "total": self._total, "message": message})
        write(self._path, lambda path: path.write_text(text), durable=False)


def run(folder: Path) -> None:
    """Run the job in a folder.

    Raises
    ------
    AgcError
        A model can't be trained or validated.
    """
    setup = Setup.model_validate_json((folder / SETUP).read_bytes())
    spec = setup.spec
    # steps: each trial, each final training, and the validation
    n_trained = 0 if spec.kind == "judge" else len(spec.parities)
    progress = Progress(folder, n_trained * (spec.trials + 1) + 1)
    path = Path(setup.dataset)
    progress.note("reading the training set")
    table = tables.read(path, TrainingError)
    if table.digest != spec.dataset:
        raise TrainingError(
            f"{path}: its digest is {table.digest[:12]}, not {spec.dataset[:12]}; upload it again"
        )
    sets = _variations(table)
    bundle = folder / BUNDLE
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.mkdir()
    results: dict[Parity, list[TrialResult]] = {}
    if spec.kind == "judge":
        record = _combine(bundle, setup)
    else:
        chosen = training_set.of_table(table, spec.variation)
        results, record = _train(folder, setup, path, chosen, progress)
    _write_trials(bundle, results)
    judged = None
    if len(record.models) == len(PARITIES):
        progress.note("judging the bundle")
        judged = _judge(bundle, setup, sets, record, results)
    progress.step("done")
    _finish(folder, record, judged)


def _variations(table: tables.StoredTable) -> dict[str, TrainingSet]:
    """Return the training set of each variation; each has to be valid."""
    column = table.columns.get("variation")
    names = [] if column is None else sorted({name.decode() for name in set(column.tolist())})
    return {name: training_set.of_table(table, name) for name in dict.fromkeys([NOMINAL, *names])}


def _train(
    folder: Path, setup: Setup, path: Path, data: TrainingSet, progress: Progress
) -> tuple[dict[Parity, list[TrialResult]], TrainingRecord]:
    """Search for the best parameters, and train with them."""
    spec = setup.spec
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    sources: dict[Parity, Source] = {
        parity: Source(sha256, data.digest, spec.variation, parity) for parity in spec.parities
    }
    kind = spec.trained_kind
    plan = Plan(kind, space_of(kind, spec.space), spec.trials, spec.seed, sources)
    # a single local worker needs no cluster
    is_alone = setup.site == LOCAL and setup.workers == 1
    site = INLINE if is_alone else setup.site
    workers = setup.workers if site == LOCAL else None
    provide({sha256: Content(content)})
    with connect_executor(ClusterOptions(site=site, workers=workers)) as (executor, _):
        executor.provide({sha256: Content(content)}, partial(trials.forget, sha256))

        def evaluate(waiting: Mapping[str, Trial]) -> Iterator[tuple[str, TrialResult]]:
            jobs = {key: (trial,) for key, trial in waiting.items()}
            for key, result in _outcomes(executor, trials.run, jobs):
                is_result = isinstance(result, TrialResult)
                yield key, result if is_result else TrialResult(-1, error=result)

        def on_trial(parity: Parity, result: TrialResult) -> None:
            label = f"trial {result.number} on {parity} events"
            if result.error:
                progress.step(f"{label} failed: {result.error}")
                return
            ending = ", stopped early" if result.pruned else ""
            progress.step(
                f"{label}: jet score {result.quality.jet_score:.4f}, "
                f"AUC {result.quality.auc:.4f}{ending}"
            )

        results = search(plan, evaluate, folder / STUDY, on_trial)
        chosen = {parity: best(finished) for parity, finished in results.items()}
        progress.note("training with the best parameters")
        tasks = {
            str(parity): (FinalTraining(kind, sources[parity], one.params, spec.seed),)
            for parity, one in chosen.items()
        }
        models: dict[Parity, TrainedModel] = {}
        for key, outcome in _outcomes(executor, trials.train, tasks):
            error = outcome if isinstance(outcome, str) else outcome.error
            if error:
                raise TrainingError(f"the {key} model can't be trained: {error}")
            models["even" if key == "even" else "odd"] = outcome
            progress.step(f"trained on {key} events")
    records = {
        parity: ModelRecord(
            params=dict(one.params),
            trials=len(results[parity]),
            failed=spec.trials - len(results[parity]),
            seed=spec.seed,
            space=spec.space,
            validation=one.quality._asdict(),
            curve=tuple(
                (point.events, point.quality.auc, point.quality.jet_score)
                for point in models[parity].curve
            ),
        )
        for parity, one in chosen.items()
    }
    return results, _save(folder / BUNDLE, setup, data, records, models)


def _outcomes(executor: Executor, function: Any, jobs: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the result of each job, or its error as a line; rerun those of dead workers."""
    deaths = dict.fromkeys(jobs, 0)
    waiting = dict(jobs)
    while waiting:
        lost = {}
        for key, outcome in executor.outcomes(function, waiting):
            if isinstance(outcome, WorkerDied):
                deaths[key] += 1
                logger.warning("%s: its worker died (%d of %d)", key, deaths[key], _MAX_DEATHS)
                if deaths[key] < _MAX_DEATHS:
                    lost[key] = waiting[key]
                else:
                    yield key, f"its worker died {_MAX_DEATHS} times (memory?)"
            else:
                yield key, outcome.reason if isinstance(outcome, Failure) else outcome
        waiting = lost


def _save(
    bundle: Path,
    setup: Setup,
    data: TrainingSet,
    records: dict[Parity, ModelRecord],
    models: Mapping[Parity, TrainedModel],
) -> TrainingRecord:
    """Write the models, the card and the training record."""
    bundles.write_models(bundle, models)
    entries = {parity: bundles.entry_of(parity, one) for parity, one in models.items()}
    about = (data.task, data.delta_phi, data.names)
    bundles.write_card(bundle, setup.spec.name, entries, about)
    library = {"xgboost": "xgboost", "keras": "tensorflow"}[setup.spec.kind]
    record = TrainingRecord(
        schema=1,
        kind=setup.spec.kind,
        dataset=data.digest,
        variation=data.variation,
        job=setup.job,
        models=records,
        versions=_versions(library),
        inputs={p: {f: tuple(n) for f, n in one.items()} for p, one in data.inputs.items()},
    )
    bundles.write_record(bundle, record)
    return record


def _versions(library: str) -> dict[str, str]:
    from agc_ml.execution.code.source_files import version_of  # noqa: PLC0415 - on demand

    common = {name: versions()[name] for name in ("python", "agc-ml", "numpy")}
    return {**common, library: (version_of(library) or "unknown").rpartition(" ")[2]}


def _combine(bundle: Path, setup: Setup) -> TrainingRecord:
    """Combine two models of other jobs into a bundle."""
    records: dict[Parity, TrainingRecord] = {}
    entries: dict[Parity, CardEntry] = {}
    abouts = []
    for parity, member in setup.members.items():
        folder = Path(member.folder)
        record, card = bundles.read_record(folder), bundles.read_card(folder)
        entry = next((one for one in card.models if one.trained_on == parity), None)
        if entry is None or parity not in record.models:
            raise TrainingError(
                f"version {member.version} was not trained on {parity} events; name another"
            )
        records[parity], entries[parity] = record, entry
        abouts.append((card.task, card.delta_phi, card.features))
        # copy the model, its golden rows, and the network it was exported from
        copied = {str(entry.file), bundles.GOLDEN.format(parity=parity), f"{parity}.keras"}
        for path in folder.iterdir():
            if path.name in copied:
                shutil.copyfile(path, bundle / path.name)
    if abouts[0] != abouts[1]:
        raise TrainingError("the two models have different tasks or features; they make no bundle")
    bundles.write_card(bundle, setup.spec.name, entries, abouts[0])
    first, second = (records[parity] for parity in PARITIES)
    for name in ("kind", "dataset", "variation", "versions"):
        values = getattr(first, name), getattr(second, name)
        if values[0] != values[1]:
            raise TrainingError(
                f"the two models were trained with different {name} ({_brief(values[0])}, "
                f"{_brief(values[1])}); they make no bundle: train one of them again"
            )
    models = {parity: record.models[parity] for parity, record in records.items()}
    record = first.model_copy(update={"job": setup.job, "models": models})
    bundles.write_record(bundle, record)
    return record


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return str(value)[:12]


def _judge(
    bundle: Path,
    setup: Setup,
    sets: Mapping[str, TrainingSet],
    record: TrainingRecord,
    results: Mapping[Parity, list[TrialResult]],
) -> gates.Judged:
    """Validate a bundle: its gates and its report."""
    champion = None
    if setup.champion is not None:
        folder = Path(setup.champion.folder)
        champion = (setup.champion.version, bundles.read_bundle(folder))
    judged, seen = gates.judge(
        bundle, sets, champion=champion, limits=setup.limits, remote=setup.spec.remote
    )
    text = judged.model_dump_json(by_alias=True, indent=1)
    write(bundle / GATES, lambda path: path.write_text(text + "\n"))
    report_page.write(bundle, setup.spec.name, (judged, seen), record, results)
    return judged


def _write_trials(bundle: Path, results: Mapping[Parity, list[TrialResult]]) -> None:
    text = json.dumps({parity: [one.as_json() for one in of] for parity, of in results.items()})
    write(bundle / TRIALS, lambda path: path.write_text(text))


def _finish(folder: Path, record: TrainingRecord, judged: gates.Judged | None) -> None:
    """Write the result with the sha256 of all files: it marks the bundle as complete."""
    bundle = folder / BUNDLE
    digests = {
        str(path.relative_to(bundle)): training_set.sha256_of(path)
        for path in sorted(bundle.rglob("*"))
        if path.is_file()
    }
    text = json.dumps(
        {
            "files": digests,
            "parities": sorted(record.models),
            "quality": None if judged is None else judged.quality,
            "passed": None if judged is None else judged.passed,
            "against": None if judged is None else judged.against,
            "validation": {p: one.validation for p, one in record.models.items()},
            "params": {p: one.params for p, one in record.models.items()},
        }
    )
    write(folder / RESULT, lambda path: path.write_text(text))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the job's folder until this process ends, with its number in the lock."""
    with (folder / files.LOCK).open("a+") as lock:
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # a service holds it for a moment when it checks it
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def main(folder: Path) -> int:
    """Run the job in a folder; a permanent error is written to ``error.json``.

    Other errors (a worker that died at its start, a scheduler that restarts, a bug of a library)
    leave no file, and the job is started again, a few times.
    """
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    for chatty in ("distributed", "bokeh", "matplotlib", "fontTools"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    try:
        with _locked(folder):
            run(folder)
    except BlockingIOError:
        logger.info("another process runs this job")
        return 0
    except Exception as error:
        logger.exception("failed")
        if any(getattr(one, "errno", None) == errno.ENOSPC for one in chain(error)):
            reason = f"{folder}: no space left on the disk; free some and submit the job again"
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
    os.nice(10)  # requests to the service come first
    sys.exit(main(Path(sys.argv[1])))
