"""A run that another program logs through a protocol: what a call says is stored before it returns.

Such a run has no owner here and so no heartbeat: it goes on until the program says that it has ended. What is
logged to an ended run (a tag of a later judgement) is told to the experiment's index at once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import uuid4

from registry.errors import InvalidInput
from registry.names import check_name
from registry.runs.record import RunRecord, Segment, Status, new_run_id, with_segments

if TYPE_CHECKING:
    from registry.runs.run_store import RunStore

_COUNTED = "segments"  # a fact: how many the index's record contains


class RunLog:
    """Writes to one run, from any number of processes. Safe for threads."""

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
        """Begin a run; 2 writes and 1 read.

        started_at: as its program tells it; None: now. parent: id of the run this one is part of.
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
        """The log of a run that has begun. Raises: NotFound."""
        record = runs.get_record(run_id)
        return cls(runs, record, segments=sum(1 for _ in runs.store.list(f"runs/{run_id}/segments/")))

    @property
    def record(self) -> RunRecord:
        """The run as this object knows it; `RunStore.get_record` knows what others wrote too."""
        return self._record

    def write(self, segment: Segment) -> None:
        """Store what a call said: 1 write and 1 read, and 1 write more if the run had ended.

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
            told = self._told()
            if told.status != "RUNNING":
                self._tell(told)

    def change(
        self, *, status: Status | None = None, name: str | None = None, ended_at: datetime | None = None
    ) -> RunRecord:
        """Change the run's status or name; with RUNNING an ended run goes on. 1 write, 1 read and its segments.

        ended_at: as its program tells it; None: now.
        """
        with self._lock:
            told = self._told()
            if name is not None:
                told = replace(told, name=name)
            if status == "RUNNING":
                told = replace(told, status=status, ended_at=None)
            elif status is not None:
                told = replace(told, status=status, ended_at=ended_at or self._runs.clock())
            return self._tell(told)

    def _told(self) -> RunRecord:
        """The run as the index tells it."""
        return self._runs.index(self._record.experiment).refresh().get(self._record.id, self._record)

    def _tell(self, record: RunRecord) -> RunRecord:
        """Tell the index of the run, with all that is stored of it.

        What the index has counted already is not read again, unless a metric must be ordered among the others.
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
