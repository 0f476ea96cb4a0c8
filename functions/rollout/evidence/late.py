"""Count of what came too late for a cohort: rows of a node that was cut off, labels that took longer than `label_delay`.

A cohort is closed by the clock, and what comes later is not in its sums. Each is counted when it is closed and looked at once
more, one cohort later: so much is known of what the sums leave out. Where late labels differ from early ones, as complaints do,
the loss is one of early labels.
"""

from __future__ import annotations

from datetime import datetime
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from toque.functions.rollout.evidence.cohort_sums import (
    ReadOutcomes,
    SumsStore,
    cohort_due,
    randomised_rows,
)
from toque.functions.rollout.evidence.sums import LateRows
from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.rollout.state import RolloutState
from toque.registry.times import EPOCH


class _Looks(BaseModel):
    """State of the looks at closed cohorts. next_cohort: first one that has not been closed; closed_rows: of the one before it, when it was closed."""

    model_config = ConfigDict(frozen=True)

    next_cohort: int
    closed_rows: int | None = None
    late: LateRows = LateRows()

    def plus(self, rows: pa.Table, policy: RolloutPolicy) -> Self:
        """Look at the next cohort, which is due, and once more at the one before. rows: of both."""
        middle = EPOCH + self.next_cohort * policy.cohort
        is_before = pc.less(rows["predicted_at"], pa.scalar(middle, pa.timestamp("us", "UTC")))
        late = self.late
        if self.closed_rows is not None:
            late += _late_in(rows.filter(is_before), middle + policy.label_delay, self.closed_rows)
        return self.model_copy(
            update={
                "next_cohort": self.next_cohort + 1,
                "closed_rows": rows.filter(pc.invert(is_before)).num_rows,
                "late": late,
            }
        )


def late_rows(
    store: SumsStore, model: str, state: RolloutState, read: ReadOutcomes, now: datetime
) -> LateRows:
    """Count what came too late for the cohorts that were closed as of `now`; the log is read once for each cohort.

    The looks are kept in the store under `rollouts/{model}/evidence/`.
    """
    policy = state.policy
    key = f"rollouts/{model}/evidence/{state.rollout:08d}-late.json"
    kept, due = store.find(key), cohort_due(now, policy)
    first = max(
        (state.started_at - EPOCH) // policy.cohort, due - 1
    )  # what was closed long ago is not read for it
    looks = _Looks(next_cohort=first) if kept is None else _Looks.model_validate_json(kept)
    begun = looks.next_cohort
    while looks.next_cohort < due:
        start = EPOCH + (looks.next_cohort - 1) * policy.cohort
        rows = randomised_rows(read(max(start, state.started_at), start + 2 * policy.cohort))
        looks = looks.plus(rows.filter(pc.invert(rows["shadow"])), policy)
    if looks.next_cohort > begun:
        store.put(key, looks.model_dump_json().encode())
    return looks.late


def _late_in(rows: pa.Table, deadline: datetime, closed_rows: int) -> LateRows:
    """Count one cohort that is looked at again. closed_rows: when it was closed, at `deadline`."""
    labelled = rows.filter(pc.is_valid(rows["label"]))
    late = 0
    if "received_at" in rows.schema.names:
        after = pc.greater(labelled["received_at"], pa.scalar(deadline, pa.timestamp("us", "UTC")))
        late = int(pc.sum(after).as_py() or 0)
    return LateRows(
        cohorts=1,
        rows=rows.num_rows,
        late_rows=max(0, rows.num_rows - closed_rows),
        labels=labelled.num_rows,
        late_labels=late,
    )
