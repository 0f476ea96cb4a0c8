"""Loss of workers, judged by the store's clock and by their nodes, and never by the clocks of two machines."""

import os
import random
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from toque.functions import Context, function
from toque.functions.runtime.durable import invocation as invocations
from toque.functions.runtime.durable.attempt import Attempt, AttemptResult, run_attempt
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.heartbeat import last_sign, node_is_lost, write_heartbeat
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.queue import CHECKPOINT, Note, QueueReader, QueueWriter
from toque.functions.runtime.durable.workers import loss_entry
from toque.functions.runtime.durable.workflow import Run
from toque.functions.runtime.errors import Cancelled
from toque.functions.runtime.run.execution import Outcome
from toque.functions.runtime.run.node_watch import Nodes, NodeWatch
from toque.registry import utc_now

HERE, SILENT = "10.0.0.1:1", "10.0.0.2:1"


class Watched(NodeWatch):
    """Watch of a cluster of which one node is silent for so many seconds."""

    def __init__(self, silence_s: float) -> None:
        super().__init__()
        self.silence_s = silence_s

    def silent(self) -> Nodes:
        return {SILENT: "b"} if self.silence_s else {}

    def seconds(self, address: str | None) -> float:
        return self.silence_s if address == SILENT else 0.0


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


# Of a lease of 15 s, heartbeats come every 5 s, and a node may stall for 5 s: whatever it missed is then within these bounds.
@pytest.mark.parametrize(
    ("age_s", "silence_s", "lost"),
    [
        (14.9, 0.0, False),  # its node answers: busy, or the store is slow
        (5.9, 60.0, False),  # its worker writes: only the raylet is stuck
        (9.9, 4.9, False),  # a stall of less than 5 s, just before a heartbeat
        (6.1, 4.9, False),
        (6.1, 5.0, True),
        (10.1, 1.8, True),  # the watch has just begun, and the heartbeat alone shows a stall of 5 s
        (6.1, float("inf"), True),
    ],
)
def test_a_worker_is_lost_with_its_node_when_both_are_silent_for_longer_than_a_node_may_stall(
    age_s: float,
    silence_s: float,
    lost: bool,  # noqa: FBT001  # pytest passes by name
) -> None:
    assert node_is_lost(age_s, silence_s, 15.0) is lost


def test_no_stall_of_five_seconds_costs_a_run() -> None:
    chance = random.Random(5)
    for _ in range(20_000):
        last_beat, last_check = -5 * chance.random(), -chance.random()
        stall_s, at = 5 * chance.random(), 6 * chance.random()
        first_missed = last_check + 1
        until = min(at, stall_s)  # checks are missed, and heartbeats not written, until then
        silence_s = max(0.0, until - first_missed)
        age_s = at - (max(stall_s, last_beat + 5) if at >= max(stall_s, last_beat + 5) else last_beat)
        assert not node_is_lost(age_s, silence_s, 15.0)


def test_a_worker_is_lost_with_its_node_before_its_lease_ends(
    used: Context, eventually: Callable[..., None]
) -> None:
    ledger = Ledger(used.store, actor="ada", lease_s=3600.0)
    invocation = ledger.submit(answer, {})
    claim = {"kind": "started", "worker": "w", "lease_s": 3.0, "digest": answer.digest, "node": SILENT}
    ledger.follow(invocation).append(lambda _: claim)
    executor, started = Executor(used, ledger, nodes=Watched(60.0)), utc_now()
    eventually(lambda: executor.poll() >= 0 and ledger.read(invocation).lost == 1)
    assert utc_now() - started < timedelta(seconds=2.9)
    executor.close()


def test_an_invocation_that_nobody_claims_is_given_to_a_worker_away_from_silent_nodes_too(
    used: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, nodes = Ledger(used.store, actor="ada"), Watched(0.0)
    executor, given = Executor(used, ledger, nodes=nodes), list[tuple[Attempt, Nodes]]()
    worker = Stuck()

    def start(attempt: Attempt, silent: Nodes) -> Stuck:
        given.append((attempt, silent))
        return worker if silent else Stuck()

    monkeypatch.setattr(executor._launcher, "start_attempt", start)
    invocation = ledger.submit(answer, {})
    executor.poll()
    nodes.silence_s = 2.0
    for _ in range(3):  # one besides the first, however often it is looked at
        executor.poll()
    assert [silent for _, silent in given] == [{}, {SILENT: "b"}]
    worker.result = run_attempt(given[1][0])
    executor.poll()
    record = ledger.read(invocation)
    assert (record.status, record.attempts, record.lost) == ("succeeded", 1, 0)
    late = run_attempt(given[0][0])  # the silent node is back, and runs what it was sent
    assert late.status == "succeeded"
    assert ledger.read(invocation) == record


def test_a_claim_that_comes_back_late_writes_neither_a_result_nor_a_heartbeat(used: Context) -> None:
    ledger = Ledger(used.store, actor="ada", lease_s=1.0)
    invocation = ledger.submit(answer, {})
    old, new = (Run(ledger, ledger.follow(invocation), worker) for worker in ("old", "new"))
    for run in (old, new):
        claim = {"kind": "started", "worker": run.worker, "lease_s": 1.0, "digest": answer.digest}
        run.followed.append(lambda record, body=claim: body if record.runnable else None)
        if run is old:
            lost = loss_entry(old.followed.record, answer, "", worker="old", now=utc_now(), waited_s=0.0)
            ledger.follow(invocation).append(lambda _, body=lost: body)
            new.followed.refresh()
    assert old.is_superseded()
    assert not new.is_superseded()
    with pytest.raises(Cancelled):
        old.append({"kind": "succeeded", "result": {}})
    assert ledger.read(invocation).worker == "new"


def test_a_heartbeat_that_another_worker_has_overwritten_counts_for_the_present_one(used: Context) -> None:
    ledger = Ledger(used.store, actor="ada")
    invocation = ledger.submit(answer, {})
    claim = {"kind": "started", "worker": "new", "lease_s": 15.0, "digest": answer.digest, "node": HERE}
    ledger.follow(invocation).append(lambda _: claim)
    record = ledger.read(invocation)
    os.utime(used.store.root / ledger.journal(invocation).key(record.claim), (0, 0))
    write_heartbeat(used.store, invocation, "old", utc_now())
    sign = last_sign(used.store, record)
    assert sign is not None
    assert sign.age_s < 10
    assert (sign.node, sign.worker) == (HERE, "new")


@pytest.mark.parametrize(("waited_s", "failure"), [(0.0, "TimedOut"), (55.0, "WorkerLost")])
def test_a_wait_for_room_on_the_cluster_is_no_run_time_of_a_lost_worker(
    used: Context, eventually: Callable[..., None], waited_s: float, failure: str
) -> None:
    long_ago = Ledger(
        used.store, actor="ada", clock=lambda: utc_now() - timedelta(seconds=60), lease_s=3600.0
    )
    invocation = long_ago.submit(answer_in_time, {})
    claim = {"kind": "started", "worker": "w", "lease_s": 1.0, "digest": answer_in_time.digest}
    long_ago.follow(invocation).append(lambda _: claim)
    write_heartbeat(used.store, invocation, "w", utc_now(), waited_s=waited_s)
    eventually(lambda: invocations.run_pending(used) >= 0 and failure in kinds_of_loss(long_ago, invocation))
    invocations.executor_of(used).close()


class Stuck:
    """Worker on a silent node, until it has a result."""

    result: AttemptResult | None = None

    def wait(self, _: float) -> bool:
        return self.result is not None

    def outcome(self) -> Outcome:
        return Outcome(self.result)

    def kill(self) -> None:
        return None


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
