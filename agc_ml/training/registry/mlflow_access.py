"""Authorization in MLflow's server: only the training service may change anything."""

from __future__ import annotations

from typing import Final

from flask import Response, request
from mlflow.server import auth
from werkzeug.datastructures import Authorization

from agc_ml.training.registry.mlflow_server import ADMIN

# Begin of the last part of a path, for POST requests that only read
_READS: Final = ("search", "graphql", "get-")


def authenticate() -> Authorization | Response:
    """Return the user, or a refusal: users other than the service may only read.

    MLflow by itself lets every user create experiments and models.
    """
    user: Authorization | Response = auth.authenticate_request_basic_auth()
    if isinstance(user, Response) or user.username == ADMIN:
        return user
    is_read = request.method in {"GET", "HEAD", "OPTIONS"} or (
        request.method == "POST" and request.path.rpartition("/")[2].startswith(_READS)
    )
    refusal: Response = auth.make_forbidden_response()
    return user if is_read else refusal
