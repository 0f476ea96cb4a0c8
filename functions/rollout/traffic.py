"""Traffic that each stage of a rollout needs, and the changes that make it so.

They are made at once, and made good by the next tick where the process was killed before.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from toque.functions.rollout.errors import RolloutError
from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.rollout.state import RolloutState, Stage
from toque.registry import LayerPart, LayerShare, Refused, Stale, TrafficRule
from toque.registry.models.traffic import BUCKETS

CANARY = "canary"
_UNUSABLE = ("rejected", "archived", "deleted")
_ATTEMPTS = 8  # rereads before a clean-up leaves it to the next tick
_logger = logging.getLogger(__name__)


class TrafficArm(Protocol):
    """Arm of a traffic split, as the registry records it."""

    @property
    def name(self) -> str:
        """Name of the arm, unique within the split."""
        ...

    @property
    def version(self) -> int:
        """Version that the arm serves."""
        ...

    @property
    def share(self) -> float:
        """Share of the units that the arm gets."""
        ...


class CurrentTraffic(Protocol):
    """Traffic split in force, the champion's arm first."""

    @property
    def arms(self) -> Sequence[TrafficArm]:
        """All arms, the champion's first."""
        ...

    @property
    def shadows(self) -> Sequence[int]:
        """Versions that score without answering."""
        ...

    @property
    def entry(self) -> int:
        """Number of the registry entry that set this traffic."""
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
        """Rules that send requests to one version by their attributes."""
        ...


class TrafficControl(Protocol):
    """Operations of the registry that a rollout needs."""

    def traffic(self, model: str, /) -> CurrentTraffic:
        """Return the traffic split in force."""
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
        """Replace arms beside the champion, shadows and rules.

        Raises: Stale if `expected` is not the newest entry.
        """
        ...

    def claim(self, model: str, wanted: LayerShare, /) -> object:
        """Reserve the model's part of a layer. Raises: Refused if other models have the room."""
        ...

    def release(self, model: str, layer: str, /) -> None:
        """Release the model's part of a layer, unless the traffic is split in it."""
        ...

    def begin_holdout(self, model: str, holdout: str, share: float, /, *, reason: str) -> object:
        """Begin a holdout of units, or keep one that has begun. Raises: Refused."""
        ...

    def unmet(self, model: str, version: int, /) -> Sequence[str]:
        """List the model's requirements for a champion that the version does not meet yet."""
        ...

    def promote(self, model: str, version: int, /, *, reason: str, expected: int | None) -> object:
        """Make `version` the champion in one entry.

        Raises: Stale if the champion is not `expected`; Refused if a rule of the model forbids it.
        """
        ...

    def find_version(self, model: str, version: int, /) -> Any:
        """Find a version, which has a `status`, or return None."""
        ...


def unusable_reason(registry: TrafficControl, model: str, version: int) -> str | None:
    """Say why `version` cannot be served; None if it can."""
    found = registry.find_version(model, version)
    if found is None:
        return f"version {version} does not exist"
    status = str(getattr(found.status, "value", found.status)).lower()
    return f"version {version} is {status}" if status in _UNUSABLE else None


def reserve_units(registry: TrafficControl, model: str, policy: RolloutPolicy) -> None:
    """Reserve holdout and layer at the start, not after weeks in the shadow.

    Raises: RolloutError if they are taken.
    """
    try:
        if policy.holdout is not None:
            name, share = policy.holdout.name, policy.holdout.share
            registry.begin_holdout(model, name, share, reason="a rollout's policy asks for it")
        if policy.layer is not None:
            registry.claim(model, policy.layer)
    except Refused as error:
        raise RolloutError(str(error)) from error


def release_layer(registry: TrafficControl, model: str, policy: RolloutPolicy) -> None:
    """Release the layer of `reserve_units`, unless the traffic is split in it; a holdout stays until it is ended."""
    if policy.layer is not None:
        registry.release(model, policy.layer.name)


def check_promotion(
    registry: TrafficControl, model: str, state: RolloutState, traffic: CurrentTraffic
) -> None:
    """Check a promotion by hand for what the next tick would find. Raises: Refused; RolloutError."""
    problem = unusable_reason(registry, model, state.challenger)
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


def champion_of(traffic: CurrentTraffic) -> int | None:
    """Return the version of the champion's arm, or None without traffic."""
    return traffic.arms[0].version if traffic.arms else None


def apply(registry: TrafficControl, model: str, state: RolloutState, expected: int) -> None:
    """Set the traffic that `state.stage` needs, if the traffic still is that of entry `expected`.

    Raises: Stale if it is not; Refused if the model's rules forbid it.
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
        arms[CANARY] = (state.challenger, state.canary_share)
    layer = _layer(traffic, state)
    rules = [rule for rule in traffic.rules if state.is_open or not set(rule.versions) & set(ours)]
    registry.set_traffic(
        model, arms, shadows=shadows, expected=expected, reason=reason, layer=layer, rules=rules
    )


def _layer(traffic: CurrentTraffic, state: RolloutState) -> LayerShare | None:
    """Choose the layer: the rollout's own while it is open, else the one that other arms are in."""
    there, own = traffic.layer, state.policy.layer if state.is_open else None
    if there is None or (own is not None and (own.name != there.name or own.share > there.share)):
        return own
    # A layer may have been grown by hand, and cannot shrink while it is split.
    return LayerShare(name=there.name, share=there.share)


def is_applied(traffic: CurrentTraffic, state: RolloutState) -> bool:
    """Whether the traffic has the challengers of an open rollout as its stage needs them, and none that left."""
    if missing_shadows(traffic, state) or any(
        version in traffic.shadows for version in set(state.versions) - set(state.alive)
    ):
        return False
    if state.stage != "canary":
        return True
    shares = [arm.share for arm in traffic.arms[1:] if arm.version == state.challenger]
    # A share that was changed by hand since is left as it is.
    as_decided = traffic.entry != state.traffic_entry or any(
        abs(share - state.canary_share) < 1 / BUCKETS for share in shares
    )
    return bool(shares) and as_decided


def missing_shadows(traffic: CurrentTraffic, state: RolloutState) -> tuple[int, ...]:
    """List the challengers of an open rollout that are missing among the shadows."""
    return tuple(version for version in state.alive if version not in traffic.shadows)


def canary_share_of(traffic: CurrentTraffic, state: RolloutState) -> float | None:
    """Compute the canary's declared share of what it and the champion answer; None where it has no share."""
    ours = sum(arm.share for arm in traffic.arms[1:] if arm.version == state.challenger)
    theirs = sum(arm.share for arm in traffic.arms if arm.version == state.champion)
    return ours / (ours + theirs) if ours > 0 and theirs > 0 else None


def split_by_hand(traffic: CurrentTraffic, state: RolloutState) -> float | None:
    """Return the canary's share of what it and the champion answer, where that is not what was noted; None where it is.

    Before anything was noted, the canary's arm is as the policy has it.
    """
    share = canary_share_of(traffic, state) if state.stage == "canary" else None
    if share is None or champion_of(traffic) != state.champion:
        return None
    expected, current = state.split_share, share
    if expected is None:
        expected = state.canary_share
        current = sum(arm.share for arm in traffic.arms[1:] if arm.version == state.challenger)
    return share if abs(current - expected) >= 1 / BUCKETS / 2 else None


def enforce(registry: TrafficControl, model: str, state: RolloutState) -> bool:
    """Set the traffic that an open or a failed rollout needs, retrying when other writers interfere.

    Returns whether it is set: False after losing to other writers eight times, or where the champion is no longer the one
    that the rollout was judged against. Raises: Refused.
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


def _holds(traffic: CurrentTraffic, version: int) -> bool:
    answering = [arm.version for arm in traffic.arms[1:]] + [
        v for rule in traffic.rules for v in rule.versions
    ]
    return version in traffic.shadows or version in answering


def apply_decided(registry: TrafficControl, model: str, state: RolloutState) -> None:
    """Change the traffic right after the decision; the next tick repairs a change that fails here."""
    try:
        if state.stage == "promoted":
            apply(registry, model, state, state.traffic_entry)
        else:
            enforce(registry, model, state)
    except (Stale, Refused) as error:
        _logger.warning("%s: rollout %d %s: %s", model, state.rollout, state.stage, error)


def put_in_place(
    registry: TrafficControl, model: str, state: RolloutState, traffic: CurrentTraffic
) -> dict[int, str]:
    """Make the traffic change that a killed tick decided on; return, by version, why a change is not made."""
    if champion_of(traffic) != state.champion:
        return {}  # a promotion by hand takes challengers out of the traffic, too; rule champion_changed reports it
    if traffic.entry != state.traffic_entry:
        if _has_canary(
            traffic, state
        ):  # a split set by hand names shadows anew, and one may have been forgotten
            return _shadow_again(registry, model, state, traffic)
        missing = missing_shadows(traffic, state) or (
            () if is_applied(traffic, state.only(state.challenger)) else (state.challenger,)
        )
        return {version: f"version {version} was taken out of the traffic by hand" for version in missing}
    try:
        apply(registry, model, state, state.traffic_entry)
    except Refused as error:
        why = f"the registry refuses version {state.challenger} in {state.stage}: {error}"
        return {state.challenger: why}
    except Stale:
        return {}  # it is being changed right now: the next tick sees how
    return {}


def _has_canary(traffic: CurrentTraffic, state: RolloutState) -> bool:
    return state.stage == "canary" and canary_share_of(traffic, state) is not None


def _shadow_again(
    registry: TrafficControl, model: str, state: RolloutState, traffic: CurrentTraffic
) -> dict[int, str]:
    """Let the canary score the champion's requests again, and leave the split as it is."""
    arms = {arm.name: (arm.version, arm.share) for arm in traffic.arms[1:]}
    shadows = [*traffic.shadows, *missing_shadows(traffic, state)]
    layer = None if traffic.layer is None else LayerShare(name=traffic.layer.name, share=traffic.layer.share)
    reason = f"rollout {state.rollout}: its canary is compared as a shadow, too"
    try:
        registry.set_traffic(
            model,
            arms,
            shadows=shadows,
            expected=traffic.entry,
            reason=reason,
            layer=layer,
            rules=traffic.rules,
        )
    except Refused as error:
        return {state.challenger: f"the registry refuses version {state.challenger} as a shadow: {error}"}
    except Stale:
        return {}  # it is being changed right now: the next tick sees how
    return {}


def settle_promotion(registry: TrafficControl, model: str, state: RolloutState) -> tuple[Stage, str]:
    """Make sure that a promotion was made; returns the stage that it ended in, and a note if it was not made."""
    traffic = registry.traffic(model)
    if champion_of(traffic) == state.challenger:
        return "promoted", ""
    if traffic.entry != state.traffic_entry:
        return (
            "inconclusive",
            f"champion is {champion_of(traffic)}: it was changed by hand at the promotion",
        )
    try:
        apply(registry, model, state, state.traffic_entry)
    except Stale:
        return (
            "inconclusive",
            f"champion is {champion_of(traffic)}: it was changed by hand at the promotion",
        )
    except Refused as error:
        return "inconclusive", f"the registry refused the promotion: {error}"
    return "promoted", ""
