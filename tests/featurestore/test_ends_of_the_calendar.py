"""A time at an end of the calendar is taken, and one beyond it is set aside or refused by name, on every way in; other rows go on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conditions.calendar import any_time_beyond, any_time_within
from tests.featurestore.streams.events import START, clicks, event, messages
from toque.featurestore import (
    Aggregation,
    BatchSource,
    CsvFiles,
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    InvalidRows,
    ParquetFiles,
    RequestSource,
    String,
    UnixTimestamp,
    Windows,
    on_demand_feature_view,
)
from toque.featurestore.offline.retrieval import plan_retrieval
from toque.featurestore.online.serving import Request
from toque.featurestore.rows import conform
from toque.featurestore.sources.loading import SourceTable
from toque.featurestore.streams.decode import decode
from toque.registry import open_store
from toque.registry.store import Table
from toque.registry.store.tables.parts import append_with_parts, read_part, write_part

GOOD = START.isoformat()
COLUMNS = ("at", "known", "until")
FIELDS = [Field("user", String), Field("until", UnixTimestamp), Field("amount", Float64)]
any_column = pytest.mark.parametrize("column", COLUMNS)
REASON = "is before the year 1 or after 9999 in UTC"


def microseconds(text: str) -> int:
    """Microseconds since 1970 of an ISO 8601 text, also where no `datetime` in UTC holds it."""
    at = datetime.fromisoformat(text)
    local = at.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    offset = at.utcoffset()
    assert offset is not None
    whole = local - offset
    return (whole.days * 86_400 + whole.seconds) * 1_000_000 + whole.microseconds


def loaded(tmp_path: Path, *, kind: str, column: str, end: str) -> tuple[SourceTable, Any]:
    """Load a file of three rows, of which the second has `end` in a column."""
    (tmp_path / "in").mkdir()
    rows = [{"user": name, "amount": 1.0, **dict.fromkeys(COLUMNS, GOOD)} for name in ("a", "b", "c")]
    rows[1][column] = end
    if kind == "csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        (tmp_path / "in" / "rows.csv").write_text("\n".join(lines) + "\n")
        reads: Any = CsvFiles(f"{tmp_path}/in/*.csv")
    else:
        times = pa.timestamp("us", "UTC")
        columns = {name: pa.array([row[name] for row in rows]) for name in ("user", "amount")}
        columns |= {
            name: pa.array([microseconds(str(row[name])) for row in rows], pa.int64()).cast(times)
            for name in COLUMNS
        }
        pq.write_table(pa.table(columns), tmp_path / "in" / "rows.parquet")
        reads = ParquetFiles(f"{tmp_path}/in/*.parquet")
    source = BatchSource(
        "tx", reads, FIELDS, timestamp="at", known_at="known", unique=["user"], bad_share=0.9
    )
    table = SourceTable(
        source, open_store(f"file://{tmp_path}/store"), "p", actor="ada", clock=lambda: datetime.now(UTC)
    )
    return table, table.load(lambda _: "")


@any_column
@pytest.mark.parametrize("kind", ["csv", "parquet"])
@any_time_beyond
def test_a_row_of_a_file_beyond_the_calendar_goes_aside_by_name_and_the_others_are_loaded(
    tmp_path: Path, kind: str, column: str, end: str
) -> None:
    table, load = loaded(tmp_path, kind=kind, column=column, end=end)
    assert (load.rows, load.reasons) == (2, {f"column {column!r} {REASON}": 1})
    assert sorted(table.rows().column("user").to_pylist()) == ["a", "c"]
    assert table.load(lambda _: "") is None


@any_column
@pytest.mark.parametrize("kind", ["csv", "parquet"])
@any_time_within
def test_a_row_of_a_file_at_an_end_of_the_calendar_is_loaded_and_read_back(
    tmp_path: Path, kind: str, column: str, end: str
) -> None:
    table, load = loaded(tmp_path, kind=kind, column=column, end=end)
    assert (load.rows, load.rejected) == (3, 0)
    times = [time for name in ("event_timestamp", "known_at", "until") if name in table.rows().column_names
             for time in table.rows().column(name).to_pylist()]  # fmt: skip
    assert datetime.fromisoformat(end) in times


@any_time_within
def test_views_of_a_source_with_an_event_at_an_end_of_the_calendar_have_everybody(
    tmp_path: Path, end: str
) -> None:
    (tmp_path / "rows.csv").write_text(f"user,at,amount\na,{GOOD},1\nb,{end},2\nc,{GOOD},3\n")
    source = BatchSource("tx", CsvFiles(f"{tmp_path}/*.csv"), FIELDS[::2], timestamp="at")
    user, sums = (
        Entity("user", dtype=String),
        Windows([Aggregation("sum", timedelta(hours=1), "amount")]),
    )
    store = FeatureStore(open_store(f"file://{tmp_path}/store"), None, actor="ada")
    views = [
        FeatureView("plain", [user], FIELDS[2:], events=source),
        FeatureView("sums", [user], source=sums, events=source),
    ]
    store.apply(views)
    store.source_table("tx").load(lambda _: "")
    for view in views:
        store.refresh_view(view.name)
        assert set(store.offline.read(view).column("user").to_pylist()) == {"a", "b", "c"}


@pytest.mark.parametrize("column", ["at", "until"])
@any_time_beyond
def test_an_event_beyond_the_calendar_goes_aside_by_name_and_the_stream_goes_on(
    tmp_path: Path, column: str, end: str
) -> None:
    source = clicks(schema=[Field("user", String), Field("until", UnixTimestamp)], expectations=[])
    events = decode(source, messages(0, 5, [event("a"), event("b") | {column: end}, event("c")]), {})
    assert events.events.column("user").to_pylist() == ["a", "c"]
    assert events.rejected.column("reason").to_pylist() == [f"column {column!r} {REASON}"]
    assert events.places[0].position == 8
    written = write_part(made(tmp_path, events.events), events.events, bounds=["event_timestamp"])
    assert written.rows == 2


def made(tmp_path: Path, rows: pa.Table) -> Table:
    table = Table(open_store(f"file://{tmp_path}/store"), "events")
    table.create(rows.schema)
    return table


@any_time_within
def test_a_file_of_a_table_at_an_end_of_the_calendar_is_found_by_its_times(tmp_path: Path, end: str) -> None:
    at = datetime.fromisoformat(end)
    rows = pa.table({"at": pa.array([at], pa.timestamp("us", "UTC"))})
    table = made(tmp_path, rows)
    part = write_part(table, rows, bounds=["at"])
    append_with_parts(table, [part], rows.schema, transactions={"w": 1})
    assert read_part(table, part).num_rows == 1
    assert table.read(where=[("at", ">=", at), ("at", "<=", at)]).num_rows == 1


@any_time_beyond
@pytest.mark.parametrize(  # event times are no texts
    ("column", "unit"), [("until", "text"), *product(["event_timestamp", "until"], ["us", "ms", "s"])]
)
def test_pushed_rows_beyond_the_calendar_are_refused_by_column_and_row(
    column: str, end: str, unit: str
) -> None:
    view = FeatureView("plain", [Entity("user", dtype=String)], [Field("until", UnixTimestamp)])
    scale = {"us": 1, "ms": 1_000, "s": 1_000_000}.get(unit)
    good, times = [GOOD, GOOD], pa.array([GOOD, end])
    if scale is not None:
        numbers = pa.array([0, microseconds(end) // scale], pa.int64())
        times = numbers.cast(pa.timestamp(unit, "UTC"))
    event_times = pa.array([START, START], pa.timestamp("us", "UTC"))
    rows = {"user": ["a", "b"], "event_timestamp": event_times, "until": good} | {column: times}
    with pytest.raises(InvalidRows, match=rf"{column}.* in row 1.*before the year 1 or after 9999"):
        conform(view, pa.table(rows), clock=lambda: START)


@any_time_beyond
def test_a_request_with_a_time_beyond_the_calendar_is_refused_by_name(end: str) -> None:
    asked = RequestSource("asked", [Field("until", UnixTimestamp)])

    @on_demand_feature_view(sources=[asked], schema=[Field("year", Float64)])
    def year(rows: Any) -> Any:
        return pa.table({"year": [1.0]})

    retrieval = plan_retrieval(FeatureService("s", [year]))
    with pytest.raises(InvalidRows, match=r"request value 'until' must be UnixTimestamp"):
        Request(retrieval, ()).answer([{"until": end}], [], now=START)
