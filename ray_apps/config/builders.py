"""Applications from a Serve config's `args`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from ray.serve import Application


class PredictorArgs(BaseModel):
    """A predictor's `args`. options: fields of PredictorOptions that differ from the cluster's environment."""

    model_config = ConfigDict(extra="forbid")

    model: str
    options: dict[str, Any] = {}


def predictor(args: PredictorArgs) -> Application:
    """The Serve application of one model; its route prefix must be `/v2/models/{model}`."""
    from ray_apps.predictor import PredictorOptions, application  # late: it imports torch

    options = PredictorOptions.from_environment(os.environ, **args.options)
    found: Application = application(args.model, options)
    return found
