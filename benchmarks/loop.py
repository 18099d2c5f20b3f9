"""The loop: features, search, gates, promotion, a run with the champion, and the fit; and kills.

python benchmarks/loop.py [--models DIR] [--demo] [--trials 20] [--kill-rounds 50] [-o RECORD.json]

On 54,000 generated top pairs of the skim, made once and kept in benchmarks/data: they hold as many
fully matched events, 3,000, as 80,000 behind a lepton filter alone. With --demo on the embedded
ones. The loop is done with a real service, as a group would do it: each step is a command. Then
many clients poll while a job trains, trials are timed against stock xgboost, extraction against a
run with inference, and the service, its jobs and trainers are killed at random points. Ends with
one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]
os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

from services.kills import Report, kill_rounds  # noqa: E402
from services.training import TrainingService, polled  # noqa: E402
from trained import SPEC  # noqa: E402

import agc_ml as agc  # noqa: E402
from agc_ml.execution.state import provenance  # noqa: E402
from agc_ml.inputs import loading  # noqa: E402
from agc_ml.inputs.loading import DEMO  # noqa: E402
from agc_ml.models.model import Bundle  # noqa: E402
from agc_ml.simulation import production  # noqa: E402
from agc_ml.training import metrics, training_set  # noqa: E402

RESULTS: Final = ROOT / "benchmarks" / "results" / "loop.json"
DATA: Final = ROOT / "benchmarks" / "data" / "top_pairs"
EVENTS: Final = 54_000
SEED: Final = 11
WORKERS: Final = os.cpu_count() or 1
NAME: Final = "jet_assignment"
MEDIAN: Final = {"max_depth": 31, "n_estimators": 226, "learning_rate": 0.34}
"""About the middle of the reference's search space."""


def main() -> None:
    """Parse, measure, print."""
    options = parsed()
    fileset = DEMO if options.demo else str(large_set())
    with tempfile.TemporaryDirectory(prefix="agc-ml-loop-") as scratch:
        folder = Path(scratch)
        record: dict[str, Any] = {"set": "demo" if options.demo else f"{EVENTS} top pairs"}
        with served(folder / "training") as service:
            record |= loop(folder, fileset, measured(fileset, folder), service, options.trials)
            record |= published(fileset, options.models)
            features = folder / "features" / "training.parquet"
            record |= polling(service, features)
            record |= trial_cost(features)
            record |= extraction_cost(folder, fileset)
        if options.kill_rounds:
            record |= kills(folder / "killed", options.kill_rounds)
    write(record, options.output)
    keys = ("loop_s", "auc", "jet_score", "published_jet_score", "trials", "trials_per_s",
            "jobs_lost", "kill_rounds")  # fmt: skip
    print(json.dumps({key: record.get(key) for key in keys}))


def parsed() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, help="folder of the published models, to compare")
    parser.add_argument("--demo", action="store_true", help="on the embedded events")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--kill-rounds", type=int, default=50)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    return parser.parse_args()


def large_set() -> Path:
    """The generated set, made if it is not there yet; not a part of what is timed."""
    fileset = DATA / "fileset.json"
    if not fileset.exists():
        print(f"generating {EVENTS:,} events in {DATA}, once", file=sys.stderr)
        production.generate(
            DATA,
            events={"ttbar__nominal": EVENTS},
            seed=SEED,
            content="slim",
            workers=WORKERS,
            resume=DATA.exists(),
        )
    return fileset


@contextmanager
def served(folder: Path) -> Iterator[TrainingService]:
    """A service that has all that it needs at work."""
    service = TrainingService(folder, workers=WORKERS)
    service.start()
    try:
        while json.loads(service.ask("GET", "/healthz").data)["mlflow"] != "up":
            time.sleep(0.2)
        os.environ["AGC_ML_TRAINING"] = str(folder)
        yield service
    finally:
        service.stop()


def command(*words: str) -> float:
    """Run a command of agc-ml; seconds of wall time."""
    start = time.perf_counter()
    subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", "agc_ml", *words, "-q"], check=True, stdout=sys.stderr
    )
    return time.perf_counter() - start


def measured(fileset: str, folder: Path) -> str:
    """What the champion is used on: the embedded set, with these top pairs for its own."""
    if fileset == DEMO:
        return DEMO
    embedded, large = agc.Fileset.load(DEMO), agc.Fileset.load(fileset)
    others = [one for one in embedded.datasets if one.name != large.datasets[0].name]
    path = folder / "measured.json"
    loading.save(replace(embedded, datasets=(*large.datasets, *others)), path)
    return str(path)


def loop(
    folder: Path, fileset: str, everything: str, service: TrainingService, trials: int
) -> dict[str, Any]:
    """Each step as a command."""
    workers = ("--workers", str(WORKERS))
    steps = {
        "features": command("run", NAME, fileset, "-o", str(folder / "features"), *workers),
        "train": command("train", str(folder / "features"), "--trials", str(trials)),
        "promote": command("models", "promote", f"{NAME}@1", "--expect", "0"),
        "run": command(
            *("run", "ttbar", everything, "--model", f"{NAME}@champion"),
            *("-o", str(folder / "run"), *workers),
        ),
        "fit": command("fit", str(folder / "run"), "--pseudodata", "complete"),
    }
    remote = service.client()
    job = remote.jobs()[-1]
    if job.result is None or job.started is None:
        raise SystemExit(f"the job did not succeed: {job.error}")
    log = [line for line in remote.log(job.id) if " trial " in line]
    times = [datetime.fromisoformat(line[:23].replace(",", ".")) for line in log]
    searched = max((times[-1] - times[0]).total_seconds(), 1.0)
    quality = job.result["quality"]
    fit = json.loads((folder / "run" / "fit" / "fit.json").read_text())["poi"]
    return {
        "loop_s": sum(steps.values()),
        "steps_s": steps,
        "auc": quality["auc"],
        "jet_score": quality["jet_score"],
        "fully_right": quality["fully_right"],
        "passed": job.result["passed"],
        "trials": 2 * trials,
        "trials_per_s": len(log) / searched,
        "ttbar_norm": [fit["value"], fit["uncertainty"]],
    }


def published(fileset: str, models: Path | None) -> dict[str, Any]:
    """What the published models make of the same events; their Delta R needs phi unwrapped."""
    if models is None or not (models / "model_even.json").exists():
        return {"published_jet_score": None}
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "raw"
        command("run", NAME, fileset, "--set", "compat=true", "-o", str(raw), "--workers", "1")
        data = training_set.load(raw / "training.parquet")
    bundle = agc.load_model(models)
    if not isinstance(bundle, Bundle):
        raise SystemExit(f"{models}: no bundle")
    n, k, n_features = data.features.shape
    event = np.repeat(np.where(data.is_even, 0, 1), k)
    found = bundle(data.features.reshape(n * k, n_features), event).reshape(n, k)
    quality = metrics.quality(found, data.right, data.assignment)
    return {
        "published_auc": quality.auc,
        "published_jet_score": quality.jet_score,
        "published_fully_right": quality.fully_right,
        "matched_events": n,
    }


def polling(service: TrainingService, features: Path) -> dict[str, Any]:
    """200 clients that ask once a second how a job stands, while its trials take all cores."""
    remote = service.client()
    spec = {**SPEC, "dataset": remote.upload(features), "space": "reference", "trials": 500}
    job = remote.submit(**spec)
    while remote.job(job.id).progress.done < 1:
        time.sleep(0.1)
    latencies = sorted(asyncio.run(polled(service, f"/v1/jobs/{job.id}", clients=200, times=10)))
    still = remote.job(job.id).state
    remote.cancel(job.id)
    for _ in remote.follow(job.id):
        pass
    if still != "running":
        raise SystemExit("the job was over while it was polled")
    return {
        "polls": len(latencies),
        "poll_p50_ms": 1000 * statistics.median(latencies),
        "poll_p99_ms": 1000 * latencies[int(0.99 * len(latencies))],
    }


def trial_cost(features: Path, pairs: int = 15) -> dict[str, Any]:
    """A trial of a search over stock xgboost: the same events, folds and parameters."""
    script = Path(__file__).with_name("loop_trial.py")
    seconds: dict[str, list[float]] = {"ours": [], "stock": []}
    for _ in range(pairs):
        for way, found in seconds.items():
            done = subprocess.run(  # noqa: S603 - ourselves
                [sys.executable, str(script), str(features), way, json.dumps(MEDIAN)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            found.append(float(done.stdout.split()[-1]))
    ratios = [ours / stock for ours, stock in zip(*seconds.values(), strict=True)]
    return {"trial_over_stock": statistics.median(ratios), "trial_ratios": sorted(ratios)}


def extraction_cost(folder: Path, fileset: str, pairs: int = 7) -> dict[str, Any]:
    """CPU time of the chunks of an extraction over that of a run with inference, in turns."""
    ways: dict[str, Callable[[Path], Any]] = {
        "extraction": lambda out: agc.run(NAME, chosen, site="inline", output=out, quiet=True),
        "inference": lambda out: agc.run(
            "ttbar", chosen, model=f"{NAME}@champion", site="inline", output=out, quiet=True
        ),
    }
    chosen = agc.Fileset.load(fileset).select(["ttbar__nominal"])
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(pairs + 1):
        for way, run in ways.items():
            result = run(folder / f"{way}-{number}")
            if number:  # the first one compiles
                seconds[way].append(result.metrics.cpu_s)
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    return {
        "extraction_over_inference": statistics.median(ratios),
        "extraction_ratios": sorted(ratios),
    }


def kills(folder: Path, rounds: int) -> dict[str, Any]:
    """Rounds of kills, on the embedded events."""
    features = folder.with_name("killed-features")
    agc.run(NAME, DEMO, site="inline", output=features, quiet=True)
    with served(folder) as service:
        remote = service.client()
        spec = {**SPEC, "dataset": remote.upload(features), "trials": 4}
        start = time.perf_counter()
        report: Report = kill_rounds(service, spec, rounds, seed=1)
        seconds = time.perf_counter() - start
    return {
        "kill_rounds": report.rounds,
        "jobs_lost": len(report.lost),
        "jobs_twice": len(report.twice),
        "bundles_by_half": len(report.halves),
        "other_bytes": report.other_bytes,
        "kills": {f"{victim}, {state}": n for (victim, state), n in sorted(report.kills.items())},
        "kill_s": seconds,
        "faults": [*report.lost, *report.twice, *report.halves][:10],
    }


def write(record: dict[str, Any], path: Path) -> None:
    """Keep the figures, with what they were measured on."""
    about = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": provenance.versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, **record}, indent=1) + "\n")
    print(f"record: {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
