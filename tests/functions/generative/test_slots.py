"""Who gets an engine's slot next: the order of tiers on a clock by hand, its bound, full queues, and callers who leave."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toque.functions.generative.engines.process import AHEAD_S, QueueFull, Slot, SlotQueue
from toque.registry import SERVICE_TIERS, ServiceTier

TIERS = st.sampled_from(SERVICE_TIERS)
GAPS_S = st.sampled_from([0.0, 1.0, 30.0, AHEAD_S, AHEAD_S + 1])


@dataclass
class Asking:
    """Requests for the slots of an engine, and the order in which they got one."""

    slots: int = 1
    most: int = 100
    now_s: float = 0.0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    served: list[int] = field(default_factory=list)
    held: dict[int, Slot] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.queue = SlotQueue(self.slots, most_waiting=self.most, clock=lambda: self.now_s)

    async def come(self, tier: ServiceTier) -> int:
        """A request comes, and gets a slot or waits. Returns: its number."""
        number = len(self.tasks)

        async def ask() -> None:
            self.held[number] = await self.queue.take(tier)
            self.served.append(number)

        self.tasks.append(asyncio.create_task(ask()))
        await settled()
        return number

    async def release(self) -> None:
        """The request that has held a slot for longest is answered."""
        self.held.pop(next(iter(self.held))).release()
        await settled()

    async def release_all(self) -> None:
        while self.held:
            await self.release()


async def settled() -> None:
    for _ in range(3):  # a task is woken, runs, and wakes who waits for it
        await asyncio.sleep(0)


@given(st.lists(st.tuples(TIERS, GAPS_S), max_size=12))
def test_a_higher_tier_goes_first_and_overtakes_by_its_bound_alone(arrivals: list[tuple[ServiceTier, float]]):
    async def order() -> tuple[list[int], list[float]]:
        asking, came_s = Asking(), []
        await asking.come("flex")  # has the slot
        for tier, gap_s in arrivals:
            asking.now_s += gap_s
            came_s.append(asking.now_s)
            await asking.come(tier)
        await asking.release_all()
        return [number - 1 for number in asking.served[1:]], came_s

    served, came_s = asyncio.run(order())
    assert sorted(served) == list(range(len(arrivals)))
    for earlier, later in combinations(range(len(arrivals)), 2):
        higher_by = SERVICE_TIERS.index(arrivals[later][0]) - SERVICE_TIERS.index(arrivals[earlier][0])
        overtakes = higher_by > 0 and came_s[later] - came_s[earlier] < higher_by * AHEAD_S
        assert (served.index(later) < served.index(earlier)) == overtakes


async def test_the_lowest_tier_is_served_though_more_of_the_highest_come_than_are_answered():
    asking = Asking(most=10_000)
    await asking.come("priority")
    starving = await asking.come("flex")
    while starving not in asking.served:
        assert asking.now_s < 10 * AHEAD_S
        asking.now_s += 1
        await asking.come("priority")
        await asking.come("priority")
        await asking.release()
    # The 240 priority requests of its first two minutes go before it, one a second.
    assert asking.now_s == pytest.approx(2 * 2 * AHEAD_S, abs=3)


async def test_a_full_queue_refuses_the_newest_of_the_lowest_tier():
    asking = Asking(slots=2, most=3)
    for _ in range(2):
        await asking.come("default")
    older, newer = await asking.come("flex"), await asking.come("flex")
    normal = await asking.come("default")
    refused = await asking.come("flex")
    with pytest.raises(QueueFull, match=r"3 requests wait .* lowest service_tier \(flex\)"):
        await asking.tasks[refused]
    first = await asking.come("priority")
    with pytest.raises(QueueFull):
        await asking.tasks[newer]
    assert [asking.queue.waiting(tier) for tier in SERVICE_TIERS] == [1, 1, 1]
    await asking.release_all()
    assert asking.served[2:] == [first, normal, older]


async def test_who_is_refused_is_told_when_those_who_wait_have_had_their_slots():
    asking = Asking(slots=2, most=4)
    await asking.come("default")
    asking.now_s += 6
    await asking.release()
    for _ in range(6):
        await asking.come("default")
    with pytest.raises(QueueFull) as refused:
        await asking.tasks[await asking.come("default")]
    assert refused.value.retry_after_s == 6 * 4 / 2


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["come", "come", "come", "release", "leave", "leave as it is served"]), TIERS
        ),
        max_size=40,
    )
)
def test_no_slot_is_lost_or_given_twice_whoever_leaves_and_whenever(steps: list[tuple[str, ServiceTier]]):
    async def run() -> None:
        asking = Asking(slots=2, most=4)
        for step, tier in steps:
            waiting = [each for each in asking.tasks if not each.done()]
            if step == "come":
                await asking.come(tier)
            elif step == "release" and asking.held:
                await asking.release()
            elif step == "leave" and waiting:
                waiting[0].cancel()
            elif step == "leave as it is served" and waiting and asking.held:
                asking.held.pop(next(iter(asking.held))).release()
                for each in waiting:
                    each.cancel()
            await settled()
            assert len(asking.held) <= 2
            assert len(asking.held) == 2 or not any(map(asking.queue.waiting, SERVICE_TIERS))
        await asking.release_all()
        await asyncio.gather(*asking.tasks, return_exceptions=True)
        for number in range(2):
            assert len(asking.held) == number
            await asking.come("flex")
        assert len(asking.held) == 2

    asyncio.run(run())


async def test_who_leaves_just_as_a_slot_is_given_passes_it_on():
    asking = Asking()
    await asking.come("default")
    leaves, stays = await asking.come("default"), await asking.come("flex")
    asking.held.pop(0).release()
    asking.tasks[leaves].cancel()  # it is woken, and gone before it runs
    await settled()
    assert asking.tasks[leaves].cancelled()
    assert list(asking.held) == [stays]


async def test_a_slot_is_given_back_once():
    queue = SlotQueue(1, most_waiting=1)
    slot = await queue.take("default")
    slot.release()
    slot.release()
    await queue.take("default")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.take("default"), 0.01)
