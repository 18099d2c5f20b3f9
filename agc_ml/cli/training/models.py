"""Command ``agc-ml models``: the bundles of the registry."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agc_ml.cli import options
from agc_ml.cli.training.connecting import (
    connected,
    follow,
    location,
    model_name,
    name_and_version,
    where_options,
)
from agc_ml.errors import UsageError

if TYPE_CHECKING:
    from agc_ml.training.client import TrainingClient
    from agc_ml.training.registry.versions import VersionFacts


@click.group(epilog="Example: agc-ml models promote jet_assignment@3")
def models() -> None:
    """List, compare, promote and download models of the registry."""


@models.command("list", epilog="Example: agc-ml models list")
@click.argument("name", required=False)
@where_options
@options.json_option
@options.logging_options
def models_list(name: str | None, *, as_json: bool, **given: Any) -> None:
    """List bundles, the oldest first."""
    from agc_ml.cli.tables import print_page  # noqa: PLC0415 - on demand
    from agc_ml.presentation.page import Page, Table  # noqa: PLC0415 - on demand

    with connected(given) as training:
        bundles = training.models(None if name is None else model_name(name))
    rows = [
        (
            f"{one.name}@{one.version}",
            "champion" if one.is_champion else "",
            f"{one.quality.get('auc', float('nan')):.4f}",
            f"{one.quality.get('jet_score', float('nan')):.4f}",
            "passed" if one.passed else "failed",
            one.against or "-",
            one.job,
        )
        for one in bundles
    ]
    header = ("bundle", "", "AUC", "jet score", "gates", "judged against", "job")
    facts = [one.model_dump(mode="json") for one in bundles]
    page = Page(tables=[Table("bundles", header, rows)]) if rows else Page(lines=["no bundles yet"])
    print_page(replace(page, data=facts), as_json=as_json)


@models.command("show", epilog="Example: agc-ml models show jet_assignment@champion")
@click.argument("model", metavar="NAME[@VERSION]")
@where_options
@options.json_option
@options.logging_options
def models_show(model: str, *, as_json: bool, **given: Any) -> None:
    """Show a bundle: gates, parameters, origin, and the history of the champion.

    NAME alone means its champion, as for report and pull.
    """
    from agc_ml.cli.tables import print_page  # noqa: PLC0415 - on demand
    from agc_ml.presentation.page import Page, Table  # noqa: PLC0415 - on demand

    name, which = name_and_version(model)
    with connected(given) as training:
        bundle = training.resolve(name, which)
        judged, trained = _records(training, name, bundle.version)
        history = training.promotions(name)
    # tables: gates, changes of the champion, parameters
    gates = [
        (
            gate["title"],
            "passed" if gate["passed"] else "FAILED",
            f"{gate['value']:.4g}",
            f"{gate['limit']:.4g}",
            gate["detail"],
        )
        for gate in judged["gates"]
    ]
    changes = [
        (
            f"@{one.version}",
            f"@{one.previous}" if one.previous else "-",
            one.who,
            one.reason or "-",
            time.strftime("%Y-%m-%d %H:%M", time.gmtime(one.at)),
        )
        for one in history
    ]
    parts = [
        Table("gates", ("gate", "verdict", "number", "limit", "details"), gates),
        _parameters({f"{parity}": one["params"] for parity, one in trained["models"].items()}),
    ]
    if changes:
        parts.append(Table("champions", ("to", "from", "by", "reason", "when (UTC)"), changes))
    facts = {
        "version": bundle.model_dump(mode="json"),
        "judged": judged,
        "trained": trained,
        "promotions": [one.model_dump(mode="json") for one in history],
    }
    page = Page(lines=[_described(bundle, judged, trained)], tables=parts, data=facts)
    print_page(page, as_json=as_json)


def _described(bundle: VersionFacts, judged: dict[str, Any], trained: dict[str, Any]) -> str:
    champion = " (champion)" if bundle.is_champion else ""
    seeds = " and ".join(dict.fromkeys(str(one["seed"]) for one in trained["models"].values()))
    made = f"{trained['kind']}, seed {seeds}, trained on {trained['dataset'][:12]}"
    jets = f"{trained['variation']} jets, judged on {judged['events']:,} events"
    return f"{bundle.name}@{bundle.version}{champion}: {made}, {jets}"


def _records(
    training: TrainingClient, name: str, version: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    judged, trained = (
        json.loads(training.content(name, version, file))
        for file in ("gates.json", "training.json")
    )
    return judged, trained


def _parameters(of: dict[str, dict[str, float]]) -> Any:
    from agc_ml.presentation.page import Table  # noqa: PLC0415 - on demand

    names = dict.fromkeys(key for params in of.values() for key in params)
    rows = [
        (name, *(f"{params[name]:.4g}" if name in params else "-" for params in of.values()))
        for name in names
    ]
    return Table("parameters", ("parameter", *of), rows)


@models.command("diff", epilog="Example: agc-ml models diff jet_assignment@1 jet_assignment@2")
@click.argument("a", metavar="NAME@A")
@click.argument("b", metavar="NAME@B")
@where_options
@options.json_option
@options.logging_options
def models_diff(a: str, b: str, *, as_json: bool, **given: Any) -> None:
    """Compare two bundles: quality, gates, parameters, training sets."""
    from agc_ml.cli.tables import print_page  # noqa: PLC0415 - on demand
    from agc_ml.presentation.page import Page, Table  # noqa: PLC0415 - on demand

    records: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    with connected(given) as training:
        for label in (a, b):
            name, which = name_and_version(label)
            version = training.resolve(name, which).version
            records[f"{name}@{version}"] = _records(training, name, version)
    # both labels may name one version
    if len(records) == 1:
        raise UsageError(f"{a} and {b} are the same version; name two")
    (judged_a, trained_a), (judged_b, trained_b) = records.values()
    quality = [
        (
            key,
            f"{judged_a['quality'][key]:.4f}",
            f"{judged_b['quality'][key]:.4f}",
            f"{judged_b['quality'][key] - judged_a['quality'][key]:+.4f}",
        )
        for key in judged_a["quality"]
    ]
    by_name = [{gate["name"]: gate for gate in judged["gates"]} for judged, _ in records.values()]
    gates = [
        (name, *(f"{gates[name]['value']:.4g}" if name in gates else "-" for gates in by_name))
        for name in dict.fromkeys(key for gates in by_name for key in gates)
    ]
    origin = [
        (key, str(trained_a[key])[:20], str(trained_b[key])[:20])
        for key in ("kind", "dataset", "variation", "job")
    ]
    params = {
        f"{label} {parity}": one["params"]
        for label, (_, trained) in records.items()
        for parity, one in trained["models"].items()
    }
    names = tuple(records)
    parts = [
        Table("quality", ("", *names, "difference"), quality),
        Table("gates", ("gate", *names), gates),
        Table("origin", ("", *names), origin),
        _parameters(params),
    ]
    facts = {label: {"judged": j, "trained": t} for label, (j, t) in records.items()}
    print_page(Page(tables=parts, data=facts), as_json=as_json)


@models.command("promote", epilog="Example: agc-ml models promote jet_assignment@3")
@click.argument("model", metavar="NAME@VERSION")
@click.option(
    "--expect",
    metavar="VERSION",
    type=click.IntRange(0),
    help="Promote only if this version is the champion now; 0 if there is none.",
)
@click.option("--force", is_flag=True, help="Promote even if gates failed.")
@click.option("--reason", metavar="TEXT", default="", help="Reason for --force.")
@where_options
@options.logging_options
def models_promote(
    model: str, *, expect: int | None, force: bool, reason: str, **given: Any
) -> None:
    """Make a bundle the champion, which new runs with NAME@champion use."""
    name, which = name_and_version(model)
    if force != bool(reason.strip()):
        raise UsageError("--force and --reason belong together")
    if not which.isdecimal():
        raise UsageError(f"{model}: a version number is needed; see 'agc-ml models list'")
    expected = None if expect is None else str(expect or "")
    with connected(given) as training:
        change = training.promote(name, which, expected=expected, reason=reason.strip())
    was = f", in place of @{change.previous}" if change.previous else ""
    options.echo(f"{name}@{change.version} is the champion{was}")


@models.command("rollback", epilog="Example: agc-ml models rollback jet_assignment")
@click.argument("name")
@click.option(
    "--expect",
    metavar="VERSION",
    type=click.IntRange(1),
    help="Roll back only if this version is the champion now [the one when the command starts].",
)
@where_options
@options.logging_options
def models_rollback(name: str, *, expect: int | None, **given: Any) -> None:
    """Make the previous champion the champion again."""
    name = model_name(name)
    with connected(given) as training:
        history = training.promotions(name)
        current = history[-1].version if history else None
        change = training.rollback(name, expected=str(expect) if expect else current)
    options.echo(f"{name}@{change.version} is the champion, in place of @{change.previous}")


@models.command(
    "judge", epilog="Example: agc-ml models judge jet_assignment runs/features --even 3 --odd 4"
)
@click.argument("name")
@click.argument("dataset", metavar="RUN_OR_PARQUET")
@click.option(
    "--even",
    type=click.IntRange(1),
    required=True,
    metavar="VERSION",
    help="Version of the model NAME-even.",
)
@click.option(
    "--odd",
    type=click.IntRange(1),
    required=True,
    metavar="VERSION",
    help="Version of the model NAME-odd.",
)
@click.option("--remote-even", metavar="ADDRESS", help="Server of the even model: grpc://...")
@click.option("--remote-odd", metavar="ADDRESS", help="Server of the odd model: grpc://...")
@where_options
@options.json_option
@options.logging_options
def models_judge(
    name: str, dataset: str, *, even: int, odd: int, as_json: bool, quiet: bool, **given: Any
) -> None:
    """Combine two models into a bundle, and validate it against the current champion.

    With --remote-even and --remote-odd, the scores of their servers are compared too.
    """
    name = model_name(name)
    served = {"even": given["remote_even"], "odd": given["remote_odd"]}
    remote = {parity: address for parity, address in served.items() if address} or None
    with connected(given) as training:
        job = training.submit(
            kind="judge",
            name=name,
            dataset=training.upload(dataset),
            versions={"even": even, "odd": odd},
            remote=remote,
        )
        follow(training, job, given, as_json=as_json, quiet=quiet)


@models.command("report", epilog="Example: agc-ml models report jet_assignment@3 -o report.html")
@click.argument("model", metavar="NAME[@VERSION]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File to write [NAME-VERSION.html].",
)
@where_options
@options.logging_options
def models_report(model: str, output: Path | None, **given: Any) -> None:
    """Download the validation report of a bundle."""
    from agc_ml.files import write  # noqa: PLC0415 - on demand

    name, which = name_and_version(model)
    with connected(given) as training:
        version = training.resolve(name, which).version
        content = training.content(name, version, "report.html")
    path = output or Path(f"{name}-{version}.html")
    write(path, lambda scratch: scratch.write_bytes(content))
    options.echo(path)


@models.command("pull", epilog="Example: agc-ml models pull jet_assignment@champion -o bundle")
@click.argument("model", metavar="NAME[@VERSION]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New folder [NAME-VERSION].",
)
@where_options
@options.logging_options
def models_pull(model: str, output: Path | None, **given: Any) -> None:
    """Download a bundle into a folder; 'run --model DIR' then needs no registry."""
    from agc_ml.training.client import pull  # noqa: PLC0415 - on demand

    name, which = name_and_version(model)
    with connected(given) as training:
        version = training.resolve(name, which).version
        folder = output or Path(f"{name}-{version}")
        pull(training, name, version, folder)
    options.echo(f"{name}@{version}: {folder}; use it with: --model {shlex.quote(str(folder))}")


@models.command("drift", epilog="Example: agc-ml models drift runs/july --train runs/july-features")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--max-psi",
    type=click.FloatRange(0),
    default=0.2,
    show_default=True,
    help="Population stability index above which a feature has drifted.",
)
@click.option(
    "--train",
    "dataset",
    metavar="RUN_OR_PARQUET",
    help="Training set of the new events: submit a challenger if they drifted.",
)
@where_options
@options.json_option
@options.logging_options
def models_drift(
    run: Path, *, max_psi: float, dataset: str | None, as_json: bool, **given: Any
) -> None:
    """Compare the features of a run with those its model was trained on; exit code 1 on drift.

    RUN is a run of ttbar with --model NAME@VERSION. A challenger is trained as the model was; it is
    not promoted automatically.
    """
    from agc_ml.cli.tables import print_page  # noqa: PLC0415 - on demand
    from agc_ml.presentation.page import Page, Table  # noqa: PLC0415 - on demand
    from agc_ml.results.run_record import load_record  # noqa: PLC0415 - on demand
    from agc_ml.training import drift  # noqa: PLC0415 - on demand
    from agc_ml.training.client import training_set_file  # noqa: PLC0415 - on demand

    if not math.isfinite(max_psi):
        raise UsageError("--max-psi: a number is needed")
    record = load_record(run)
    name, version = drift.model_of(record)
    path = None if dataset is None else training_set_file(dataset)
    # the same bundle, in this registry as in that of the run
    with connected(given) as training:
        drift.check_same(record, training.resolve(name, version).files)
        _, trained = _records(training, name, version)
        compared = drift.compare(trained["inputs"], drift.inputs_of(record), max_psi)
        drifted = [one for one in compared if one.drifted]
        challenger = None
        if drifted and path is not None:
            challenger = drift.challenge(training, name, trained, path)
    rows = [
        (
            one.process,
            one.feature,
            f"{one.psi:.4f}",
            f"{one.ks:.4f}",
            f"{one.ks_limit:.4f}",
            "drifted" if one.drifted else "",
        )
        for one in compared
    ]
    notes = [f"{len(drifted)} of {len(compared)} features drifted"]
    if challenger is not None:
        notes.append(f"challenger: agc-ml jobs follow {challenger.id}{location(given)}")
    elif drifted:
        notes.append("train a challenger with --train: a run of jet_assignment on the new events")
    title = f"{run} against the training of {name}@{version}"
    columns = ("process", "feature", "PSI", "KS distance", "expected by chance", "")
    facts = {
        "model": f"{name}@{version}",
        "drifted": len(drifted),
        "features": [one._asdict() for one in compared],
        "challenger": None if challenger is None else challenger.id,
    }
    page = Page(tables=[Table(title, columns, rows, notes)], data=facts)
    print_page(page, as_json=as_json)
    sys.exit(1 if drifted else 0)
