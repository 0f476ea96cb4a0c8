"""Workspaces: teams' parts of a platform, each a part of the store with everything that belongs to the team.

The workspace `default` is the platform's store itself, so a store without workspaces is one with a single team.
Any other one lies below `workspaces/{name}`: models, runs, features, invocations, predictions, labels, reports and
schedules of different workspaces never meet, and a bucket's policy can hold them apart by prefix.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field

from toque.registry.access.grants import DEFAULT_WORKSPACE, UNLIMITED, Limits, check_workspace

if TYPE_CHECKING:
    from toque.registry.store import ObjectStore

_FOLDER = "workspaces"


class QueueShare(BaseModel):
    """What the experiments of a workspace may take of the cluster at a time; None: no limit.

    share: weight of the workspace among all, in the fair share of the cards; cpus, gpus, at_once: of all its experiments together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(default=1.0, gt=0, le=1_000)
    cpus: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    gpus: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    at_once: int | None = Field(default=None, ge=0)


class Workspace(BaseModel):
    """A workspace of the platform. limits: bounds on the requests of all its callers together; queue: on its experiments."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str = ""
    limits: Limits = UNLIMITED
    queue: QueueShare = QueueShare()
    created_by: str = ""
    created_at: datetime | None = None


def workspace_store(store: ObjectStore, name: str) -> ObjectStore:
    """Open the part of the platform's store that belongs to a workspace. Raises: InvalidInput."""
    check_workspace(name)
    return store if name == DEFAULT_WORKSPACE else store.within(f"{_FOLDER}/{name}")


def workspace_url(platform_url: str, name: str) -> str:
    """Derive the URL of a workspace's store from that of the platform's. Raises: InvalidInput."""
    check_workspace(name)
    if name == DEFAULT_WORKSPACE:
        return platform_url
    parts = urlsplit(platform_url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{_FOLDER}/{name}"))


def split_workspace_url(url: str) -> tuple[str, str]:
    """Split a store's URL into that of the platform and the name of the workspace."""
    parts = urlsplit(url)
    above, _, name = parts.path.rstrip("/").rpartition("/")
    if not above.endswith(f"/{_FOLDER}") or not name:
        return url, DEFAULT_WORKSPACE
    return urlunsplit(parts._replace(path=above.removesuffix(f"/{_FOLDER}"))), name
