"""Traffic changes that a rollout decided on: made at once, and made good by the next tick where the process was killed before."""

from __future__ import annotations

import logging

from toque.functions.rollout.state import RolloutState, Stage
from toque.functions.rollout.traffic import (
    CurrentTraffic,
    TrafficControl,
    apply,
    canary_share_of,
    champion_of,
    enforce,
    is_applied,
    missing_shadows,
)
from toque.registry import LayerShare, Refused, Stale

_logger = logging.getLogger(__name__)


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
