"""What comes too late for a cohort that was closed: labels after `label_delay`, rows of a node that was cut off."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from tests.functions.rollout.conftest import RolloutPlatform
from toque.functions.prediction_log.records import LABELS, LABELS_TABLE, PREDICTIONS, predictions_table
from toque.functions.rollout.policy import RolloutPolicy
from toque.registry.store import Table

DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def label_later(platform: RolloutPlatform, ids: list[str], by: timedelta) -> None:
    """Label predictions of the day that has just ended, `by` so much after its end."""
    at = platform.now + by
    rows = [
        {"prediction_id": name, "label": 1.0, "observed_at": at, "received_at": at, "day": f"{at:%Y-%m-%d}"}
        for name in ids
    ]
    Table(platform.store, LABELS_TABLE).append(
        pa.Table.from_pylist(rows, schema=LABELS), partition_by=["day"]
    )


@pytest.mark.parametrize(
    ("delay", "lateness", "is_late"),
    [
        (DAY, 23 * HOUR, False),
        (DAY, 30 * HOUR, True),
        (timedelta(0), HOUR, True),
        (3 * DAY, 60 * HOUR, False),
    ],
)
def test_labels_that_come_after_their_delay_are_counted_and_shown(
    platform: RolloutPlatform, delay: timedelta, lateness: timedelta, *, is_late: bool
) -> None:
    platform.labelled = 0.0
    platform.rollouts().start(2, RolloutPolicy(label_delay=delay), reason="retrained")
    pending: list[str] = []
    for _ in range(7):
        platform.serve_a_day(requests=40)
        label_later(platform, [f"{platform.now - DAY:%j}-{i}" for i in range(40)], lateness)
        pending.append(platform.rollouts().status().next)
        platform.rollouts().tick()
    late = (
        platform.rollouts()
        ._observe(platform.rollouts().history().current, platform.registry.now, platform.now, {})
        .late
    )
    assert late.cohorts >= 2
    assert late.rows == late.labels == 40 * late.cohorts
    assert late.late_labels == (late.labels if is_late else 0)
    assert late.late_rows == 0
    assert ("Too late for the loss" in pending[-1]) == is_late


def test_rows_of_a_node_that_was_cut_off_are_counted_and_shown(platform: RolloutPlatform) -> None:
    platform.rollouts().start(2, RolloutPolicy(label_delay=timedelta(0)), reason="retrained")
    platform.serve_a_day(requests=50)
    platform.rollouts().tick()  # closes the day
    day = platform.now - DAY
    rng = np.random.default_rng(1)
    rows = [
        platform._row(f"cut-off-{i}", 1, "champion", day + rng.random() * DAY, 0.0, shadow=False)
        for i in range(17)
    ]
    Table(platform.store, predictions_table(platform.model)).append(
        pa.Table.from_pylist(rows, schema=PREDICTIONS), partition_by=["day"]
    )
    platform.serve_a_day(requests=50)
    platform.rollouts().tick()
    assert "17 of 67 answers" in platform.rollouts().status().next
    platform.serve_a_day(requests=50)
    platform.rollouts().tick()
    status = platform.rollouts().status()  # counted once
    assert "of 2 cohorts" in status.next
    assert "17 of 117 answers" in status.next
