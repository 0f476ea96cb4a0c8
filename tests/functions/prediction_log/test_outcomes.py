"""Labels and the predictions they belong to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.functions.prediction_log.logbook import T0, record, write
from toque.functions.prediction_log import (
    LOAD_TEST,
    Label,
    default_wal_root,
    drain,
    encode_labels,
    epoch_us,
    latest_labels,
    outcomes,
    predictions,
    predictions_table,
    shared_scans,
)
from toque.functions.prediction_log.reading import outcomes as shared
from toque.registry.store import ObjectStore, Table


def label(name: str, value: float, hour: int, *, received: int = 0) -> Label:
    return Label(name, value, T0 + timedelta(hours=hour), T0 + timedelta(hours=hour + received))


def test_labels_join_their_predictions_and_corrections_win(
    store: ObjectStore, wal_root: Path, redis_server: Any
):
    shadow = record("a", shadow=True, version=4, arm="shadow")
    write(wal_root, redis_server.url, [record("a"), shadow, record("b", at=T0 + timedelta(hours=1))])
    write(
        wal_root,
        redis_server.url,
        [
            encode_labels([label("a", 1, 9), label("stranger", 1, 3)]),
            encode_labels([label("a", 0, 5)]),  # observed before the other: late, not a correction
            encode_labels([label("a", 0, 9, received=1)]),  # the same observation, corrected later
            encode_labels([label("a", 1, 9)]),  # a duplicate of the first
        ],
        kind="labels",
    )
    assert drain(store, redis_server.url).labels == 5
    joined = outcomes(store, "late", T0, T0 + timedelta(days=1))
    assert joined.select(["prediction_id", "version", "shadow", "label"]).to_pylist() == [
        {"prediction_id": "a", "version": 3, "shadow": False, "label": 0.0},
        {"prediction_id": "a", "version": 4, "shadow": True, "label": 0.0},
    ]
    everything = outcomes(store, "late", T0, T0 + timedelta(days=1), labelled_only=False, columns=["version"])
    assert everything["label"].to_pylist() == [0.0, 0.0, None]
    assert everything.column_names == ["version", "prediction_id", "label", "observed_at", "received_at"]


def test_a_label_from_the_future_overrides_no_other(store: ObjectStore, wal_root: Path, redis_server: Any):
    future = datetime(9999, 1, 1, tzinfo=UTC)
    write(wal_root, redis_server.url, [record("a"), record("b"), record("c")])
    labels = [
        label("a", 1, 9),
        Label("a", 0, future, T0 + timedelta(hours=10)),
        Label("b", 0, future, T0 + timedelta(hours=9)),
        label("b", 1, 10),
        Label("c", 1, future, T0 + timedelta(hours=9)),  # alone, it still is one
    ]
    write(wal_root, redis_server.url, [encode_labels(labels)], kind="labels")
    drain(store, redis_server.url)
    found = outcomes(store, "late", T0, T0 + timedelta(days=1), columns=["prediction_id"])
    assert dict(zip(*(found[name].to_pylist() for name in ("prediction_id", "label")), strict=True)) == {
        "a": 1.0, "b": 1.0, "c": 1.0
    }  # fmt: skip
    assert sorted(latest_labels(store)["label"].to_pylist()) == [1.0, 1.0, 1.0]


def test_outcomes_of_nothing_are_empty_with_their_columns(store: ObjectStore):
    empty = outcomes(store, "late", T0, T0 + timedelta(days=1))
    assert empty.num_rows == 0
    assert empty.column_names[-3:] == ["label", "observed_at", "received_at"]
    assert latest_labels(store).num_rows == 0


def test_outcomes_take_start_and_leave_end(store: ObjectStore, wal_root: Path, redis_server: Any):
    write(wal_root, redis_server.url, [record(f"h{h}", at=T0 + timedelta(hours=h)) for h in range(48)])
    drain(store, redis_server.url)
    found = predictions(store, "late", T0 + timedelta(hours=10), T0 + timedelta(hours=30))
    assert found["prediction_id"].to_pylist() == [f"h{h}" for h in range(10, 30)]


def test_naive_times_are_refused(store: ObjectStore):
    naive = datetime(2013, 1, 1)  # noqa: DTZ001 - the point
    with pytest.raises(ValueError, match="zone"):
        outcomes(store, "late", naive, T0)
    with pytest.raises(ValueError, match="zone"):
        epoch_us(naive)


def test_processes_of_one_platform_agree_on_the_place(tmp_path: Path):
    assert default_wal_root(f"file://{tmp_path}/my%20store") == tmp_path / "my store-wal"
    assert default_wal_root("s3://a/b") == default_wal_root("s3://a/b") != default_wal_root("s3://a/c")


def test_many_readers_in_one_block_share_one_scan_of_the_labels(
    store: ObjectStore, wal_root: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch
):
    write(wal_root, redis_server.url, [record(name) for name in ("a", "b", "c")])
    late = [record(name, at=T0 + timedelta(hours=1), model="other") for name in ("d", "a2")]
    write(wal_root, redis_server.url, late)
    told = [label("a", 1, 2), label("a", 0, 3), label("d", 1, 4), label("stranger", 1, 4)]
    write(wal_root, redis_server.url, [encode_labels(told)], kind="labels")
    drain(store, redis_server.url)

    def ask(model: str) -> Any:
        return outcomes(store, model, T0, T0 + timedelta(days=1), columns=["version"])

    alone = [ask("late"), ask("other")]
    scans: list[Any] = []
    keep = shared._bounded

    def counted(batches: Any) -> Any:
        scans.append(batches)
        return keep(batches)

    monkeypatch.setattr(shared, "_bounded", counted)
    with shared_scans():
        together = [ask("late"), ask("other"), ask("late")]
    assert together == [*alone, alone[0]]
    assert [one["label"].to_pylist() for one in alone] == [[0.0], [1.0]]
    assert len(scans) == 1
    monkeypatch.setattr(shared, "MAX_LABELS", 2)
    with shared_scans():  # too many to keep: each reads for itself, to the same effect
        assert [ask("late"), ask("other")] == alone


def test_rows_of_load_tests_are_in_the_log_and_in_no_reading(
    store: ObjectStore, wal_root: Path, redis_server: Any
):
    arms = ["champion", LOAD_TEST, "load-test", "rule:load", "pinned", "shadow", LOAD_TEST]
    rows = [record(f"p{place}", arm=arm, shadow=arm == "shadow") for place, arm in enumerate(arms)]
    write(wal_root, redis_server.url, rows)
    write(
        wal_root, redis_server.url, [encode_labels([label(f"p{n}", 1, 9) for n in range(7)])], kind="labels"
    )
    assert drain(store, redis_server.url).predictions == 7
    end, read = T0 + timedelta(days=1), {f"p{place}" for place, arm in enumerate(arms) if arm != LOAD_TEST}
    assert Table(store, predictions_table("late")).read().num_rows == 7
    assert (
        set(predictions(store, "late", T0, end, columns=["prediction_id"])["prediction_id"].to_pylist())
        == read
    )
    for columns in (None, ["version"]):
        assert set(outcomes(store, "late", T0, end, columns=columns)["prediction_id"].to_pylist()) == read
