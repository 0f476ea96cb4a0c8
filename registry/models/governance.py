"""The part of the registry that decides which version is live: approvals, gates, aliases and traffic."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from toque.registry.models import decisions, reviews
from toque.registry.models.decisions import UNCHECKED, Expected
from toque.registry.models.layers import Layers
from toque.registry.models.policy import ModelPolicy
from toque.registry.models.state import ModelState
from toque.registry.models.traffic import CHAMPION, LayerPart, LayerShare, Traffic, TrafficRule
from toque.registry.models.versions import ModelVersion


class Governance(Layers):
    """Approvals, gates, aliases, traffic and holdouts of models; each change is one journal entry."""

    def set_policy(self, name: str, policy: ModelPolicy, *, expected: str | None = None) -> ModelState:
        """Set the conditions that a version must meet before it may go live.

        expected: digest of the policy that is to be replaced; None replaces any.
        Raises: NotFound; Stale if the model has another policy by now.
        """
        return self._change(name, lambda state: decisions.set_policy(state, policy, expected))[1]

    def approve(
        self,
        name: str,
        version: int,
        *,
        comment: str = "",
        accept_code: Collection[str] = (),
        automatic: bool = False,
    ) -> ModelVersion:
        """Approve a version in this actor's name; it replaces this actor's earlier review.

        It counts as long as the model's policy stays as it is.
        accept_code: paths of its files that can execute code, which then may be downloaded.
        automatic: no person looked; the policy must allow that, and the approval shows it.
        Raises: NotFound; InvalidInput for a path that holds no code; Refused if the actor is its author or not among the
            approvers, or automatic approval is off or used up.
        """
        return self._review(
            name, version, approved=True, comment=comment, accept_code=accept_code, automatic=automatic
        )

    def reject(self, name: str, version: int, *, comment: str = "") -> ModelVersion:
        """Reject a version: no alias or traffic can point to it until this actor approves it.

        Raises: NotFound; Refused while it is live.
        """
        return self._review(name, version, approved=False, comment=comment)

    def accepted_code(self, name: str, version: int) -> tuple[str, ...]:
        """List files of a version that can execute code and were accepted by the policy or an approver. Raises: NotFound."""
        state = self.follow(name).refresh()
        return decisions.require_version(state, version).accepted_code(state.policy)

    def record_gate(
        self,
        name: str,
        version: int,
        gate: str,
        passed: bool,  # noqa: FBT001 - reads as a sentence: record_gate(model, 3, "offline", passed=True)
        details: Mapping[str, Any] | None = None,
        *,
        demand: str = "",
    ) -> ModelVersion:
        """Record the outcome of a gate; the last one of each name counts.

        details: JSON values; NaN and infinities are kept as text. demand: digest of the `GateDemand` by which it was judged;
        empty: by hand, which shows.
        Raises: NotFound; InvalidInput; Refused if the policy demands other limits or data of this gate.
        """
        _, state = self._change(
            name,
            lambda state: reviews.record_gate(
                state, version, gate, passed=passed, details=details or {}, demand=demand
            ),
        )
        return state.versions[version]

    def set_alias(
        self,
        name: str,
        alias: str,
        version: int,
        *,
        expected: Expected = UNCHECKED,
        reason: str = "",
        override: str = "",
    ) -> ModelVersion:
        """Point an alias to a version; returns the version.

        expected: the version it must point to now (None: no version); otherwise nothing changes.
        override: the reason of an emergency: goes live against the policy, if that lets this actor; recorded for ever.
        Raises: Stale, naming the current version; Refused if the policy is not met; NotFound.
        """
        return self._point(
            name, alias, version, expected=expected, reason=reason, override=override, clear=False
        )

    def promote(
        self, name: str, version: int, *, reason: str = "", expected: Expected = UNCHECKED, override: str = ""
    ) -> ModelVersion:
        """Make a version the champion and end its canaries, shadows and rules to a version, in one entry.

        Raises: as `set_alias`.
        """
        return self._point(
            name, CHAMPION, version, expected=expected, reason=reason, override=override, clear=True
        )

    def delete_alias(self, name: str, alias: str, *, reason: str = "") -> None:
        """Delete an alias if it exists. Raises: NotFound; Refused while traffic needs it."""
        self._change(name, lambda state: decisions.delete_alias(state, alias, reason=reason))

    def rollback(
        self,
        name: str,
        alias: str = CHAMPION,
        *,
        expected: Expected = UNCHECKED,
        to: int | None = None,
        reason: str = "",
    ) -> ModelVersion:
        """Point an alias back to the version before, in one entry; ends canaries, shadows and rules to a version too.

        expected: the version it must point to now; with it, two rollbacks at once go back once.
        to: the only earlier version to go back to; None: the latest that is allowed.
        Skips versions rejected or deleted meanwhile and, where the alias is guarded, those that the current policy does
        not allow, unless an override once did.
        Raises: Stale, naming the current version; Refused if no earlier version is left, with the reason for each; NotFound.
        """
        entry, state = self._change_and_release(
            name, lambda state: decisions.rollback(state, alias, expected=expected, reason=reason, to=to)
        )
        return state.versions[entry.body["version"] if entry else state.aliases[alias]]

    def traffic(self, name: str) -> Traffic:
        """Get the current traffic split; 1 read when warm. Raises: NotFound if there is no champion."""
        return decisions.require_traffic(self.follow(name).refresh())

    def set_traffic(
        self,
        name: str,
        arms: Mapping[str, tuple[int, float]],
        *,
        shadows: Sequence[int] = (),
        expected: int | None = None,
        reason: str = "",
        override: str = "",
        layer: LayerShare | None = None,
        rules: Sequence[TrafficRule] = (),
    ) -> Traffic:
        """Split the traffic: arm -> (version, share); the champion has the rest.

        shadows: versions that see every request and answer none.
        expected: `entry` of the traffic on which the change was decided, or None for any.
        layer: the arms share only that part of the layer, and no unit of it is in another model's; the shares of
            arms are of that part. The part is released with the last arm and shadow.
        rules: requests that go to one version whatever their unit, before holdouts, layer and split; the first that
            matches. A rule that names an arm means the version that it has now.
        Raises: Stale; Refused if the policy is not met, or others have the layer; InvalidInput for shares and rules;
            NotFound.
        """

        def decide(state: ModelState, part: LayerPart | None) -> decisions.Body | None:
            return decisions.set_traffic(
                state, arms, actor=self.actor, shadows=shadows, expected=expected, reason=reason, override=override,
                layer=part, rules=rules,
            )  # fmt: skip

        return decisions.require_traffic(self._in_layer(name, layer if arms or shadows else None, decide))

    def begin_holdout(self, name: str, holdout: str, share: float, *, reason: str = "") -> Traffic:
        """Hold a share of all units out of every experiment of the model, until `end_holdout`.

        The current champion answers them, and shadows do not see them. Models that declare a holdout of the
        same name hold out the same units (of the larger share, those of the smaller and more).
        Raises: NotFound; InvalidInput; Refused while arms answer, or if it holds out another share already.
        """
        return self._with_holdout(
            name, lambda state: decisions.begin_holdout(state, holdout, share, reason=reason)
        )

    def end_holdout(self, name: str, holdout: str, *, reason: str = "") -> Traffic:
        """End a holdout if it exists, so that its units take part again. Raises: NotFound."""
        return self._with_holdout(name, lambda state: decisions.end_holdout(state, holdout, reason=reason))

    def unmet(self, name: str, version: int) -> tuple[str, ...]:
        """List the policy's conditions for the champion that a version does not meet yet.

        Raises: NotFound.
        """
        state = self.follow(name).refresh()
        found = decisions.require_version(state, version)
        return found.missing(state.policy) if CHAMPION in state.policy.guarded else ()

    def _with_holdout(self, name: str, decide: Callable[[ModelState], decisions.Body | None]) -> Traffic:
        decisions.require_traffic(self.follow(name).refresh())
        return decisions.require_traffic(self._change(name, decide)[1])

    def _review(
        self,
        name: str,
        version: int,
        *,
        approved: bool,
        comment: str,
        accept_code: Collection[str] = (),
        automatic: bool = False,
    ) -> ModelVersion:
        review = reviews.Review(
            actor=self.actor,
            approved=approved,
            comment=comment,
            accept_code=tuple(accept_code),
            automatic=automatic,
        )
        _, state = self._change(name, lambda state: reviews.review(state, version, review, now=self.clock()))
        return state.versions[version]

    def _point(
        self,
        name: str,
        alias: str,
        version: int,
        *,
        expected: Expected,
        reason: str,
        override: str,
        clear: bool,
    ) -> ModelVersion:
        _, state = self._change_and_release(
            name,
            lambda state: decisions.set_alias(
                state,
                alias,
                version,
                actor=self.actor,
                expected=expected,
                reason=reason,
                override=override,
                clear=clear,
            ),
        )
        return state.versions[version]
