"""State of one model, a pure fold of the entries of its journal.

One journal holds versions, approvals, gates, aliases and traffic, so that "promote" is one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from toque.registry.errors import RegistryError
from toque.registry.journal import Entry
from toque.registry.models.policy import ModelPolicy
from toque.registry.models.traffic import BUCKETS, CHAMPION, Arm, Holdout, LayerPart, Traffic, TrafficRule
from toque.registry.models.versions import (
    Approval,
    GateOutcome,
    ModelVersion,
    Override,
    SignatureMark,
    jsonable,
    merged_tags,
)
from toque.registry.store import Blob
from toque.registry.times import from_text, to_text

SCHEMA = "4"
_PAST_KEPT = 100  # earlier values of an alias, for rollback


@dataclass(frozen=True, slots=True)
class Split:
    """Recorded part of the traffic: all but the champion's arm and the holdouts, which outlive it."""

    arms: tuple[Arm, ...] = ()
    shadows: tuple[int, ...] = ()
    salt: str = ""
    layer: LayerPart | None = None
    rules: tuple[TrafficRule, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelState:
    """Everything that is recorded of one model.

    created_at: None as long as the model does not exist. past: alias -> earlier versions behind it, oldest
    first. generation: how many times garbage was collected. traffic_entry: number of the last entry that
    changed the effective traffic. revoked_claims: layer -> the last claim of it that this model may not use any more.
    entries: how many entries this state contains.
    """

    name: str
    created_at: datetime | None = None
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    policy: ModelPolicy = field(default_factory=ModelPolicy)
    versions: Mapping[int, ModelVersion] = field(default_factory=dict)
    aliases: Mapping[str, int] = field(default_factory=dict)
    past: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    split: Split = field(default_factory=Split)
    holdouts: tuple[Holdout, ...] = ()
    revoked_claims: Mapping[str, int] = field(default_factory=dict)
    traffic_entry: int = 0
    generation: int = 0
    entries: int = 0

    @property
    def traffic(self) -> Traffic | None:
        """Effective traffic split, or None as long as there is no champion."""
        champion = self.aliases.get(CHAMPION)
        if champion is None:
            return None
        assigned = sum(stop - start for arm in self.split.arms for start, stop in arm.buckets)
        first = Arm(name=CHAMPION, version=champion, share=(BUCKETS - assigned) / BUCKETS)
        return Traffic(
            arms=(first, *self.split.arms),
            shadows=self.split.shadows,
            salt=self.split.salt,
            entry=self.traffic_entry,
            layer=self.split.layer,
            holdouts=self.holdouts,
            rules=self.split.rules,
        )

    def blobs(self) -> dict[str, Blob]:
        """Blobs by content digest of every version that is not deleted."""
        return {
            blob.sha256: blob
            for version in self.versions.values()
            if version.deleted_at is None
            for blob in version.files.values()
        }

    def uses(self, version: int) -> list[str]:
        """List the aliases, arms, rules and shadow traffic that point to `version`."""
        aliases = [f"alias {alias!r}" for alias, target in self.aliases.items() if target == version]
        arms = [f"traffic arm {arm.name!r}" for arm in self.split.arms if arm.version == version]
        ruled = [f"traffic rule {rule.name!r}" for rule in self.split.rules if version in rule.versions]
        return aliases + arms + ruled + (["shadow traffic"] if version in self.split.shadows else [])


def step(state: ModelState, entry: Entry) -> ModelState:
    """Apply an entry to a state; pure. Raises: RegistryError for a kind this release does not know."""
    kind = entry.body.get("kind")
    apply = _STEPS.get(str(kind))
    if apply is None:
        raise RegistryError(
            f"model {state.name}: entry {entry.number} is of kind {kind!r}, which this release does not "
            "know; upgrade this program"
        )
    return replace(apply(state, entry), entries=entry.number + 1)


def encode(state: ModelState) -> dict[str, Any]:
    """Convert a state to JSON values for a snapshot."""
    return {
        "created_at": None if state.created_at is None else to_text(state.created_at),
        "description": state.description,
        "tags": dict(state.tags),
        "policy": state.policy.recorded(),
        "versions": [jsonable(version) for version in state.versions.values()],
        "aliases": dict(state.aliases),
        "past": {alias: list(versions) for alias, versions in state.past.items()},
        "arms": [jsonable(arm) for arm in state.split.arms],
        "shadows": list(state.split.shadows),
        "salt": state.split.salt,
        "layer": None if state.split.layer is None else jsonable(state.split.layer),
        "rules": [jsonable(rule) for rule in state.split.rules],
        "holdouts": [jsonable(holdout) for holdout in state.holdouts],
        "left": dict(state.revoked_claims),
        "traffic_entry": state.traffic_entry,
        "generation": state.generation,
        "entries": state.entries,
    }


def decode(name: str, data: Mapping[str, Any]) -> ModelState:
    """Read a state from the JSON values of a snapshot."""
    versions = [ModelVersion.model_validate(version) for version in data["versions"]]
    return ModelState(
        name=name,
        created_at=None if data["created_at"] is None else from_text(data["created_at"]),
        description=data["description"],
        tags=data["tags"],
        policy=ModelPolicy.model_validate(data["policy"]),
        versions={version.version: version for version in versions},
        aliases=data["aliases"],
        past={alias: tuple(past) for alias, past in data["past"].items()},
        split=_split(data),
        holdouts=tuple(Holdout.model_validate(holdout) for holdout in data["holdouts"]),
        revoked_claims=data["left"],
        traffic_entry=data["traffic_entry"],
        generation=data["generation"],
        entries=data["entries"],
    )


def _split(data: Mapping[str, Any]) -> Split:
    arms = tuple(Arm.model_validate(arm) for arm in data["arms"])
    layer = data.get("layer")  # absent in entries older than layers
    part = None if layer is None else LayerPart.model_validate(layer)
    rules = tuple(TrafficRule.model_validate(rule) for rule in data.get("rules", ()))
    return Split(arms=arms, shadows=tuple(data["shadows"]), salt=data["salt"], layer=part, rules=rules)


def _model_created(state: ModelState, entry: Entry) -> ModelState:
    body = entry.body
    return replace(
        state,
        created_at=entry.at,
        description=body["description"],
        tags=body["tags"],
        policy=ModelPolicy.model_validate(body["policy"]),
    )


def _model_deleted(state: ModelState, entry: Entry) -> ModelState:
    """The state before the model was created, but for what counts entries and collections."""
    del entry
    return ModelState(state.name, generation=state.generation)


def _model_changed(state: ModelState, entry: Entry) -> ModelState:
    return replace(
        state,
        tags=merged_tags(state.tags, entry.body["tags"]),
        description=entry.body.get("description", state.description),
    )


def _policy_set(state: ModelState, entry: Entry) -> ModelState:
    return replace(state, policy=ModelPolicy.model_validate(entry.body["policy"]))


def _version_created(state: ModelState, entry: Entry) -> ModelState:
    version = ModelVersion.model_validate(
        {**entry.body["version"], "model": state.name, "author": entry.actor, "created_at": entry.at}
    )
    return _with_version(state, version)


def _version_changed(state: ModelState, entry: Entry) -> ModelState:
    version = state.versions[entry.body["version"]]
    tags = merged_tags(version.tags, entry.body["tags"])
    return _with_version(state, version.model_copy(update={"tags": tags}))


def _reviewed(state: ModelState, entry: Entry) -> ModelState:
    body = entry.body
    version = state.versions[body["version"]]
    others = tuple(approval for approval in version.approvals if approval.actor != entry.actor)
    review = Approval(
        actor=entry.actor,
        approved=body["approved"],
        comment=body["comment"],
        at=entry.at,
        policy=state.policy.digest,
        automatic=body.get("automatic", False),
        accept_code=tuple(body.get("accept_code", ())),
    )
    return _with_version(state, version.model_copy(update={"approvals": (*others, review)}))


def _gate(state: ModelState, entry: Entry) -> ModelState:
    body = entry.body
    version = state.versions[body["version"]]
    outcome = GateOutcome(
        name=body["gate"],
        passed=body["passed"],
        details=body["details"],
        actor=entry.actor,
        at=entry.at,
        policy=state.policy.digest,
        demand=body.get("demand", ""),
    )
    return _with_version(
        state, version.model_copy(update={"gates": {**version.gates, outcome.name: outcome}})
    )


def _signed(state: ModelState, entry: Entry) -> ModelState:
    version = state.versions[entry.body["version"]]
    mark = SignatureMark(
        signer=entry.body["signer"],
        sha256=entry.body["sha256"],
        actor=entry.actor,
        at=entry.at,
        bound=entry.body.get("bound", False),
    )
    return _with_version(state, version.model_copy(update={"signatures": (*version.signatures, mark)}))


def _deleted(state: ModelState, entry: Entry) -> ModelState:
    version = state.versions[entry.body["version"]]
    return _with_version(state, version.model_copy(update={"deleted_at": entry.at}))


def _alias_set(state: ModelState, entry: Entry) -> ModelState:
    alias, version = entry.body["alias"], entry.body["version"]
    before = state.aliases.get(alias)
    past = state.past.get(alias, ())
    if before is not None and before != version:
        past = (*past, before)[-_PAST_KEPT:]
    moved = _point(state, entry, alias, version, past)
    return _overridden(moved, entry, version)


def _alias_deleted(state: ModelState, entry: Entry) -> ModelState:
    alias = entry.body["alias"]
    aliases = {name: version for name, version in state.aliases.items() if name != alias}
    past = (*state.past.get(alias, ()), state.aliases[alias])[-_PAST_KEPT:]
    changed = replace(state, aliases=aliases, past={**state.past, alias: past})
    return _with_split(changed, Split(), entry) if alias == CHAMPION else changed


def _rolled_back(state: ModelState, entry: Entry) -> ModelState:
    alias, version = entry.body["alias"], entry.body["version"]
    past = state.past[alias]
    index = len(past) - 1 - past[::-1].index(version)
    return _point(state, entry, alias, version, past[:index])


def _point(state: ModelState, entry: Entry, alias: str, version: int, past: tuple[int, ...]) -> ModelState:
    """Point `alias` to `version`; a new champion takes over its arm, or with `clear` in the entry all arms.

    With `clear`, rules that send to a version end too; rules that keep requests at the champion stay.
    """
    changed = replace(state, aliases={**state.aliases, alias: version}, past={**state.past, alias: past})
    if alias != CHAMPION:
        return changed
    clear = entry.body.get("clear")
    arms = () if clear else tuple(a for a in state.split.arms if a.version != version)
    shadows = () if clear else tuple(s for s in state.split.shadows if s != version)
    rules = tuple(rule for rule in state.split.rules if not (clear and rule.versions))
    kept = state.split if arms or shadows else Split()
    split = replace(kept, arms=arms, shadows=shadows, rules=rules)
    return _with_split(changed, split, entry)


def _traffic_set(state: ModelState, entry: Entry) -> ModelState:
    changed = _with_split(state, _split(entry.body), entry)
    ruled = [version for rule in changed.split.rules for version in rule.versions]
    for version in dict.fromkeys([*(arm.version for arm in changed.split.arms), *ruled]):
        changed = _overridden(changed, entry, version)
    return changed


def _with_split(state: ModelState, split: Split, entry: Entry) -> ModelState:
    """Replace the split; a layer's claim that it stops using is revoked."""
    changed = replace(state, split=split, traffic_entry=entry.number)
    dropped = state.split.layer
    if dropped is None or (split.layer is not None and split.layer.name == dropped.name):
        return changed
    return _revoke_claim(changed, dropped.name, dropped.claim)


def _layer_left(state: ModelState, entry: Entry) -> ModelState:
    return _revoke_claim(state, entry.body["layer"], entry.body["claim"])


def _revoke_claim(state: ModelState, layer: str, claim: int) -> ModelState:
    return replace(
        state,
        revoked_claims={**state.revoked_claims, layer: max(claim, state.revoked_claims.get(layer, claim))},
    )


def _held_out(state: ModelState, entry: Entry) -> ModelState:
    holdout = Holdout(name=entry.body["holdout"], share=entry.body["share"])
    return replace(state, holdouts=(*state.holdouts, holdout), traffic_entry=entry.number)


def _holdout_ended(state: ModelState, entry: Entry) -> ModelState:
    kept = tuple(holdout for holdout in state.holdouts if holdout.name != entry.body["holdout"])
    return replace(state, holdouts=kept, traffic_entry=entry.number)


def _swept(state: ModelState, entry: Entry) -> ModelState:
    return replace(state, generation=entry.body["generation"])


def _overridden(state: ModelState, entry: Entry, number: int) -> ModelState:
    """Record an override if the version went live against the policy."""
    broken = entry.body.get("broken", {}).get(str(number))
    if not broken:
        return state
    version = state.versions[number]
    mark = Override(actor=entry.actor, reason=entry.body["override"], broken=tuple(broken), at=entry.at)
    return _with_version(state, version.model_copy(update={"overrides": (*version.overrides, mark)}))


def _with_version(state: ModelState, version: ModelVersion) -> ModelState:
    return replace(state, versions={**state.versions, version.version: version})


_STEPS: dict[str, Callable[[ModelState, Entry], ModelState]] = {
    "model-created": _model_created,
    "model-changed": _model_changed,
    "model-deleted": _model_deleted,
    "policy": _policy_set,
    "version-created": _version_created,
    "version-changed": _version_changed,
    "version-deleted": _deleted,
    "review": _reviewed,
    "gate": _gate,
    "signed": _signed,
    "alias": _alias_set,
    "alias-deleted": _alias_deleted,
    "rollback": _rolled_back,
    "traffic": _traffic_set,
    "traffic-in-layer": _traffic_set,  # a kind of its own: a release without layers must not read it as the whole traffic
    "traffic-by-rule": _traffic_set,  # likewise: a release without rules must not read it as a split without rules
    "layer-left": _layer_left,
    "holdout": _held_out,
    "holdout-ended": _holdout_ended,
    "swept": _swept,
}
