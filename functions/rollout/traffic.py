"""What the traffic of a model must be at a stage of its rollout, and making it so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from functions.rollout.state import RolloutState
from registry import Stale

CANARY = "canary"
_ATTEMPTS = 8  # rereads before a clean-up leaves it to the next tick


class TrafficArm(Protocol):
    """One arm as the registry records it."""

    @property
    def name(self) -> str:
        """The arm's name."""
        ...

    @property
    def version(self) -> int:
        """The version it serves."""
        ...

    @property
    def share(self) -> float:
        """Its share of the units."""
        ...


class TrafficNow(Protocol):
    """The traffic in force: the champion's arm first."""

    @property
    def arms(self) -> Sequence[TrafficArm]:
        """All arms."""
        ...

    @property
    def shadows(self) -> Sequence[int]:
        """Versions that score without answering."""
        ...

    @property
    def entry(self) -> int:
        """Number of the registry entry it came from."""
        ...


class TrafficControl(Protocol):
    """What a rollout needs of the registry."""

    def traffic(self, model: str, /) -> TrafficNow:
        """The traffic in force."""
        ...

    def set_traffic(
        self,
        model: str,
        arms: Mapping[str, tuple[int, float]],
        /,
        *,
        shadows: Sequence[int],
        expected: int | None,
        reason: str,
    ) -> object:
        """Replace arms beside the champion, and shadows. Raises: Stale if `expected` is not the newest entry."""
        ...

    def promote(self, model: str, version: int, /, *, reason: str, expected: int | None) -> object:
        """Make `version` the champion in one entry.

        Raises: Stale if the champion is not `expected`; Refused if a rule of the model forbids it.
        """
        ...

    def find_version(self, model: str, version: int, /) -> Any:
        """The version, with a `status`, or None."""
        ...


def champion_of(traffic: TrafficNow) -> int | None:
    """The version that answers what no other arm does, or None."""
    return traffic.arms[0].version if traffic.arms else None


def apply(registry: TrafficControl, model: str, state: RolloutState, expected: int) -> None:
    """Make the traffic what `state.stage` asks for, if it still is that of entry `expected`.

    Raises: Stale if it does not; Refused if the model's rules forbid it.
    """
    reason = f"rollout {state.rollout}: {state.stage}"
    if state.stage == "promoted":
        registry.promote(model, state.challenger, reason=reason, expected=state.champion)
        return
    traffic = registry.traffic(model)
    ours = state.versions
    arms = {arm.name: (arm.version, arm.share) for arm in traffic.arms[1:] if arm.version not in ours}
    shadows = [version for version in traffic.shadows if version not in ours]
    if state.is_open:
        shadows.extend(state.alive)
    if state.stage == "canary":
        arms[CANARY] = (state.challenger, state.policy.canary_share)
    registry.set_traffic(model, arms, shadows=shadows, expected=expected, reason=reason)


def in_place(traffic: TrafficNow, state: RolloutState) -> bool:
    """Whether the challengers of an open rollout are in the traffic as its stage asks, and those that left are not."""
    if absent(traffic, state) or any(
        version in traffic.shadows for version in set(state.versions) - set(state.alive)
    ):
        return False
    return state.stage != "canary" or any(arm.version == state.challenger for arm in traffic.arms[1:])


def absent(traffic: TrafficNow, state: RolloutState) -> tuple[int, ...]:
    """The challengers of an open rollout that are no shadows, though all of them should be."""
    return tuple(version for version in state.alive if version not in traffic.shadows)


def canary_share_of(traffic: TrafficNow, state: RolloutState) -> float | None:
    """The canary's declared share of what it and the champion answer together; None where it answers nothing."""
    ours = sum(arm.share for arm in traffic.arms[1:] if arm.version == state.challenger)
    theirs = sum(arm.share for arm in traffic.arms if arm.version == state.champion)
    return ours / (ours + theirs) if ours > 0 and theirs > 0 else None


def insist(registry: TrafficControl, model: str, state: RolloutState) -> bool:
    """Make the traffic what an open or a failed rollout asks for, whoever else changes it meanwhile.

    Returns whether it is so; False after losing to other writers again and again, or where the champion is no longer
    the one that the rollout was judged against. Raises: Refused.
    """
    for _ in range(_ATTEMPTS):
        traffic = registry.traffic(model)
        if state.is_open and champion_of(traffic) != state.champion:
            return False
        if not state.is_open and not any(_holds(traffic, version) for version in state.versions):
            return True
        try:
            apply(registry, model, state, traffic.entry)
        except Stale:
            continue
        return True
    return False


def _holds(traffic: TrafficNow, version: int) -> bool:
    return version in traffic.shadows or any(arm.version == version for arm in traffic.arms[1:])
