"""Who answers which request: 10,000 buckets, owned by arms; a unit's bucket never changes.

Which buckets an arm owns is part of the recorded policy, so raising one share takes buckets from the
champion only, and nobody else moves.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import blake2b

from pydantic import BaseModel, ConfigDict, Field

from registry.errors import InvalidInput

BUCKETS = 10_000
CHAMPION = "champion"
Ranges = tuple[tuple[int, int], ...]  # half-open, sorted, apart


class Arm(BaseModel):
    """One arm of the split.

    share: part of the traffic, 0 to 1; buckets: those it owns (the champion owns what is left: none listed).
    """

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    share: float = Field(ge=0, le=1)
    buckets: Ranges = ()


class Traffic(BaseModel):
    """The split in force.

    arms: champion first, shares sum to 1; shadows: versions that see every request and answer none;
    salt: of this experiment; entry: number of the journal entry it came from.
    """

    model_config = ConfigDict(frozen=True)

    arms: tuple[Arm, ...] = Field(min_length=1)
    shadows: tuple[int, ...] = ()
    salt: str = ""
    entry: int = 0

    @property
    def champion(self) -> Arm:
        """The arm that has what the others leave."""
        return self.arms[0]

    @property
    def versions(self) -> tuple[int, ...]:
        """Every version a replica has to hold, each once."""
        return tuple(dict.fromkeys([*(arm.version for arm in self.arms), *self.shadows]))

    def assign(self, unit: str) -> Arm:
        """The arm that answers `unit` (a user, a key, a request id): always the same while shares only grow."""
        starts, arms = self._table
        return arms[bisect_right(starts, bucket_of(self.salt, unit)) - 1]

    @cached_property
    def _table(self) -> tuple[list[int], list[Arm]]:
        """Starts of all ranges and who owns each, the champion's gaps included."""
        owned = sorted((start, stop, arm) for arm in self.arms[1:] for start, stop in arm.buckets)
        starts, arms, position = [0], [self.champion], 0
        for start, stop, arm in owned:
            if start == position:
                starts.pop()
                arms.pop()
            starts += [start, stop]
            arms += [arm, self.champion]
            position = stop
        return starts, arms


def bucket_of(salt: str, unit: str) -> int:
    """The bucket of `unit` under `salt`, 0 to 9,999.

    Hashed twice: with a single weak hash, assignments of experiments that differ in salt only correlate.
    """
    inner = blake2b(f"{salt}\0{unit}".encode(), digest_size=8).digest()
    return int.from_bytes(blake2b(inner, digest_size=8).digest(), "big") % BUCKETS


def to_buckets(share: float, *, arm: str) -> int:
    """How many buckets `share` is. Raises: InvalidInput outside 0 to 1 or NaN."""
    if not 0.0 <= share <= 1.0:
        raise InvalidInput(f"arm {arm!r}: share={share!r} is not between 0 and 1")
    return round(share * BUCKETS)


def allocate(held: Mapping[str, Ranges], wanted: Mapping[str, int]) -> dict[str, Ranges]:
    """Ranges for each arm of `wanted` (arm -> how many buckets), moving as few units as possible.

    held: what arms own now. An arm that shrinks gives its last buckets back to the champion; one that grows
    takes the champion's first.
    Raises: InvalidInput if more than all buckets are wanted.
    """
    if sum(wanted.values()) > BUCKETS:
        raise InvalidInput(
            f"shares sum to {sum(wanted.values()) / BUCKETS:.4f}; the champion cannot have less than 0"
        )
    kept = {arm: _first(held.get(arm, ()), count) for arm, count in wanted.items()}
    free = _complement([span for ranges in kept.values() for span in ranges])
    for arm, count in wanted.items():
        taken = _first(free, count - _size(kept[arm]))
        free = _first(free, _size(free), skip=_size(taken))
        kept[arm] = _merge([*kept[arm], *taken])
    return kept


def _size(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)


def _first(ranges: Sequence[tuple[int, int]], count: int, *, skip: int = 0) -> Ranges:
    """The first `count` buckets of `ranges` after `skip` of them."""
    chosen: list[tuple[int, int]] = []
    for start, stop in ranges:
        begin = min(start + skip, stop)
        skip -= begin - start
        end = min(stop, begin + count)
        if end > begin:
            chosen.append((begin, end))
            count -= end - begin
    return tuple(chosen)


def _complement(ranges: Sequence[tuple[int, int]]) -> Ranges:
    gaps: list[tuple[int, int]] = []
    position = 0
    for start, stop in sorted(ranges):
        if start > position:
            gaps.append((position, start))
        position = stop
    return (*gaps, (position, BUCKETS)) if position < BUCKETS else tuple(gaps)


def _merge(ranges: Sequence[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)
