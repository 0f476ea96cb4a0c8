"""Builds Serve applications from the `args` in a Serve config file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from ray.serve import Application


class PredictorArgs(BaseModel):
    """The `args` of a predictor's application. options: fields of PredictorOptions that differ from the cluster's environment."""

    model_config = ConfigDict(extra="forbid")

    model: str
    options: dict[str, Any] = {}


def predictor(args: PredictorArgs | dict[str, Any]) -> Application:
    """Build the Serve application of one model; its route prefix must be `/v2/models/{model}`.

    args: Serve passes the file's mapping, as it cannot read annotations that are evaluated late.
    Raises: pydantic.ValidationError, naming the field.
    """
    from ray_apps.predictor import PredictorOptions, application  # late: it imports torch

    args = PredictorArgs.model_validate(args)
    options = PredictorOptions.from_environment(os.environ, **args.options)
    found: Application = application(args.model, options)
    return found


class PoolArgs(BaseModel):
    """The `args` of the pool's application. options: fields of PoolOptions that differ from the cluster's environment."""

    model_config = ConfigDict(extra="forbid")

    options: dict[str, Any] = {}


def pool(args: PoolArgs | dict[str, Any]) -> Application:
    """Build the Serve application of all models that have no application of their own; its route prefix must be `/v2/models`.

    Raises: pydantic.ValidationError, naming the field.
    """
    from ray_apps.predictor import PoolOptions, pool_application  # late: as above

    options = PoolOptions.from_environment(os.environ, **PoolArgs.model_validate(args).options)
    found: Application = pool_application(options)
    return found
