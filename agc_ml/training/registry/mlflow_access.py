"""Who may change what MLflow shows: nobody but the service. Runs in MLflow's server."""

from __future__ import annotations

from typing import Final

from flask import Response, request
from mlflow.server import auth
from werkzeug.datastructures import Authorization

from agc_ml.training.registry.mlflow_server import ADMIN

# How the last part of a path begins, of what is asked by POST and reads only
_READS: Final = ("search", "graphql", "get-")


def authenticate() -> Authorization | Response:
    """Who asks; whoever is not the service may only read.

    MLflow by itself lets every user create experiments and models of their own.
    """
    found: Authorization | Response = auth.authenticate_request_basic_auth()
    if isinstance(found, Response) or found.username == ADMIN:
        return found
    is_read = request.method in {"GET", "HEAD", "OPTIONS"} or (
        request.method == "POST" and request.path.rpartition("/")[2].startswith(_READS)
    )
    refusal: Response = auth.make_forbidden_response()
    return found if is_read else refusal
