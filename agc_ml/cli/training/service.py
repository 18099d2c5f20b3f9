"""Commands ``agc-ml service training`` and ``agc-ml service token``."""

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
    help="Folder of the service; unfinished jobs in it are resumed.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8500,
    show_default=True,
    help="Port to listen on; 0 for any free one.",
)
@click.option(
    "--mlflow-port",
    type=click.IntRange(0, 65535),
    default=8501,
    show_default=True,
    help="Port of MLflow, on 127.0.0.1; 0 for any free one.",
)
@click.option(
    "--certificate",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Certificate for https (PEM).",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Private key of the certificate.",
)
@click.option(
    "--host-name",
    "host_names",
    multiple=True,
    metavar="NAME",
    help="Host name of a proxy in front of the service; may be repeated.",
)
@click.option(
    "--no-auth",
    is_flag=True,
    help="Require no tokens; only if the service is reachable from this machine alone.",
)
@click.option(
    "--slots",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of jobs that run at once.",
)
@click.option(
    "--timeout",
    type=click.IntRange(1),
    default=4 * 3600,
    show_default=True,
    help="Time limit of a job in seconds, each time it is started.",
)
@click.option(
    "--max-queued",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Largest number of jobs in the queue.",
)
@click.option(
    "--max-upload",
    type=click.IntRange(1),
    default=2048,
    show_default=True,
    metavar="MB",
    help="Largest training set.",
)
@click.option(
    "--gates",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="YAML file with limits of the gates, such as {max_loss: 0.01}.",
)
@options.cluster_options
@options.logging_options
def service(
    folder: Path, *, workers: int | None, site: str, verbose: bool, gates: Path | None, **given: Any
) -> None:
    """Start a training service for a group: jobs, a registry of models, and MLflow.

    It needs the extra 'training'. DIR/client.yaml holds its URL and a token; 'train', 'jobs' and
    'models' read it. Make tokens for others with 'agc-ml service token add'. --cluster and
    --workers set where the trials of each job run.
    """
    require_extra()
    check_site(site, workers)
    import logging  # noqa: PLC0415 - on demand

    from agc_ml.training.http import logs  # noqa: PLC0415 - on demand
    from agc_ml.training.service import server  # noqa: PLC0415 - on demand
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
    address = server.Address(
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
    server.serve(settings, address, _announce)
    raise Interrupted("stopped; the same command resumes unfinished jobs")


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
    options.echo(
        f"training service at {url}, with web pages (any user name, the token as password)"
    )
    options.echo(f"MLflow at {mlflow.url} (read-only user {user}, password in {client})")
    options.echo(
        f"clients: AGC_ML_TRAINING={shlex.quote(str(client))}; it holds your token, keep it private"
    )


@click.group(epilog="Example: agc-ml service token add alice --role train --days 90")
def token() -> None:
    """Make, list and revoke tokens of a training service, on its machine."""


_folder_option = click.option(
    "-o",
    "--folder",
    type=click.Path(path_type=Path),
    default="training",
    show_default=True,
    metavar="DIR",
    help="Folder of the service, which may be running.",
)


@contextlib.contextmanager
def _database(folder: Path) -> Iterator[Any]:
    from agc_ml.training.service.database import Database  # noqa: PLC0415 - on demand
    from agc_ml.training.service.job_manager import DATABASE  # noqa: PLC0415 - on demand

    if not (folder / DATABASE).exists():
        raise UsageError(
            f"{folder}: no training service was started there; name its folder with -o"
        )
    with contextlib.closing(Database(folder / DATABASE)) as database:
        yield database


@token.command("add", epilog="Example: agc-ml service token add alice --role train --days 90")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["read", "train", "promote"]),
    default="read",
    show_default=True,
    help="Role of the token; each includes those before it.",
)
@click.option("--days", type=float, help="Days until the token expires [never].")
@_folder_option
@options.logging_options
def token_add(name: str, role: Any, days: float | None, folder: Path, **_: Any) -> None:
    """Make a token and print it; it is not stored, so it can't be shown again."""
    from agc_ml.training.service import tokens  # noqa: PLC0415 - on demand

    if days is not None and not 0 < days <= _MOST_DAYS:
        raise UsageError(f"--days: must be more than 0 and at most {_MOST_DAYS}")
    expires = None if days is None else time.time() + days * 86400
    with _database(folder) as database:
        options.echo(tokens.issue(database, name, role, expires))


@token.command("list", epilog="Example: agc-ml service token list")
@_folder_option
@options.json_option
@options.logging_options
def token_list(folder: Path, *, as_json: bool, **_: Any) -> None:
    """List names, roles and expiry of the tokens."""
    from agc_ml.cli.tables import print_page  # noqa: PLC0415 - on demand
    from agc_ml.presentation.page import Page, Table  # noqa: PLC0415 - on demand

    with _database(folder) as database:
        records = database.tokens()
    rows = [
        (
            one.name,
            one.role,
            "never"
            if one.expires is None
            else time.strftime("%Y-%m-%d %H:%M", time.gmtime(one.expires)),
        )
        for one in records
    ]
    facts = [one.model_dump(mode="json") for one in records]
    tokens = Table("tokens", ("name", "role", "expires (UTC)"), rows)
    print_page(Page(tables=[tokens], data=facts), as_json=as_json)


@token.command("revoke", epilog="Example: agc-ml service token revoke alice")
@click.argument("name")
@_folder_option
@options.logging_options
def token_revoke(name: str, folder: Path, **_: Any) -> None:
    """Revoke a token; it is rejected at once."""
    with _database(folder) as database:
        database.revoke_token(name)
    options.echo(f"{name}: revoked")
