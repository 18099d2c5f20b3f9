"""The command ``agc-ml service servicex``."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import click

from agc_ml.cli import options
from agc_ml.errors import Interrupted, UsageError

_EXTRA = ("func_adl_uproot", "qastle", "botocore", "fsspec_xrootd", "jwt")


@click.command(epilog="Example: agc-ml service servicex --port 5000 -o servicex-endpoint")
@click.option(
    "-o",
    "--folder",
    type=click.Path(path_type=Path),
    default="servicex-endpoint",
    show_default=True,
    metavar="DIR",
    help="Folder of the endpoint; unfinished requests in it are resumed.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=5000,
    show_default=True,
    help="Port on 127.0.0.1; 0 for any that is free.",
)
@click.option("--workers", type=click.IntRange(1), help="Files at a time [all cores].")
@click.option(
    "--timeout",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    help="Time limit for a file, in seconds.",
)
@click.option(
    "--memory",
    type=click.FloatRange(0.5, 1e6),
    default=4.0,
    show_default=True,
    metavar="GB",
    help="Memory limit for a file.",
)
@click.option(
    "--codegens",
    metavar="A,B",
    default="uproot-raw,func_adl",
    show_default=True,
    help="Code generators for clients: uproot-raw, func_adl (clients call it uproot), python; "
    "python runs any code of clients, as you.",
)
@click.option(
    "--token",
    "token_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with the token that clients need [a random one in DIR].",
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
    """Run a ServiceX endpoint, which delivers columns to the standard client.

    Needs the extra 'endpoint'. Runs queries of the code generators uproot-raw and func_adl, and of
    python if --codegens names it, in local processes, which read files, root:// and http(s)://.
    Anyone with its token can read all files that you can read. Its URL, its token and a cache are
    in DIR/servicex.yaml: deliver(spec, config_path="DIR/servicex.yaml").
    """
    for package in _EXTRA:
        if find_spec(package) is None:
            raise UsageError(
                f"{package} is not installed; it comes with: pip install 'agc-ml[endpoint]'"
            )
    from agc_ml.servicex_endpoint.isolation.limits import GB  # noqa: PLC0415 - on demand
    from agc_ml.servicex_endpoint.service import EndpointSettings, serve  # noqa: PLC0415 - on demand
    from agc_ml.servicex_endpoint.transformation.transformer_pool import (  # noqa: PLC0415 - on demand
        TransformerLimits,
    )
    from agc_ml.servicex_endpoint.translation.generators import (  # noqa: PLC0415 - on demand
        parse_codegens,
    )

    settings = EndpointSettings(
        folder,
        port,
        workers or os.cpu_count() or 1,
        TransformerLimits(timeout, memory * GB),
        token_file,
        parse_codegens(codegens.split(",")),
    )

    def announce(url: str, client: Path) -> None:
        options.echo(f'ServiceX at {url}: deliver(spec, config_path="{client}")')

    serve(settings, announce)
    raise Interrupted("stopped; run the same command to resume unfinished requests")
