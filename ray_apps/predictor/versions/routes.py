"""Chooses which version answers, by the recorded traffic policy and the versions that are ready; without I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from toque.registry.models.traffic import BY_RULE, Traffic

__all__ = ["ReadyVersion", "Routes", "plan_routes", "wanted_versions"]

CHAMPION = "champion"


class ReadyVersion(Protocol):
    """A version that is loaded and can answer."""

    @property
    def version(self) -> int:
        """The number of the version."""
        ...


V = TypeVar("V", bound=ReadyVersion)


@dataclass(frozen=True, slots=True)
class Routes(Generic[V]):
    """The routing of one replica's requests; replaced as a whole, never changed.

    champion: answers for every arm that is not ready; None until a champion was ready for the first time.
    arms: version -> the ready version, for the arms of the split and its rules. shadows: ready shadow versions.
    degraded: versions that the policy names and that are not ready, so that another answers for them. chances: of each arm,
    the champion's with those of arms that are not ready. replaced: number of the champion before this one, where there was one.
    """

    traffic: Traffic | None = None
    champion: V | None = None
    arms: Mapping[int, V] = field(default_factory=dict)
    shadows: tuple[V, ...] = ()
    degraded: frozenset[int] = frozenset()
    chances: Mapping[str, float] = field(default_factory=dict)
    replaced: int | None = None

    def chance(self, arm: str) -> float | None:
        """Chance that a request which no rule matches gets `arm`; 1 for the arm of a rule, None for one that was not drawn."""
        if self.traffic is None:
            return 1.0 if arm == CHAMPION else None
        return 1.0 if arm.startswith(BY_RULE) else self.chances.get(arm)

    def choose(self, unit: str, attributes: Mapping[str, str] | None = None) -> tuple[str, V | None]:
        """Choose the arm and version that answer `unit`; the champion answers for an arm that is not ready.

        attributes: of the request, for the rules. A request matched by a rule keeps the rule's arm even if the champion
        answers: it did not come by the split, so it must not be counted as the champion's.
        """
        if self.traffic is None:
            return CHAMPION, self.champion
        if attributes:
            ruled = self.traffic.by_rule(attributes)
            if ruled is not None:
                return ruled.name, self.arms.get(ruled.version, self.champion)
        if self.traffic.is_whole:
            return CHAMPION, self.champion
        arm = self.traffic.assign(unit)
        version = self.arms.get(arm.version)
        if version is None:
            return CHAMPION, self.champion
        return arm.name, version


def wanted_versions(traffic: Traffic | None, aliases: Mapping[str, int]) -> tuple[int, ...]:
    """The versions that a replica loads for a policy and aliases, the champion first."""
    routed = traffic.versions if traffic is not None else ()
    return tuple(dict.fromkeys([*routed, *aliases.values()]))


def plan_routes(traffic: Traffic | None, ready: Iterable[V], previous: Routes[V]) -> Routes[V]:
    """Plan the routes for a policy and the versions that are ready.

    A champion that is not ready does not take over: the previous champion keeps answering.
    """
    if traffic is None:
        return previous
    by_number = {version.version: version for version in ready}
    champion, before = by_number.get(traffic.champion.version, previous.champion), previous.champion
    replaced = previous.replaced
    if before is not None and champion is not None and champion.version != before.version:
        replaced = before.version
    named = [
        *(arm.version for arm in traffic.arms[1:]),
        *(v for rule in traffic.rules for v in rule.versions),
    ]
    arms = {version: by_number[version] for version in named if version in by_number}
    if champion is not None:
        arms[traffic.champion.version] = champion
    return Routes(
        traffic=traffic,
        champion=champion,
        arms=arms,
        shadows=tuple(by_number[v] for v in traffic.shadows if v in by_number),
        degraded=frozenset(traffic.versions) - by_number.keys(),
        chances=_chances(traffic, arms),
        replaced=replaced,
    )


def _chances(traffic: Traffic, ready: Collection[int]) -> dict[str, float]:
    """Chance of each arm, as requests are answered while only some versions are ready."""
    found = traffic.chances()
    for arm in traffic.arms[1:]:
        if arm.version not in ready:
            found[CHAMPION] += found.pop(arm.name)
    return found
