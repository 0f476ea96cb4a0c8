"""What is held out counts from the newest labelled row, whenever that was and however the rows lie."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from toque.functions.retraining.windows import Cut, newest_fifth, newest_span
from toque.functions.training import TrainingDataError
from toque.registry import Table, open_store

NOW = datetime(2024, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
JUST = timedelta(microseconds=1)
Row = tuple[datetime, float | None, datetime | None]


def daily(last: datetime, count: int) -> list[Row]:
    """Rows of consecutive days, whose labels were known a day later."""
    days = [last - DAY * back for back in range(count)]
    return [(day, 1.0, day + DAY) for day in days]


def table(tmp_path: Path, *parts: list[Row], known: bool = True) -> Table:
    made = Table(open_store(f"file://{tmp_path}"), "rows")
    utc = pa.timestamp("us", "UTC")
    for rows in parts:
        at, labels, known_at = zip(*rows, strict=True)
        columns: dict[str, Any] = {"event_timestamp": pa.array(at, utc), "y": pa.array(labels, pa.float64())}
        columns |= {"label_known_at": pa.array(known_at, utc)} if known else {}
        made.append(pa.table(columns))
    return made


def span(made: Table, days: float = 7) -> Cut:
    options: dict[str, Any] = {"entities": made, "known_by": NOW, "delay": DAY}
    return newest_span(made.snapshot(), "y", days * DAY, **options)


@pytest.mark.parametrize("last", [NOW - DAY, NOW - 40 * DAY, datetime(2018, 1, 1, tzinfo=UTC), datetime(1951, 3, 4, tzinfo=UTC)])  # fmt: skip
@pytest.mark.parametrize("known", [True, False])
def test_the_span_ends_with_the_newest_row_of_any_age(tmp_path: Path, last: datetime, *, known: bool) -> None:
    made = table(tmp_path, daily(last, 50), daily(last - 50 * DAY, 50), known=known)
    first = last - 99 * DAY
    expected = last if last < NOW - DAY else last - DAY
    assert span(made) == Cut(first, expected + JUST - 7 * DAY, expected + JUST)


def test_rows_without_a_label_or_of_later_times_do_not_count(tmp_path: Path) -> None:
    old = daily(NOW - 400 * DAY, 30)
    unlabelled = [(NOW - 2 * DAY, None, NOW - DAY)]
    not_known = [(NOW - 3 * DAY, 1.0, NOW + DAY), (NOW - 3 * DAY, 1.0, None)]
    young = [(NOW - DAY / 2, 1.0, NOW - DAY / 4), (NOW + 9 * DAY, 1.0, NOW - DAY)]
    cut = span(table(tmp_path, [*unlabelled, *old], [*not_known, *young]))
    assert cut.end == NOW - 400 * DAY + JUST


def test_rows_that_are_all_younger_than_the_span_are_cut_at_the_newest_fifth(tmp_path: Path) -> None:
    rows = [(NOW - 300 * DAY + timedelta(minutes=minute), 1.0, NOW - 299 * DAY) for minute in range(100)]
    cut = span(table(tmp_path, rows))
    assert cut.split == NOW - 300 * DAY + timedelta(minutes=80)
    assert cut == newest_fifth(table(tmp_path).snapshot(), "y", entities=table(tmp_path))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(NOW - DAY / 2, 1.0, NOW - DAY / 4)], "label_delay before"),
        ([(NOW - 9 * DAY, None, NOW - 8 * DAY)], "no rows with 'y' known by"),
        ([(NOW - 9 * DAY, 1.0, NOW - 8 * DAY)] * 5, "every row has the time"),
    ],
)
def test_rows_that_no_time_parts_are_said(tmp_path: Path, rows: list[Row], words: str) -> None:
    with pytest.raises(TrainingDataError, match=words):
        span(table(tmp_path, rows))
