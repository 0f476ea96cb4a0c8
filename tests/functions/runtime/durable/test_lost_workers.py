"""Loss of workers, judged by the store's clock and by their nodes, and never by the clocks of two machines."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from functions import Context, function
from functions.runtime.durable import invocation as invocations
from functions.runtime.durable.heartbeat import write_heartbeat
from functions.runtime.durable.ledger import Ledger
from functions.runtime.durable.queue import CHECKPOINT, Note, QueueReader, QueueWriter
from registry import utc_now

NOBODY = "127.0.0.1:1"  # no raylet listens there


@function
def answer() -> int:
    """Return a number, as a run that was once another worker's."""
    return 42


@function(timeout_s=30)
def answer_in_time() -> int:
    """Return a number within half a minute."""
    return 42


@pytest.fixture(params=[-600.0, 600.0], ids=["behind", "ahead"])
def elsewhere(request: pytest.FixtureRequest, used: Context) -> Ledger:
    """The ledger of a machine whose clock is ten minutes off."""
    return Ledger(
        used.store, actor="ada", clock=lambda: utc_now() + timedelta(seconds=request.param), lease_s=1.0
    )


@pytest.fixture
def claimed(used: Context, elsewhere: Ledger) -> Iterator[str]:
    invocation = elsewhere.submit(answer, {})
    claim = {"kind": "started", "worker": "w", "lease_s": 1.0, "digest": answer.digest}
    elsewhere.follow(invocation).append(lambda _: claim)
    yield invocation
    invocations.executor_of(used).close()


def test_a_worker_whose_clock_is_off_keeps_its_lease_while_it_beats(
    used: Context, claimed: str, elsewhere: Ledger
) -> None:
    until = utc_now() + timedelta(seconds=1.6)
    while utc_now() < until:
        write_heartbeat(used.store, claimed, "w", elsewhere.clock())
        assert invocations.run_pending(used) == 1
    record = elsewhere.read(claimed)
    assert (record.status, record.worker, record.lost) == ("running", "w", 0)


def test_a_worker_whose_clock_is_off_is_lost_when_its_lease_ends(
    used: Context, claimed: str, elsewhere: Ledger, eventually: Callable[..., None]
) -> None:
    write_heartbeat(used.store, claimed, "w", elsewhere.clock())
    eventually(lambda: invocations.run_pending(used) >= 0 and elsewhere.read(claimed).lost == 1)


def test_a_worker_is_lost_with_its_node_before_its_lease_ends(
    used: Context, eventually: Callable[..., None]
) -> None:
    ledger = Ledger(used.store, actor="ada", lease_s=3600.0)
    invocation = ledger.submit(answer, {})
    claim = {"kind": "started", "worker": "w", "lease_s": 2.0, "digest": answer.digest}
    ledger.follow(invocation).append(lambda _: claim)
    write_heartbeat(used.store, invocation, "w", utc_now(), node=NOBODY)
    started = utc_now()
    eventually(lambda: invocations.run_pending(used) >= 0 and ledger.read(invocation).lost == 1)
    assert utc_now() - started < timedelta(seconds=1.9)


@pytest.mark.parametrize(("waited_s", "failure"), [(0.0, "TimedOut"), (55.0, "WorkerLost")])
def test_a_wait_for_room_on_the_cluster_is_no_run_time_of_a_lost_worker(
    used: Context, eventually: Callable[..., None], waited_s: float, failure: str
) -> None:
    long_ago = Ledger(
        used.store, actor="ada", clock=lambda: utc_now() - timedelta(seconds=60), lease_s=3600.0
    )
    invocation = long_ago.submit(answer_in_time, {})
    claim = {"kind": "started", "worker": "w", "lease_s": 2.0, "digest": answer_in_time.digest}
    long_ago.follow(invocation).append(lambda _: claim)
    write_heartbeat(used.store, invocation, "w", utc_now(), node=NOBODY, waited_s=waited_s)
    eventually(lambda: invocations.run_pending(used) >= 0 and failure in kinds_of_loss(long_ago, invocation))
    invocations.executor_of(used).close()


def kinds_of_loss(ledger: Ledger, invocation: str) -> set[str]:
    entries = ledger.journal(invocation).entries()
    return {entry.body["failure"]["type"] for entry in entries if "failure" in entry.body}


def test_a_checkpoint_of_a_stalled_executor_loses_no_note(used: Context) -> None:
    now = [utc_now()]

    def reader() -> QueueReader:
        return QueueReader(used.store, actor="ada", clock=lambda: now[0])

    writer = QueueWriter(used.store, actor="ada", clock=lambda: now[0])
    stalled, other = reader(), reader()
    writer.add(Note("one"))
    assert [each.invocation for each in stalled.new_notes()] == ["one"]
    stalled.checkpoint({})
    stale = used.store.get(CHECKPOINT)
    writer.add(Note("two"))
    late = QueueWriter(used.store, actor="ada", clock=lambda: now[0])
    late.add(Note("three"))
    assert len(list(other.new_notes())) == 3
    for _ in range(3):  # both queues fall silent and are closed
        now[0] += timedelta(minutes=11)
        assert not list(other.new_notes())
    other.checkpoint({})
    used.store.put(CHECKPOINT, stale)  # the stalled executor resumes, and writes what it meant to
    third = reader()
    third.resume()
    assert sorted(each.invocation for each in third.new_notes()) == ["three", "two"]
    third.checkpoint({})
    fourth = reader()
    fourth.resume()
    assert not list(fourth.new_notes())


def test_a_checkpoint_is_written_only_when_it_says_something_new(used: Context) -> None:
    reader = QueueReader(used.store, actor="ada")
    reader.resume()
    list(reader.new_notes())
    reader.checkpoint({})
    used.store.delete(CHECKPOINT)
    reader.checkpoint({})
    assert used.store.find(CHECKPOINT) is None
    QueueWriter(used.store, actor="ada").add(Note("one"))
    list(reader.new_notes())
    reader.checkpoint({})
    assert used.store.find(CHECKPOINT) is not None
