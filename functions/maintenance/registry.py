"""Maintenance of the registry as a function for a schedule, such as nightly.

The function is safe beside registrations, runs and itself, and may be killed and repeated at any time.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, Field

from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Retries
from toque.functions.runtime.function import function
from toque.registry.store import FolderStore


class Tidied(BaseModel):
    """Result of tidying the registry.

    files: keys of deleted files that no version used; lost_runs: ids of runs whose process was gone; left_over: number of
    half-written files that killed writers had left (in a folder; in a bucket a lifecycle rule ends unfinished uploads).
    """

    files: list[str]
    lost_runs: list[str]
    left_over: int


@function(http=True, timeout_s=3600, retries=Retries(max_attempts=3), max_concurrency=1)
def tidy_registry(
    grace_days: Annotated[
        float, Field(ge=0, le=36_500, description="Days for which files of a deleted version are still kept.")
    ] = 1.0,
) -> Tidied:
    """Delete files that no version uses, record runs without a heartbeat as lost, and delete half-written files."""
    registry = context().registry()
    lost = [run for experiment in registry.list_experiments() for run in registry.reap_runs(experiment)]
    return Tidied(
        files=registry.collect_garbage(grace=timedelta(days=grace_days)),
        lost_runs=lost,
        left_over=registry.store.sweep() if isinstance(registry.store, FolderStore) else 0,
    )
