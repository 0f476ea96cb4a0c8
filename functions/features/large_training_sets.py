"""Training sets that do not fit a share of this machine's memory: made shard by shard, and never whole in one place.

A shard is a range of the entity table. On a Ray cluster its rows are joined by tasks on all nodes, and this process
handles names of files; without one this process joins smaller shards, and of the feature tables it holds the rows
that can be an answer. Files are committed at once, so that a reader sees all rows or none; the rows, and their order,
are those of the small way.

A call that was killed is taken up after its last finished shard by the next one. The plan is stored before the first
shard, and the files of each shard after they were written; both by `create`, so that of several callers one decides.
The record goes when the set is committed. Once an erasure has rewritten the entity table the ranges hold other rows,
so the plan is made anew; a call that is at work then ends with what to do.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel, Field, RootModel

from toque.featurestore import InvalidRows
from toque.featurestore.offline.prefilter import join_in_steps
from toque.featurestore.offline.retrieval import PinnedRetrieval, check_entities, row_bytes
from toque.functions.features.entity_rows import EntityRows
from toque.functions.runtime.run import cluster
from toque.functions.runtime.run.log import report_progress
from toque.registry import AlreadyExists, ObjectStore, Table, TableSnapshot
from toque.registry.store import Part, write_part

JoinShard = Callable[[range], list[Part]]
"""Joins and writes the entity rows of a range; returns the files in the order of their rows."""

_FEWEST_ROWS, _MOST_ROWS = 2_000, 1_000_000  # of a shard that this process joins
_ROWS_ON_CLUSTER = 8_000_000
_HELD = 8  # so many times the bytes of its entity rows a join takes: rows, candidates, both again while they are put together
_RESUMABLE_WITHIN = timedelta(hours=6)
_PLAN = "plan.json"
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class ShardedBuild:
    """Training set to be made shard by shard in files of `table`, whose rows stay as they are.

    job: a retrieval of the features for no rows, or None if the entity rows have them; schema: of the result.
    """

    table: Table
    entities: EntityRows
    job: PinnedRetrieval | None
    schema: pa.Schema

    def shard_rows(self, budget_bytes: float) -> int:
        """Rows of a shard: what this process joins within the budget, or on a cluster enough to read the features seldom."""
        if cluster.running():
            stored = 0 if self.job is None else self.job.most_stored_rows()
            return max(_ROWS_ON_CLUSTER, stored)
        fitting = int(budget_bytes / (_HELD * entity_row_bytes(self.entities, self.job)))
        return min(max(fitting, _FEWEST_ROWS), _MOST_ROWS)

    def write(self, record: BuildRecord, plan: BuildPlan) -> list[Part]:
        """Write the shards that `record` lacks; returns the files of all, in order.

        Raises: InvalidRows if no row is left.
        """
        self.table.create(self.schema)
        join, count = self._join(), self.entities.pinned().count
        parts: list[Part] = []
        for number, start in enumerate(range(0, count, plan.shard_rows)):
            shard = range(start, min(start + plan.shard_rows, count))
            found = record.find(plan, number)
            parts += record.add(plan, number, join(shard)) if found is None else found
            report_progress(shard.stop, count, f"{shard.stop:,} of {count:,} entity rows")
        if not parts:
            raise InvalidRows(self.entities.none_left())
        return parts

    def _join(self) -> JoinShard:
        if not cluster.running():
            return self.join_here
        from toque.functions.features.joins_on_ray import join_on_ray  # late: Ray Data, which few calls need

        return partial(
            join_on_ray, entities=self.entities, job=self.job, table=self.table, schema=self.schema
        )

    def join_here(self, shard: range) -> list[Part]:
        """Join the entity rows of a range in this process, and write them to one file, or none if no row is chosen."""
        pinned = self.entities.pinned()
        chosen = [
            self.entities.choose(rows) for rows in pinned.slices(shard.start, shard.stop, rows=len(shard))
        ]
        rows = pa.concat_tables(chosen)
        if not rows.num_rows:
            return []
        if self.job is not None:
            job = self.job
            rows = join_in_steps(replace(job, entities=check_entities(rows, job.retrieval)))
        return [write_part(self.table, rows.select(self.schema.names).cast(self.schema))]


class BuildPlan(BaseModel, frozen=True):
    """What a build has fixed before its first shard, so that all its shards are of one whole.

    id: of its commit; known_by: of the labels; tables: the version that is read of each view; shard_rows: rows of the
    entity table that become one shard; entities: digest of that table's files.
    """

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    made_at: datetime
    known_by: datetime
    tables: dict[str, TableSnapshot | None]
    shard_rows: int
    entities: str = ""


_Parts = RootModel[list[Part]]


class BuildRecord:
    """Plan and finished shards of one build, below `training_builds/{key}/` in `store`."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store = store
        self._folder = f"training_builds/{key}/"

    def begin(self, plan: BuildPlan) -> BuildPlan:
        """Store a plan, or return the one of an earlier call that did not end, if it is no older than six hours and of the same rows."""
        while True:
            try:
                self._store.create(self._folder + _PLAN, plan.model_dump_json().encode())
            except AlreadyExists:
                data = self._store.find(self._folder + _PLAN)
                found = None if data is None else BuildPlan.model_validate_json(data)
                same = found is not None and found.entities == plan.entities
                if found is not None and same and abs(plan.made_at - found.made_at) <= _RESUMABLE_WITHIN:
                    return found
                self.end()
            else:
                return plan

    def find(self, plan: BuildPlan, shard: int) -> list[Part] | None:
        """Find the files of a finished shard, in the order of their rows."""
        data = self._store.find(self._key(plan, shard))
        return None if data is None else _Parts.model_validate_json(data).root

    def add(self, plan: BuildPlan, shard: int, parts: Sequence[Part]) -> list[Part]:
        """Record a finished shard; returns its files, which are another caller's if that one was faster."""
        try:
            self._store.create(self._key(plan, shard), _Parts(list(parts)).model_dump_json().encode())
        except AlreadyExists:
            return self.find(plan, shard) or list(parts)
        return list(parts)

    def end(self) -> None:
        """Remove the record: the plan first, so that a kill in between leaves shards which no plan names."""
        self._store.delete(self._folder + _PLAN)
        for key in list(self._store.list(self._folder)):
            self._store.delete(key)

    def _key(self, plan: BuildPlan, shard: int) -> str:
        return f"{self._folder}{plan.id}/{shard:08d}.json"


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
