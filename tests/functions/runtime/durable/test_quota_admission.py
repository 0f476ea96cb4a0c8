"""Quotas of teams: the rule on random requests, and executors with processes that are killed."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions import Context, Demand, Retries, function, use_context
from functions.quotas import admissions, quotas, remove_quota, set_quota
from functions.runtime.declaration import NICENESS
from functions.runtime.durable.executor import Executor
from functions.runtime.durable.invocation import executor_of
from functions.runtime.durable.ledger import Ledger
from functions.runtime.durable.quota_admission import (
    EVERYONE,
    Quota,
    QuotaRequest,
    Quotas,
    admission_order,
    admit,
    team_of,
    why_unsatisfiable,
)
from functions.runtime.durable.quota_slots import QuotaSlots
from functions.runtime.errors import DeclarationError, InvocationFailed
from registry import utc_now

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TEAMS = ("ranking", "search", "vision")

limits = st.one_of(st.none(), st.integers(0, 6))
quota = st.builds(Quota, cpus=limits, gpus=limits, at_once=limits)
some_quotas = st.dictionaries(st.sampled_from([*TEAMS, EVERYONE]), quota)


@st.composite
def queue(draw: st.DrawFn) -> list[QuotaRequest]:
    told = st.tuples(
        st.sampled_from(TEAMS), st.integers(0, 4), st.integers(0, 2), st.integers(-1, 1), st.integers(0, 9)
    )
    return [
        QuotaRequest(str(number), team, cpus, gpus, priority, NOON + timedelta(seconds=second))
        for number, (team, cpus, gpus, priority, second) in enumerate(draw(st.lists(told, max_size=12)))
    ]


def within(running: list[QuotaRequest], quotas: Quotas) -> bool:
    """Whether the running requests keep all limits."""
    for team, each in quotas.items():
        own = [request for request in running if team in (EVERYONE, request.team)]
        if any(sum(getattr(request, name) for request in own) > limit for name, limit in each.limits()):
            return False
    return True


@settings(max_examples=150, deadline=None)
@given(queue(), some_quotas, st.randoms(use_true_random=False))
def test_no_quota_is_exceeded_and_no_request_is_overtaken(
    waiting: list[QuotaRequest], quotas: Quotas, chance: Any
) -> None:
    chosen = admit([], waiting, quotas)
    assert within(chosen, quotas)
    left = [each for each in waiting if each not in chosen]
    assert admit(chosen, left, quotas) == []  # the decision is whole: asked again, nothing changes
    shuffled = list(waiting)
    chance.shuffle(shuffled)
    assert admit([], shuffled, quotas) == chosen  # and hangs on no order of reading
    for request in chosen:
        for other in left:
            before = (-other.priority, other.at, other.invocation) < (
                -request.priority,
                request.at,
                request.invocation,
            )
            if why_unsatisfiable(other, quotas) is None and other.team == request.team:
                assert not before  # within a team


@settings(max_examples=80, deadline=None)
@given(queue(), some_quotas)
def test_every_satisfiable_request_is_admitted_in_the_end(
    waiting: list[QuotaRequest], quotas: Quotas
) -> None:
    left = [each for each in waiting if why_unsatisfiable(each, quotas) is None]
    running: list[QuotaRequest] = []
    for _ in range(2 * len(waiting) + 1):
        chosen = admit(running, left, quotas)
        left = [each for each in left if each not in chosen]
        running = [*running, *chosen]
        assert within(running, quotas)
        running = running[1:]  # one ends
    assert left == []


def request(name: str, team: str, *, cpus: float = 1, priority: int = 0, second: int = 0) -> QuotaRequest:
    return QuotaRequest(name, team, cpus, 0, priority, NOON + timedelta(seconds=second))


def names(chosen: list[QuotaRequest]) -> str:
    return "".join(each.invocation for each in chosen)


def test_teams_take_turns_however_many_one_of_them_sent_first() -> None:
    waiting = [request(name, "ranking", second=n) for n, name in enumerate("abcdef")]
    waiting += [request(name, "search", second=9 + n) for n, name in enumerate("xyz")]
    assert names(admit([], waiting, {EVERYONE: Quota(cpus=4)})) == "axby"
    assert names(admission_order([], waiting, {EVERYONE: Quota(cpus=4)})) == "axbyczdef"
    held = [request("h", "ranking", cpus=3)]  # the share is of what is held, not of how many
    assert names(admit(held, waiting, {EVERYONE: Quota(cpus=6)})) == "xyz"


def test_the_higher_priority_goes_first_within_its_team_s_quota() -> None:
    waiting = [
        request("a", "search"),
        request("b", "ranking", priority=5, second=1),
        request("c", "ranking", priority=5, second=2),
    ]
    assert names(admit([], waiting, {EVERYONE: Quota(at_once=2)})) == "bc"
    assert names(admit([], waiting, {EVERYONE: Quota(at_once=2), "ranking": Quota(at_once=1)})) == "ba"


def test_small_experiments_do_not_starve_a_large_one() -> None:
    running = [request("r", "search", cpus=2)]
    waiting = [request("L", "ranking", cpus=4), *(request(str(n), "vision", second=1 + n) for n in range(9))]
    whole = {EVERYONE: Quota(cpus=4)}
    assert admit(running, waiting, whole) == []
    assert names(admit([], waiting, whole)) == "L"


def test_a_request_above_its_quota_is_named_and_passed_over() -> None:
    small = {"ranking": Quota(cpus=2)}
    assert (
        names(admit([], [request("L", "ranking", cpus=4), request("s", "ranking", second=1)], small)) == "s"
    )
    assert "cpus=4 and the quota of 'ranking' is 2" in str(
        why_unsatisfiable(request("L", "ranking", cpus=4), small)
    )
    assert team_of("ada", {"ranking": Quota(members=("ada",))}) == "ranking"
    assert team_of("bob", {"ranking": Quota(members=("ada",))}) == "bob"


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
