"""The predictor as a Serve application: one per model, under `/v2/models/{name}`."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve
from ray.serve.schema import LoggingConfig

from featurestore import FeatureStore
from functions.prediction_log import LogWriter
from functions.runtime.clock import clock_named
from ray_apps.predictor.doorkeeper import Doorkeeper, Gate, OpenDoor
from ray_apps.predictor.engine import Engine
from ray_apps.predictor.http import HttpDoor
from ray_apps.predictor.middleware import open_lane
from ray_apps.predictor.options import PredictorOptions
from ray_apps.predictor.recording import Recorder
from ray_apps.predictor.scoring import load_scorer
from ray_apps.predictor.service import Predictor
from registry import Registry, open_store
from registry.access import Access

__all__ = ["app_name", "application", "build_predictor", "deploy_model", "route_prefix"]


def app_name(model: str) -> str:
    """The Serve application that serves a model."""
    return f"predictor-{model}"


def route_prefix(model: str) -> str:
    """Where a model is served."""
    return f"/v2/models/{model}"


class _Parts:
    """What a replica consists of, to be closed together."""

    def __init__(self, model: str, options: PredictorOptions) -> None:
        store = open_store(options.store_url)
        registry = Registry(store, actor=f"predictor/{model}")
        clock = clock_named("replay" if options.replay else "system", options.redis_url)
        scratch = Path(tempfile.gettempdir()) / "toque-loading"
        self.engine = Engine(model, registry, load_scorer, scratch=scratch, poll_s=options.poll_s)
        self.log: LogWriter | None = None
        features = None
        if options.redis_url is not None:
            features = FeatureStore(store, redis_url=options.redis_url, clock=clock)
            if options.log:
                self.log = LogWriter(
                    options.wal, "predictions", options.redis_url, limit_bytes=options.log_limit_bytes
                )
        self.predictor = Predictor(
            self.engine,
            Recorder(model, self.log),
            features=features,
            clock=clock if options.replay else None,
            replay=options.replay,
            shadow_limit=options.shadow_limit,
        )
        access = Access(store, actor=f"predictor/{model}")
        self.gate: Gate = Doorkeeper(access) if options.authentication else OpenDoor()

    def door(self, options: PredictorOptions) -> HttpDoor:
        """The HTTP door to the predictor."""
        return HttpDoor(
            self.predictor,
            self.gate,
            max_body_bytes=options.max_body_bytes,
            max_in_flight=options.max_ongoing_requests + max(0, options.max_queued_requests),
        )


def build_predictor(model: str, options: PredictorOptions) -> HttpDoor:
    """A model's ASGI application, its versions loaded and followed: for tests and servers without Serve."""
    parts = _Parts(model, options)
    parts.engine.start()
    return parts.door(options)


@serve.ingress()
class PredictorReplica:
    """One replica of a model's predictor."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
        torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
        sys.setswitchinterval(0.001)  # background threads hold the answering one up for this long at most
        self._options = PredictorOptions.model_validate(options)
        self._parts = _Parts(model, self._options)
        self._parts.engine.start()
        gc.collect()
        gc.freeze()  # torch and Ray are a million objects: a full collection over them takes a tenth of a second

    def __serve_build_asgi_app__(self) -> HttpDoor:
        """The application that Serve's HTTP server of this replica calls."""
        door = self._parts.door(self._options)
        open_lane(route_prefix(self._parts.engine.model), door)
        return door


def application(model: str, options: PredictorOptions | None = None) -> serve.Application:
    """A model's Serve application, to be run under `route_prefix(model)`.

    options: by default those of this process's environment.
    """
    options = options if options is not None else PredictorOptions.from_environment(os.environ)
    deployment: Any = serve.deployment(  # Serve's overloads take a class with options for a decorator
        PredictorReplica,
        name=f"predict-{model}",
        num_replicas=options.num_replicas,
        max_ongoing_requests=options.max_ongoing_requests,
        max_queued_requests=options.max_queued_requests,
        ray_actor_options={"num_cpus": options.num_cpus},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=10,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    bound: serve.Application = deployment.bind(model, options.model_dump(mode="json"))
    return bound


def deploy_model(model: str, options: PredictorOptions | None = None) -> None:
    """Deploy or redeploy a model's application on the running Serve; returns when it is ready."""
    serve.run(application(model, options), name=app_name(model), route_prefix=route_prefix(model))
