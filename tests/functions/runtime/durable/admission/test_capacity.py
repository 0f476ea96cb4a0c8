"""Placement of workers on the cards of nodes: whole cards, parts of one each, and slices."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toque.functions import Demand
from toque.functions.runtime.admission.occupancy import Room, Shares, held_by
from toque.functions.runtime.admission.request import Quota, QuotaRequest
from toque.functions.runtime.admission.rule import schedule
from toque.functions.runtime.cards import Node, share_of

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SLICE = "H100-1g.10gb"
CUT = Node("cut", 7 * share_of(SLICE), SLICE)


def request(name: str, gpus: float, workers: int = 1, card: str | None = None) -> QuotaRequest:
    return QuotaRequest.of(name, "vision", Demand(gpus=gpus, workers=workers, card=card), NOON)


@pytest.mark.parametrize(
    ("each", "held"), [(1.0, 2), (2.0, 1), (0.5, 4), (0.6, 2), (0.4, 4), (0.34, 4), (0.3, 6), (0.25, 8)]
)  # of two cards: a part is of one card, so that 0.6 has no room in what 0.6 leaves of each
def test_a_part_of_a_card_is_of_one_card(each: float, held: int) -> None:
    assert held_by(Node("a", 2, "H100"), request("x", 9 * each, 9)) == held


def test_parts_fill_a_card_that_is_begun_and_leave_whole_ones() -> None:
    room = Room([Node("a", 2, "H100")])
    for number in range(2):
        part = request(f"p{number}", 0.5)
        room.take(part, room.find(part) or ())
    assert room.find(request("whole", 1)) == ("a",)
    assert room.find(request("both", 2)) is None
    room.give_back(part, ("a",))
    assert room.find(request("both", 2)) is None
    assert room.find(request("next", 0.5)) == ("a",)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.7, 1.0, 2.0]), max_size=14), st.data())
def test_no_card_is_given_twice_and_what_is_given_back_is_free(
    sizes: list[float], data: st.DataObject
) -> None:
    room, held = Room([Node("a", 2, "H100"), Node("b", 3, "H100")]), []
    for number, size in enumerate(sizes):
        asked = request(str(number), size)
        found = room.find(asked)
        if found is not None:
            room.take(asked, found)
            held.append((asked, found))
        elif held and data.draw(st.booleans()):
            room.give_back(*held.pop(data.draw(st.integers(0, len(held) - 1))))
        assert all(left >= -1e-9 for each in room._free.values() for left in each.gpus)
    for asked, found in held:
        room.give_back(asked, found)
    assert room.free_gpus == pytest.approx(5)
    assert room.find(request("all of b", 3)) == ("b",)


def test_who_asks_for_any_card_gets_no_slice_and_who_asks_for_a_slice_no_card() -> None:
    nodes = [Node("a", 2, "H100"), CUT]
    assert Room(nodes).find(request("any", 1)) == ("a",)
    assert Room(nodes).find(request("slice", 1, card=SLICE)) == ("cut",)
    assert Room([CUT]).find(request("any", 1)) is None
    assert Room(nodes[:1]).find(request("slice", 1, card=SLICE)) is None
    assert held_by(Node("type/0", 8, coming=True), request("slice", 1, card=SLICE)) == 0
    assert held_by(Node("type/0", 8, "H100", coming=True), request("any", 1)) == 1


def test_a_slice_counts_as_its_part_of_a_card_in_a_quota() -> None:
    quotas = Shares({"default": {"vision": Quota(gpus=0.5)}})
    waiting = [request(str(number), 1, card=SLICE) for number in range(7)]
    decision = schedule(waiting, (), [CUT], quotas, NOON)
    assert len(decision.start) == 3  # of 1/7 each
    assert set(decision.wait.values()) == {"room in the quota of its team 'vision'"}
    assert len(schedule(waiting, (), [CUT], Shares(), NOON).start) == 7
    eight = schedule([*waiting, request("8", 1, card=SLICE)], (), [CUT], Shares(), NOON)
    assert eight.wait == {"8": f"cards: it needs 1 × 1 GPU ({SLICE}), and 0 are free"}
