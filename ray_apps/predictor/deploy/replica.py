"""Parts of every replica that answers requests, of models and of language models: its place on Serve, and its log."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.schema import LoggingConfig

from toque.functions.prediction_log import LogWriter
from toque.ray_apps.predictor.deploy.options import PredictorOptions
from toque.ray_apps.predictor.inference.confirmation import Confirmation
from toque.ray_apps.spread import laid_out

__all__ = ["confirmation_of", "deployment_of", "open_log"]


def deployment_of(replica: Any, name: str, options: PredictorOptions) -> Any:
    """Make the Serve deployment of a class of replicas, with the scale, place and bounds that its options say."""
    return serve.deployment(  # Serve's overloads take a class with options for a decorator
        replica,
        name=name,
        **laid_out(
            {
                "on_serve_nodes": options.on_serve_nodes,
                "ray_actor_options": {"num_cpus": options.num_cpus},
                # One that asks for a core might wait for ever beside its predecessor, which has it.
                "max_surge_percent": 0 if options.num_cpus else 100,
                **options.scale,
            }
        ),
        max_ongoing_requests=options.max_ongoing_requests,
        max_queued_requests=options.max_queued_requests,
        health_check_period_s=5,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )


def open_log(options: PredictorOptions) -> LogWriter | None:
    """Open the prediction log of the options' workspace; None without Redis, or where answers are not logged."""
    if options.redis_url is None or not options.log:
        return None
    return LogWriter(
        options.wal,
        "predictions",
        options.redis_url,
        workspace=options.workspace,
        limit_bytes=options.log_limit_bytes,
        two_nodes=options.log_mode == "two_nodes",
        answers_first=options.log_mode != "two_nodes",
    )


def confirmation_of(log: LogWriter | None, options: PredictorOptions) -> Confirmation | None:
    """Make the waits of a model's answers for their records, as the mode of the log says."""
    if log is None or options.log_mode == "file":
        return None
    return Confirmation(log, strict=options.log_mode == "two_nodes")
