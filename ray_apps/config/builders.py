"""Builds Serve applications from the `args` in a Serve config, one function for each kind.

args: Serve passes the config's mapping, as it cannot read annotations that are evaluated late. Each application is built
in a process of the cluster, with that node's settings.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict

from toque.clusters.profile import apply_profile
from toque.ray_apps.serve.process import step_back

if TYPE_CHECKING:
    from ray.serve import Application

_Kind = TypeVar("_Kind", bound=BaseModel)
_NICENESS = 10  # of a task that builds one application and ends


class AppArgs(BaseModel):
    """The `args` of an application of the platform.

    options: of its deployment, as the builder documents. release: what it was made from; Serve replaces the replicas of
    an application whose args have changed, and of no other.
    """

    model_config = ConfigDict(extra="forbid")

    options: dict[str, Any] = {}
    release: str = ""


class PoolArgs(AppArgs):
    """The `args` of a pool's application, with the fields of PoolOptions as options.

    workspace: whose models they are; None: that of the cluster's environment.
    """

    workspace: str | None = None


class PredictorArgs(PoolArgs):
    """The `args` of one model's application, with the fields of PredictorOptions that differ from the environment's."""

    model: str


Args = AppArgs | dict[str, Any]


def gateway(args: Args) -> Application:
    """Build the gateway; its route prefix must be `/`. Raises: pydantic.ValidationError, naming the field."""
    found = _prepared(AppArgs, args)
    from toque.ray_apps.gateway import application  # late: this module is imported where Ray is not, too

    return application(found.options)


def mlflow(args: Args) -> Application:
    """Build MLflow's protocol; its route prefix must be `/api`. Raises: pydantic.ValidationError, naming the field."""
    found = _prepared(AppArgs, args)
    from toque.ray_apps.mlflow import application  # late: as above

    return application(found.options)


def ticker(args: Args) -> Application:
    """Build the ticker, which has no route. Raises: pydantic.ValidationError, naming the field."""
    found = _prepared(AppArgs, args)
    from toque.ray_apps.ticker import application  # late: as above

    return application(found.options)


def streams(args: Args) -> Application:
    """Build the consumers of streams, which have no route. Raises: pydantic.ValidationError, naming the field."""
    from toque.ray_apps.streams import application  # late: as above

    return application(_prepared(AppArgs, args).options)


def grpc(args: Args) -> Application:
    """Build the gRPC proxy, which has no route; options: ProxyOptions. Raises: pydantic.ValidationError."""
    found = _prepared(AppArgs, args)
    from toque.ray_apps.predictor.grpc import grpc_application  # late: as above

    return grpc_application(found.options)


def generative(args: Args) -> Application:
    """Build the door of language models; its route prefix must be `/v1`. options: GenerativeOptions that differ.

    Raises: pydantic.ValidationError, naming the field.
    """
    found = _prepared(AppArgs, args)
    from toque.ray_apps.generative.deployment import application  # late: as above
    from toque.ray_apps.generative.options import GenerativeOptions

    return application(GenerativeOptions.from_environment(os.environ, **found.options))


def predictor(args: Args) -> Application:
    """Build the Serve application of one model; its route prefix must be `/v2/models/{model}`.

    In a workspace other than `default` it is `/workspaces/{workspace}/v2/models/{model}`.
    Raises: pydantic.ValidationError, naming the field.
    """
    found = _prepared(PredictorArgs, args)
    from toque.ray_apps.predictor import PredictorOptions, application  # late: it imports torch

    options = PredictorOptions.from_environment(os.environ, **_changes(found))
    built: Application = application(found.model, options)
    return built


def pool(args: Args) -> Application:
    """Build the Serve application of all models that have no application of their own.

    Its route prefix must be `/v2/models`, or `/workspaces/{workspace}/v2/models`.
    Raises: pydantic.ValidationError, naming the field.
    """
    found = _prepared(PoolArgs, args)
    from toque.ray_apps.predictor import PoolOptions, pool_application  # late: as above

    options = PoolOptions.from_environment(os.environ, **_changes(found))
    built: Application = pool_application(options)
    return built


def _prepared(kind: type[_Kind], args: BaseModel | dict[str, Any]) -> _Kind:
    # Those of all applications import their modules at once, beside replicas that answer: on two cores these got so
    # little of them that every request ran out of time.
    step_back(_NICENESS)
    apply_profile(os.environ)
    return kind.model_validate(args if isinstance(args, dict) else args.model_dump())


def _changes(args: PoolArgs) -> dict[str, Any]:
    return args.options if args.workspace is None else {**args.options, "workspace": args.workspace}
