"""Runs that another program logs through a protocol; each call is stored before it returns.

Such a run has no owner process here and no heartbeat: it is running until the program ends it. Events logged to an
ended run (a tag of a later review) are written to the experiment's index at once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import uuid4

from toque.registry.errors import InvalidInput
from toque.registry.names import check_name
from toque.registry.runs.record import RunRecord, Segment, Status, new_run_id, with_segments

if TYPE_CHECKING:
    from toque.registry.runs.run_store import RunStore

_COUNTED = "segments"  # a fact: how many segments the index's record contains


class RunLog:
    """Writer of one remote run, usable from any number of processes. Safe for threads."""

    def __init__(self, runs: RunStore, record: RunRecord, *, segments: int = 0) -> None:
        self._runs = runs
        self._record = record
        self._segments = segments
        self._lock = threading.Lock()

    @classmethod
    def begin(
        cls,
        runs: RunStore,
        experiment: str,
        *,
        name: str = "",
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        started_at: datetime | None = None,
        parent: str | None = None,
    ) -> RunLog:
        """Begin a remote run; 2 writes and 1 read.

        started_at: as reported by its program; None: now. parent: id of the run this one is part of.
        Raises: InvalidInput for a malformed experiment name.
        """
        facts = {"remote": True, "parent": parent}
        record = RunRecord(
            id=new_run_id(),
            experiment=check_name(experiment, what="experiment"),
            name=name,
            status="RUNNING",
            actor=runs.actor,
            started_at=started_at or runs.clock(),
            params=dict(params or {}),
            tags=dict(tags or {}),
            facts={fact: value for fact, value in facts.items() if value is not None},
        )
        runs.begin(record)
        return cls(runs, record)

    @classmethod
    def of(cls, runs: RunStore, run_id: str) -> RunLog:
        """Open the log of a run that has begun. Raises: NotFound."""
        record = runs.get_record(run_id)
        return cls(runs, record, segments=sum(1 for _ in runs.store.list(f"runs/{run_id}/segments/")))

    @property
    def record(self) -> RunRecord:
        """Record of the run as this object knows it; `RunStore.get_record` has other writers' events too."""
        return self._record

    def write(self, segment: Segment) -> None:
        """Store the events of one call; 1 write and 1 read, and 1 write more if the run had ended.

        Raises: InvalidInput if a parameter has another value already; Unavailable: call again.
        """
        with self._lock:
            for name, text in segment.params.items():
                before = self._record.params.get(name, text)
                if before != text:
                    raise InvalidInput(
                        f"param {name!r} of run {self._record.id} is {before!r} already, not {text!r}; "
                        "start another run"
                    )
            data = segment.to_bytes(nonce=uuid4().hex)
            self._segments = self._runs.store_segment(self._record.id, self._segments, data)
            self._record = with_segments(self._record, [segment])
            indexed = self._indexed()
            if indexed.status != "RUNNING":
                self._update_index(indexed)

    def change(
        self, *, status: Status | None = None, name: str | None = None, ended_at: datetime | None = None
    ) -> RunRecord:
        """Change the run's status or name; RUNNING resumes an ended run. 1 write, 1 read and its segments.

        ended_at: as reported by its program; None: now.
        """
        with self._lock:
            record = self._indexed()
            if name is not None:
                record = replace(record, name=name)
            if status == "RUNNING":
                record = replace(record, status=status, ended_at=None)
            elif status is not None:
                record = replace(record, status=status, ended_at=ended_at or self._runs.clock())
            return self._update_index(record)

    def _indexed(self) -> RunRecord:
        """Record of the run in the index."""
        return self._runs.index(self._record.experiment).refresh().get(self._record.id, self._record)

    def _update_index(self, record: RunRecord) -> RunRecord:
        """Write the run to the index with all its segments.

        Segments that the index contains are not read again, unless new metric values must be ordered among theirs.
        """
        counted = int(record.facts.get(_COUNTED, 0))
        new = list(self._runs.segments(record.id, counted))
        if counted and any(segment.points for segment in new):
            counted, new = 0, list(self._runs.segments(record.id))
        whole = with_segments(record, new)
        whole = replace(whole, facts={**whole.facts, _COUNTED: counted + len(new)})
        kind = "started" if whole.status == "RUNNING" else "ended"
        self._runs.index(record.experiment).transact(lambda _: {"kind": kind, "run": whole.brief()})
        self._record = whole
        return whole
