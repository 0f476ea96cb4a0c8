"""The registry by MLflow's protocol, so that an unmodified `mlflow` client logs, registers and loads here.

A Serve application under `/api`, or plain ASGI: `build_app`. It knows the registry; it must not know features,
functions or the other applications' insides.
"""

from ray_apps.mlflow.app import build_app
from ray_apps.mlflow.deployment import ROUTE_PREFIX, application

__all__ = ["ROUTE_PREFIX", "application", "build_app"]
