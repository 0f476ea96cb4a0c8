import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from toque.functions import Context, Retries, function
from toque.functions.runtime.durable import queue
from toque.functions.runtime.durable.invocation import Invocation, executor_of, ledger_of, run_pending
from toque.functions.runtime.durable.queue import Note, QueueReader, QueueWriter
from toque.functions.runtime.errors import FunctionError, KeyConflict, UnknownInvocation
from toque.registry import Unavailable, open_store, utc_now
from toque.registry.store.object_store import ObjectStore


@function
def double(a: int) -> int:
    return 2 * a


@function(retries=Retries(1))
def never() -> int:
    raise ValueError("no")


@function(max_concurrency=2)
def few(path: str) -> int:
    return len(path)


class CountingStore:
    """Store that counts its requests, and can be made to fail."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.counts: Counter[str] = Counter()
        self.failing = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)
        if name not in {"get", "find", "create", "put", "list", "delete"}:
            return method

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.counts[name] += 1
            if self.failing:
                self.failing -= 1
                raise Unavailable("503 Slow Down")
            return method(*args, **kwargs)

        return counted

    def __reduce__(self) -> Any:
        return open_store, (self.store.url,)


@pytest.fixture
def counted(used: Context, monkeypatch: pytest.MonkeyPatch) -> Context:
    return replace(used, store=CountingStore(used.store), actor="counter")


def test_accepting_costs_two_writes_and_no_read(counted: Context) -> None:
    ledger = ledger_of(counted)
    ledger.submit(double, {"a": 1})
    counted.store.counts.clear()
    ledger.submit(double, {"a": 2})
    assert counted.store.counts == {"create": 2}


def test_an_idle_poll_costs_two_reads_and_never_lists(
    counted: Context, eventually: Callable[..., None]
) -> None:
    executor = executor_of(counted)
    ledger_of(counted).submit(double, {"a": 1})
    eventually(lambda: executor.poll() == 0)
    assert counted.store.counts["list"] == 0
    counted.store.counts.clear()
    executor.poll()
    assert counted.store.counts == {"find": 2}  # the index, and the one queue


def test_starting_costs_the_executor_one_note(counted: Context, eventually: Callable[..., None]) -> None:
    executor = executor_of(counted)
    ledger_of(counted).submit(double, {"a": 1})
    eventually(lambda: executor.poll() == 0)
    identifier = ledger_of(counted).submit(double, {"a": 2})
    counted.store.counts.clear()
    executor.poll()
    # the index, the note, the invocation's first entry and the place after it, the queue's end
    assert counted.store.counts["find"] == 5
    journals = [key for key in counted.store.list("queues/") if "/entries/" in key]
    assert all(
        b'"a":' not in counted.store.get(key) for key in journals
    )  # what cannot be erased has no arguments
    eventually(lambda: executor.poll() == 0)
    record = ledger_of(counted).read(identifier)
    assert record.length == 3  # accepted, started, succeeded: the worker wrote two


def test_fifty_at_once_with_one_key_are_one_invocation(used: Context, traces: Any) -> None:
    @function
    def once(path: str) -> int:
        with open(path, "a") as file:  # noqa: PTH123
            file.write("x\n")
        return 7

    barrier = threading.Barrier(50)

    def post(_: int) -> Any:
        barrier.wait()
        ledger = ledger_of(used)
        return Invocation[int](ledger.submit(once, {"path": traces.path}, key="k"), used)

    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(post, range(50)))
        results = list(pool.map(lambda each: each.result(60), found))
    assert len({each.id for each in found}) == 1
    assert results == [7] * 50
    assert traces.read() == ["x"]
    with pytest.raises(KeyConflict):
        ledger_of(used).submit(once, {"path": "other"}, key="k")


def test_a_key_whose_submitter_died_before_the_note_is_noted_again(
    used: Context, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    ledger = ledger_of(used)
    with monkeypatch.context() as patched:
        patched.setattr(ledger._queue, "add", lambda _: None)
        ledger.submit(double, {"a": 1}, key="k")
    assert run_pending(used) == 0
    invocation = Invocation[int](ledger.submit(double, {"a": 1}, key="k"), used)
    assert run_pending(used) == 1
    eventually(lambda: run_pending(used) == 0)
    assert invocation.result(1) == 2


def test_a_store_outage_loses_nothing(counted: Context, eventually: Callable[..., None]) -> None:
    ledger, executor = ledger_of(counted), executor_of(counted)
    identifier = ledger.submit(double, {"a": 1})
    counted.store.failing = 1
    with pytest.raises(Unavailable):
        executor.poll()
    eventually(lambda: executor.poll() == 0)
    assert ledger.read(identifier).status == "succeeded"


def test_only_the_dead_and_cancelled_are_redriven(used: Context) -> None:
    invocation = double.submit(1)
    with pytest.raises(FunctionError, match="queued"):
        ledger_of(used).redrive(invocation.id)
    invocation.cancel()
    assert ledger_of(used).redrive(invocation.id).status == "queued"
    assert invocation.result(60) == 2


def test_dead_invocations_are_listed_by_their_index(used: Context, eventually: Callable[..., None]) -> None:
    dead = [never.submit(), never.submit()]
    double.submit(1)
    eventually(lambda: run_pending(used) == 0)
    assert {each.id for each in ledger_of(used).invocations(status="dead")} == {each.id for each in dead}
    assert len(list(ledger_of(used).invocations())) == 3
    ledger_of(used).dead_letters.remove(dead[0].id, reason="purged")
    assert [each.id for each in ledger_of(used).invocations(status="dead")] == [dead[1].id]


def test_costs_are_the_sum_of_all_receipts(used: Context, eventually: Callable[..., None]) -> None:
    doubled = [double.submit(each) for each in range(3)]
    dead, cancelled = never.submit(), double.submit(9)
    cancelled.cancel()
    eventually(lambda: run_pending(used) == 0)
    ledger_of(used).redrive(dead.id)
    eventually(lambda: run_pending(used) == 0)
    double.submit(10)  # has not ended, and so costs nothing yet
    receipts = [each.record().receipt for each in (*doubled, dead, cancelled)]
    assert all(receipts)
    totals = {each.function: each for each in ledger_of(used).costs()}
    for name, count, attempts in (("double", 4, 3), ("never", 1, 1)):
        own = [each for each in receipts if each and each.function == name]
        assert (totals[name].invocations, totals[name].attempts, len(own)) == (count, attempts, count)
        for unit in ("queue_s", "run_s", "cpu_s", "gpu_s"):
            assert getattr(totals[name], unit) == pytest.approx(sum(getattr(each, unit) for each in own))
    assert totals["never"].run_s > 0


def test_an_unknown_invocation_raises(used: Context) -> None:
    with pytest.raises(UnknownInvocation, match="nothing"):
        Invocation.of("nothing").status()


def test_max_concurrency_bounds_the_workers(used: Context, eventually: Callable[..., None]) -> None:
    executor = executor_of(used)
    for _ in range(5):
        few.submit("abc")
    executor.poll()
    assert len(executor._workers) <= 2
    eventually(lambda: executor.poll() == 0)


def test_an_executor_without_the_code_leaves_the_invocation_to_others(used: Context) -> None:
    invocation = double.submit(1)
    ledger = ledger_of(used)
    foreign = ledger.journal("f" * 32)
    foreign.append(dict(ledger.journal(invocation.id).entry(0).body) | {"reference": "nowhere:gone"}, at=0)
    ledger.notify("f" * 32)
    assert run_pending(used) == 2
    assert ledger.read("f" * 32).status == "queued"
    assert invocation.result(60) == 2


def test_a_silent_queue_is_closed_and_its_writer_opens_another(used: Context) -> None:
    now = utc_now()
    writer = QueueWriter(used.store, actor="w")
    writer.add(Note("one"))
    reader = QueueReader(used.store, actor="r", clock=lambda: now)
    assert [each.invocation for each in reader.new_notes()] == ["one"]
    now += queue.SILENT_AFTER + timedelta(seconds=1)
    assert list(reader.new_notes()) == []  # closes
    writer.add(Note("two"))
    assert [each.invocation for each in reader.new_notes()] == ["two"]
    assert len(queue.index(used.store, actor="r").refresh()) == 1


def test_a_reader_resumes_from_the_checkpoint(used: Context) -> None:
    writer, first = QueueWriter(used.store, actor="w"), QueueReader(used.store, actor="r")
    writer.add(Note("one"))
    list(first.new_notes())
    due = utc_now()
    first.checkpoint({"one": due})
    writer.add(Note("two"))
    second = QueueReader(used.store, actor="s")
    assert second.resume().due == {"one": due}
    assert [each.invocation for each in second.new_notes()] == ["two"]
