"""Pure decisions about a model: each checks the rules and returns the entry to append, or None for no change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from toque.registry.errors import AlreadyExists, GivenUp, InvalidInput, NotFound, Refused, Stale
from toque.registry.models.policy import ModelPolicy
from toque.registry.models.state import ModelState
from toque.registry.models.traffic import (
    BUCKETS,
    CHAMPION,
    MAX_RULES,
    RESERVED,
    LayerPart,
    Ranges,
    Traffic,
    TrafficRule,
    allocate,
    to_buckets,
)
from toque.registry.models.versions import ModelVersion, jsonable
from toque.registry.names import check_name

Body = dict[str, Any]
UNCHECKED: Final = "unchecked"
LONGEST_DESCRIPTION: Final = 20_000
"""Characters of a description, which pages parse as Markdown each time they show it."""
Expected = int | None | Literal["unchecked"]


def require_model(state: ModelState) -> None:
    """Check that the model exists. Raises: NotFound."""
    if state.created_at is None:
        raise NotFound(f"model {state.name!r} does not exist; create it with create_model")


def require_version(state: ModelState, number: int) -> ModelVersion:
    """Get a version by number, deleted or not. Raises: NotFound."""
    require_model(state)
    version = state.versions.get(number)
    if version is None:
        raise NotFound(
            f"{state.name}@{number} does not exist; the last version is {max(state.versions, default=0)}"
        )
    return version


def require_usable(state: ModelState, number: int) -> ModelVersion:
    """Get a version that may be used. Raises: NotFound; Refused if it was rejected or deleted."""
    version = require_version(state, number)
    if version.status != "READY":
        raise Refused(f"{state.name}@{number} is {version.status}; register or choose another version")
    return version


def check_description(text: str) -> str:
    """Check the length of a model's or a version's description; returns it. Raises: InvalidInput."""
    if len(text) > LONGEST_DESCRIPTION:
        raise InvalidInput(
            f"description: {len(text):,} characters, at most {LONGEST_DESCRIPTION:,}; keep longer texts in a file of the version"
        )
    return text


def create_model(
    state: ModelState, *, description: str, tags: Mapping[str, str], policy: ModelPolicy
) -> Body:
    """Create the model with its policy. Raises: AlreadyExists; InvalidInput for a description that is too long."""
    if state.created_at is not None:
        raise AlreadyExists(f"model {state.name!r} was created at {state.created_at.isoformat()}")
    return {
        "kind": "model-created",
        "description": check_description(description),
        "tags": dict(tags),
        "policy": policy.recorded(),
    }


def delete_model(state: ModelState, *, reason: str) -> Body:
    """Delete a model that never had a version, so that its name is free. Raises: NotFound; Refused if it had one."""
    require_model(state)
    if state.versions:
        raise Refused(
            f"model {state.name!r} cannot be deleted: it has had {len(state.versions)} versions, whose history is kept; delete those"
        )
    return {"kind": "model-deleted", "reason": reason}


def set_policy(state: ModelState, policy: ModelPolicy, expected: str | None) -> Body | None:
    """Replace the policy of the model. Raises: NotFound; Stale if `expected` is not the digest of the one it has."""
    require_model(state)
    if expected is not None and expected != state.policy.digest:
        raise Stale(f"policy of {state.name}", expected, state.policy.digest)
    return None if policy == state.policy else {"kind": "policy", "policy": policy.recorded()}


def set_alias(
    state: ModelState, alias: str, number: int, *,
    actor: str, expected: Expected, reason: str, override: str, clear: bool,
) -> Body | None:  # fmt: skip
    """Point `alias` to a version; `clear` ends the champion's experiments in the same entry.

    Raises: Stale if `expected` is not the current version; Refused if the policy is not met, or `actor` may not override it.
    """
    require_usable(state, number)
    check_name(alias, what="alias")
    actual = _require_current(state, alias, expected)
    ruled = any(rule.versions for rule in state.split.rules)
    busy = clear and bool(state.split.arms or state.split.shadows or ruled)
    if actual == number and not busy:
        return None
    broken = _broken(state, [number] if alias in state.policy.guarded else [], override, actor)
    body: Body = {"kind": "alias", "alias": alias, "version": number, "reason": reason, "clear": clear}
    return body | _mark(broken, override)


def delete_alias(state: ModelState, alias: str, *, reason: str) -> Body | None:
    """Delete an alias if it exists. Raises: NotFound without the model; Refused while traffic depends on it."""
    require_model(state)
    if alias not in state.aliases:
        return None
    if alias == CHAMPION and (state.split.arms or state.split.shadows or state.split.rules):
        raise Refused(f"{state.name}: traffic is split around its champion; end that with set_traffic first")
    return {"kind": "alias-deleted", "alias": alias, "reason": reason}


def _require_current(state: ModelState, alias: str, expected: Expected) -> int | None:
    actual = state.aliases.get(alias)
    if expected not in {UNCHECKED, actual}:
        raise Stale(f"alias {alias!r} of {state.name}", expected, actual)
    return actual


def rollback(
    state: ModelState, alias: str, *, expected: Expected, reason: str, to: int | None = None
) -> Body:
    """Point `alias` back to its latest earlier version that is still allowed, or to none but the version `to`.

    Raises: Stale if `expected` is not the current version; Refused if there is no earlier one, with the reason for each.
    """
    require_model(state)
    _require_current(state, alias, expected)
    past = [number for number in state.past.get(alias, ()) if to in {None, number}]
    obstacles = {number: _obstacle(state, alias, number) for number in reversed(past)}
    for number, obstacle in obstacles.items():
        if not obstacle:
            return {"kind": "rollback", "alias": alias, "version": number, "reason": reason, "clear": True}
    reasons = "; ".join(f"{number} {text}" for number, text in obstacles.items()) or "it had none"
    raise Refused(f"alias {alias!r} of {state.name} has no earlier version to go back to: {reasons}")


def set_traffic(
    state: ModelState,
    arms: Mapping[str, tuple[int, float]],
    *,
    actor: str,
    shadows: Sequence[int],
    expected: int | None,
    reason: str,
    override: str,
    layer: LayerPart | None = None,
    rules: Sequence[TrafficRule] = (),
) -> Body | None:
    """Split the traffic: arm -> (version, share), the champion has the rest; rules go before the split.

    Raises: NotFound without a champion; Stale; GivenUp if the layer's part was revoked; Refused; InvalidInput.
    """
    traffic = require_traffic(state)
    if expected is not None and expected != traffic.entry:
        raise Stale(f"traffic of {state.name}", expected, traffic.entry)
    named = _resolve(rules, {name: version for name, (version, _) in arms.items()})
    split = [version for version, _ in arms.values()]
    for number in [*split, *_ruled(named), *shadows]:
        require_usable(state, number)
    new = _recorded(state, arms)
    unique_shadows = list(dict.fromkeys(shadows))
    part = layer if new or unique_shadows else None
    require_layer(state, part, keeps_arms=bool(new))
    if (
        part == state.split.layer
        and new == [jsonable(arm) for arm in state.split.arms]
        and unique_shadows == list(state.split.shadows)
        and named == state.split.rules
    ):
        return None
    # What is there was checked when it was set: a rollout that carries it along need not justify it again.
    added = _ruled([rule for rule in named if rule not in state.split.rules])
    answering = _grown(state, arms) if part == state.split.layer else split
    guarded = [*answering, *added] if state.policy.guarded else []
    salt = (state.split.salt or f"{state.name}/{state.entries}") if new or unique_shadows else ""
    body: Body = {"kind": "traffic", "arms": new, "shadows": unique_shadows, "salt": salt, "reason": reason}
    if part is not None:
        body |= {"kind": "traffic-in-layer", "layer": jsonable(part)}
    if named:
        body |= {"kind": "traffic-by-rule", "rules": [jsonable(rule) for rule in named]}
    return body | _mark(_broken(state, guarded, override, actor), override)


def _grown(state: ModelState, arms: Mapping[str, tuple[int, float]]) -> list[int]:
    """Versions of arms that are new or get a larger share."""
    now = {(arm.name, arm.version): arm.share for arm in state.split.arms}
    return [version for name, (version, share) in arms.items() if share > now.get((name, version), 0.0)]


def _ruled(rules: Sequence[TrafficRule]) -> list[int]:
    return [version for rule in rules for version in rule.versions]


def require_layer(state: ModelState, part: LayerPart | None, *, keeps_arms: bool) -> None:
    """Check that arms stay in their layer while they answer, and that a revoked claim is not used.

    Raises: GivenUp; Refused if units would change between arms.
    """
    if part is not None and part.claim <= state.revoked_claims.get(part.name, -1):
        raise GivenUp(
            f"claim of {state.name} in layer {part.name!r}", part.claim, state.revoked_claims[part.name]
        )
    now = state.split.layer
    if not (keeps_arms and state.split.arms) or part == now:
        return
    if part is None or now is None or part.name != now.name or part.share < now.share:
        here = "in no layer" if now is None else f"in {now.share:.2%} of layer {now.name!r}"
        raise Refused(
            f"{state.name}: its arms are {here}, which can only grow while they answer, or their units would "
            "change arms; end them first (set_traffic without arms)"
        )


def leave_layer(state: ModelState, layer: str, claim: int) -> Body | None:
    """Revoke `claim` of `layer` for this model, unless its current split uses the layer."""
    if state.split.layer is not None and state.split.layer.name == layer:
        return None
    done = claim <= state.revoked_claims.get(layer, -1)
    return None if done else {"kind": "layer-left", "layer": layer, "claim": claim}


def begin_holdout(state: ModelState, name: str, share: float, *, reason: str) -> Body | None:
    """Begin to hold out a share of units. Raises: NotFound; InvalidInput; Refused while arms have answered them."""
    require_model(state)
    check_name(name, what="holdout")
    buckets = to_buckets(share, what=f"holdout {name!r}")
    if not 0 < buckets < BUCKETS:
        raise InvalidInput(f"holdout {name!r}: share={share!r} holds out none or all; give 0.0001 to 0.9999")
    existing = next((holdout for holdout in state.holdouts if holdout.name == name), None)
    if existing is not None:
        if existing.share == buckets / BUCKETS:
            return None
        raise Refused(
            f"{state.name} holds out {existing.share:.2%} as {name!r} already, and who is held out stays; "
            "begin another under a new name, or end this one"
        )
    if state.split.arms:
        raise Refused(
            f"{state.name}: arms {[arm.name for arm in state.split.arms]} answer, and units that they touched "
            f"would be in holdout {name!r}; begin it between experiments"
        )
    return {"kind": "holdout", "holdout": name, "share": buckets / BUCKETS, "reason": reason}


def end_holdout(state: ModelState, name: str, *, reason: str) -> Body | None:
    """End a holdout, so that its units take part again. Raises: NotFound if the model does not exist."""
    require_model(state)
    exists = any(holdout.name == name for holdout in state.holdouts)
    return {"kind": "holdout-ended", "holdout": name, "reason": reason} if exists else None


def delete_version(state: ModelState, number: int, *, reason: str) -> Body | None:
    """Mark a version as deleted. Raises: NotFound; Refused while an alias or traffic points to it."""
    version = require_version(state, number)
    if version.deleted_at is not None:
        return None
    uses = state.uses(number)
    if uses:
        raise Refused(
            f"{state.name}@{number} cannot be deleted: {', '.join(uses)} points to it; move that first"
        )
    return {"kind": "version-deleted", "version": number, "reason": reason}


def require_traffic(state: ModelState) -> Traffic:
    """Get the current traffic split. Raises: NotFound if there is no model or no champion."""
    require_model(state)
    traffic = state.traffic
    if traffic is None:
        raise NotFound(
            f"model {state.name!r} has no champion; make a version the champion before splitting its traffic"
        )
    return traffic


def _resolve(rules: Sequence[TrafficRule], arms: Mapping[str | int, int]) -> tuple[TrafficRule, ...]:
    """Resolve the arms that rules name to versions. arms: version by name. Raises: InvalidInput."""
    if len(rules) > MAX_RULES:
        raise InvalidInput(
            f"{len(rules)} rules; at most {MAX_RULES} are asked of a request, put some together"
        )
    names = [check_name(rule.name, what="rule") for rule in rules]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidInput(f"rule {twice!r} is given twice; a rule's name is its arm in the log, rename one")
    for rule in rules:
        if isinstance(rule.to, str) and rule.to not in {CHAMPION, *arms}:
            raise InvalidInput(
                f"rule {rule.name!r} goes to arm {rule.to!r}, which is not there; name one of {[CHAMPION, *arms]}, "
                "or the number of a version"
            )
    # "champion" is never among the arms, so it stays as a name and follows the current champion
    return tuple(rule.model_copy(update={"to": arms.get(rule.to, rule.to)}) for rule in rules)


def _recorded(state: ModelState, arms: Mapping[str, tuple[int, float]]) -> list[Body]:
    """Arms with their new buckets, as recorded in the entry."""
    ranges = _allocate(state, arms)
    return [
        {
            "name": name,
            "version": version,
            "share": sum(stop - start for start, stop in ranges[name]) / BUCKETS,
            "buckets": [list(span) for span in ranges[name]],
        }
        for name, (version, _) in arms.items()
    ]


def _allocate(state: ModelState, arms: Mapping[str, tuple[int, float]]) -> dict[str, Ranges]:
    for name in arms:
        check_name(name, what="arm")
        if name == CHAMPION:
            raise InvalidInput("arm 'champion' has what the others leave; give the others' shares only")
        if name in RESERVED and name not in {arm.name for arm in state.split.arms}:
            raise InvalidInput(f"arm {name!r} is reserved for units outside the arms; choose another name")
    wanted = {name: to_buckets(share, what=f"arm {name!r}") for name, (_, share) in arms.items()}
    return allocate({arm.name: arm.buckets for arm in state.split.arms}, wanted)


def _obstacle(state: ModelState, alias: str, number: int) -> str:
    """Reason why `alias` cannot go back to `number`, or "" if it can. An override, once given, stays valid."""
    version = state.versions[number]
    if number == state.aliases.get(alias):
        return "is there now"
    if version.status != "READY":
        return f"is {version.status}"
    missing = version.missing(state.policy, under_earlier=True) if alias in state.policy.guarded else ()
    return "" if version.overrides else ", ".join(missing)


def _broken(state: ModelState, numbers: Sequence[int], override: str, actor: str) -> dict[str, list[str]]:
    """Unmet rules of the policy by version. Raises: Refused if there are any, unless `actor` may override them and does."""
    broken = {
        str(number): list(missing)
        for number in numbers
        if (missing := state.versions[number].missing(state.policy))
    }
    if broken and not override.strip():
        text = "; ".join(f"{state.name}@{number}: {', '.join(rules)}" for number, rules in broken.items())
        raise Refused(f"not allowed to go live: {text}. In an emergency pass override='the reason'")
    overriders = state.policy.overriders
    if broken and overriders and actor not in overriders:
        raise Refused(f"{state.name}: {actor!r} may not override its policy; ask one of {sorted(overriders)}")
    return broken


def _mark(broken: Mapping[str, list[str]], override: str) -> Body:
    return {"broken": dict(broken), "override": override} if broken else {}
