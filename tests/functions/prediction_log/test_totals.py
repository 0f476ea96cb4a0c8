"""Totals of answers: equal to a count of the whole log whatever happened to its files, and each file read once."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given

from toque.functions.prediction_log import LOAD_TEST, PINNED, predictions_table
from toque.functions.prediction_log.reading import totals
from toque.functions.prediction_log.reading.totals import AnswerTotals, answer_totals
from toque.functions.prediction_log.records import PREDICTIONS
from toque.registry import open_store
from toque.registry.store import ObjectStore, Table
from toque.registry.store.tables.history import remove_rows
from toque.registry.store.tables.upkeep import compact_table

MODEL = "late"
NOW = datetime(2026, 3, 29, 9, 30, 20, tzinfo=UTC)
DAY = timedelta(days=1)


def row(at: datetime, number: int = 0, **fields: Any) -> dict[str, Any]:
    return {
        "prediction_id": f"{at:%d%H%M%S}-{number}", "model": MODEL, "version": 1, "arm": "champion", "shadow": False, "unit": "u",
        "predicted_at": at, "latency_ms": 4.0, "numeric": [1.0], "categorical": None, "outputs": [0.5], "missing": [],
        "entities": "{}", "day": f"{at:%Y-%m-%d}",
    } | fields  # fmt: skip


def log(store: ObjectStore, *rows: dict[str, Any]) -> Table:
    table = Table(store, predictions_table(MODEL))
    table.append(pa.Table.from_pylist(list(rows), schema=PREDICTIONS), partition_by=["day"])
    return table


class OfOneUnit:
    """Rows to erase: those of a unit whose name is the beginning of another's."""

    columns = staticmethod(lambda _: ["unit"])
    mask = staticmethod(lambda rows: pc.equal(rows["unit"], "user-1234"))
    mentions = staticmethod(lambda text: "user-1234" in text.replace("user-12345", ""))


def total(store: ObjectStore, *limits: float) -> AnswerTotals:
    return answer_totals(store, MODEL, NOW - 28 * DAY, NOW, slow_ms=limits)


def counted(store: ObjectStore, slow_ms: float | None = None, without: int | None = None) -> tuple[int, int]:
    found = total(store) if slow_ms is None else total(store, slow_ms)
    return found.within(NOW - 28 * DAY, NOW, slow_ms=slow_ms, without=without)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file of the log was totalled."""
    made: Counter[str] = Counter()
    of_a_file = totals._total

    def noted(file: Any, *rest: Any) -> Any:
        made[file.path] += 1
        return of_a_file(file, *rest)

    monkeypatch.setattr(totals, "_total", noted)
    return made


def test_no_log_has_no_answers(store: ObjectStore) -> None:
    assert counted(store) == counted(store, 50.0) == (0, 0)


@pytest.mark.parametrize(
    ("outputs", "latency_ms", "unanswered", "slow"),
    [
        ([0.5], 4.0, False, False),
        ([0.5], 50.0, False, False),
        ([0.5], 50.1, False, True),
        ([0.5], None, False, True),
        ([0.5], float("nan"), False, True),
        (None, 4.0, True, False),
        ([], 4.0, True, False),
        ([0.5, float("nan")], 4.0, True, False),
        ([float("-inf")], 4.0, True, False),
        ([3.4028235e38], 4.0, False, False),
    ],
)
def test_what_is_a_bad_answer(
    store: ObjectStore, outputs: Any, latency_ms: Any, *, unanswered: bool, slow: bool
) -> None:
    log(store, row(NOW - DAY, outputs=outputs, latency_ms=latency_ms))
    assert counted(store) == (1, int(unanswered))
    assert counted(store, 50.0) == (1, int(slow))


def test_answers_that_no_user_got_are_not_counted(store: ObjectStore) -> None:
    arms = ["champion", "canary", "holdout", "rule:gold", PINNED, LOAD_TEST]
    log(store, *(row(NOW - DAY, at, arm=arm) for at, arm in enumerate(arms)), row(NOW - DAY, 9, shadow=True))
    assert counted(store) == (4, 0)


def test_a_file_is_read_once_and_late_merged_and_erased_rows_are_corrections(
    store: ObjectStore, reads: Counter[str]
) -> None:
    table = log(store, *(row(NOW - days * DAY, 0) for days in range(20)))
    assert counted(store) == (20, 0)
    log(store, row(NOW - 20 * DAY, 1, outputs=None), row(NOW - 3 * DAY, 2, unit="user-1234", outputs=None))
    log(store, row(NOW - 3 * DAY, 3, unit="user-12345"))  # days late
    assert counted(store) == counted(store) == (23, 2)
    assert set(reads.values()) == {1}
    compact_table(table)
    assert counted(store) == (23, 2)
    assert len(reads) == 24  # three files of one day became one

    remove_rows(table, OfOneUnit())
    assert counted(store) == (22, 1)
    assert set(reads.values()) == {1}


def test_the_log_gone_so_are_its_totals_and_without_what_is_kept_all_is_counted_again(
    store: ObjectStore, reads: Counter[str]
) -> None:
    table = log(store, row(NOW - 9 * DAY), row(NOW - DAY))
    assert counted(store) == (2, 0)
    table.open().delete(f"day <= '{NOW - 5 * DAY:%Y-%m-%d}'")  # retention
    assert counted(store) == (1, 0)
    for key in list(store.list("answer_totals/")):
        store.delete(key)
    assert counted(store) == (1, 0)
    assert sorted(reads.values()) == [1, 2]


def test_two_limits_of_latency_that_are_wanted_in_turn_do_not_count_again(
    store: ObjectStore, reads: Counter[str]
) -> None:
    log(store, row(NOW - DAY, 0, latency_ms=70.0), row(NOW - DAY, 1, latency_ms=30.0))
    for _ in range(3):
        assert counted(store) == (2, 0)
        assert counted(store, 50.0) == (2, 1)
        assert counted(store, 10.0) == (2, 2)
    assert set(reads.values()) == {3}  # once for each new limit


def test_a_version_can_be_left_out(store: ObjectStore) -> None:
    log(store, row(NOW - DAY, 0, version=2, outputs=None), row(NOW - DAY, 1))
    assert counted(store, without=2) == (1, 0)
    assert counted(store, without=3) == (2, 1)


def test_a_reader_of_few_days_leaves_what_was_totalled_of_others(
    store: ObjectStore, reads: Counter[str]
) -> None:
    log(store, row(NOW - 20 * DAY), row(NOW - DAY))
    assert counted(store) == (2, 0)
    assert answer_totals(store, MODEL, NOW - DAY, NOW).within(NOW - DAY, NOW, slow_ms=None) == (1, 0)
    log(store, row(NOW))
    answer_totals(store, MODEL, NOW - DAY, NOW)
    assert counted(store) == (3, 0)
    assert set(reads.values()) == {1}


def test_a_killed_count_goes_on_by_the_day(
    store: ObjectStore, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log(store, *(row(NOW - days * DAY) for days in range(6)))
    put, left = store.put, [3]

    def killed(key: str, data: bytes) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        put(key, data)

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            counted(store)
    assert counted(store) == (6, 0)
    assert sum(reads.values()) == 7  # the day that was lost twice


@given(
    st.lists(st.integers(0, 28 * 24 * 60 - 1), min_size=1, max_size=30),
    st.integers(1, 28 * 24 * 60),
    st.data(),
)
def test_a_window_holds_what_lies_in_it_to_the_minute_of_late_and_to_the_hour_before(
    tmp_path_factory: pytest.TempPathFactory, minutes: list[int], span: int, data: st.DataObject
) -> None:
    store = open_store(f"file://{tmp_path_factory.mktemp('log')}")
    times = [NOW - timedelta(minutes=ago, seconds=data.draw(st.integers(0, 19))) for ago in minutes]
    for part in (times[::2], times[1::2]):
        if part:
            log(store, *(row(at, number) for number, at in enumerate(part)))
            found = total(store)
    start = NOW - timedelta(minutes=span)
    cell = timedelta(minutes=1) if span <= 2 * 24 * 60 else timedelta(hours=1)
    answers = found.within(start, NOW, slow_ms=None)[0]
    assert sum(at >= start + cell for at in times) <= answers <= sum(at >= start - cell for at in times)
