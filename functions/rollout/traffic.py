"""What the traffic of a model must be at a stage of its rollout, and making it so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from functions.rollout.errors import RolloutError
from functions.rollout.policy import RolloutPolicy
from functions.rollout.state import RolloutState
from registry import LayerPart, LayerShare, Refused, Stale, TrafficRule

CANARY = "canary"
_UNUSABLE = ("rejected", "archived", "deleted")
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

    @property
    def layer(self) -> LayerPart | None:
        """The part of a layer that the arms share, or None: all units."""
        ...

    @property
    def reach(self) -> float:
        """The part of all units that the arms share, 0 to 1."""
        ...

    @property
    def rules(self) -> Sequence[TrafficRule]:
        """Who goes to one version by rule."""
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
        layer: LayerShare | None,
        rules: Sequence[TrafficRule],
    ) -> object:
        """Replace arms beside the champion, shadows and rules. Raises: Stale if `expected` is not the newest entry."""
        ...

    def claim(self, model: str, wanted: LayerShare, /) -> object:
        """See that the model has its part of a layer. Raises: Refused if others have the room."""
        ...

    def release(self, model: str, layer: str, /) -> None:
        """Give the part back, unless the traffic is split in it."""
        ...

    def begin_holdout(self, model: str, holdout: str, share: float, /, *, reason: str) -> object:
        """Hold units out; it may be there already. Raises: Refused."""
        ...

    def unmet(self, model: str, version: int, /) -> Sequence[str]:
        """What the model's rules want of a version before it may be the champion, and is not there yet."""
        ...

    def promote(self, model: str, version: int, /, *, reason: str, expected: int | None) -> object:
        """Make `version` the champion in one entry.

        Raises: Stale if the champion is not `expected`; Refused if a rule of the model forbids it.
        """
        ...

    def find_version(self, model: str, version: int, /) -> Any:
        """The version, with a `status`, or None."""
        ...


def problem_of(registry: TrafficControl, model: str, version: int) -> str | None:
    """Why `version` cannot be served, or None."""
    found = registry.find_version(model, version)
    if found is None:
        return f"version {version} does not exist"
    status = str(getattr(found.status, "value", found.status)).lower()
    return f"version {version} is {status}" if status in _UNUSABLE else None


def reserve(registry: TrafficControl, model: str, policy: RolloutPolicy) -> None:
    """See at the start, not after weeks in the shadow, that holdout and layer can be had. Raises: RolloutError."""
    try:
        if policy.holdout is not None:
            name, share = policy.holdout.name, policy.holdout.share
            registry.begin_holdout(model, name, share, reason="a rollout's policy asks for it")
        if policy.layer is not None:
            registry.claim(model, policy.layer)
    except Refused as error:
        raise RolloutError(str(error)) from error


def give_back(registry: TrafficControl, model: str, policy: RolloutPolicy) -> None:
    """Undo `reserve` of the layer, unless the traffic is split in it; a holdout stays until it is ended."""
    if policy.layer is not None:
        registry.release(model, policy.layer.name)


def check_promotion(registry: TrafficControl, model: str, state: RolloutState, traffic: TrafficNow) -> None:
    """Tell a person who promotes at once what a tick would find out after. Raises: Refused; RolloutError."""
    problem = problem_of(registry, model, state.challenger)
    if problem is not None:
        raise RolloutError(f"{model}: {problem}; abort this rollout")
    if champion_of(traffic) != state.champion:
        raise RolloutError(
            f"{model}: the champion is {champion_of(traffic)}, this rollout compares with {state.champion}; "
            "abort it and start another"
        )
    unmet = registry.unmet(model, state.challenger)
    if unmet:
        raise Refused(
            f"{model}@{state.challenger} may not become the champion yet: {', '.join(unmet)}; "
            "have that done, then promote"
        )


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
    layer = _layer(traffic, state)
    rules = [rule for rule in traffic.rules if state.is_open or not set(rule.versions) & set(ours)]
    registry.set_traffic(
        model, arms, shadows=shadows, expected=expected, reason=reason, layer=layer, rules=rules
    )


def _layer(traffic: TrafficNow, state: RolloutState) -> LayerShare | None:
    """The rollout's own layer while it is open; else the one that others' arms are in, which stay there."""
    there, own = traffic.layer, state.policy.layer if state.is_open else None
    if there is None or (own is not None and (own.name != there.name or own.share > there.share)):
        return own
    return LayerShare(
        name=there.name, share=there.share
    )  # as it is, or grown by hand: it cannot shrink meanwhile


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
    answering = [arm.version for arm in traffic.arms[1:]] + [
        v for rule in traffic.rules for v in rule.versions
    ]
    return version in traffic.shadows or version in answering
