"""``agc-ml service``: parse, call, print."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import click

from agc_ml.cli import options
from agc_ml.errors import Interrupted, UsageError

_EXTRA = ("func_adl_uproot", "qastle", "botocore", "fsspec_xrootd")


@click.command(epilog="Example: agc-ml service servicex --port 5000 -o servicex-endpoint")
@click.option(
    *("-o", "--folder"),
    type=click.Path(path_type=Path),
    default="servicex-endpoint",
    show_default=True,
    metavar="DIR",
    help="What it keeps; it goes on with what is unfinished there.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=5000,
    show_default=True,
    help="Where it listens, on 127.0.0.1 only; 0 for any that is free.",
)
@click.option("--workers", type=click.IntRange(1), help="Files at once [all cores].")
@click.option(
    "--timeout",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    help="Most seconds for a file.",
)
@click.option(
    "--memory",
    type=click.FloatRange(0.5, 1e6),
    default=4.0,
    show_default=True,
    metavar="GB",
    help="Most memory for a file.",
)
@click.option(
    "--codegens",
    metavar="A,B",
    default="uproot-raw,func_adl",
    show_default=True,
    help="What clients may ask with: uproot-raw, func_adl (clients call it uproot), python; "
    "python runs whatever they send, as you.",
)
@click.option(
    "--token",
    "token_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Clients need the token in FILE [one made for DIR].",
)
@options.logging_options
def servicex(  # noqa: PLR0917 - one parameter an option
    folder: Path,
    port: int,
    workers: int | None,
    timeout: int,
    memory: float,
    codegens: str,
    token_file: Path | None,
    **_: object,
) -> None:
    """Deliver columns as ServiceX does: an endpoint for its standard client.

    Needs the extra 'endpoint'. Runs queries of the code generators uproot-raw and func_adl, and of
    python if --codegens names it, on local processes, which read files, root:// and http(s)://.
    Whoever has its token reads all files that you can read. Its URL, its token and a cache are in
    DIR/servicex.yaml: deliver(spec, config_path="DIR/servicex.yaml").
    """
    _require_extra()
    from agc_ml.servicex_endpoint.service import Settings, serve  # noqa: PLC0415 - on demand
    from agc_ml.servicex_endpoint.transformation.limits import GB  # noqa: PLC0415 - on demand
    from agc_ml.servicex_endpoint.transformation.workers import Allowance  # noqa: PLC0415 - on demand
    from agc_ml.servicex_endpoint.translation.generators import enabled  # noqa: PLC0415 - on demand

    settings = Settings(
        folder,
        port,
        workers or os.cpu_count() or 1,
        Allowance(timeout, memory * GB),
        token_file,
        enabled(codegens.split(",")),
    )
    serve(settings, _announce)
    raise Interrupted("stopped; the same command goes on with what is unfinished")


def _require_extra() -> None:
    for part in _EXTRA:
        if find_spec(part) is None:
            raise UsageError(
                f"{part} is not installed; it comes with: pip install 'agc-ml[endpoint]'"
            )


def _announce(url: str, client: Path) -> None:
    options.echo(f'ServiceX at {url}: deliver(spec, config_path="{client}")')
