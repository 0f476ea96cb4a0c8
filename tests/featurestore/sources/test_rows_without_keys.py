"""Rows and events without a key, or a value that a view needs, are told apart by name; all others come into the view."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.featurestore.streams.events import START, clicks, event, messages
from toque.featurestore import (
    Aggregation,
    BatchSource,
    CsvFiles,
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    InvalidRows,
    String,
    Windows,
)
from toque.featurestore.streams.decode import decode
from toque.featurestore.streams.table import Move

DAY = datetime(2024, 5, 1, tzinfo=UTC)
both = Entity("both", [Field("user", String), Field("shop", String)])
amount = Field("amount", Float64, nullable=False)
ROWS = [("u1", "s1", "1"), ("u2", "s2", "2"), ("u3", "", ""), ("null", "s4", "4")]
"""Rows that fit but for some of their values: of the last two, a feature and a key are such that only some views need them."""
BAD: dict[str, tuple[str, str, str]] = {
    "the first key": ("", "s", "9"),
    "the second key": ("u", "", "9"),
    "both keys": ("", "", "9"),
    "a word for nothing": ("NA", "s", "9"),
}
bad_row = pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())


def source(tmp_path: Path) -> BatchSource:
    schema = [Field("user", String), Field("shop", String), Field("amount", Float64)]
    reads = CsvFiles(f"{tmp_path}/in/*.csv", null=("", "NA"))
    return BatchSource("tx", reads, schema, timestamp="at", known_at="at", columns={"shop": "store"})


def land(tmp_path: Path, name: str, *rows: tuple[str, str, str]) -> None:
    (tmp_path / "in").mkdir(exist_ok=True)
    lines = [
        f"{user},{shop},{value},{(DAY + timedelta(minutes=number)).isoformat()}\n"
        for number, (user, shop, value) in enumerate(rows)
    ]
    (tmp_path / "in" / f"{name}.csv").write_text("user,store,amount,at\n" + "".join(lines))


def load(fs: FeatureStore) -> None:
    fs.source_table("tx").load(lambda _name: "")


def plain(tmp_path: Path, feature: Field = Field("amount", Float64)) -> FeatureView:  # noqa: B008  # frozen
    return FeatureView("spent", [both], [feature], events=source(tmp_path))


def windowed(tmp_path: Path) -> FeatureView:
    sums = Windows([Aggregation("sum", timedelta(hours=1), "amount")])
    return FeatureView("spent", [both], source=sums, events=source(tmp_path))


def keys(fs: FeatureStore) -> list[str]:
    found: list[str] = fs.offline.read(fs.get_feature_view("spent"))["user"].to_pylist()
    return sorted(found)


@bad_row
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("view", [plain, windowed])
def test_a_row_without_a_key_is_set_aside_by_name(
    offline_fs: FeatureStore, tmp_path: Path, view: Any, bad: tuple[str, str, str], place: int
) -> None:
    rows = [ROWS[0], ROWS[1]]
    rows.insert(place, bad)
    offline_fs.apply([view(tmp_path)])
    land(tmp_path, "a", *rows)
    load(offline_fs)
    refreshed = offline_fs.refresh_view("spent")
    assert (refreshed.rows, refreshed.rejected, keys(offline_fs)) == (2, 1, ["u1", "u2"])
    ((reason, count),) = refreshed.reasons.items()
    name = "user" if bad[0] in ("", "NA") else "store"
    assert (f"needs column {name!r}, which has no value" in reason, count) == (True, 1)
    aside = offline_fs.source_table("tx").rejected.read()
    assert aside["reason"].to_pylist() == [reason]
    assert '"amount": 9.0' in aside["row"][0].as_py()


@bad_row
def test_loads_after_a_row_without_a_key_come_in_and_it_is_told_once(
    offline_fs: FeatureStore, tmp_path: Path, bad: tuple[str, str, str]
) -> None:
    offline_fs.apply([plain(tmp_path)])
    land(tmp_path, "a", bad)
    load(offline_fs)
    for _ in range(2):  # nothing of the view's was in it, so that the load is looked at again
        assert offline_fs.refresh_view("spent").rejected == 1
    land(tmp_path, "b", ROWS[0], bad)
    load(offline_fs)
    assert offline_fs.refresh_view("spent").rows == 1
    land(tmp_path, "c", ROWS[1])
    load(offline_fs)
    assert offline_fs.refresh_view("spent").rejected == 0
    assert keys(offline_fs) == ["u1", "u2"]
    assert offline_fs.source_table("tx").rejected.read().num_rows == 2


def test_each_view_leaves_out_only_what_it_needs_itself(offline_fs: FeatureStore, tmp_path: Path) -> None:
    user = Entity("user", dtype=String)
    by_user = FeatureView("by_user", [user], [Field("amount", Float64)], events=source(tmp_path))
    offline_fs.apply([plain(tmp_path), by_user])
    land(tmp_path, "a", *ROWS)
    load(offline_fs)
    assert (offline_fs.refresh_view("spent").rows, keys(offline_fs)) == (3, ["null", "u1", "u2"])
    assert offline_fs.refresh_view("by_user").rows == 4


def test_a_row_without_a_value_that_a_feature_must_have_is_set_aside(
    offline_fs: FeatureStore, tmp_path: Path
) -> None:
    offline_fs.apply([plain(tmp_path, amount)])
    land(tmp_path, "a", ROWS[0], ("u2", "s2", ""), ROWS[3])
    load(offline_fs)
    refreshed = offline_fs.refresh_view("spent")
    assert (refreshed.rows, refreshed.rejected) == (2, 1)
    assert "'amount'" in next(iter(refreshed.reasons))


@pytest.mark.parametrize("feature", [Field("amount", Float64), amount], ids=["a key", "a feature"])
@pytest.mark.parametrize("source", ["plain", "windows"])
def test_an_event_without_a_key_stops_no_view_of_its_stream(
    offline_fs: FeatureStore, clock: Any, feature: Field, source: str
) -> None:
    user = Entity("user", dtype=String)
    stream = clicks(reads=clicks().reads, partitioned_by=["user"])
    sums = Windows([Aggregation("sum", timedelta(hours=1), "amount")])
    view = (
        FeatureView("spent", [user], [feature], events=stream)
        if source == "plain"
        else FeatureView("spent", [user], source=sums, events=stream)
    )
    offline_fs.apply([view])
    clock.now = START + timedelta(days=1)
    missing = event("u9") | ({"amount": None} if feature is amount and source == "plain" else {"user": None})
    table = offline_fs.stream_table("clicks")
    found = decode(table.source, messages(0, 0, [event("u1"), missing, event("u2")]), {0: None})
    table.commit(found.events, found.rejected, {0: Move(None, found.places[0])})
    refreshed = offline_fs.refresh_view("spent")
    assert (refreshed.rows, refreshed.rejected, keys(offline_fs)) == (2, 1, ["u1", "u2"])


def test_pushed_rows_of_which_one_has_no_key_are_refused_by_its_name_and_none_is_kept(
    fs: FeatureStore, clock: Any
) -> None:
    clock.now = DAY + timedelta(days=1)
    view = FeatureView("spent", [Entity("user", dtype=String)], [Field("amount", Float64)])
    fs.apply([view])
    at = pa.array([DAY] * 2, pa.timestamp("us", "UTC"))
    rows = pa.table({"user": ["u1", None], "amount": [1.0, 2.0], "event_timestamp": at})
    with pytest.raises(InvalidRows, match="column 'user' is null in 1 rows, first in row 1"):
        fs.push("spent", rows)
    assert fs.offline.read(fs.get_feature_view("spent")).num_rows == 0
    fs.push("spent", rows.slice(0, 1))
    assert keys(fs) == ["u1"]
