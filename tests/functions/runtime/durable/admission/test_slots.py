"""Quotas of teams in executors with processes that are killed."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from toque.functions import Context, Demand, Preempted, Retries, function, preempted, use_context
from toque.functions.quotas import admissions, budgets, quotas, remove_quota, set_quota
from toque.functions.runtime.admission.request import EVERYONE, Quota
from toque.functions.runtime.declaration import NICENESS
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.invocation import executor_of
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.slots import QuotaSlots, allotment_in
from toque.functions.runtime.errors import DeclarationError, InvocationFailed
from toque.functions.runtime.receipt import Usage
from toque.registry import Access, Journal, utc_now
from toque.registry.access import QueueShare


def demand(cpus: float, priority: int, **_: object) -> Demand:
    return Demand(cpus=cpus, priority=priority)


@function(demand=demand, retries=Retries(max_lost=9, backoff_s=0.01))
def train(path: str, number: int, cpus: float = 1.0, priority: int = 0, wait: bool = False) -> int:  # noqa: FBT001, FBT002
    with open(path, "a") as file:  # noqa: PTH123
        file.write(f"+{number}:{os.getpid()}\n")
    while wait and not os.path.exists(f"{path}.done"):  # noqa: PTH110
        time.sleep(0.02)
    with open(path, "a") as file:  # noqa: PTH123
        file.write(f"-{number}:{os.getpid()}\n")
    return number


@pytest.fixture
def two_executors(used: Context) -> Iterator[None]:
    """Run two executors that share only the store."""
    executors = [Executor(used, Ledger(used.store, actor=f"executor{each}")) for each in range(2)]
    stop = threading.Event()

    def run(executor: Executor) -> None:
        with use_context(used):
            while not stop.wait(0.02):
                executor.poll()

    threads = [threading.Thread(target=run, args=(each,)) for each in executors]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()
    for each in executors:
        each.close()


def most_at_once(lines: list[str]) -> int:
    running: set[str] = set()
    most = 0
    for line in lines:
        pid = line.partition(":")[2]
        (running.add if line[0] == "+" else running.discard)(pid)
        most = max(most, len(running))
    return most


@pytest.mark.usefixtures("two_executors")
def test_killed_and_cancelled_experiments_free_their_quota_slots(
    traces: Any, eventually: Callable[..., None]
) -> None:
    set_quota("ranking", at_once=2, members=["ada"])
    first = [train.submit(traces.path, number, wait=True) for number in range(2)]
    pids = [line.partition(":")[2] for line in traces.wait_for(2)]
    queued = [train.submit(traces.path, number) for number in range(2, 6)]
    told = admissions()
    assert [(each.team, each.waits_for is None) for each in told][:2] == [("ranking", True)] * 2
    assert {each.waits_for for each in told[2:]} == {"room in the quota of its team 'ranking'"}
    assert [each.invocation for each in told[2:]] == [each.id for each in queued]
    queued[0].cancel()  # while it waits
    first[0].cancel()  # while it runs
    os.kill(int(pids[1] if traces.read()[1].startswith("+1") else pids[0]), signal.SIGKILL)
    with open(traces.path, "a") as file:  # noqa: PTH123
        file.writelines(f"-killed:{pid}\n" for pid in pids)  # nothing else says that their runs are over
    open(f"{traces.path}.done", "w").close()  # noqa: PTH123
    eventually(lambda: all(each.status() == "succeeded" for each in (first[1], *queued[1:])), within_s=120)
    assert [first[0].status(), queued[0].status()] == ["cancelled"] * 2
    assert not [line for line in traces.read() if line.startswith("+2:")]  # it never began
    assert most_at_once(traces.read()) <= 2
    assert admissions() == []


@pytest.mark.usefixtures("backend")
def test_waiting_for_one_experiment_runs_earlier_ones_first(used: Context, traces: Any) -> None:
    set_quota("everyone", cpus=2)
    low = [train.submit(traces.path, number, cpus=2.0) for number in range(2)]
    high = train.submit(traces.path, 7, cpus=2.0, priority=1)
    assert low[1].result(60) == 1
    assert high.status() == "succeeded"
    began = [line.partition(":")[0] for line in traces.read() if line[0] == "+"]
    assert began.index("+7") < began.index("+1")


def test_the_share_of_a_workspace_is_the_platforms_to_set_and_not_its_own_admins(used: Context) -> None:
    with pytest.raises(ValueError, match="toque access workspace set NAME --share"):
        set_quota(EVERYONE, share=2.0)
    journal = Journal(used.store, "quotas", actor="an older release")
    journal.append({"team": EVERYONE, "quota": {"share": 1e12, "members": []}}, at=0)
    assert quotas()[EVERYONE].share == 1_000.0  # it opens, and counts for nothing
    Access(used.store, actor="root").change_workspace("default", queue=QueueShare(share=3, gpus=8))
    assert allotment_in(used)() == Quota(share=3, gpus=8)
    assert allotment_in(used.in_workspace("unlisted"))() == Quota()


def test_an_experiment_above_its_quota_dies_and_runs_after_the_quota_is_raised(
    used: Context, traces: Any
) -> None:
    set_quota("ada", cpus=1)
    large = train.submit(traces.path, 1, cpus=3.0)
    with pytest.raises(InvocationFailed, match=r"OverQuota: it asks for cpus=3 and the quota of 'ada' is 1"):
        large.result(60)
    set_quota("ada", cpus=4)
    Ledger(used.store, actor="ada").redrive(large.id)
    assert large.result(60) == 1


@function(timeout_s=None, demand=lambda priority, **_: Demand(cpus=1, priority=priority, preemptible=True))
def train_and_yield(path: str, number: int, priority: int = 0) -> int:
    """Count to a hundred in a file, as slowly as it is told to, and take up where it was."""
    with open(path, "a") as file:  # noqa: PTH123
        file.write(f"+{number}:{os.getpid()}\n")
    while not os.path.exists(f"{path}.done") and not priority:  # noqa: PTH110
        time.sleep(0.02)
        if preempted():
            with open(path, "a") as file:  # noqa: PTH123
                file.write(f"-{number}:{os.getpid()}\n")
            raise Preempted
    return number


@pytest.mark.usefixtures("two_executors")
def test_an_urgent_run_takes_the_room_of_one_that_yields_which_goes_on_after_it(
    used: Context, traces: Any, eventually: Callable[..., None]
) -> None:
    set_quota("ranking", at_once=1, members=["ada"])
    long = train_and_yield.submit(traces.path, 1)
    assert traces.wait_for(1)[0].startswith("+1:")
    urgent = train_and_yield.submit(traces.path, 2, priority=5)
    eventually(lambda: urgent.status() == "succeeded", within_s=120)
    eventually(lambda: sum(line.startswith("+1:") for line in traces.read()) == 2, within_s=120)
    record = long.record()
    assert (record.preemptions, record.attempts, record.lost) == (1, 0, 0)
    assert [line.partition(":")[0] for line in traces.read()] == ["+1", "-1", "+2", "+1"]
    open(f"{traces.path}.done", "w").close()  # noqa: PTH123
    eventually(lambda: long.status() == "succeeded", within_s=120)
    receipt = long.record().receipt
    assert receipt is not None
    assert receipt.run_s > 0.04  # of both attempts
    assert receipt.attempts == 1
    ledger = Ledger(used.store, actor="ada")
    reasons = [
        each.body["reason"]
        for each in ledger.journal(long.id).entries(0)
        if each.body["kind"] == "preempting"
    ]
    assert reasons == [f"{urgent.id}, which goes before it"]


def test_a_budget_counts_each_attempt_once_and_lets_nothing_begin_when_it_is_used(
    used: Context, traces: Any
) -> None:
    set_quota("ada", gpu_hours=1.0)
    now = utc_now()
    ledger = Ledger(used.store, actor="ada")
    slots = QuotaSlots(ledger)
    record = ledger.read(train_on_cards.submit(traces.path).id)
    for worker, hours in (("a", 0.25), ("a", 0.25), ("b", 0.5)):
        slots._spending.add(worker, "ada", usage(gpu_s=3600 * hours))
    assert slots._spending.of_month(now)["ada"].gpu_s == 2700
    assert QuotaSlots(ledger)._spending.of_month(now + timedelta(days=40)) == {}
    found = slots.admit({record.id: ledger.follow(record.id)}, started=())
    assert list(found.start) == [record.id]
    slots._spending.add("c", "ada", usage(gpu_s=900.0))
    found = slots.admit({record.id: ledger.follow(record.id)}, started=())
    assert found.start == {}
    (told,) = admissions()
    assert told.waits_for == "next month: its team 'ada' has used gpu_hours=1 of this one"
    (budget,) = budgets()
    assert (budget.team, budget.budget, budget.spent, budget.limit) == ("ada", "gpu_hours", 1.0, 1.0)
    with pytest.raises(ValueError, match="money=5: no prices are known"):
        set_quota("ada", money=5)


def usage(*, gpu_s: float) -> Usage:
    return Usage(run_s=1.0, cpu_s=1.0, gpu_s=gpu_s, peak_memory_bytes=1)


@function(demand=lambda **_: Demand(gpus=2, workers=1, limit_s=3.0))
def train_on_cards(path: str) -> int:
    return 1


def broken(cpus: float, **_: object) -> object:
    return Demand(cpus=1 / cpus) if cpus < 2 else cpus


@function(demand=broken)  # type: ignore[arg-type]
def train_with_invalid_demand(cpus: float) -> int:
    return int(cpus)


@pytest.mark.parametrize(
    ("cpus", "says"), [(0.0, "its demand fails .*ZeroDivisionError"), (3.0, "gives 3.0, want")]
)
def test_an_invalid_demand_ends_the_experiment(used: Context, cpus: float, says: str) -> None:
    with pytest.raises(InvocationFailed, match=says):
        train_with_invalid_demand.submit(cpus).result(60)
    assert train_with_invalid_demand.submit(1.0).result(60) == 1


def test_a_quota_slot_without_a_claim_is_free_after_its_lease(used: Context, traces: Any) -> None:
    now = [utc_now()]
    ledger = Ledger(used.store, actor="ada", clock=lambda: now[0])
    set_quota("everyone", at_once=1)
    one, other = (ledger.read(train.submit(traces.path, number).id) for number in range(2))
    slots = QuotaSlots(ledger)
    assert slots.acquire_for(one, "a")
    assert not slots.acquire_for(other, "b")
    now[0] += timedelta(seconds=ledger.lease_s + 1)
    assert slots.acquire_for(other, "b")
    assert QuotaSlots.of(train, ledger) is not None


def test_quotas_are_set_replaced_and_removed(used: Context) -> None:
    assert set_quota("ranking", cpus=2, members=["ada"]) == {"ranking": Quota(cpus=2, members=("ada",))}
    assert set_quota("ranking", gpus=1)["ranking"] == Quota(gpus=1)
    set_quota("search", members=["bob"])
    with pytest.raises(ValueError, match=r"members=\['bob'\] of 'vision' are in 'search'"):
        set_quota("vision", members=["bob", "cleo"])
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        set_quota("vision", cpus=-1)
    with pytest.raises(Exception, match="team='a/b' is not a name"):
        set_quota("a/b")
    assert set(quotas()) == {"ranking", "search"}
    assert set(remove_quota("ranking")) == {"search"}
    with use_context(replace(used, actor="bob")):
        assert set(remove_quota("nobody")) == {"search"}


def test_a_demand_is_checked_when_it_is_declared_or_made() -> None:
    with pytest.raises(DeclarationError, match="demand=3 must be"):

        @function(demand=3)  # type: ignore[call-overload]
        def never_declared() -> None: ...

    with pytest.raises(DeclarationError, match="cpus=-1 must be at least 0"):
        Demand(cpus=-1)


@function(demand=lambda **_: Demand(cpus=1))
def niceness_of_experiment() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


@function
def niceness_of_function() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def test_only_a_submitted_experiment_lowers_its_priority(used: Context, backend: str) -> None:
    with use_context(used):
        for _ in range(2):
            beside = niceness_of_function.submit().result(timeout_s=60)
            assert niceness_of_experiment.submit().result(timeout_s=60) == min(beside + NICENESS, 19)
        assert niceness_of_function.submit().result(timeout_s=60) == beside
    assert backend


@function(demand=lambda **_: Demand(cpus=1))
def which_process() -> int:
    return os.getpid()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ray"], indirect=True)
@pytest.mark.usefixtures("backend")
def test_on_ray_experiments_of_one_function_reuse_a_process(
    used: Context, eventually: Callable[..., None]
) -> None:
    with use_context(used):
        set_quota(EVERYONE, at_once=1)
        waiting = [which_process.submit() for _ in range(3)]
        executor = executor_of(used)
        eventually(lambda: executor.poll() == 0)
        (process,) = {each.result(timeout_s=60) for each in waiting}
        eventually(lambda: not alive(process))  # nobody waits for it, so it holds no CPU
        assert which_process.submit().result(timeout_s=60) != process


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ray"], indirect=True)
@pytest.mark.usefixtures("backend")
def test_on_ray_a_finished_experiment_holds_no_cpu(used: Context, eventually: Callable[..., None]) -> None:
    with use_context(used):
        submitted, executor = which_process.submit(), executor_of(used)
        executor.poll()
        eventually(
            lambda: submitted.status() == "succeeded"
        )  # its end is recorded, and the executor has not looked
        process = submitted.result(timeout_s=60)
        eventually(lambda: not alive(process))


def alive(process: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False
