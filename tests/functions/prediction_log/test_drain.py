"""From the file through the stream into the table: whole, once, and whatever dies between."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from tests.functions.prediction_log.logbook import T0, all_rows, record, write
from tests.waiting import until
from toque.functions import Context, use_context
from toque.functions.prediction_log import (
    DrainResult,
    LogFullError,
    LogWriter,
    default_wal_root,
    drain,
    drain_predictions,
    predictions_table,
)
from toque.functions.prediction_log.errors import PredictionLogError
from toque.functions.prediction_log.frames import encode_frame
from toque.functions.prediction_log.records import PREDICTIONS
from toque.functions.prediction_log.writing.drain import Share, waiting_writers
from toque.functions.prediction_log.writing.series import DRAINED
from toque.functions.prediction_log.writing.stream import Stream
from toque.registry import Table, open_store
from toque.registry.store import ObjectStore
from toque.registry.store.tables import files as settling

drain_module = sys.modules[
    "toque.functions.prediction_log.writing.drain"
]  # the package has a function of the same name


def test_a_prediction_arrives_whole(store: ObjectStore, wal_root: Path, redis_server: Any):
    write(wal_root, redis_server.url, [record("p1")])
    assert drain(store, redis_server.url) == DrainResult(predictions=1, writers=1)
    (row,) = all_rows(store).to_pylist()
    assert np.isnan(row["numeric"].pop())
    assert row == {
        "prediction_id": "p1", "model": "late", "version": 3, "arm": "champion", "shadow": False,
        "unit": "u1", "predicted_at": T0, "latency_ms": 1.5, "numeric": [1.5], "categorical": ["UA", ""],
        "outputs": [0.25], "missing": ["b"], "entities": '{"carrier": "UA"}', "day": "2013-05-01",
        "propensity": None,
    }  # fmt: skip


def test_the_tables_log_keeps_times_and_no_units(store: ObjectStore, wal_root: Path, redis_server: Any):
    write(wal_root, redis_server.url, [record("p1")])
    drain(store, redis_server.url)
    logged = b"".join(store.get(key) for key in store.list("tables/predictions/late.delta/_delta_log/"))
    assert b"maxValues" in logged
    assert b"u1" not in logged


def test_rows_of_one_request_get_ids_of_their_own(store: ObjectStore, wal_root: Path, redis_server: Any):
    batch = record(
        "p", rows=2, numeric=np.array([[1], [2]], np.float32), outputs=np.array([[3], [4]], np.float32),
        categorical=None, missing=None, entities=None,
    )  # fmt: skip
    write(wal_root, redis_server.url, [batch, record("q", numeric=None, outputs=None)])
    counted = DRAINED.labels("default", "predictions")
    before = counted._value.get()
    drain(store, redis_server.url)
    assert (
        counted._value.get() - before == 2
    )  # records, as those that are written and shipped; they have three rows
    rows = all_rows(store).select(["prediction_id", "numeric", "outputs", "categorical"]).to_pylist()
    assert rows == [
        {"prediction_id": "p:0", "numeric": [1.0], "outputs": [3.0], "categorical": None},
        {"prediction_id": "p:1", "numeric": [2.0], "outputs": [4.0], "categorical": None},
        {"prediction_id": "q", "numeric": None, "outputs": None, "categorical": ["UA", ""]},
    ]


def test_traces_are_columns_of_a_table_from_the_first_traced_request_on(
    store: ObjectStore, wal_root: Path, redis_server: Any
):
    table = Table(store, predictions_table("late"))
    for batch in (
        [record("before")],
        [record("kept", trace=("ab" * 16, "{}")), record("beside")],
        [record("after")],
    ):
        write(wal_root, redis_server.url, batch)
        drain(store, redis_server.url)
    found = {row["prediction_id"]: (row["trace_id"], row["stages"]) for row in table.read().to_pylist()}
    none = (None, None)
    assert found == {"before": none, "kept": ("ab" * 16, "{}"), "beside": none, "after": none}
    assert all_rows(store).schema.names == [
        *PREDICTIONS.names,
        "propensity",
    ]  # what monitors read stays as it was


def test_every_row_of_a_traced_request_has_its_trace(store: ObjectStore, wal_root: Path, redis_server: Any):
    rows = {
        "rows": 2,
        "numeric": None,
        "categorical": None,
        "outputs": None,
        "missing": None,
        "entities": None,
    }
    write(wal_root, redis_server.url, [record("p", trace=("ab" * 16, None), **rows)])
    drain(store, redis_server.url)
    found = Table(store, predictions_table("late")).read(columns=["prediction_id", "trace_id", "stages"])
    assert found.to_pylist() == [
        {"prediction_id": f"p:{row}", "trace_id": "ab" * 16, "stages": None} for row in range(2)
    ]


def test_models_have_tables_of_their_own(store: ObjectStore, wal_root: Path, redis_server: Any):
    write(wal_root, redis_server.url, [record("a"), record("b", model="other"), record("c")])
    drain(store, redis_server.url)
    assert all_rows(store)["prediction_id"].to_pylist() == ["a", "c"]
    assert all_rows(store, "other")["prediction_id"].to_pylist() == ["b"]


def test_a_drain_that_died_before_it_marked_is_repeated_without_doubles(
    store: ObjectStore, wal_root: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch
):
    write(wal_root, redis_server.url, [record(f"p{i}") for i in range(5)])

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "mark_drained", die)
        with pytest.raises(KeyboardInterrupt):
            drain(store, redis_server.url)
    write(wal_root, redis_server.url, [record("later")])
    drain(store, redis_server.url)
    assert sorted(all_rows(store)["prediction_id"].to_pylist()) == ["later", "p0", "p1", "p2", "p3", "p4"]


def test_drains_at_once_add_each_record_once(store: ObjectStore, wal_root: Path, redis_server: Any):
    logs = [LogWriter(wal_root, "predictions", redis_server.url, poll_s=0.001) for _ in range(3)]
    stop = threading.Event()
    failures: list[BaseException] = []

    def drain_forever() -> None:
        try:
            while not stop.is_set():
                drain(store, redis_server.url)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=drain_forever) for _ in range(3)]
    for thread in threads:
        thread.start()
    names = [f"{w}-{i}" for i in range(150) for w in range(3)]
    for name in names:
        logs[int(name[0])].append(record(name))
        time.sleep(0.001)
    for log in logs:
        log.close()
    stop.set()
    for thread in threads:
        thread.join()
    drain(store, redis_server.url)
    assert not failures
    assert Counter(all_rows(store)["prediction_id"].to_pylist()) == Counter(names)


def test_redis_that_lost_everything_gets_it_again_from_the_files(
    store: ObjectStore, wal_root: Path, redis_server: Any
):
    log = LogWriter(wal_root, "predictions", redis_server.url, poll_s=0.01)
    log.append(record("drained"))
    stream = Stream(redis.Redis.from_url(redis_server.url), "predictions")
    until(lambda: stream.shipped(log.writer) == 1)
    drain(store, redis_server.url)
    log.append(record("only in redis"))
    until(lambda: stream.shipped(log.writer) == 2)
    redis_server.lose_everything()
    log.append(record("after"))
    until(lambda: stream.shipped(log.writer) == 3)
    drain(store, redis_server.url)
    log.close()
    assert sorted(all_rows(store)["prediction_id"].to_pylist()) == ["after", "drained", "only in redis"]


def test_redis_away_answers_go_on_up_to_the_bound(wal_root: Path, store: ObjectStore, redis_server: Any):
    redis_server.kill()
    log = LogWriter(wal_root, "predictions", redis_server.url, poll_s=0.01, limit_bytes=50_000)
    kept = []
    while log.waiting_bytes + 300 < 50_000:
        kept.append(f"p{len(kept)}")
        log.append(record(kept[-1]))
    with pytest.raises(LogFullError, match="bring Redis and the drain back"):
        log.append(record("x" * 300))
    assert len(kept) > 100
    redis_server.start()
    stream = Stream(redis.Redis.from_url(redis_server.url), "predictions")
    until(lambda: stream.shipped(log.writer) == len(kept))
    drain(store, redis_server.url)
    log.close()
    assert Counter(all_rows(store)["prediction_id"].to_pylist()) == Counter(kept)


def test_orphans_are_shipped_by_another_writer_and_removed_when_drained(
    store: ObjectStore, wal_root: Path, redis_server: Any
):
    url = redis_server.url
    redis_server.kill()
    dead = write_without_shipping(wal_root, url, [record("orphan")])
    redis_server.start()
    log = LogWriter(wal_root, "predictions", url, poll_s=0.01, tidy_every_s=0.02)
    stream = Stream(redis.Redis.from_url(url), "predictions")
    until(lambda: stream.shipped(dead) == 1)
    drain(store, url)
    until(lambda: not (wal_root / "predictions" / dead).exists())
    assert all_rows(store)["prediction_id"].to_pylist() == ["orphan"]
    assert stream.writers() == []
    log.close()


def write_without_shipping(wal_root: Path, url: str, payloads: list[bytes]) -> str:
    log = LogWriter(wal_root, "predictions", url)
    for payload in payloads:
        log.append(payload)
    log.close(timeout_s=0.1)
    return log.writer


def test_the_drain_itself_adopts_orphans(store: ObjectStore, wal_root: Path, redis_server: Any):
    redis_server.kill()
    write_without_shipping(wal_root, redis_server.url, [record("orphan")])
    redis_server.start()
    assert drain(store, redis_server.url, wal_root=wal_root) == DrainResult(
        predictions=1, writers=1, adopted=1
    )
    assert drain(store, redis_server.url, wal_root=wal_root) == DrainResult(adopted=1)
    assert list((wal_root / "predictions").iterdir()) == []


def test_a_folder_that_is_no_writers_is_left_alone(store: ObjectStore, wal_root: Path, redis_server: Any):
    for name, files in {
        "empty": [],
        "notes": ["a.txt"],
        "mixed": ["lock", "00000000000000000001.wal", "a.txt"],
    }.items():
        (wal_root / "predictions" / name).mkdir(parents=True)
        for file in files:
            (wal_root / "predictions" / name / file).touch()
    (wal_root / "predictions" / "file").touch()
    before = sorted(wal_root.rglob("*"))
    assert drain(store, redis_server.url, wal_root=wal_root) == DrainResult()
    assert sorted(wal_root.rglob("*")) == before


def test_the_function_takes_no_folder_from_its_caller():
    assert drain_predictions.input_schema["properties"] == {}


def test_the_function_drains_the_platform_it_runs_in(tmp_path: Path, redis_server: Any):
    url = f"file://{tmp_path}/store"
    write(default_wal_root(url), redis_server.url, [record("p1")])
    with use_context(Context(store=open_store(url), store_url=url, redis_url=redis_server.url)):
        assert drain_predictions().predictions == 1
    assert all_rows(open_store(url))["prediction_id"].to_pylist() == ["p1"]


def test_the_function_says_what_it_lacks_without_redis(tmp_path: Path, store: ObjectStore):
    without = use_context(Context(store=store, store_url=store.url))
    with without, pytest.raises(PredictionLogError, match="TOQUE_REDIS_URL"):
        drain_predictions()


def test_a_damaged_entry_is_an_error_and_not_a_loss(store: ObjectStore, redis_server: Any):
    stream = Stream(redis.Redis.from_url(redis_server.url), "predictions")
    good, bad = encode_frame(1, record("a")), bytearray(encode_frame(2, record("b")))
    bad[-1] ^= 1
    stream.report_alive("w", node="n", reserved=0)
    assert stream.append("w", good + bytes(bad), after=0, last=2).added
    with pytest.raises(PredictionLogError, match="damaged"):
        drain(store, redis_server.url)


def test_a_long_stream_is_read_in_bounded_pieces(redis_server: Any):
    stream = Stream(redis.Redis.from_url(redis_server.url), "predictions")
    for number in range(1, 101):
        stream.append("w", encode_frame(number, bytes(84)), after=number - 1, last=number)
    assert [frame.number for frame in stream.read("w")] == [*range(1, 101)]
    some = [frame.number for frame in stream.read("w", max_bytes=1_700)]
    assert some == [*range(1, len(some) + 1)]
    assert 17 <= len(some) <= 40
    stream.mark_drained("w", some[-1])
    assert [frame.number for frame in stream.read("w")] == [*range(len(some) + 1, 101)]
    assert list(stream.read("nobody")) == []


def test_a_resend_is_refused_and_says_where_redis_is(redis_server: Any):
    stream = Stream(redis.Redis.from_url(redis_server.url), "labels")
    assert stream.append("w", b"", after=0, last=3) == (True, 3, 0)
    assert stream.append("w", b"", after=0, last=3) == (False, 3, 0)
    assert stream.append("w", b"", after=2, last=4) == (False, 3, 0)
    assert stream.append("w", b"", after=3, last=4) == (True, 4, 0)


def test_a_living_writer_drops_drained_records_when_it_is_asked(
    store: ObjectStore, wal_root: Path, redis_server: Any
):
    log = LogWriter(wal_root, "predictions", redis_server.url, poll_s=0.01, tidy_every_s=0.02)
    stream = Stream(redis.Redis.from_url(redis_server.url), "predictions")
    log.append(record("old"))
    until(lambda: stream.shipped(log.writer) == 1)
    asked = stream.request_rotation()
    assert stream.not_rotated(asked) == [log.writer]
    until(
        lambda: all(path.stat().st_size < 1 << 20 for path in wal_root.rglob("*.wal"))
    )  # its file has ended
    drain(store, redis_server.url)
    log.append(record("new"))
    until(lambda: not stream.not_rotated(asked))
    kept = b"".join(path.read_bytes() for path in wal_root.rglob("*.wal"))
    assert (b"old" in kept, b"new" in kept) == (False, True)
    log.close()


def test_a_round_holds_a_bounded_batch_however_many_writers_wait(
    store: ObjectStore, wal_root: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch
):
    for number in range(6):
        write(wal_root / str(number), redis_server.url, [record(f"{number}-{each}") for each in range(5)])
    batches = []
    move = drain_module.add_records
    monkeypatch.setattr(drain_module, "_BATCH_BYTES", 600)  # of records of a few hundred bytes

    def spy(store: ObjectStore, kind: str, batch: Any) -> DrainResult:
        batches.append([len(frames) for frames in batch.values()])
        return move(store, kind, batch)

    monkeypatch.setattr(drain_module, "add_records", spy)
    assert drain(store, redis_server.url).predictions == 30
    assert len(batches) > 1
    assert max(len(batch) for batch in batches) < 6
    assert all_rows(store).num_rows == 30


def test_a_drain_under_load_is_one_commit_and_leaves_what_came_meanwhile(
    store: ObjectStore, wal_root: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch
):
    write(wal_root / "0", redis_server.url, [record("p0")])
    move, moved = drain_module.add_records, Counter[str]()

    def and_more(store: ObjectStore, kind: str, batch: Any) -> DrainResult:
        moved[kind] += 1
        write(wal_root / str(sum(moved.values())), redis_server.url, [record(f"p{sum(moved.values())}")])
        return move(store, kind, batch)

    monkeypatch.setattr(drain_module, "add_records", and_more)
    assert [drain(store, redis_server.url).predictions for _ in range(3)] == [1, 1, 1]
    assert moved["predictions"] == 3
    assert sorted(all_rows(store)["prediction_id"].to_pylist()) == ["p0", "p1", "p2"]


def test_drains_that_share_the_writers_move_each_record_once(
    store: ObjectStore, wal_root: Path, redis_server: Any
):
    for number in range(8):
        write(wal_root / str(number), redis_server.url, [record(f"{number}-{each}") for each in range(3)])
    done = DrainResult()
    for index in range(3):
        done = done.beside(drain(store, redis_server.url, share=Share(index, 3)))
    assert (done.predictions, done.writers) == (24, 8)
    assert len(set(all_rows(store)["prediction_id"].to_pylist())) == all_rows(store).num_rows == 24
    assert waiting_writers(redis_server.url) == 0


@pytest.mark.parametrize("before", ["nothing", "a drain that died after its commit"])
def test_records_are_dropped_from_the_log_once_their_table_is_on_the_disk(
    store: ObjectStore, wal_root: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch, before: str
):
    synced: list[set[str]] = []
    dropped: list[set[str]] = []
    mark = Stream.mark_drained

    def files() -> set[str]:
        return {key for key in store.list("tables/") if not key.endswith("_last_checkpoint")}

    def marked(self: Stream, writer: str, last: int) -> None:
        dropped.append(files())
        mark(self, writer, last)

    write(wal_root, redis_server.url, [record(f"p{number}") for number in range(5)])
    if before != "nothing":

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as dying:
            dying.setattr(Stream, "mark_drained", die)
            with pytest.raises(KeyboardInterrupt):
                drain(store, redis_server.url)
    monkeypatch.setattr(settling, "_sync_file_system", lambda _: synced.append(files()))
    monkeypatch.setattr(Stream, "mark_drained", marked)
    drain(store, redis_server.url)
    assert dropped
    assert all(names == synced[-1] for names in dropped)
