"""Damage files of each kind, and count what becomes of it.

    python benchmarks/damage.py [--kinds A,B] [--n 200] [--seed 1] [--output FILE]

Kinds are those of tests/helpers/judges.py, which says what the outcomes are, and models. Each
variant is read in a child that stays alive; the record names every fault. A model that is read has
to score as its library does with the very same bytes (tests/helpers/damaged_models.py), and counts
as "as edited". Ends with exit code 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]

import damaged_models  # noqa: E402
import judges  # noqa: E402

OUTPUT = ROOT / "benchmarks" / "results" / "damage.json"
MODELS = {"model-json": "json", "model-ubj": "ubj", "model-onnx": "protobuf"}
KINDS = [*(name for name in judges.KINDS if name != "nothing"), *MODELS]


def measured(kind: str, seed: int, n: int) -> dict[str, Any]:
    """Counts of a kind, its faults, and the longest time that a variant took in seconds."""
    if kind in MODELS:
        return measured_models(MODELS[kind], seed, n)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, judges.Child(Path(folder)) as child:
        found = list(judges.judged(child, kind, Path(folder) / "files", seed, n))
    faults = [f"{one.outcome}: {one.variant}: {one.text}" for one in found
              if one.outcome in judges.FAULTS]  # fmt: skip
    return {
        "variants": n,
        "seed": seed,
        **dict.fromkeys(("refused", "identical", "as edited", *judges.FAULTS), 0),
        **judges.counts(found),
        "faults": faults,
        "longest_s": round(max(one.seconds for one in found), 2),
        "wall_s": round(time.monotonic() - begun, 1),
    }


def measured_models(kind: str, seed: int, n: int) -> dict[str, Any]:
    """The same of models: of 3 features, trained by xgboost or made for ONNX."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        sound = damaged_models.sound(kind, Path(folder))
        done = subprocess.run(  # noqa: S603 - ourselves
            [sys.executable, damaged_models.__file__, kind, str(n), str(seed)],
            input=sound,
            capture_output=True,
            check=False,
        )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [one for one in found if one["outcome"] == "WRONG"]
    late = [one for one in found if one["seconds"] > damaged_models.MOST_S]
    faults = [f"{one['number']}: {one['line']} ({one['seconds']} s)" for one in (*wrong, *late)]
    if done.returncode or len(found) < n:
        faults.append(f"exit code {done.returncode} after {len(found)} variants")
    counts = Counter(one["outcome"] for one in found)
    return {
        "variants": n,
        "seed": seed,
        **dict.fromkeys(("identical", "traceback"), 0),
        "refused": counts["refused"],
        "as edited": counts["scored"],
        "wrong": len(wrong),
        "hung": len(late),
        "signal": int(done.returncode != 0),
        "faults": faults,
        "longest_s": max((one["seconds"] for one in found), default=0),
        "wall_s": round(time.monotonic() - begun, 1),
    }


def main() -> int:
    """Measure the kinds that are asked for, and add them to the record."""
    parser = argparse.ArgumentParser(description="Damage files, and count what becomes of it.")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args()
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    record = json.loads(given.output.read_text()) if given.output.exists() else {}
    for kind in given.kinds.split(","):
        record[kind] = measured(kind, given.seed, given.n)
        given.output.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        told = {key: value for key, value in record[kind].items() if key != "faults"}
        print(kind, json.dumps(told), *record[kind]["faults"], sep="\n  ", flush=True)
    return 1 if any(record[kind]["faults"] for kind in given.kinds.split(",")) else 0


if __name__ == "__main__":
    sys.exit(main())
