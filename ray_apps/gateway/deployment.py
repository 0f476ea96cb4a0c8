"""Deploys the gateway as a Ray Serve application."""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from toque.clusters.profile import apply_profile
from toque.ray_apps.serve.process import freeze, others_answered_at_start, step_back
from toque.registry.errors import Unavailable

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application
    from starlette.types import ASGIApp

    from toque.functions.prediction_log import LogWriter
    from toque.functions.runtime.context import Context

MAX_ONGOING_REQUESTS = 1_024  # of which open pages of the console may hold 400
DISCOVERED_WITHIN_S = 180.0
"""Longest wait for the functions of a release that replaces another; the one before answers meanwhile."""
NICENESS = 5
"""Of a gateway's replica above its usual one, once it is built: pages and calls take no CPU that a model's answer waits for, and come before
trainings."""


def application(options: dict[str, Any] | None = None) -> Application:
    """Build the gateway's Serve application, also for `serve deploy` (import_path in `ray_apps/config`).

    options: passed to the deployment's `options`, such as num_replicas; and `on_serve_nodes`, with which replicas run
    only where the resource `serve` is, two or more never all on one of several such nodes. with_mlflow: MLflow's protocol is served
    by the same process, where a machine has one of each: a process of its own is 200 MB, and two seconds of a start.
    """
    from ray import serve  # late: the processes that start Ray import this package before it

    from toque.ray_apps.serve.spread import laid_out  # late: as above

    chosen: dict[str, Any] = {
        "name": "gateway",
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "ray_actor_options": {"num_cpus": 0},  # the gateway waits more than it computes
        "health_check_period_s": 5,
    } | (options or {})
    made_by = build_with_mlflow if chosen.pop("with_mlflow", False) else build
    deployment: Any = serve.deployment(serve.ingress(made_by)(), **laid_out(chosen))
    found: Application = deployment.bind()
    return found


def build() -> FastAPI:
    """Build the application in a replica, on the context that the process's environment names.

    The gateway answers before the functions are imported, which takes seconds; a request for a function waits for that.
    One that replaces another, as in a new release, is ready when they are imported: meanwhile the others answer.
    """
    from toque.functions.runtime.context import (
        context_of,  # late, as all that follow: only a replica needs them
    )
    from toque.functions.runtime.process import enter_process
    from toque.ray_apps.exporter import ClusterMetrics, watch_clock
    from toque.ray_apps.gateway.app import build_app
    from toque.ray_apps.gateway.services import Services, embed_by_predictor
    from toque.ray_apps.oidc import OidcSettings
    from toque.registry.access import DEFAULT_WORKSPACE

    apply_profile(os.environ)
    context = context_of(os.environ).in_workspace(DEFAULT_WORKSPACE)
    enter_process("gateway", store_url=context.store_url, environment=os.environ, redis_url=context.redis_url)

    def discover() -> None:
        from toque.ray_apps import discovery  # late: the import that takes seconds

        discovery.discover(context.projects, awaited=replaces)
        freeze()

    replaces = others_answered_at_start()
    watch_clock(context.store)
    cluster = ClusterMetrics(context.store_url)
    if os.environ.get("TOQUE_METRICS_PORT"):
        cluster.keep()
    services = Services(
        context=context,
        labels=partial(_label_writer, context),
        discover=discover,
        oidc=OidcSettings.from_environment(os.environ),
        metrics=cluster.text,
        embed=embed_by_predictor,
    )
    discovering = threading.Thread(target=services.catalogue, name="discover", daemon=True)
    discovering.start()
    if replaces:
        discovering.join(DISCOVERED_WITHIN_S)
    app = build_app(services, behind_serve=True)
    # Not before it is built: with many processes that start at once it would come last, and its first requests wait for its imports.
    step_back(NICENESS)
    return app


def build_with_mlflow() -> ASGIApp:
    """Build the application in a replica, with MLflow's protocol below its prefix beside it."""
    from toque.functions.runtime.context import context_of  # late: only a replica needs them
    from toque.ray_apps.middleware import Beside
    from toque.ray_apps.mlflow import ROUTE_PREFIX
    from toque.ray_apps.mlflow import build_app as build_mlflow
    from toque.ray_apps.oidc import OidcSettings
    from toque.registry.access import DEFAULT_WORKSPACE

    own = build()
    context = context_of(os.environ).in_workspace(DEFAULT_WORKSPACE)
    oidc = OidcSettings.from_environment(os.environ)
    return Beside(
        own, ROUTE_PREFIX, build_mlflow(context.store, clock=context.clock, oidc=oidc, behind_serve=True)
    )


def _label_writer(context: Context, workspace: str) -> LogWriter:
    """Open the log of a workspace's labels. Raises: Unavailable without Redis."""
    from toque.functions.prediction_log import LogWriter, default_wal_root, log_mode_of  # late, as above
    from toque.registry.access import workspace_url

    if context.redis_url is None:
        raise Unavailable("labels need Redis to travel; set TOQUE_REDIS_URL")
    return LogWriter(
        default_wal_root(workspace_url(context.store_url, workspace), context.log_folder),
        "labels",
        context.redis_url,
        workspace=workspace,
        two_nodes=log_mode_of(context.log_mode) == "two_nodes",
        answers_first=False,
    )
