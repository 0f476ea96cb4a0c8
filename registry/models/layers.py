"""Layers: disjoint shares of units for experiments of several models, so that no unit is in two experiments.

Each layer has a journal with at most one claim a model. A claim reserves its buckets; the model's own entry, which
carries a copy, says that they are used. The claim is written first and released last, so a writer that is killed in
between leaves a claim without traffic: harmless, reused by the next attempt, and released when another model needs the
buckets. Before a claim is released, its revocation is written into the model's journal, so that a stalled writer cannot
use it afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from toque.registry.errors import GivenUp, Refused, RegistryError
from toque.registry.journal import Entry, Fold
from toque.registry.models import decisions
from toque.registry.models.model_journals import ModelJournals
from toque.registry.models.state import ModelState
from toque.registry.models.traffic import BUCKETS, LayerPart, LayerShare, Ranges, allocate, size, to_buckets
from toque.registry.names import check_name

_ATTEMPTS = 8
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """A model's buckets in a layer. number: of the journal entry that claimed them."""

    number: int
    buckets: Ranges

    @property
    def share(self) -> float:
        """Share of the layer's buckets, 0 to 1."""
        return size(self.buckets) / BUCKETS


Claims = Mapping[str, Claim]  # by model


class Layers(ModelJournals):
    """The part of the registry that claims, grows and releases models' parts of layers."""

    def layer(self, name: str) -> Claims:
        """Claims in a layer by model, empty for an unused layer; 1 read when warm. Raises: InvalidInput."""
        return self.follow_layer(name).refresh()

    def follow_layer(self, layer: str) -> Fold[Claims]:
        """Follow a layer's claims: `.refresh()` is one read. Raises: InvalidInput for a malformed name."""
        check_name(layer, what="layer")
        return self._follow(
            f"layers/{layer}/journal",
            lambda journal: Fold(
                journal, {}, _step, encode=_encode, decode=_decode, carry=True, guarded=True
            ),
        )

    def list_layers(self) -> list[str]:
        """Names of all layers that were ever claimed, sorted."""
        return [key.removeprefix("layer-names/") for key in self.store.list("layer-names/")]

    def claim(self, model: str, wanted: LayerShare) -> LayerPart:
        """Claim a part of a layer for the model, or keep or grow its part; traffic does not use it yet.

        Raises: Refused if other models have the buckets, or the part would shrink while it is used; NotFound; InvalidInput.
        """
        state = self.follow(model).refresh()
        decisions.require_traffic(state)
        layer, now = wanted.name, state.split.layer
        count = to_buckets(wanted.share, what=f"layer {layer!r}")
        used = now is not None and now.name == layer
        if now is not None and used and count <= size(now.buckets):
            return _existing_part(now, count, model)
        claim = self.layer(layer).get(model)
        if claim is not None and not used and _is_unusable(claim, count, state.revoked_claims.get(layer, -1)):
            self.release(model, layer)
        claims = self.layer(layer)
        if count > BUCKETS - _claimed_by_others(claims, model):  # release claims without traffic
            for other in [claim for claim in claims if claim != model]:
                self.release(other, layer)
        return self._take(model, layer, count)

    def release(self, model: str, layer: str) -> None:
        """Release a model's part of a layer, unless its traffic uses it."""
        claim = self.layer(layer).get(model)
        if claim is None:
            return
        _, state = self._change(model, lambda state: decisions.leave_layer(state, layer, claim.number))
        if claim.number > state.revoked_claims.get(layer, -1):
            return
        self.follow_layer(layer).transact(lambda claims: _released(claims, model, claim.number))

    def _in_layer(
        self,
        model: str,
        wanted: LayerShare | None,
        decide: Callable[[ModelState, LayerPart | None], decisions.Body | None],
    ) -> ModelState:
        """Change the traffic: claim the layer, append the entry, release the part that is no longer used.

        Raises: what `claim` and `decide` raise; GivenUp if the claim was revoked in every attempt.
        """
        for attempt in range(_ATTEMPTS):
            part = None if wanted is None else self.claim(model, wanted)
            try:
                return self._change_and_release(model, lambda state, part=part: decide(state, part))[1]  # type: ignore[misc]
            except GivenUp:
                if attempt + 1 == _ATTEMPTS:
                    raise
            except RegistryError:
                if wanted is not None:
                    self._try_to_release(model, wanted.name)
                raise
        raise AssertionError("unreachable")

    def _change_and_release(
        self, model: str, decide: Callable[[ModelState], decisions.Body | None]
    ) -> tuple[Entry | None, ModelState]:
        """Change the model and release the layer part it stopped using; if that fails, the next claim releases it."""
        before: LayerPart | None = None

        def decide_and_note(state: ModelState) -> decisions.Body | None:
            nonlocal before
            before = state.split.layer
            return decide(state)

        entry, state = self._change(model, decide_and_note)
        if (
            entry is not None
            and before is not None
            and before.claim <= state.revoked_claims.get(before.name, -1)
        ):
            self._try_to_release(model, before.name)
        return entry, state

    def _try_to_release(self, model: str, layer: str) -> None:
        try:
            self.release(model, layer)
        except RegistryError as error:
            _logger.warning("layer %s: the part of %s is not released yet: %s", layer, model, error)

    def _take(self, model: str, layer: str, count: int) -> LayerPart:
        fold = self.follow_layer(layer)
        if fold.next == 0:
            self.store.put(f"layer-names/{layer}", b"")
        existing: Claim | None = None

        def decide(claims: Claims) -> dict[str, Any] | None:
            nonlocal existing
            existing = claims.get(model)
            # A larger claim is a growth that was never used.
            enough = existing is not None and size(existing.buckets) >= count
            return None if enough else _claimed(claims, model, layer, count)

        entry = fold.transact(decide)
        claim = existing if entry is None else _claim_of(entry.body, entry.number)
        assert claim is not None  # noqa: S101 - nothing is appended only where a claim exists
        return LayerPart(name=layer, claim=claim.number, buckets=claim.buckets)


def _claimed(claims: Claims, model: str, layer: str, count: int) -> dict[str, Any]:
    """Body of an entry that claims `count` buckets and keeps those the model has. Raises: Refused if too few are free."""
    others = _claimed_by_others(claims, model)
    if count > BUCKETS - others:
        parts = ", ".join(f"{name} {claim.share:.2%}" for name, claim in claims.items() if name != model)
        raise Refused(
            f"layer {layer!r} has {1 - others / BUCKETS:.2%} left and {model} wants {count / BUCKETS:.2%} of it: "
            f"{parts}; take a smaller share, or end one of these"
        )
    owned = {name: claim.buckets for name, claim in claims.items()}
    sizes = {name: size(buckets) for name, buckets in owned.items()}
    buckets = allocate(owned, {**sizes, model: count})[model]
    return {"kind": "claimed", "model": model, "buckets": [list(span) for span in buckets]}


def _released(claims: Claims, model: str, number: int) -> dict[str, Any] | None:
    """Body of an entry that releases the claim of that number, or None if it is no longer the current one."""
    current = claims.get(model)
    return {"kind": "released", "model": model} if current is not None and current.number == number else None


def _existing_part(now: LayerPart, count: int, model: str) -> LayerPart:
    if count < size(now.buckets):
        raise Refused(
            f"{model} has {now.share:.2%} of layer {now.name!r}, which can only grow while its traffic is split in it; "
            "end that first (set_traffic without arms and shadows)"
        )
    return now


def _is_unusable(claim: Claim, count: int, last_revoked: int) -> bool:
    """Whether a claim without traffic, perhaps of a killed writer, was revoked or has another size than wanted."""
    return claim.number <= last_revoked or size(claim.buckets) != count


def _claimed_by_others(claims: Claims, model: str) -> int:
    return sum(size(claim.buckets) for name, claim in claims.items() if name != model)


def _claim_of(body: Mapping[str, Any], number: int) -> Claim:
    return Claim(number, tuple((start, stop) for start, stop in body["buckets"]))


def _step(claims: Claims, entry: Entry) -> Claims:
    kind, model = entry.body["kind"], entry.body["model"]
    others = {name: claim for name, claim in claims.items() if name != model}
    if kind == "claimed":
        return {**others, model: _claim_of(entry.body, entry.number)}
    if kind == "released":
        return others
    raise RegistryError(f"entry {entry.number} of a layer is of kind {kind!r}; upgrade this program")


def _encode(claims: Claims) -> dict[str, Any]:
    return {
        model: {"number": claim.number, "buckets": [list(span) for span in claim.buckets]}
        for model, claim in claims.items()
    }


def _decode(data: Mapping[str, Any]) -> Claims:
    return {model: _claim_of(each, each["number"]) for model, each in data.items()}
