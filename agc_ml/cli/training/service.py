"""``agc-ml service training`` and ``agc-ml service token``: parse, call, print."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agc_ml.cli import options
from agc_ml.cli.training.connecting import require_extra
from agc_ml.errors import Interrupted, UsageError
from agc_ml.execution.cluster.clusters import check_site

if TYPE_CHECKING:
    from agc_ml.training.registry.mlflow_server import MlflowServer


_MOST_DAYS = 36_500


@click.command("training", epilog="Example: agc-ml service training --port 8500 -o training")
@click.option(
    "-o",
    "--folder",
    type=click.Path(path_type=Path),
    default="training",
    show_default=True,
    metavar="DIR",
    help="All that it keeps; it goes on with what is unfinished there.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where it listens.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8500,
    show_default=True,
    help="0 for any that is free.",
)
@click.option(
    "--mlflow-port",
    type=click.IntRange(0, 65535),
    default=8501,
    show_default=True,
    help="Of MLflow, on 127.0.0.1; 0 for any that is free.",
)
@click.option(
    "--certificate",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="For https: the certificate, as PEM.",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="For https: its key.",
)
@click.option(
    "--host-name",
    "host_names",
    multiple=True,
    metavar="NAME",
    help="Under which a proxy before it is reached; again for others.",
)
@click.option("--no-auth", is_flag=True, help="Nobody needs a token; on this machine only.")
@click.option("--slots", type=click.IntRange(1), default=1, show_default=True, help="Jobs at once.")
@click.option(
    "--timeout",
    type=click.IntRange(1),
    default=4 * 3600,
    show_default=True,
    help="Most seconds of a job, each time it is started.",
)
@click.option(
    "--max-queued",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Jobs that may wait.",
)
@click.option(
    "--max-upload",
    type=click.IntRange(1),
    default=2048,
    show_default=True,
    metavar="MB",
    help="Of a training set.",
)
@click.option(
    "--gates",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Limits of the gates, as YAML: {max_loss: 0.01}.",
)
@options.cluster_options
@options.logging_options
def service(
    folder: Path, *, workers: int | None, site: str, verbose: bool, gates: Path | None, **given: Any
) -> None:
    """Train, judge and keep models for a group, with MLflow beside it.

    Needs the extra 'training'. Its URL and a token are in DIR/client.yaml, by which 'train', 'jobs'
    and 'models' find it; make tokens for others with 'agc-ml service token add'. --cluster and
    --workers say where the trials of each job run.
    """
    require_extra()
    check_site(site, workers)
    import logging  # noqa: PLC0415 - on demand

    from agc_ml.training.http import logs  # noqa: PLC0415 - on demand
    from agc_ml.training.service import server as served  # noqa: PLC0415 - on demand
    from agc_ml.training.service.job_manager import Settings  # noqa: PLC0415 - on demand

    settings = Settings(
        folder=folder,
        site=site,
        workers=workers or os.cpu_count() or 1,
        slots=given["slots"],
        timeout=given["timeout"],
        most_queued=given["max_queued"],
        limits=_limits(gates),
    )
    address = served.Address(
        host=given["host"],
        port=given["port"],
        mlflow_port=given["mlflow_port"],
        certificate=given["certificate"],
        key=given["key"],
        open_to_all=given["no_auth"],
        max_upload=given["max_upload"] * 1_000_000,
        host_names=given["host_names"],
    )
    logs.log_as_json(
        logging.WARNING if given["quiet"] else logging.DEBUG if verbose else logging.INFO
    )
    served.serve(settings, address, _announce)
    raise Interrupted("stopped; the same command goes on with what is unfinished")


def _limits(path: Path | None) -> Any:
    from pydantic import ValidationError  # noqa: PLC0415 - on demand

    from agc_ml import documents  # noqa: PLC0415 - on demand
    from agc_ml.training.job_spec import Limits, first_error  # noqa: PLC0415 - on demand

    if path is None:
        return Limits()
    try:
        return Limits.model_validate(documents.read(path) or {})
    except ValidationError as error:
        raise UsageError(f"{path}: {first_error(error)}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: can't be read ({' '.join(str(error).split())[:200]})") from error


def _announce(url: str, client: Path, mlflow: MlflowServer) -> None:
    user, _ = mlflow.viewer
    options.echo(f"training service at {url}, pages for browsers too (any name, token as password)")
    options.echo(f"MLflow at {mlflow.url} (to look at: user {user}, its password is in {client})")
    options.echo(
        f"clients: AGC_ML_TRAINING={shlex.quote(str(client))}; it holds a token, and is for you "
        "alone"
    )


@click.group(epilog="Example: agc-ml service token add alice --role train --days 90")
def token() -> None:
    """Make, list and revoke tokens of a training service; on its machine."""


_folder_option = click.option(
    "-o",
    "--folder",
    type=click.Path(path_type=Path),
    default="training",
    show_default=True,
    metavar="DIR",
    help="Of the service; it may be running.",
)


@contextlib.contextmanager
def _database(folder: Path) -> Iterator[Any]:
    from agc_ml.training.service.database import Database  # noqa: PLC0415 - on demand
    from agc_ml.training.service.job_manager import DATABASE  # noqa: PLC0415 - on demand

    if not (folder / DATABASE).exists():
        raise UsageError(f"{folder}: no training service has been started there; name it with -o")
    with contextlib.closing(Database(folder / DATABASE)) as database:
        yield database


@token.command("add", epilog="Example: agc-ml service token add alice --role train --days 90")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["read", "train", "promote"]),
    default="read",
    show_default=True,
    help="Each may do what those before it may.",
)
@click.option("--days", type=float, help="Until it expires [never].")
@_folder_option
@options.logging_options
def token_add(name: str, role: Any, days: float | None, folder: Path, **_: Any) -> None:
    """Make a token and print it: it is not kept, so it can't be shown again."""
    from agc_ml.training.service import tokens  # noqa: PLC0415 - on demand

    if days is not None and not 0 < days <= _MOST_DAYS:
        raise UsageError(f"--days: more than 0, at most {_MOST_DAYS} are possible")
    expires = None if days is None else time.time() + days * 86400
    with _database(folder) as database:
        options.echo(tokens.issue(database, name, role, expires))


@token.command("list", epilog="Example: agc-ml service token list")
@_folder_option
@options.json_option
@options.logging_options
def token_list(folder: Path, *, as_json: bool, **_: Any) -> None:
    """List the tokens: whose they are, and what they may do."""
    from agc_ml.cli.tables import Page, Table  # noqa: PLC0415 - on demand

    with _database(folder) as database:
        found = database.tokens()
    rows = [
        (
            one.name,
            one.role,
            "never"
            if one.expires is None
            else time.strftime("%Y-%m-%d %H:%M", time.gmtime(one.expires)),
        )
        for one in found
    ]
    facts = [one.model_dump(mode="json") for one in found]
    Page(facts, [Table("tokens", ("name", "role", "expires (UTC)"), rows)]).print(as_json=as_json)


@token.command("revoke", epilog="Example: agc-ml service token revoke alice")
@click.argument("name")
@_folder_option
@options.logging_options
def token_revoke(name: str, folder: Path, **_: Any) -> None:
    """Revoke a token, at once."""
    with _database(folder) as database:
        database.revoke_token(name)
    options.echo(f"{name}: revoked")
