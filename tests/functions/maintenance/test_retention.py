"""What is past its retention goes, files and all; without a setting nothing does; compaction changes no row."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from toque.featurestore import Entity, FeatureView, Field, Float64
from toque.functions import Context, function, use_context
from toque.functions.maintenance import compaction
from toque.functions.maintenance.compaction import compact_open_days, compact_tables
from toque.functions.maintenance.retention import (
    Expired,
    Retention,
    apply_retention,
    retention,
    set_retention,
)
from toque.functions.prediction_log.records import LABELS, PREDICTIONS
from toque.functions.runtime import catalog
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.errors import InvalidArguments
from toque.registry import InvalidInput, Table, open_store
from toque.registry.store.tables.upkeep import vacuum_table

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Context]:
    url = f"file://{tmp_path}/store"
    context = Context(open_store(url), url, actor="ada", clock=lambda: NOW)
    with use_context(context):
        yield context


def prediction(name: str, days_ago: int) -> dict[str, Any]:
    at = NOW - timedelta(days=days_ago)
    return {"prediction_id": name, "model": "late", "version": 1, "arm": "champion", "shadow": False, "unit": name,
            "predicted_at": at, "day": at.date().isoformat()}  # fmt: skip


def label(name: str, days_ago: int) -> dict[str, Any]:
    at = NOW - timedelta(days=days_ago)
    return {
        "prediction_id": name,
        "label": 1.0,
        "observed_at": at,
        "received_at": at,
        "day": at.date().isoformat(),
    }


def fill(context: Context) -> tuple[Table, Table]:
    made, labels = Table(context.store, "predictions/late"), Table(context.store, "labels")
    for days in (40, 20, 20, 1):
        rows = pa.Table.from_pylist([prediction(f"p{days}", days)], schema=PREDICTIONS)
        made.append(rows, partition_by=["day"], bounds=["predicted_at"])
        labels.append(pa.Table.from_pylist([label(f"p{days}", days)], schema=LABELS), partition_by=["day"])
    return made, labels


def files(context: Context, prefix: str) -> list[str]:
    return [key for key in context.store.list(f"tables/{prefix}") if key.endswith("c000.snappy.parquet")]


def names(table: Table) -> list[str]:
    return sorted(table.read().column("prediction_id").to_pylist())


def test_nothing_goes_without_a_setting(here: Context):
    made, labels = fill(here)
    assert retention() == Retention()
    assert apply_retention() == Expired()
    assert (len(names(made)), len(names(labels))) == (4, 4)


def test_days_past_the_retention_go_with_their_files(here: Context):
    made, labels = fill(here)
    assert set_retention(predictions=30, labels=10) == Retention(predictions=30, labels=10) == retention()
    done = apply_retention()
    assert (done.prediction_files, done.label_files) == (1, 3)
    assert names(made) == ["p1", "p20", "p20"]
    assert names(labels) == ["p1"]
    assert [key for key in files(here, "predictions/late") if "day=2026-01-29" in key] == []
    version = made.version()
    assert apply_retention() == Expired()
    assert made.version() == version  # no commit where there is nothing to remove
    set_retention()
    assert retention() == Retention()


@pytest.mark.parametrize("age", ["0d", "0.5", "101y", "36501d", "9" * 400])
def test_an_age_out_of_range_fits_the_schema_of_its_text_and_is_refused_by_name(age: str) -> None:
    with pytest.raises(InvalidArguments, match=r"labels: .* is not from 1 to 36500 days") as refused:
        set_retention.signature.load_strictly({"labels": age})
    assert [each["kind"] for each in refused.value.problems] == ["value_error"]


def test_a_kill_between_commit_and_deletion_is_made_good(here: Context, monkeypatch: pytest.MonkeyPatch):
    made, _ = fill(here)
    set_retention(predictions=10)
    with monkeypatch.context() as patch:
        patch.setattr(type(here.store), "delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            apply_retention()
    assert (names(made), len(files(here, "predictions/late"))) == (["p1"], 4)
    assert apply_retention().prediction_files == 3
    assert len(files(here, "predictions/late")) == 1


def test_rows_of_an_old_day_that_are_being_written_are_not_broken(here: Context):
    fill(here)
    set_retention(predictions=10)
    uncommitted = "tables/predictions/late.delta/day=2026-01-29/part-0-c000.snappy.parquet"
    here.store.put(uncommitted, b"PAR1")
    apply_retention()
    assert here.store.find(uncommitted) is not None


def test_the_log_of_new_tables_holds_no_units(here: Context):
    fill(here)

    def in_log_of(table: str) -> bool:
        keys = here.store.list(f"tables/{table}.delta/_delta_log/")
        return any(b'"p40"' in here.store.get(key).replace(b"\\", b"") for key in keys)

    assert (in_log_of("predictions/late"), in_log_of("labels")) == (
        False,
        True,
    )  # these labels name no bounds


@function
def echo(value: str) -> str:
    return value


def test_ended_invocations_go_with_their_values_and_logs(here: Context):
    ledger = Ledger(here.store, actor="ada")
    old, kept, open_one = (ledger.submit(echo, {"value": each * 1_100_000}) for each in "abc")
    for each in (old, kept):
        ledger.cancel(each)
    here.store.put(f"invocations/{old}/logs/1.jsonl", b"{}")
    here.store.put("memos/echo/1.json", b"{}")
    here.store.put("reports/late.html", b"x")
    _age(here, "memos/echo/1.json", days=9)
    _age(here, "reports/late.html", days=3)
    for key in here.store.list("values/"):
        _age(here, key, days=9)
    later = replace(here, clock=lambda: datetime.now(UTC) + timedelta(days=5))
    ledger.redrive(kept)
    with use_context(later):
        set_retention(invocations=2, reports=10)
        assert apply_retention() == Expired(invocations=1, results=2)
    assert {each.id for each in ledger.invocations()} == {kept, open_one}
    assert list(here.store.list(f"invocations/{old}/")) == []
    assert ledger.arguments(ledger.read(kept)) == {"value": "b" * 1_100_000}
    with use_context(later):
        set_retention(reports=2)
        assert apply_retention() == Expired(reports=1)


def _age(context: Context, key: str, *, days: int) -> None:
    path = Path(context.store_url.removeprefix("file://"), key)
    then = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    os.utime(path, (then, then))


def test_compaction_merges_the_files_of_a_day_and_changes_no_row(here: Context):
    made, _ = fill(here)
    view = FeatureView("rides", [Entity("rider")], [Field("x", Float64)])
    here.features().apply([view])
    for x in (1.0, 2.0):
        here.features().write_offline(
            view, pa.table({"rider": ["a"], "x": [x], "event_timestamp": pa.array([NOW])})
        )
    done = {each.table: (each.merged, each.made, each.deleted) for each in compact_tables()}
    assert done == {"features/default/rides": (2, 1, 0), "labels": (2, 1, 0), "predictions/late": (2, 1, 0)}
    assert names(made) == ["p1", "p20", "p20", "p40"]
    assert len(made.read(version=2)) == 2  # younger than the grace
    with pytest.raises(InvalidInput, match="at least a day"):
        vacuum_table(made, grace=timedelta(hours=1))


def test_every_hour_the_many_files_of_open_days_are_merged_and_others_left(
    here: Context, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compaction, "_MANY_FILES", 3)
    made = Table(here.store, "predictions/late")
    for number, days in enumerate((0, 0, 0, 1, 1, 5, 5, 5)):
        rows = pa.Table.from_pylist([prediction(f"p{number}", days)], schema=PREDICTIONS)
        made.append(rows, partition_by=["day"], bounds=["predicted_at"])
    before, version = names(made), made.version()
    assert [(each.merged, each.made) for each in compact_open_days()] == [(3, 1)]
    assert (names(made), made.version()) == (before, version + 1)
    assert compact_open_days() == []
    assert made.version() == version + 1  # and no commit where there is nothing to merge


def test_a_retention_below_a_day_is_refused(here: Context):
    with pytest.raises(InvalidArguments, match="predictions: Input should be greater than or equal to 1"):
        set_retention(predictions=0.5)


def test_they_run_every_night():
    found = {each.name: each for each in catalog.discover(catalog.PLATFORM[1:5])}
    assert all(found[name].schedule for name in ("apply_retention", "compact_tables", "compact_open_days"))
