"""Builds Serve applications from the `args` in a Serve config file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from ray.serve import Application


class PredictorArgs(BaseModel):
    """The `args` of a predictor's application.

    workspace: whose model it is; None: that of the cluster's environment. options: fields of PredictorOptions that differ
    from the cluster's environment.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    workspace: str | None = None
    options: dict[str, Any] = {}


def predictor(args: PredictorArgs | dict[str, Any]) -> Application:
    """Build the Serve application of one model; its route prefix must be `/v2/models/{model}`.

    In a workspace other than `default` it is `/workspaces/{workspace}/v2/models/{model}`.

    args: Serve passes the file's mapping, as it cannot read annotations that are evaluated late.
    Raises: pydantic.ValidationError, naming the field.
    """
    from ray_apps.predictor import PredictorOptions, application  # late: it imports torch

    args = PredictorArgs.model_validate(args)
    options = PredictorOptions.from_environment(os.environ, **_changes(args.options, args.workspace))
    found: Application = application(args.model, options)
    return found


class PoolArgs(BaseModel):
    """The `args` of a pool's application; fields as of `PredictorArgs`, options those of PoolOptions."""

    model_config = ConfigDict(extra="forbid")

    workspace: str | None = None
    options: dict[str, Any] = {}


def pool(args: PoolArgs | dict[str, Any]) -> Application:
    """Build the Serve application of all models that have no application of their own.

    Its route prefix must be `/v2/models`, or `/workspaces/{workspace}/v2/models`.
    Raises: pydantic.ValidationError, naming the field.
    """
    from ray_apps.predictor import PoolOptions, pool_application  # late: as above

    args = PoolArgs.model_validate(args)
    options = PoolOptions.from_environment(os.environ, **_changes(args.options, args.workspace))
    found: Application = pool_application(options)
    return found


def _changes(options: dict[str, Any], workspace: str | None) -> dict[str, Any]:
    return options if workspace is None else {**options, "workspace": workspace}
