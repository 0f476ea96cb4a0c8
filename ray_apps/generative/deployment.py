"""The door of language models as a Serve application, for all workspaces."""

from __future__ import annotations

from typing import Any

from ray import serve

from toque.ray_apps.generative.build import build_door
from toque.ray_apps.generative.options import APP, GenerativeOptions
from toque.ray_apps.predictor.deploy.replica import deployment_of
from toque.ray_apps.predictor.http.endpoint import Endpoint
from toque.ray_apps.serve.process import freeze

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

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Metrics that Serve scales by; it asks once a second if the deployment is autoscaled."""
        return self._door.autoscaling_metrics()

    async def __del__(self) -> None:
        """Close the door and end its engines; Serve calls this before it ends the replica."""
        await self._door.close()


def application(options: GenerativeOptions) -> serve.Application:
    """Make the Serve application, to be run under `ROUTE_PREFIX`."""
    bound: serve.Application = deployment_of(GenerativeReplica, APP, options).bind(
        options.model_dump(mode="json")
    )
    return bound
