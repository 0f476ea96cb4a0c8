"""A platform with everything in it is backed up and restored elsewhere, and answers as before."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.compat import reading, tasks
from tests.compat.project import DAY, NOW
from tests.compat.test_store_of_0_1 import IDS, NOTES, unpacked
from tests.conditions.faults import FragileStore, KilledError
from tests.functions.prediction_log.logbook import record
from tests.redis_server import running_redis
from tests.waiting import until
from toque.functions import Context, Invocation, use_context
from toque.functions.maintenance.backup import back_up, restore
from toque.functions.prediction_log import Label, LogWriter, drain, encode_labels, outcomes
from toque.functions.prediction_log.writing.drain import WriterExport
from toque.functions.prediction_log.writing.stream import Stream
from toque.functions.runtime import catalog
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.invocation import ledger_of
from toque.ray_apps.cli.platform_folds import platform_fold
from toque.registry import NewerFormat, ObjectStore, Refused, Table, open_store
from toque.registry.transfer import find_marker


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_redis(tmp_path_factory.mktemp("redis")) as running:
        yield running.url.removesuffix("/0")


@pytest.fixture
def redis_url(server: str) -> str:
    """Address of an empty Redis; another one is its database 1."""
    redis.Redis.from_url(f"{server}/0").flushall()
    return f"{server}/0"


@pytest.fixture(autouse=True)
def project_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOQUE_PROJECT", reading.PROJECT)
    catalog.discover(project=reading.PROJECT)


class Writing:
    """A process that answers: its log is in files of its own, and it ships to the stream."""

    def __init__(self, root: Path, redis_url: str) -> None:
        self._logs = {
            kind: LogWriter(root, kind, redis_url, poll_s=0.01) for kind in ("predictions", "labels")
        }
        self._stream = {
            kind: Stream(redis.Redis.from_url(redis_url), kind) for kind in ("predictions", "labels")
        }

    def answer(self, *names: str) -> None:
        """Log a prediction and its label of each name, and wait until they are in Redis."""
        for name in names:
            at = NOW + timedelta(hours=2)
            self._logs["predictions"].append(record(name, at=at))
            last = self._logs["labels"].append(encode_labels([Label(name, 1.0, at, at)]))
        for kind, log in self._logs.items():
            until(lambda log=log, kind=kind: self._stream[kind].shipped(log.writer) >= last)

    def close(self) -> None:
        for log in self._logs.values():
            log.close()


@pytest.fixture
def writing(tmp_path: Path, redis_url: str) -> Iterator[Writing]:
    made = Writing(tmp_path / "own-files", redis_url)
    yield made
    made.close()


def labelled(store: ObjectStore) -> dict[str, float | None]:
    rows = outcomes(store, "late", NOW, NOW + DAY, labelled_only=False).to_pylist()
    return {row["prediction_id"]: row["label"] for row in rows}


def seen(folder: Path, redis_url: str) -> dict[str, Any]:
    """What a reader sees of a platform, its online features written again first."""
    with use_context(reading.context_of(folder, redis_url)) as used:
        return {
            "access": reading.access(used, NOTES["tokens"]),
            "models": [reading.model(used.registry(), name) for name in ("late", "price")],
            "features": reading.features(used),
            "log": reading.log(used),
            "rollouts": reading.rollouts(used),
            "invocations": {name: reading.invocation(each) for name, each in IDS.items()},
            "events": reading.journal(used, "events/harvest"),
        }


def end(used: Context, name: str) -> Invocation[Any]:
    executor, found = Executor(used, ledger_of(used)), Invocation.of(IDS[name])
    deadline = time.monotonic() + 120
    try:
        while not found.record().ended:
            assert time.monotonic() < deadline
            executor.drive(found.id, wait_s=0.1)  # no other one that waits there
    finally:
        executor.close()
    return found


def test_a_restored_platform_answers_as_before(tmp_path: Path, redis_url: str, writing: Writing):
    source = open_store(unpacked(tmp_path).as_uri())
    backup, place = open_store(f"file://{tmp_path}/backup"), tmp_path / "new"
    first = back_up(source, redis_url, backup, fold_of=platform_fold)
    assert first.copy_report is not None
    assert first.copy_report.findings == ()
    writing.answer("a", "b")
    second = back_up(source, redis_url, backup, fold_of=platform_fold)
    assert second.copy_report is not None
    assert 0 < second.copy_report.objects < 20 < first.copy_report.objects
    writing.answer("c")  # after the backup: not in it
    done = restore(backup, open_store(place.as_uri()), fold_of=platform_fold)
    assert done.copy_report is not None
    assert done.copy_report.findings == ()
    elsewhere = redis_url.removesuffix("0") + "1"
    assert seen(place, elsewhere) == seen(tmp_path / "store", redis_url)
    assert {name: label for name, label in labelled(open_store(place.as_uri())).items() if name in "abc"} == {
        "a": 1.0, "b": 1.0,
    }  # fmt: skip
    with use_context(reading.context_of(place, elsewhere)) as used:
        ended = end(used, "doubling")
        assert (ended.result(timeout_s=1), ended.record().attempts) == (16, 1)
        assert tasks.double.submit(21, key="answer").id == IDS["doubled"]


def test_what_only_redis_holds_is_in_the_backup_once(
    tmp_path: Path, redis_url: str, writing: Writing, monkeypatch: pytest.MonkeyPatch
):
    """Records come after the drain and before the copy, and the platform drains them while it is copied."""
    source, backup = open_store(f"file://{tmp_path}/a"), open_store(f"file://{tmp_path}/backup")
    writing.answer("a")
    real, drains = drain, []

    def drain_and_write(*arguments: Any, **options: Any) -> Any:
        done = real(*arguments, **options)
        if not drains:
            writing.answer("b", "c")
        drains.append(done)
        return done

    monkeypatch.setattr("toque.functions.maintenance.backup.drain", drain_and_write)
    done = back_up(
        source, redis_url, backup, report=lambda line: line.startswith("listing") and real(source, redis_url)
    )
    assert done.records == 4
    restored = open_store(f"file://{tmp_path}/b")
    assert restore(backup, restored).records == 0  # the copy has them
    assert labelled(restored) == {"a": 1.0, "b": 1.0, "c": 1.0}
    monkeypatch.setattr("toque.functions.maintenance.backup.drain", lambda *_, **__: None)
    writing.answer("d")
    assert back_up(source, redis_url, backup).records == 2
    again = open_store(f"file://{tmp_path}/c")
    assert restore(backup, again).records == 2
    assert labelled(again) == {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}
    assert Table(again, "predictions/late").read().num_rows == 4


def test_a_killed_restore_is_taken_up_again(tmp_path: Path, redis_url: str, writing: Writing):
    source, backup = open_store(f"file://{tmp_path}/a"), open_store(f"file://{tmp_path}/backup")
    writing.answer("a")
    with pytest.MonkeyPatch.context() as patch:
        back_up(source, redis_url, backup)
        patch.setattr("toque.functions.maintenance.backup.drain", lambda *_, **__: None)
        writing.answer("b")
        assert back_up(source, redis_url, backup).records == 2
    for fatal in range(1, 100):
        target = FragileStore(tmp_path / f"b{fatal}")
        target.fatal = fatal
        try:
            restore(backup, target)
        except KilledError:
            target.fatal = 0
            restore(backup, target)
            assert labelled(target) == {"a": 1.0, "b": 1.0}
            assert find_marker(target) is None
        else:
            break
    assert fatal > 10
    with pytest.raises(Refused, match="not empty and no copy"):  # it is a platform's now
        restore(backup, target)


def test_an_export_of_a_newer_release_is_not_misread():
    data = WriterExport("labels", "default", "w", ()).to_bytes()
    head = json.loads(data.split(b"\n")[0])
    with pytest.raises(NewerFormat, match=r"backup/1 has format 2, .* upgrade this process"):
        WriterExport.from_bytes(json.dumps(head | {"format": 2}).encode() + b"\n", where="backup/1")
