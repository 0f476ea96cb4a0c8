"""Who a new split would move: by hand on small splits, and against the assignment of units."""

from toque.registry import Arm, Traffic
from toque.registry.models.traffic import allocate, moves, to_buckets


def split(**arms: tuple[int, float]) -> Traffic:
    spans = allocate({}, {name: to_buckets(share, what=name) for name, (_, share) in arms.items()})
    others = [
        Arm(name=name, version=version, share=share, buckets=spans[name])
        for name, (version, share) in arms.items()
    ]
    first = Arm(name="champion", version=1, share=1 - sum(arm.share for arm in others))
    return Traffic(arms=(first, *others), salt="s")


def told(now: Traffic, **arms: tuple[int, float]) -> list[tuple[str, str, float]]:
    return [(each.source, each.target, each.share) for each in moves(now, arms)]


def test_a_larger_share_takes_units_from_the_champion_alone() -> None:
    assert told(split(a=(2, 0.1), b=(3, 0.2)), a=(2, 0.3), b=(3, 0.2)) == [("champion", "a", 0.2)]


def test_a_smaller_share_gives_them_back_and_an_arm_that_ends_gives_all() -> None:
    assert told(split(a=(2, 0.3)), a=(2, 0.1)) == [("a", "champion", 0.2)]
    assert told(split(a=(2, 0.3))) == [("a", "champion", 0.3)]


def test_an_arm_with_another_version_moves_all_its_units_and_the_same_split_none() -> None:
    (move,) = moves(split(a=(2, 0.25)), {"a": (4, 0.25)})
    assert (move.source_version, move.target_version, move.share) == (2, 4, 0.25)
    assert told(split(a=(2, 0.25)), a=(2, 0.25)) == []
