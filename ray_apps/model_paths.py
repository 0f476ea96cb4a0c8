"""Paths of the HTTP API below which the models of a workspace are served."""

from __future__ import annotations

from typing import Final

from toque.registry.access import DEFAULT_WORKSPACE

MODELS: Final = "/v2/models"
"""Path of the default workspace's models, where clients of the protocol look."""


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
