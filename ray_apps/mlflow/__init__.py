"""MLflow's REST protocol on the registry, so that an unmodified `mlflow` client logs, registers and loads models.

`application` is a Serve application under `/api`, `build_app` plain ASGI. The package knows the registry; it must not
know features, functions or the internals of the other applications.
"""

from toque.ray_apps.mlflow.app import ROUTE_PREFIX, application, build_app

__all__ = ["ROUTE_PREFIX", "application", "build_app"]
