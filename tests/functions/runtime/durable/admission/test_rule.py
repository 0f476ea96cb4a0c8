"""The rule of the queue on random queues: quotas, cards, budgets, order, backfill and preemption."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toque.functions.runtime.admission.occupancy import Shares, Spent
from toque.functions.runtime.admission.request import (
    EVERYONE,
    YIELD_S,
    Quota,
    QuotaRequest,
    Quotas,
    team_of,
    why_unsatisfiable,
)
from toque.functions.runtime.admission.rule import Decision, admission_order, next_look, schedule
from toque.functions.runtime.cards import Node
from toque.functions.runtime.receipt import Prices

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TEAMS = ("ranking", "search", "vision")
EIGHT = [Node("a", 8, "H100"), Node("b", 8, "L4")]

limits = st.one_of(st.none(), st.integers(0, 6))
quota = st.builds(Quota, cpus=limits, gpus=limits, at_once=limits)
some_quotas = st.dictionaries(st.sampled_from([*TEAMS, EVERYONE]), quota)
optional = st.one_of(st.none(), st.integers(1, 9))


@st.composite
def queue(draw: st.DrawFn, *, plain: bool = False) -> list[QuotaRequest]:
    told = st.tuples(
        st.sampled_from(TEAMS), st.integers(0, 4), st.integers(0, 2), st.integers(-1, 1), st.integers(0, 9)
    )
    found = [
        QuotaRequest(str(number), team, cpus, gpus, priority, NOON + timedelta(seconds=second))
        for number, (team, cpus, gpus, priority, second) in enumerate(draw(st.lists(told, max_size=12)))
    ]
    if plain:
        return found
    more = st.tuples(
        st.sampled_from((1, 2, 4)), st.sampled_from((None, "H100", "L4")), optional, st.booleans()
    )
    return [
        replace(each, workers=workers, gpus=4 * each.gpus, card=card, limit_s=limit, preemptible=yields)
        for each in found
        for workers, card, limit, yields in [draw(more)]
    ]


def one_workspace(quotas: Quotas, **more: Any) -> Shares:
    return Shares({"default": quotas}, **more)


def decide(
    waiting: Sequence[QuotaRequest],
    running: Sequence[QuotaRequest] = (),
    quotas: Quotas | None = None,
    capacity: Sequence[Node] | None = None,
    now: datetime = NOON,
    **more: Any,
) -> Decision:
    return schedule(waiting, running, capacity, one_workspace(quotas or {}, **more), now)


def within(running: Sequence[QuotaRequest], quotas: Quotas) -> bool:
    """Whether the running requests keep all limits."""
    for team, each in quotas.items():
        own = [request for request in running if team in (EVERYONE, request.team)]
        if any(sum(getattr(request, name) for request in own) > limit for name, limit in each.limits()):
            return False
    return True


def fit_on(running: Sequence[QuotaRequest], capacity: Sequence[Node]) -> bool:
    """Whether no card is given twice, every worker is on a node, and the cards are of the type that was asked for."""
    for node in capacity:
        here = [request for request in running for name in request.nodes if name == node.name]
        if sum(request.gpus / request.workers for request in here) > node.gpus + 1e-9:
            return False
        if any(request.card not in {None, node.card} for request in here):
            return False
    return all(len(request.nodes) == request.workers for request in running if request.gpus)


@settings(max_examples=150, deadline=None)
@given(queue(plain=True), some_quotas, st.randoms(use_true_random=False))
def test_no_quota_is_exceeded_and_no_request_is_overtaken(
    waiting: list[QuotaRequest], quotas: Quotas, chance: Any
) -> None:
    chosen = decide(waiting, quotas=quotas).start
    assert within(chosen, quotas)
    names = {each.invocation for each in chosen}
    left = [each for each in waiting if each.invocation not in names]
    assert decide(left, chosen, quotas).start == ()  # the decision is whole: asked again, nothing changes
    shuffled = list(waiting)
    chance.shuffle(shuffled)
    assert decide(shuffled, quotas=quotas).start == chosen  # and hangs on no order of reading
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
@given(queue(plain=True), some_quotas)
def test_every_satisfiable_request_is_admitted_in_the_end(
    waiting: list[QuotaRequest], quotas: Quotas
) -> None:
    left = [each for each in waiting if why_unsatisfiable(each, quotas) is None]
    running: list[QuotaRequest] = []
    for _ in range(2 * len(waiting) + 1):
        chosen = decide(left, running, quotas).start
        names = {each.invocation for each in chosen}
        left = [each for each in left if each.invocation not in names]
        running = [*running, *chosen]
        assert within(running, quotas)
        running = running[1:]  # one ends
    assert left == []


@settings(max_examples=200, deadline=None)
@given(queue(), queue(), some_quotas)
def test_cards_and_quotas_are_kept_and_only_those_that_yield_are_preempted(
    first: list[QuotaRequest], second: list[QuotaRequest], quotas: Quotas
) -> None:
    running = decide(first, quotas=quotas, capacity=EIGHT).start
    assert within(running, quotas)
    assert fit_on(running, EIGHT)
    left = [each for each in first if each.invocation not in {run.invocation for run in running}]
    waiting = [*left, *(replace(each, invocation=f"later {each.invocation}") for each in second)]
    found = decide(waiting, running, quotas, EIGHT, NOON + timedelta(seconds=5))
    both = [*running, *found.start]
    assert within(both, quotas)
    assert fit_on(both, EIGHT)  # before anybody has yielded
    told = {each.invocation for each in found.start} | set(found.wait)
    assert told == {each.invocation for each in waiting}  # each starts or hears why not
    most = max((each.priority for each in waiting), default=-9)
    for run in running:
        if run.invocation in found.preempt:
            assert run.preemptible
            assert run.priority < most or run.backfilled


@settings(max_examples=60, deadline=None)
@given(queue())
def test_on_cards_every_request_that_fits_them_runs_in_the_end(waiting: list[QuotaRequest]) -> None:
    able = [each for each in waiting if decide([each], capacity=EIGHT).start]
    left, running, now = able, [], NOON
    ended: set[str] = set()
    for _ in range(8 * len(able) + 8):
        now += timedelta(seconds=10)
        found = decide(left, running, capacity=EIGHT, now=now)
        started = {each.invocation for each in found.start}
        left = [each for each in left if each.invocation not in started]
        left += [each for each in able if each.invocation in found.preempt]
        stay = [each for each in running if each.invocation not in found.preempt]
        ended |= {each.invocation for each in stay[:1]}  # the first ends, those that are asked yield
        running = [*stay[1:], *found.start]
        assert fit_on(running, EIGHT)
    assert ended == {each.invocation for each in able}


def request(
    name: str,
    team: str = "ranking",
    *,
    cpus: float = 1,
    gpus: float = 0,
    priority: int = 0,
    second: int = 0,
    **more: Any,
) -> QuotaRequest:
    return QuotaRequest(name, team, cpus, gpus, priority, NOON + timedelta(seconds=second), **more)


def run(name: str, gpus: float, team: str = "search", **more: Any) -> QuotaRequest:
    return request(name, team, gpus=gpus, started_at=NOON, second=-9, **more)


def names(chosen: Sequence[QuotaRequest]) -> str:
    return "".join(each.invocation for each in chosen)


def test_teams_take_turns_however_many_one_of_them_sent_first() -> None:
    waiting = [request(name, second=n) for n, name in enumerate("abcdef")]
    waiting += [request(name, "search", second=9 + n) for n, name in enumerate("xyz")]
    four = {EVERYONE: Quota(cpus=4)}
    assert names(decide(waiting, quotas=four).start) == "axby"
    assert names(admission_order([], waiting, one_workspace(four), NOON)) == "axbyczdef"
    held = [request("h", cpus=3)]  # the share is of what is held, not of how many
    assert names(decide(waiting, held, {EVERYONE: Quota(cpus=6)}).start) == "xyz"


def test_a_team_of_twice_the_share_and_a_workspace_of_thrice_get_as_much_more() -> None:
    cards = [Node("a", 12)]
    waiting = [request(f"r{n}", gpus=1, second=n) for n in range(20)]
    waiting += [request(f"s{n}", "search", gpus=1, second=n) for n in range(20)]
    weighted = {"search": Quota(share=2)}
    chosen = decide(waiting, quotas=weighted, capacity=cards).start
    assert [sum(each.team == team for each in chosen) for team in ("ranking", "search")] == [4, 8]
    elsewhere = [replace(each, workspace="lab") if each.team == "search" else each for each in waiting]
    shares = Shares(allotments={"lab": Quota(share=3)})
    chosen = schedule(elsewhere, [], cards, shares, NOON).start
    assert [sum(each.workspace == name for each in chosen) for name in ("default", "lab")] == [3, 9]


def test_the_higher_priority_goes_first_within_its_team_s_quota() -> None:
    waiting = [
        request("a", "search"),
        request("b", priority=5, second=1),
        request("c", priority=5, second=2),
    ]
    assert names(decide(waiting, quotas={EVERYONE: Quota(at_once=2)}).start) == "bc"
    assert (
        names(decide(waiting, quotas={EVERYONE: Quota(at_once=2), "ranking": Quota(at_once=1)}).start) == "ba"
    )


def test_small_experiments_do_not_starve_a_large_one() -> None:
    running = [request("r", "search", cpus=2)]
    waiting = [request("L", cpus=4), *(request(str(n), "vision", second=1 + n) for n in range(9))]
    whole = {EVERYONE: Quota(cpus=4)}
    assert decide(waiting, running, whole).start == ()
    assert names(decide(waiting, quotas=whole).start) == "L"


def test_a_request_above_its_quota_is_named_and_passed_over() -> None:
    small = {"ranking": Quota(cpus=2)}
    assert names(decide([request("L", cpus=4), request("s", second=1)], quotas=small).start) == "s"
    assert "cpus=4 and the quota of 'ranking' is 2" in str(why_unsatisfiable(request("L", cpus=4), small))
    assert team_of("ada", {"ranking": Quota(members=("ada",))}) == "ranking"
    assert team_of("bob", {"ranking": Quota(members=("ada",))}) == "bob"


def test_a_gang_starts_whole_or_waits_and_says_for_how_many_cards() -> None:
    four = [Node("a", 4), Node("b", 4)]
    assert decide([request("g", gpus=8, workers=2)], capacity=four).start[0].nodes == ("a", "b")
    assert decide([request("g", gpus=8, workers=8)], capacity=four).start[0].nodes == ("a",) * 4 + ("b",) * 4
    busy = [run("r", 1, nodes=("a",))]
    found = decide([request("g", gpus=8, workers=2)], busy, capacity=four)
    assert found.wait == {"g": "cards: it needs 2 × 4 GPU, and 7 are free"}
    found = decide([request("g", gpus=8)], capacity=four)  # one worker on one node
    assert found.wait == {"g": "nodes with 1 × 8 GPU: none are there, or may be started"}


def test_a_gang_is_packed_on_the_fullest_node_that_holds_it_and_on_one_that_is_there() -> None:
    cards = [Node("a", 8), Node("b", 8), Node("c/0", 8, coming=True)]
    busy = [run("r", 5, nodes=("b",))]
    assert decide([request("g", gpus=2)], busy, capacity=cards).start[0].nodes == ("b",)
    assert decide([request("g", gpus=4)], busy, capacity=cards).start[0].nodes == ("a",)
    full = [*busy, run("s", 8, nodes=("a",))]
    assert decide([request("g", gpus=8)], full, capacity=cards).start[0].nodes == ("c/0",)


def test_a_gap_is_filled_by_what_ends_in_time_or_yields() -> None:
    cards = [Node("a", 4)]
    running = [run("r", 2, limit_s=600, nodes=("a",))]
    large = request("L", "vision", gpus=4, priority=1)
    fills = {
        "short": {"limit_s": 600.0},
        "long": {"limit_s": 601.0},
        "open": {},
        "yields": {"preemptible": True},
    }
    for name, more in fills.items():
        found = decide([large, request(name, gpus=1, second=1, **more)], running, capacity=cards)
        assert names(found.start) == (name if name in {"short", "yields"} else ""), name
        assert [each.backfilled for each in found.start] == (
            [True] if name == "yields" else [False] if found.start else []
        )
        assert name in found.wait or found.start
    assert found.wait["L"] == "cards: it needs 1 × 4 GPU, and 2 are free"


def test_what_fills_a_gap_beside_the_blocked_one_needs_no_limit() -> None:
    cards = [Node("a", 4, "H100"), Node("b", 4, "L4")]
    running = [run("r", 2, limit_s=600, nodes=("a",))]
    large = request("L", gpus=4, card="H100", priority=1)
    found = decide([large, request("x", gpus=2), request("c", cpus=4)], running, capacity=cards)
    assert {each.invocation: each.nodes for each in found.start} == {"c": (), "x": ("b",)}
    three = request("T", gpus=3, priority=1)  # when r ends there is one card more than it needs
    found = decide([three, request("y", gpus=1), request("z", gpus=1)], running, capacity=cards[:1])
    assert names(found.start) == "y"


def test_a_filled_gap_is_left_to_the_blocked_one_once_it_fits() -> None:
    cards = [Node("a", 4)]
    filled = [run("f", 2, preemptible=True, backfilled=True, nodes=("a",))]
    found = decide([request("L", gpus=4)], filled, capacity=cards)
    assert found.preempt == {"f": "L, which goes before it"}
    assert found.wait["L"] == "runs that save their state for it"
    plain = [replace(filled[0], backfilled=False)]
    assert decide([request("L", gpus=4)], plain, capacity=cards).preempt == {}


def test_an_urgent_run_takes_the_fewest_cards_of_the_newest_that_yield() -> None:
    cards = [Node("a", 8)]
    running = [
        run("old", 2, preemptible=True, nodes=("a",)),
        replace(run("new", 2, preemptible=True, nodes=("a",)), started_at=NOON + timedelta(seconds=5)),
        run("firm", 2, nodes=("a",)),
        run("peer", 2, priority=9, preemptible=True, nodes=("a",)),
    ]
    now = NOON + timedelta(seconds=60)
    found = decide([request("H", gpus=2, priority=9)], running, capacity=cards, now=now)
    assert set(found.preempt) == {"new"}
    asked = [replace(each, yielding=each.invocation == "new") for each in running]
    again = decide([request("H", gpus=2, priority=9), request("x", gpus=1)], asked, capacity=cards, now=now)
    assert (again.start, again.preempt) == ((), {})
    assert again.wait["H"] == "runs that save their state for it"
    assert decide([request("H", gpus=6, priority=9)], running, capacity=cards, now=now).preempt == {}


def test_room_that_yielding_runs_make_is_kept_for_whom_they_yield() -> None:
    cards = [Node("a", 4)]
    running = [run("y", 3, preemptible=True, yielding=True, nodes=("a",))]
    urgent, small = request("H", gpus=4, priority=9), request("s", "vision", gpus=1, preemptible=True)
    found = decide([urgent, small], running, capacity=cards)
    assert found.start == ()
    assert found.wait["s"] == "its turn, behind H"


def test_a_budget_lets_nothing_begin_that_it_cannot_pay_and_ends_what_yields() -> None:
    spent = {("default", "ranking"): Spent(gpu_s=3600.0 * 9.9)}
    ten = {"ranking": Quota(gpu_hours=10)}
    waiting = [
        request("a", gpus=2, limit_s=120),
        request("b", gpus=2, limit_s=240, second=1),
        request("c", "search", gpus=1),
    ]
    found = decide(waiting, quotas=ten, spent=spent)
    assert names(found.start) == "ac"
    assert found.wait == {"b": "next month: its team 'ranking' has used gpu_hours=10 of this one"}
    running = [
        run("firm", 1, "ranking"),
        run("yields", 2, "ranking", preemptible=True),
        run("other", 2, preemptible=True),
    ]
    assert decide([], running, ten, spent=spent, now=NOON + timedelta(seconds=60)).preempt == {}
    ends = next_look(running, one_workspace(ten, spent=spent), NOON)
    assert ends == NOON + timedelta(seconds=(360 - 2 * YIELD_S) / 3)
    found = decide([], running, ten, spent=spent, now=ends)
    assert found.preempt == {"yields": "the end of the budget gpu_hours=10 of 'ranking'"}


def test_a_budget_in_money_counts_cpus_and_cards_at_the_prices_of_now() -> None:
    prices = Prices(currency="EUR", cpu_hour=0.1, gpu_hour=2.0)
    spent = {("default", "ranking"): Spent(cpu_s=36_000.0, gpu_s=36_000.0)}  # 1 + 20
    waiting = [request("a", cpus=10, gpus=1, limit_s=3600.0)]  # 1 + 2
    for money, started in ((24.0, "a"), (23.9, "")):
        found = decide(waiting, quotas={EVERYONE: Quota(money=money)}, spent=spent, prices=prices)
        assert names(found.start) == started


def test_a_stored_quota_has_no_field_that_an_older_release_refuses() -> None:
    assert set(Quota(gpus=1).stored()) == {"cpus", "gpus", "at_once", "members"}
    assert Quota(gpu_hours=5).stored()["gpu_hours"] == 5
    with pytest.raises(ValueError, match="greater than 0"):
        Quota(share=0)


others = st.lists(st.tuples(st.integers(-9, 1 << 40), st.integers(0, 9), st.booleans()), max_size=6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(ours=queue(), theirs=others, begun=st.integers(0, 4), capacity=st.sampled_from([None, EIGHT]))
def test_priorities_of_one_workspace_change_nothing_in_another(
    ours: list[QuotaRequest], theirs: list[tuple[int, int, bool]], begun: int, capacity: list[Node] | None
) -> None:
    running = [
        replace(each, started_at=NOON, nodes=("a",) * each.workers if each.gpus else (), preemptible=True)
        for each in ours[:begun]
        if each.gpus <= 4
    ]
    waiting = [each for each in ours if each.invocation not in {run.invocation for run in running}]

    def decide_beside(priorities: list[int]) -> tuple[list[str], dict[str, str], list[str]]:
        neighbours = [
            QuotaRequest(
                f"n{number}", "risk", 1, 2, priority, NOON + timedelta(seconds=second), workspace="scratch"
            )
            for number, (priority, (_, second, _)) in enumerate(zip(priorities, theirs, strict=True))
        ]
        found = schedule([*waiting, *neighbours], running, capacity, Shares(), NOON)
        order = admission_order(running, [*waiting, *neighbours], Shares(), NOON)
        return (
            [each.invocation for each in found.start if each.workspace == "default"],
            {name: why for name, why in found.preempt.items() if "which goes before" not in why},
            [each.invocation for each in order if each.workspace == "default"],
        )

    flat, steep = decide_beside([0] * len(theirs)), decide_beside([priority for priority, *_ in theirs])
    assert flat == steep


def test_a_priority_ends_no_run_of_another_workspace_and_goes_before_none_of_its_waiting_ones() -> None:
    running = [request("r", gpus=8, preemptible=True, started_at=NOON, nodes=("a",))]
    cards = [Node("a", 8)]
    urgent = request("u", gpus=8, priority=1 << 40)
    assert decide([urgent], running, capacity=cards).preempt == {"r": "u, which goes before it"}
    elsewhere = replace(urgent, workspace="scratch")
    assert schedule([elsewhere], running, cards, Shares(), NOON).preempt == {}
    waiting = [request("w", gpus=8), replace(elsewhere, at=NOON + timedelta(seconds=1))]
    assert [each.invocation for each in schedule(waiting, [], cards, Shares(), NOON).start] == ["w"]


def test_a_run_that_filled_a_gap_yields_to_the_one_it_was_filled_in_before_also_of_another_workspace() -> (
    None
):
    cards = [Node("a", 8)]
    gap = [request("g", gpus=4, preemptible=True, backfilled=True, started_at=NOON, nodes=("a",), priority=9)]
    large = replace(request("L", gpus=8), workspace="lab")
    assert set(schedule([large], gap, cards, Shares(), NOON).preempt) == {"g"}


@pytest.mark.parametrize("limit", ["cpus", "gpus", "at_once"])
def test_what_the_platform_allots_a_workspace_bounds_all_its_teams_and_nobody_else(limit: str) -> None:
    waiting = [
        replace(request(f"{workspace}{number}", team, cpus=1, gpus=1, second=number), workspace=workspace)
        for workspace in ("default", "lab")
        for number, team in enumerate((*TEAMS, *TEAMS))
    ]
    shares = Shares(allotments={"lab": Quota(**{limit: 2})})
    started = schedule(waiting, [], [Node("a", 64)], shares, NOON).start
    assert [sum(each.workspace == name for each in started) for name in ("default", "lab")] == [6, 2]
    alone = replace(waiting[-1], cpus=3, gpus=3)
    if limit != "at_once":
        found = schedule([alone, *waiting[:1]], [], [Node("a", 64)], shares, NOON)
        assert "larger allotment" in found.wait[alone.invocation]
        assert len(found.start) == 1
