"""Names of the predictor's Serve applications, and the routes of models, by workspace.

A name of another workspace than the default one begins with `{workspace}..`: neither workspaces nor models have two
dots in their names, and HAProxy takes them as they are, so no two workspaces share an application, a route or a backend.
"""

from __future__ import annotations

from toque.ray_apps.model_paths import models_path
from toque.registry.access import DEFAULT_WORKSPACE

__all__ = [
    "VERSION_PREFIX",
    "app_name",
    "in_workspace",
    "pool_app",
    "pool_prefix",
    "route_prefix",
    "version_app",
]

VERSION_PREFIX = "version-"


def app_name(model: str, workspace: str = DEFAULT_WORKSPACE) -> str:
    """Name of the Serve application that serves a model."""
    return f"predictor-{in_workspace(model, workspace)}"


def route_prefix(model: str, workspace: str = DEFAULT_WORKSPACE) -> str:
    """Route prefix below which a model is served."""
    return f"{pool_prefix(workspace)}/{model}"


def pool_app(workspace: str = DEFAULT_WORKSPACE) -> str:
    """Name of the Serve application of a workspace's pool."""
    return "pool" if workspace == DEFAULT_WORKSPACE else f"pool-{workspace}"


def pool_prefix(workspace: str = DEFAULT_WORKSPACE) -> str:
    """Route prefix of a workspace's pool: Serve prefers the longer prefix of a model with an application of its own."""
    return models_path(workspace)


def version_app(model: str, number: int, workspace: str = DEFAULT_WORKSPACE) -> str:
    """Name of the Serve application, and of the deployment in it, of a dedicated version."""
    return f"{VERSION_PREFIX}{in_workspace(model, workspace)}@{number}"


def in_workspace(name: str, workspace: str) -> str:
    """Name that no other workspace's `name` has; unchanged in the default workspace."""
    return name if workspace == DEFAULT_WORKSPACE else f"{workspace}..{name}"
