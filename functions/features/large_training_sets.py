"""Training sets that do not fit a share of this machine's memory: made shard by shard, and never whole in one place.

A shard is a range of the entity table. On a Ray cluster its rows are joined by tasks on all nodes, and this process handles
names of files; without one this process joins smaller shards, and of the feature tables it holds the rows that can be an
answer. Files are committed at once, so that a reader sees all rows or none; the rows, and their order, are those of the
small way. A call that was killed is taken up after its last finished shard by the next one (see `build_record`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from toque.featurestore import InvalidRows
from toque.featurestore.offline.candidates import join_in_steps
from toque.featurestore.offline.pinned_retrieval import PinnedRetrieval, check_entities
from toque.functions.features.build_record import BuildPlan, BuildRecord
from toque.functions.features.entity_rows import EntityRows
from toque.functions.features.memory import entity_row_bytes
from toque.functions.runtime.run import cluster
from toque.functions.runtime.run.capture import report_progress
from toque.registry import Table
from toque.registry.store import Part, write_part

_FEWEST_ROWS, _MOST_ROWS = 2_000, 1_000_000  # of a shard that this process joins
_ROWS_ON_CLUSTER = 8_000_000
_HELD = 8  # so many times the bytes of its entity rows a join takes: rows, candidates, both again while they are put together

JoinShard = Callable[[range], list[Part]]
"""Joins and writes the entity rows of a range; returns the files in the order of their rows."""


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
        if not self.table.exists():
            self.table.create(self.schema)
        join, count = self._join(), self.entities.pinned().count
        parts: list[Part] = []
        for number, shard in enumerate(_shards(count, plan.shard_rows)):
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

        return lambda shard: join_on_ray(self, shard)

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


def _shards(count: int, rows: int) -> Iterator[range]:
    for start in range(0, count, rows):
        yield range(start, min(start + rows, count))
