"""Record of a training set that is built shard by shard, in the store: what a call that was killed left, another one takes up.

The plan is stored before the first shard, and the files of each shard after they were written; both by `create`, so that of
several callers one decides. The record goes when the set is committed.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field, RootModel

from toque.registry import AlreadyExists, ObjectStore, TableSnapshot
from toque.registry.store import Part

_RESUMABLE = timedelta(hours=6)
_PLAN = "plan.json"


class BuildPlan(BaseModel):
    """What a build has fixed before its first shard, so that all its shards are of one whole.

    id: of its commit; known_by: of the labels; tables: the version that is read of each view; shard_rows: rows of the
    entity table that become one shard.
    """

    model_config = ConfigDict(frozen=True)

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    made_at: datetime
    known_by: datetime
    tables: dict[str, TableSnapshot | None]
    shard_rows: int


_Parts = RootModel[list[Part]]


class BuildRecord:
    """Plan and finished shards of one build, below `training_builds/{key}/` in `store`."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store = store
        self._folder = f"training_builds/{key}/"

    def begin(self, plan: BuildPlan) -> BuildPlan:
        """Store a plan, or return the one of an earlier call that did not end, if it is no older than six hours."""
        while True:
            try:
                self._store.create(self._folder + _PLAN, plan.model_dump_json().encode())
            except AlreadyExists:
                found = self._find_plan()
                if found is not None and abs(plan.made_at - found.made_at) <= _RESUMABLE:
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

    def _find_plan(self) -> BuildPlan | None:
        data = self._store.find(self._folder + _PLAN)
        return None if data is None else BuildPlan.model_validate_json(data)

    def _key(self, plan: BuildPlan, shard: int) -> str:
        return f"{self._folder}{plan.id}/{shard:08d}.json"
