"""Training sets see what was known at a row's time, of every kind of view that says when a value became known."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.conditions.clocks import any_delay
from toque.featurestore import (
    Aggregation,
    BatchSource,
    CsvFiles,
    Derived,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    Float64,
    String,
    Windows,
)
from toque.functions import Context, use_context
from toque.functions.features.jobs import build_training_set, training_set_lineage
from toque.registry import Table, TableSnapshot, open_store

HAPPENED = datetime(2024, 5, 1, 8, tzinfo=UTC)
LATER = timedelta(hours=1)
user = Entity("user", dtype=String)
amount = Field("amount", Float64)


@pytest.fixture
def ctx(tmp_path: Path, clock: Any) -> Iterator[Context]:
    url = f"file://{tmp_path}/store"
    clock.now = HAPPENED + timedelta(days=1_000)  # long after all: history that was loaded today
    with use_context(Context(open_store(url), url, None, clock=clock, actor="ada")) as context:
        yield context


def files(tmp_path: Path, delay: timedelta, *, known_at: str = "known") -> BatchSource:
    landing = tmp_path / "landing"
    landing.mkdir()
    times = f"{HAPPENED.isoformat()},{(HAPPENED + delay).isoformat()}"
    (landing / "a.csv").write_text(f"user,amount,at,known\nu,7,{times}\n")
    return BatchSource(
        "tx", CsvFiles(f"{landing}/*.csv"), [Field("user", String), amount], timestamp="at", known_at=known_at
    )


def trained(ctx: Context, view: FeatureView, **options: Any) -> tuple[list[Any], TableSnapshot]:
    """Values of a training set's row that was asked an hour after the event."""
    ctx.features().apply([view, FeatureService("model", [view])])
    at = pa.array([HAPPENED + LATER], pa.timestamp("us", "UTC"))
    asked = Table(ctx.store, "asked").overwrite(
        pa.table({"user": ["u"], "event_timestamp": at, "label": [1]})
    )
    made = build_training_set("model", asked, "label", HAPPENED, HAPPENED + 2 * LATER, **options)
    return Table(ctx.store, made.name).read(version=made.version)[view.features[0]].to_pylist(), made


def loaded(ctx: Context, *views: FeatureView) -> FeatureView:
    ctx.features().apply(views)
    ctx.features().source_table("tx").load(lambda _name: "")
    for view in views:
        ctx.features().refresh_view(view)
    return views[-1]


def doubled(inputs: Any) -> Any:
    return inputs.select(double=2 * inputs["amount"])


@any_delay
def test_a_row_of_files_counts_from_when_it_was_known(ctx: Context, tmp_path: Path, delay: timedelta) -> None:
    view = loaded(ctx, FeatureView("spent", [user], [amount], events=files(tmp_path, delay)))
    known = delay <= LATER
    assert trained(ctx, view)[0] == [7.0 if known else None]
    assert trained(ctx, view, as_known=False)[0] == [7.0]


@any_delay
def test_a_derived_row_counts_from_when_its_input_was_known(
    ctx: Context, tmp_path: Path, delay: timedelta
) -> None:
    spent = FeatureView("spent", [user], [amount], events=files(tmp_path, delay))
    double = FeatureView("double", [user], source=Derived([spent], [Field("double", Float64)], doubled))
    view = loaded(ctx, spent, double)
    assert trained(ctx, view)[0] == [14.0 if delay <= LATER else None]
    assert trained(ctx, view, as_known=False)[0] == [14.0]


@any_delay
def test_a_window_counts_what_was_known_however_late_it_was_computed(
    ctx: Context, tmp_path: Path, delay: timedelta
) -> None:
    windows = Windows([Aggregation("sum", timedelta(days=500), "amount", name="total")])
    view = loaded(ctx, FeatureView("spent", [user], source=windows, events=files(tmp_path, delay)))
    assert trained(ctx, view)[0] == [7.0 if delay <= LATER else None]


@any_delay
def test_a_row_written_with_its_created_time_counts_from_then(ctx: Context, delay: timedelta) -> None:
    view = FeatureView("spent", [user], [amount])
    ctx.features().apply([view])
    row = {"user": "u", "amount": 7.0, "event_timestamp": HAPPENED, "created_timestamp": HAPPENED + delay}
    ctx.features().write_offline(view, [row])
    assert trained(ctx, view)[0] == [7.0 if delay <= LATER else None]
    assert trained(ctx, view, as_known=False)[0] == [7.0]


def test_history_of_which_nothing_says_when_it_was_known_counts_from_its_event_time(
    ctx: Context, tmp_path: Path
) -> None:
    written = FeatureView("written", [user], [amount])
    ctx.features().apply([written])
    ctx.features().write_offline(written, [{"user": "u", "amount": 3.0, "event_timestamp": HAPPENED}])
    assert trained(ctx, written)[0] == [3.0]
    source = files(tmp_path, timedelta(days=400), known_at="")
    view = loaded(ctx, FeatureView("spent", [user], [amount], events=source))
    assert trained(ctx, view)[0] == [7.0]


def _with_time(row: dict[str, Any], created: datetime | None) -> dict[str, Any]:
    return row if created is None else row | {"created_timestamp": created}


@pytest.mark.parametrize("way", ["at once", "shard by shard", "compacted"])
@pytest.mark.parametrize("first", ["with", "without"])
@any_delay
def test_rows_with_and_without_their_created_time_count_each_from_its_own(
    ctx: Context, delay: timedelta, first: str, way: str
) -> None:
    """Of `u`, rows say nothing of when they were known; those of the look-alike `u2` do."""
    view = FeatureView("spent", [user], [amount])
    ctx.features().apply([view, FeatureService("model", [view])])
    rows = [
        _with_time({"user": name, "amount": value, "event_timestamp": HAPPENED}, created)
        for name, value, created in (("u", 3.0, None), ("u2", 7.0, HAPPENED + delay))
    ]
    for row in rows if first == "without" else reversed(rows):
        ctx.features().write_offline(view, [row])
    if way == "compacted":
        ctx.features().offline_table(view).open().optimize.compact()
    at = pa.array([HAPPENED + LATER] * 2, pa.timestamp("us", "UTC"))
    asked = Table(ctx.store, "asked").overwrite(
        pa.table({"user": ["u", "u2"], "event_timestamp": at, "label": [1, 0]})
    )
    share = 1e-12 if way == "shard by shard" else ctx.memory_share
    with use_context(Context(ctx.store, ctx.store_url, None, clock=ctx.clock, memory_share=share)):
        made = build_training_set("model", asked, "label", HAPPENED, HAPPENED + 2 * LATER)
    found = Table(ctx.store, made.name).read(version=made.version)["amount"].to_pylist()
    assert found == [3.0, 7.0 if delay <= LATER else None]


def test_of_rows_without_a_created_time_the_last_written_counts_beside_one_that_has_it(ctx: Context) -> None:
    view = FeatureView("spent", [user], [amount])
    ctx.features().apply([view])
    happened = {"user": "u", "event_timestamp": HAPPENED}
    ctx.features().write_offline(
        view, [happened | {"amount": 9.0, "created_timestamp": HAPPENED + 2 * LATER}]
    )
    for value in (5.0, 3.0):
        ctx.clock.now += LATER  # type: ignore[attr-defined]  # the fixture's clock
        ctx.features().write_offline(view, [happened | {"amount": value}])
    assert trained(ctx, view)[0] == [3.0]


def test_rows_of_a_table_that_was_noted_as_a_whole_count_from_their_created_time(ctx: Context) -> None:
    view = FeatureView("spent", [user], [amount])
    ctx.features().apply([view])
    row = {"user": "u", "amount": 7.0, "event_timestamp": HAPPENED}
    ctx.features().write_offline(view, [row])
    table = ctx.features().offline_table(view)
    table.append(table.read().slice(0, 0), transactions={"created_timestamp": 1})  # as 0.1 noted it
    assert trained(ctx, view)[0] == [None]
    ctx.features().write_offline(view, [row | {"amount": 8.0}])
    assert trained(ctx, view)[0] == [8.0]


def test_the_lineage_says_whether_a_set_is_as_known(ctx: Context, tmp_path: Path) -> None:
    view = loaded(ctx, FeatureView("spent", [user], [amount], events=files(tmp_path, timedelta(0))))
    assert training_set_lineage(trained(ctx, view)[1]).as_known
    assert not training_set_lineage(trained(ctx, view, as_known=False)[1]).as_known


def test_a_set_that_is_made_shard_by_shard_sees_no_more(ctx: Context, tmp_path: Path) -> None:
    view = loaded(ctx, FeatureView("spent", [user], [amount], events=files(tmp_path, timedelta(hours=11))))
    with use_context(Context(ctx.store, ctx.store_url, None, clock=ctx.clock, memory_share=1e-12)) as small:
        assert trained(small, view)[0] == [None]
        assert trained(small, view, as_known=False)[0] == [7.0]
