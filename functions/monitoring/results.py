"""What monitors found, as rows of the table `monitoring/{model}`; each finding once, however often a monitor runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from registry import ObjectStore, Table

_TIME = pa.timestamp("us", tz="UTC")
RESULTS = pa.schema(
    [
        pa.field("monitor", pa.string(), nullable=False),
        pa.field("subject", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("start", _TIME, nullable=False),
        pa.field("end", _TIME, nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("reference", pa.float64()),
        pa.field("statistic", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("text", pa.string()),
        pa.field("judged_at", _TIME, nullable=False),
    ]
)
"""One row a cohort and subject (a measure of loss, or a column). value and reference: mean loss and its baseline, or the
effect and its floor; statistic and threshold: CUSUM level and limit, or corrected p-value and level."""


def results_table(model: str) -> str:
    """The name of the table."""
    return f"monitoring/{model}"


def record(
    store: ObjectStore, model: str, monitor: str, rows: Sequence[dict[str, Any]], *, upto: int
) -> None:
    """Append `rows` unless `monitor` has already recorded its cohorts below `upto`."""
    if rows:
        table = Table(store, results_table(model))
        table.append(
            pa.Table.from_pylist(list(rows), schema=RESULTS), transactions={f"monitor/{monitor}": upto}
        )
