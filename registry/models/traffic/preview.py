"""Preview of a traffic split before it is made: which share of the units would change arms, from where to where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from toque.registry.models.traffic.split import BUCKETS, CHAMPION, Arm, Ranges, Traffic, allocate, to_buckets


class Move(BaseModel):
    """Share of the units of a split that a change sends from one arm to another; an arm that stays has none."""

    model_config = ConfigDict(frozen=True)

    source: str
    source_version: int
    target: str
    target_version: int
    share: float


def moves(now: Traffic, arms: Mapping[str, tuple[int, float]]) -> tuple[Move, ...]:
    """List who would change arms or versions if the arms were these; the largest share first.

    arms: arm -> (version, share), beside the champion. Raises: InvalidInput for shares that cannot be.
    """
    wanted = {name: to_buckets(share, what=f"arm {name!r}") for name, (_, share) in arms.items()}
    spans = allocate({arm.name: arm.buckets for arm in now.arms[1:]}, wanted)
    before = _owners({arm.name: arm.buckets for arm in now.arms[1:]})
    after = _owners(spans)
    versions_now = _versions(now.arms)
    versions_then = {CHAMPION: now.champion.version} | {name: version for name, (version, _) in arms.items()}
    counted = Counter(zip(before, after, strict=True))
    found = (
        Move(
            source=source,
            source_version=versions_now[source],
            target=target,
            target_version=versions_then[target],
            share=count / BUCKETS,
        )
        for (source, target), count in counted.items()
        if source != target or versions_now[source] != versions_then[target]
    )
    return tuple(sorted(found, key=lambda move: -move.share))


def _owners(spans: Mapping[str, Ranges]) -> list[str]:
    """Name the arm of each bucket."""
    owners = [CHAMPION] * BUCKETS
    for name, ranges in spans.items():
        for start, stop in ranges:
            owners[start:stop] = [name] * (stop - start)
    return owners


def _versions(arms: tuple[Arm, ...]) -> dict[str, int]:
    return {arm.name: arm.version for arm in arms}
