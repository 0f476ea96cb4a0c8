"""Memory that a join in one process would take, and that this node has: what decides whether it is spread over a cluster."""

from __future__ import annotations

import os
from pathlib import Path

from toque.featurestore.offline.pinned_retrieval import PinnedRetrieval, row_bytes
from toque.functions.features.entity_rows import EntityRows

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def estimated_bytes(entities: EntityRows, job: PinnedRetrieval | None) -> int:
    """Estimate the memory of a join in one process, from the tables' logs: all entity rows, and the rows that they may see.

    job: a retrieval of the features for no rows; None if there is nothing to join.
    """
    stored = 0 if job is None else job.stored_bytes((entities.first, entities.last))
    # Joined rows stand beside the rows they were made of.
    return 2 * entities.pinned().count * entity_row_bytes(entities, job) + stored


def entity_row_bytes(entities: EntityRows, job: PinnedRetrieval | None) -> int:
    """Estimate the bytes of an entity row in memory with its features: by its types, or by its file if that says more."""
    pinned = entities.pinned()
    features = 0 if job is None else 8 * len(job.retrieval.columns)
    stored = pinned.size_bytes // max(pinned.count, 1)
    return max(row_bytes(pinned.schema), stored) + features


def memory_bytes() -> int:
    """Memory that this process may use: the node's, or less if its container has less."""
    node = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [Path(name).read_text().strip() for name in _CGROUP_LIMITS if Path(name).is_file()]
    return min([node, *(int(limit) for limit in limits if limit.isdigit())])
