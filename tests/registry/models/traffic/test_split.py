import pickle
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toque.registry import Arm, InvalidInput, Traffic
from toque.registry.models.traffic import BUCKETS, allocate, bucket_of, to_buckets


def traffic(ranges: dict[str, tuple[tuple[int, int], ...]], salt: str = "s") -> Traffic:
    taken = {name: sum(b - a for a, b in spans) for name, spans in ranges.items()}
    first = Arm(name="champion", version=1, share=(BUCKETS - sum(taken.values())) / BUCKETS)
    others = [
        Arm(name=name, version=2 + index, share=taken[name] / BUCKETS, buckets=spans)
        for index, (name, spans) in enumerate(ranges.items())
    ]
    return Traffic(arms=(first, *others), salt=salt)


def owner(ranges: dict[str, tuple[tuple[int, int], ...]], bucket: int) -> str:
    return next((n for n, spans in ranges.items() if any(a <= bucket < b for a, b in spans)), "champion")


shares = st.dictionaries(st.sampled_from(["canary", "a", "b"]), st.integers(0, BUCKETS // 3), max_size=3)


@settings(max_examples=200)
@given(st.lists(shares, min_size=1, max_size=6))
def test_every_arm_gets_its_buckets_and_nobody_moves_without_need(history: list[dict[str, int]]):
    held: dict[str, tuple[tuple[int, int], ...]] = {}
    for wanted in history:
        new = allocate(held, wanted)
        sizes = {name: sum(b - a for a, b in spans) for name, spans in new.items()}
        assert sizes == wanted
        spans = sorted(span for ranges in new.values() for span in ranges)
        assert all(a < b for a, b in spans)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        for bucket in range(0, BUCKETS, 97):
            before, after = owner(held, bucket), owner(new, bucket)
            grew = before in wanted and wanted[before] >= sum(b - a for a, b in held.get(before, ()))
            assert not (before != "champion" and grew and after != before)
        held = new


def test_raising_a_share_moves_units_from_the_champion_only():
    low = allocate({}, {"canary": 1000, "b": 2000})
    high = allocate(low, {"canary": 3000, "b": 2000})
    units = [f"user-{n}" for n in range(20_000)]
    before, after = traffic(low), traffic(high)
    moves = Counter((before.assign(u).name, after.assign(u).name) for u in units)
    assert {pair for pair in moves if pair[0] != pair[1]} == {("champion", "canary")}


def test_shares_are_met_within_chance():
    split = traffic(allocate({}, {"canary": 1000}))
    hits = sum(split.assign(f"u{n}").name == "canary" for n in range(40_000))
    # Binomial(40 000, .1): 4 standard deviations are 240
    assert abs(hits - 4000) < 240


def test_assignments_under_different_salts_do_not_correlate():
    units = [f"user-{n}" for n in range(40_000)]
    first = [bucket_of("one", unit) < 5000 for unit in units]
    second = [bucket_of("two", unit) < 5000 for unit in units]
    both = sum(a and b for a, b in zip(first, second, strict=True))
    # Under independence Binomial(40 000, .25): 4 standard deviations are 346
    assert abs(both - 10_000) < 346


def test_the_same_unit_always_meets_the_same_arm_after_pickle_and_json():
    split = traffic(allocate({}, {"canary": 2500, "b": 2500}))
    copies = [pickle.loads(pickle.dumps(split)), Traffic.model_validate_json(split.model_dump_json())]  # noqa: S301 - our own
    for n in range(500):
        arm = split.assign(str(n))
        assert all(copy.assign(str(n)) == arm for copy in copies)
    assert copies == [split, split]


@pytest.mark.parametrize("share", [0, 10_000])
def test_an_arm_may_have_no_traffic_or_all(share: int):
    split = traffic(allocate({}, {"canary": share}))
    names = {split.assign(str(n)).name for n in range(1000)}
    assert names == ({"canary"} if share else {"champion"})


def test_versions_names_each_once():
    split = traffic(allocate({}, {"a": 1, "b": 1})).model_copy(update={"shadows": (3, 9)})
    assert split.versions == (1, 2, 3, 9)


def test_more_than_everything_is_refused():
    with pytest.raises(InvalidInput, match="champion cannot"):
        allocate({}, {"a": 6000, "b": 5000})
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidInput, match="between 0 and 1"):
            to_buckets(share, what="arm a")
