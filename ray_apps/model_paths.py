"""Paths of the HTTP API, names of Serve applications and their routes, for the models of each workspace.

A name of another workspace than the default one begins with `{workspace}..`: neither workspaces nor models have two
dots in their names, and HAProxy takes them as they are, so no two workspaces share an application, a route or a backend.
"""

from __future__ import annotations

from typing import Final

from toque.registry.access import DEFAULT_WORKSPACE

MODELS: Final = "/v2/models"
"""Path of the default workspace's models, where clients of the protocol look."""
VERSION_PREFIX = "version-"


def models_path(workspace: str = DEFAULT_WORKSPACE) -> str:
    """Return the path below which the models of a workspace are served, each by its name."""
    return MODELS if workspace == DEFAULT_WORKSPACE else f"/workspaces/{workspace}{MODELS}"


def qualified_name(model: str, workspace: str) -> str:
    """Name a model of any workspace, such as `churn`, or `payments/churn` outside the default workspace."""
    return model if workspace == DEFAULT_WORKSPACE else f"{workspace}/{model}"


def split_name(name: str) -> tuple[str, str]:
    """Split a qualified name into workspace and model."""
    workspace, _, model = name.rpartition("/")
    return workspace or DEFAULT_WORKSPACE, model


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
