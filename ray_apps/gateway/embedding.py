"""Vectors of texts for searches, asked of the served model in its own application."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toque.featurestore import InvalidRows
from toque.featurestore.vectors import Embed
from toque.functions.runtime.context import Context
from toque.ray_apps.gateway.problems import Problem

PATIENCE_S = 30.0


def embed_by_predictor(context: Context) -> Embed:
    """Make what asks the models that are served in a workspace for vectors; blocks, so for a thread.

    Raises, when it is called: InvalidRows if no such model is served by itself; Problem 503 if it does not answer in time.
    """

    def embed(model: str, texts: Sequence[str]) -> Any:
        from ray import serve  # late: a gateway without a cluster has none
        from ray.serve.exceptions import RayServeException

        from toque.ray_apps.predictor.deploy.names import app_name  # late: as above

        try:
            handle = serve.get_app_handle(app_name(model, context.workspace))
        except RayServeException as error:
            raise InvalidRows(
                f"text model {model!r} is not served with an application of its own; deploy it, or search by vector"
            ) from error
        try:
            return handle.embed.remote(list(texts)).result(timeout_s=PATIENCE_S)
        except TimeoutError as error:
            raise Problem(503, f"text model {model!r} did not answer in {PATIENCE_S:.0f} s") from error

    return embed
