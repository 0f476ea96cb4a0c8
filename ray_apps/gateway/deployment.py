"""Deploys the gateway as a Ray Serve application."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from clusters.profile import apply_profile
from ray_apps.garbage_collector import freeze
from registry.errors import Unavailable

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

MAX_ONGOING_REQUESTS = 512


def application(options: dict[str, Any] | None = None) -> Application:
    """Build the gateway's Serve application, also for `serve deploy` (import_path in `ray_apps/config`).

    options: passed to the deployment's `options`, such as num_replicas; and `on_serve_nodes`, with which replicas run
    only where the resource `serve` is, two or more never all on one of several such nodes.
    """
    from ray import serve  # late: the processes that start Ray import this package before it

    from ray_apps.spread import laid_out  # late: as above

    chosen: dict[str, Any] = {
        "name": "gateway",
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "ray_actor_options": {"num_cpus": 0},  # the gateway waits more than it computes
        "health_check_period_s": 5,
    } | (options or {})
    deployment: Any = serve.deployment(serve.ingress(build)(), **laid_out(chosen))
    found: Application = deployment.bind()
    return found


def build() -> FastAPI:
    """Build the application in a replica, on the context that the process's environment names.

    The gateway answers before the functions are imported, which takes seconds; a request for a function waits for that.
    """
    from functions.prediction_log import (
        LogWriter,
        default_wal_root,
        log_mode_of,
    )  # late: only a replica needs them
    from functions.runtime.context import context_of
    from functions.runtime.process import enter_process
    from ray_apps.clock_watch import watch_clock
    from ray_apps.exporter import ClusterMetrics
    from ray_apps.gateway.app import build_app
    from ray_apps.gateway.services import Services
    from ray_apps.oidc import OidcSettings
    from registry.access import DEFAULT_WORKSPACE, workspace_url

    apply_profile(os.environ)
    context = context_of(os.environ).in_workspace(DEFAULT_WORKSPACE)
    enter_process("gateway", store_url=context.store_url, environment=os.environ, redis_url=context.redis_url)

    mode = log_mode_of(context.log_mode)

    def labels(workspace: str) -> LogWriter:
        if context.redis_url is None:
            raise Unavailable("labels need Redis to travel; set TOQUE_REDIS_URL")
        root = default_wal_root(workspace_url(context.store_url, workspace), context.log_folder)
        return LogWriter(
            root,
            "labels",
            context.redis_url,
            workspace=workspace,
            two_nodes=mode == "two_nodes",
            answers_first=False,
        )

    def discover() -> None:
        from ray_apps.discovery import discover_at_low_priority  # late: the import that takes seconds

        discover_at_low_priority(context.projects)
        freeze()

    watch_clock(context.store)
    cluster = ClusterMetrics(context.store_url)
    if os.environ.get("TOQUE_METRICS_PORT"):
        cluster.keep()
    services = Services(
        context=context,
        labels=labels,
        discover=discover,
        oidc=OidcSettings.from_environment(os.environ),
        metrics=cluster.text,
    )
    threading.Thread(target=services.catalogue, name="discover", daemon=True).start()
    return build_app(services)
