from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from toque.registry import InvalidInput, NotFound, ObjectStore, Point, Registry, RunLog, Segment

AT = datetime(2013, 7, 1, tzinfo=UTC)


def point(step: int, value: float) -> tuple[str, Point]:
    return "loss", Point(step, value, AT)


def test_each_write_is_stored_before_it_returns(store: ObjectStore):
    reg = Registry(store, actor="ada")
    log = RunLog.begin(
        reg, "exp", name="first", tags={"a": "1"}, params={"lr": "1"}, started_at=AT, parent="p"
    )
    log.write(Segment(points=[point(0, 1.0), point(1, 0.5)], params={"x": "2"}, tags={"b": "2"}))
    record = Registry(store, actor="x").get_record(log.record.id)
    assert (record.params, record.tags) == ({"lr": "1", "x": "2"}, {"a": "1", "b": "2"})
    assert (record.metrics, record.status, record.actor) == ({"loss": 0.5}, "RUNNING", "ada")
    assert (record.started_at, record.facts["parent"]) == (AT, "p")
    assert reg.get_run(record.id).series("loss")[0].value == 1.0


def test_a_silent_remote_run_is_running_until_it_is_ended(reg: Registry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toque.registry.runs.record.LOST_AFTER", timedelta(0))
    log = RunLog.begin(reg, "exp")
    assert reg.search_runs("exp")[0].status == "RUNNING"
    assert reg.reap_runs("exp") == []
    log.change(status="KILLED", ended_at=AT)
    (record,) = Registry(reg.store, actor="x").search_runs("exp", "status = 'KILLED'")
    assert record.ended_at == AT


def test_values_logged_to_an_ended_run_are_found_by_search(reg: Registry):
    log = RunLog.begin(reg, "exp", tags={"draft": "yes"})
    log.change(status="FINISHED")
    RunLog.of(Registry(reg.store, actor="bob"), log.record.id).write(
        Segment(tags={"draft": None, "judged": "good"})
    )
    (record,) = Registry(reg.store, actor="x").search_runs(
        "exp", "tags.judged = 'good' and tags.draft IS NULL"
    )
    assert record.status == "FINISHED"
    log.change(status="RUNNING", name="again")
    assert (reg.get_record(record.id).name, reg.get_record(record.id).ended_at) == ("again", None)


def test_a_parameter_has_one_value_and_a_refused_write_stores_nothing(reg: Registry):
    log = RunLog.begin(reg, "exp", params={"lr": "1"})
    with pytest.raises(InvalidInput, match="start another run"):
        log.write(Segment(params={"lr": "2", "new": "1"}))
    assert reg.get_record(log.record.id).params == {"lr": "1"}


def test_many_writers_lose_nothing(reg: Registry):
    run = RunLog.begin(reg, "exp").record.id
    logs = [RunLog.of(Registry(reg.store, actor=f"w{n}"), run) for n in range(4)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: logs[n % 4].write(Segment(points=[point(n, n)])), range(80)))
    assert [p.step for p in reg.get_run(run).series("loss")] == list(range(80))


def test_absent_names_are_not_found(reg: Registry):
    with pytest.raises(NotFound):
        RunLog.of(reg, "0" * 32)
    with pytest.raises(InvalidInput):
        RunLog.begin(reg, "a/b")


def test_a_write_to_a_long_ended_run_reads_only_new_segments(reg: Registry, monkeypatch: pytest.MonkeyPatch):
    log = RunLog.begin(reg, "exp")
    for step in range(70):
        log.write(Segment(points=[point(step, step)]))
    log.change(status="FINISHED")
    reads: list[str] = []
    find = type(reg.store).find
    monkeypatch.setattr(type(reg.store), "find", lambda self, key: (reads.append(key), find(self, key))[1])
    log.write(Segment(tags={"judged": "good"}))
    assert len([key for key in reads if "segments" in key]) <= 2
    late = RunLog.of(Registry(reg.store, actor="bob"), log.record.id)
    reads.clear()
    late.write(Segment(tags={"seen": "too"}))
    assert len([key for key in reads if "segments" in key]) <= 3
    late.write(Segment(points=[point(5, 99.0)]))
    (record,) = Registry(reg.store, actor="x").search_runs("exp")
    assert record.tags == {"judged": "good", "seen": "too"}
    assert record.metrics == {"loss": 69.0}  # of the highest step, whatever was told last
    assert len(list(reg.segments(record.id))) == 73
