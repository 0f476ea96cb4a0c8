"""Assignment of units to arms: 10,000 buckets, owned by arms; a unit's bucket never changes.

Which buckets an arm owns is part of the recorded policy, so raising one share takes buckets from the champion only, and
units of other arms do not move. Before arms are assigned, holdouts take their units out, and so does a layer with the
units of other experiments: each by a salt of its own.

Traffic rules come first of all: they look at a request's attributes and not at its unit. A rule is not an experiment: it
applies to held-out units and others alike, so the remaining requests are still assigned at random; requests that match
are logged under an arm of their own, `rule:{name}`, which nothing compares.
"""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from math import isfinite, nan
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from toque.registry.errors import InvalidInput

BUCKETS = 10_000
CHAMPION = "champion"
HOLDOUT = "holdout"  # the arm of held-out units
OUTSIDE = "outside"  # the arm of units that are not in the model's part of its layer
RESERVED = frozenset({CHAMPION, HOLDOUT, OUTSIDE})
BY_RULE = "rule:"
"""Prefix of the arms of requests that a rule sends; no arm of a split has a colon in its name."""
MAX_RULES = 64
_COMPARED = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
Named = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
]  # the pattern of `toque.registry.names`, for schemas
Text = Annotated[str, StringConstraints(max_length=256)]
Ranges = tuple[tuple[int, int], ...]  # half-open, sorted, apart


class Condition(BaseModel):
    """Condition on one attribute of a request; a request without the attribute does not meet it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attribute: Named = Field(description="Name of the attribute.")
    op: Literal["in", "prefix", "<", "<=", ">", ">="] = Field(
        description="`in`: equal to one of the values; `prefix`: begins with one; else a number, compared with the only value."
    )
    values: tuple[Text, ...] = Field(
        min_length=1, max_length=1_000, description="What the attribute is compared with."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.op == "prefix" and "" in self.values:
            raise ValueError(
                f"attribute {self.attribute!r}: every text begins with the prefix ''; give a longer one"
            )
        if self.op in _COMPARED and not (len(self.values) == 1 and isfinite(self._bound)):
            raise ValueError(
                f"attribute {self.attribute!r}: {self.op} compares with one number, got {list(self.values)!r:.80}"
            )
        return self

    def holds(self, attributes: Mapping[str, str]) -> bool:
        """Whether a request with these attributes meets the condition."""
        value = attributes.get(self.attribute)
        if value is None:
            return False
        if self.op == "in":
            return value in self._among
        if self.op == "prefix":
            return value.startswith(self.values)
        return bool(_COMPARED[self.op](_number(value), self._bound))

    @cached_property
    def _among(self) -> frozenset[str]:
        return frozenset(self.values)

    @cached_property
    def _bound(self) -> float:
        return _number(self.values[0])


class TrafficRule(BaseModel):
    """Send requests that meet all conditions of `when` to one version, whatever their unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Named = Field(description="Name of the rule.")
    when: tuple[Condition, ...] = Field(
        min_length=1, max_length=16, description="Conditions, all of which a request meets."
    )
    to: Annotated[int, Field(ge=1, le=2**31)] | Named = Field(
        description="Number of a version, `champion`, or an arm, which stands for the version that it has when the rule is set."
    )

    @property
    def arm(self) -> str:
        """Arm under which requests of this rule are logged."""
        return BY_RULE + self.name

    @property
    def versions(self) -> tuple[int, ...]:
        """Version that the rule names by number; empty if it names the champion."""
        return (self.to,) if isinstance(self.to, int) else ()

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Whether a request with these attributes meets all conditions."""
        for condition in self.when:  # noqa: SIM110  # on every request's path: a generator costs twice as much
            if not condition.holds(attributes):
                return False
        return True


def _number(text: str) -> float:
    """Parse `text` as a number; NaN, which no comparison accepts, if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return nan


class Arm(BaseModel):
    """One arm of the traffic split.

    share: part of the traffic, 0 to 1; buckets: that it owns (the champion owns the rest, and lists no buckets).
    """

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    share: float = Field(ge=0, le=1)
    buckets: Ranges = ()


class LayerShare(BaseModel):
    """Request for a share of a layer, for an experiment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Named = Field(
        description="Name of the layer, in which each unit is in one model's experiment at most."
    )
    share: float = Field(
        ge=1 / BUCKETS,
        le=1,
        allow_inf_nan=False,
        description="Share of the layer's units that the experiment has to itself, from 0.0001 to 1.",
    )


class LayerPart(BaseModel):
    """Part of a layer that a model's experiment owns; no other model owns any of its buckets.

    claim: number of the entry in the layer's journal that claimed it.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    claim: int
    buckets: Ranges

    @property
    def share(self) -> float:
        """Share of the layer's buckets, 0 to 1."""
        return size(self.buckets) / BUCKETS

    @property
    def salt(self) -> str:
        """Salt shared by all models in the layer, so that a unit has one bucket in it; no model's salt has a ':'."""
        return f"layer:{self.name}"


class Holdout(BaseModel):
    """Share of units that no experiment touches."""

    model_config = ConfigDict(frozen=True)

    name: Named = Field(
        description="Name of the holdout; models that declare one of the same name hold out the same units."
    )
    share: float = Field(
        ge=1 / BUCKETS,
        lt=1,
        allow_inf_nan=False,
        description="Share of all units that is held out, from 0.0001 to below 1.",
    )

    @property
    def salt(self) -> str:
        """Salt of the holdout, shared by all models that declare it."""
        return f"holdout:{self.name}"

    def holds(self, unit: str) -> bool:
        """Whether `unit` is one of the held-out units."""
        return bucket_of(self.salt, unit) < round(self.share * BUCKETS)


class Traffic(BaseModel):
    """Current traffic split of a model.

    arms: champion first, shares sum to 1; shadows: versions that see every request and answer none;
    salt: of this experiment; entry: number of the journal entry it came from.
    layer: the part of a layer that the arms share; None: they share all units. holdouts: units kept out of
    all experiments. Shares of arms are of the units that are neither held out nor outside the layer's part.
    rules: send requests to one version whatever their unit; the first that matches counts.
    """

    model_config = ConfigDict(frozen=True)

    arms: tuple[Arm, ...] = Field(min_length=1)
    shadows: tuple[int, ...] = ()
    salt: str = ""
    entry: int = 0
    layer: LayerPart | None = None
    holdouts: tuple[Holdout, ...] = ()
    rules: tuple[TrafficRule, ...] = ()

    @property
    def champion(self) -> Arm:
        """The champion's arm, which has all buckets that the other arms leave."""
        return self.arms[0]

    @property
    def versions(self) -> tuple[int, ...]:
        """Every version that a replica has to load, each once."""
        ruled = [version for rule in self.rules for version in rule.versions]
        return tuple(dict.fromkeys([*(arm.version for arm in self.arms), *ruled, *self.shadows]))

    @property
    def reach(self) -> float:
        """Share of all units that the arms divide, 0 to 1: the layer's part less holdouts."""
        kept = 1.0 if self.layer is None else self.layer.share
        for holdout in self.holdouts:
            kept *= 1 - holdout.share
        return kept

    @property
    def is_whole(self) -> bool:
        """Whether the champion answers every unit that is not sent elsewhere by a rule."""
        return len(self.arms) == 1 and self.layer is None and not self.holdouts

    def by_rule(self, attributes: Mapping[str, str]) -> Arm | None:
        """Arm of the first rule that matches a request's attributes, named "rule:" and the rule; None if no rule matches."""
        for rule, arm in self._ruled:
            if rule.matches(attributes):
                return arm
        return None

    def assign(self, unit: str) -> Arm:
        """Arm that answers `unit` (a user, a key, a request id): always the same one while shares only grow.

        Held-out units get the arm "holdout" and units outside the layer's part "outside"; the champion answers both.
        """
        if self.holdouts and any(holdout.holds(unit) for holdout in self.holdouts):
            return self._champion_as(HOLDOUT)
        if self.layer is not None and not self._is_inside(bucket_of(self.layer.salt, unit)):
            return self._champion_as(OUTSIDE)
        starts, arms = self._table
        return arms[bisect_right(starts, bucket_of(self.salt, unit)) - 1]

    def chances(self) -> dict[str, float]:
        """Chance of each arm for a unit that nothing is known of and no rule matches; they sum to 1."""
        within = 1.0
        for holdout in self.holdouts:
            within *= 1 - round(holdout.share * BUCKETS) / BUCKETS
        part = 1.0 if self.layer is None else self.layer.share
        others = {arm.name: size(arm.buckets) / BUCKETS for arm in self.arms[1:]}
        found = {CHAMPION: 1 - sum(others.values()), **others}
        found = {name: share * within * part for name, share in found.items()}
        if self.holdouts:
            found[HOLDOUT] = 1 - within
        if self.layer is not None:
            found[OUTSIDE] = within * (1 - part)
        return found

    def _champion_as(self, name: str) -> Arm:
        return Arm(name=name, version=self.champion.version, share=0.0)

    def _is_inside(self, bucket: int) -> bool:
        return bisect_right(self._edges, bucket) % 2 == 1

    @cached_property
    def _ruled(self) -> list[tuple[TrafficRule, Arm]]:
        champion = self.champion.version
        return [
            (rule, Arm(name=rule.arm, version=next(iter(rule.versions), champion), share=0.0))
            for rule in self.rules
        ]

    @cached_property
    def _edges(self) -> list[int]:
        """Alternating starts and ends of the layer part's bucket ranges."""
        return [edge for span in (self.layer.buckets if self.layer else ()) for edge in span]

    @cached_property
    def _table(self) -> tuple[list[int], list[Arm]]:
        """Starts of all bucket ranges and the arm that owns each, the champion's gaps included."""
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


def is_shadowed(arm: str) -> bool:
    """Whether shadows see the requests of `arm`: not of held-out units, nor sent by a rule, which nothing compares."""
    return arm != HOLDOUT and not arm.startswith(BY_RULE)


def bucket_of(salt: str, unit: str) -> int:
    """Hash `unit` under `salt` to its bucket, 0 to 9,999.

    Hashed twice: with a single weak hash, assignments of experiments that differ in salt only correlate.
    """
    inner = blake2b(f"{salt}\0{unit}".encode(), digest_size=8).digest()
    return int.from_bytes(blake2b(inner, digest_size=8).digest(), "big") % BUCKETS


def to_buckets(share: float, *, what: str) -> int:
    """Convert a share to a number of buckets. what: names it in the error. Raises: InvalidInput outside 0 to 1 or NaN."""
    if not 0.0 <= share <= 1.0:
        raise InvalidInput(f"{what}: share={share!r} is not between 0 and 1")
    return round(share * BUCKETS)


def allocate(owned: Mapping[str, Ranges], wanted: Mapping[str, int]) -> dict[str, Ranges]:
    """Allocate bucket ranges to each arm of `wanted` (arm -> number of buckets), moving as few units as possible.

    owned: ranges that arms own now. An arm that shrinks gives its last buckets back to the champion; one that grows
    takes the champion's first.
    Raises: InvalidInput if more than all buckets are wanted.
    """
    if sum(wanted.values()) > BUCKETS:
        raise InvalidInput(
            f"shares sum to {sum(wanted.values()) / BUCKETS:.4f}; the champion cannot have less than 0"
        )
    kept = {arm: _first(owned.get(arm, ()), count) for arm, count in wanted.items()}
    free = _complement([span for ranges in kept.values() for span in ranges])
    for arm, count in wanted.items():
        taken = _first(free, count - size(kept[arm]))
        free = _first(free, size(free), skip=size(taken))
        kept[arm] = _merge([*kept[arm], *taken])
    return kept


def size(ranges: Sequence[tuple[int, int]]) -> int:
    """Number of buckets in `ranges` of a split."""
    return sum(stop - start for start, stop in ranges)


def _first(ranges: Sequence[tuple[int, int]], count: int, *, skip: int = 0) -> Ranges:
    """Take the first `count` buckets of `ranges` after skipping `skip`."""
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
    versions_now = {arm.name: arm.version for arm in now.arms}
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
