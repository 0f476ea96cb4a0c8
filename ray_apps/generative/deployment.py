"""The door of language models as a Serve application, for all workspaces."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.schema import LoggingConfig

from ray_apps.garbage_collector import freeze
from ray_apps.generative.build import build_door
from ray_apps.generative.options import APP, GenerativeOptions
from ray_apps.predictor.http.endpoint import Endpoint
from ray_apps.spread import laid_out

__all__ = ["application"]


@serve.ingress()
class GenerativeReplica:
    """Serve deployment of the door of language models; its engines are processes of its own."""

    async def __init__(self, options: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        found = GenerativeOptions.model_validate(options)
        self._door = build_door(found, name=APP)
        self._door.behind_serve = True
        freeze()

    def __serve_build_asgi_app__(self) -> Endpoint:
        """The application that Serve's HTTP server of this replica calls."""
        return self._door

    async def __del__(self) -> None:
        """Close the door and end its engines; Serve calls this before it ends the replica."""
        await self._door.close()


def application(options: GenerativeOptions) -> serve.Application:
    """Make the Serve application, to be run under `ROUTE_PREFIX`."""
    deployment: Any = serve.deployment(  # Serve's overloads take a class with options for a decorator
        GenerativeReplica,
        name=APP,
        **laid_out(
            {
                "on_serve_nodes": options.on_serve_nodes,
                "ray_actor_options": {"num_cpus": options.num_cpus},
                "max_surge_percent": 0 if options.num_cpus else 100,
                **options.scale,
            }
        ),
        max_ongoing_requests=options.max_ongoing_requests,
        max_queued_requests=options.max_queued_requests,
        health_check_period_s=5,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    bound: serve.Application = deployment.bind(options.model_dump(mode="json"))
    return bound
