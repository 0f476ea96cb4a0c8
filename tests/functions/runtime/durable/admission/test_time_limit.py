"""Time limits of submitted runs: none unless declared; what is declared ends a run, which saves before, and is said in its receipt."""

import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.waiting import until
from toque.functions import Demand, Preempted, function, preempted
from toque.functions.runtime import catalog
from toque.functions.runtime.context import Context, use_context
from toque.functions.runtime.durable.attempt import TimeLimit
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.durable.slots import demand_of
from toque.functions.runtime.durable.workers import loss_entry
from toque.functions.runtime.errors import InvocationFailed
from toque.functions.runtime.run.interruption import deadline, paused
from toque.registry.store import open_store

LONGEST_S = 60.0


@function(demand=lambda limit_s, saves, **_: Demand(cpus=1, limit_s=limit_s, preemptible=saves))
def count_up(path: str, *, limit_s: float | None = None, saves: bool = True, ends_at: int = 1_000_000) -> int:
    """Count on from what the file says, a hundred in a second, and write it there when it has to yield."""
    saved = Path(path)
    reached = int(saved.read_text()) if saved.exists() else 0
    while reached < ends_at:
        reached += 1
        time.sleep(0.01)  # the work, which the limit is to end
        if saves and preempted():
            saved.write_text(str(reached))
            raise Preempted
    return reached


@pytest.fixture
def used(tmp_path: Path) -> Iterator[Context]:
    url = f"file://{tmp_path}/store"
    with use_context(Context(open_store(url), url, actor="ada")) as context:
        yield context


def test_a_run_saves_before_its_limit_and_goes_on_after_it_when_it_is_redriven(
    used: Context, tmp_path: Path
) -> None:
    path = tmp_path / "count"
    limited = count_up.submit(str(path), limit_s=2.0)
    with pytest.raises(
        InvocationFailed, match="has reached limit_s=2 and saved its state: redrive it"
    ) as told:
        limited.result(LONGEST_S)
    assert "or submit it with a longer limit_s" in str(told.value)
    first = int(path.read_text())
    record = limited.record()
    assert record.failure is not None
    assert (record.failure.type, record.preemptions, record.lost) == ("TimedOut", 0, 0)
    assert record.receipt is not None
    assert (record.receipt.limit_s, record.receipt.timed_out) == (2.0, True)
    assert record.receipt.run_s < 2.0
    again = count_up.submit(str(path), ends_at=first + 3)
    assert again.result(LONGEST_S) == first + 3
    receipt = again.record().receipt
    assert receipt is not None
    assert (receipt.limit_s, receipt.timed_out) == (None, False)


def test_a_run_that_saves_nothing_is_ended_at_its_limit(used: Context, tmp_path: Path) -> None:
    limited = count_up.submit(str(tmp_path / "count"), limit_s=0.5, saves=False)
    with pytest.raises(InvocationFailed, match=r"ran past limit_s=0\.5 and was killed"):
        limited.result(LONGEST_S)
    receipt = limited.record().receipt
    assert receipt is not None
    assert (receipt.limit_s, receipt.timed_out, receipt.attempts) == (0.5, True, 1)


@function(demand=lambda limit_s: Demand(cpus=1, limit_s=limit_s))
def deaf(limit_s: float) -> None:
    """Hear no alarm."""
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    time.sleep(10 * LONGEST_S)  # killed long before


def test_a_run_that_hears_no_alarm_is_killed_after_its_limit_and_not_run_again(used: Context) -> None:
    limited = deaf.submit(1.0)
    with pytest.raises(InvocationFailed, match=r"TimedOut: ran past limit_s=1\.0 and its worker was killed"):
        limited.result(LONGEST_S)
    record = limited.record()
    assert (record.attempts, record.lost) == (1, 0)
    assert record.receipt is not None
    assert (record.receipt.limit_s, record.receipt.timed_out) == (1.0, True)


def test_the_shorter_limit_counts_and_without_one_there_is_none() -> None:
    @function(timeout_s=5)
    def declared() -> None: ...

    assert TimeLimit.of(count_up, Demand()) is None
    assert str(TimeLimit.of(count_up, Demand(limit_s=1_800))) == "limit_s=1800"
    assert str(TimeLimit.of(declared, Demand(limit_s=7))) == "timeout_s=5"
    assert str(TimeLimit.of(declared, Demand(limit_s=3))) == "limit_s=3"


def test_a_worker_killed_at_its_declared_limit_timed_out_and_is_not_run_again(used: Context) -> None:
    ledger = Ledger(used.store, actor="ada")
    record = ledger.read(count_up.submit("count", limit_s=60.0).id)
    assert demand_of(record, ledger).limit_s == 60.0
    now = ledger.clock()
    running = record.model_copy(
        update={"status": "running", "worker": "w", "limit_s": 60.0, "started_at": now}
    )

    def lost(running: Record, after_s: float) -> str:
        entry = loss_entry(
            running,
            count_up,
            "silent",
            worker="w",
            now=now + timedelta(seconds=after_s),
            waited_s=0.0,
            usage=None,
        )
        assert entry is not None
        return f"{entry['kind']} {entry['failure']['type']}"

    assert lost(running, 59.0) == "lost WorkerLost"
    assert lost(running, 65.0) == "dead TimedOut"
    assert lost(running.model_copy(update={"limit_s": None}), 1e6) == "lost WorkerLost"


def test_no_training_of_the_platform_has_a_limit_that_nobody_declared() -> None:
    catalog.discover()
    names = ("train_model", "train_declared", "train_tabular", "train_recipe", "fine_tune", "tune_model")
    names += ("tune_tabular", "train_trial", "predict_batch", "retrain", "request_retrain")
    assert {name: catalog.get(name).timeout_s for name in names} == dict.fromkeys(names)


def test_a_pause_within_a_pause_ends_with_the_outer_one() -> None:
    began = time.monotonic()
    with deadline("patient", 0.3):
        with paused():
            with paused():
                pass
            until(lambda: time.monotonic() - began > 0.6, within_s=5.0)
        assert time.monotonic() - began > 0.6
