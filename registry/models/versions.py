"""Values of a model's journal: versions, approvals, gate outcomes and overrides."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from toque.registry.access.signing import fingerprint
from toque.registry.models.lineage import Lineage
from toque.registry.models.policy import ModelPolicy
from toque.registry.models.signature import Signature
from toque.registry.store import Blob


class Approval(BaseModel):
    """The latest approval or rejection of a version by one person.

    policy: digest of the model's policy then in force. automatic: given by retraining, and not by a person.
    accept_code: files of the version that can execute code, which the approver accepts.
    """

    model_config = ConfigDict(frozen=True)

    actor: str
    approved: bool
    comment: str = ""
    at: datetime
    policy: str = ""
    automatic: bool = False
    accept_code: tuple[str, ...] = ()


class GateOutcome(BaseModel):
    """The last result of one gate on a version.

    policy: digest of the model's policy then in force. demand: digest of the limits and data by which it was judged; empty
    if it was recorded by hand.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    passed: bool
    details: dict[str, Any] = Field(default_factory=dict)
    actor: str
    at: datetime
    policy: str = ""
    demand: str = ""

    @property
    def by_hand(self) -> bool:
        """Whether no evaluation stands behind the result."""
        return not self.demand


class Override(BaseModel):
    """Record that a version went live in an emergency against the policy; never removed."""

    model_config = ConfigDict(frozen=True)

    actor: str
    reason: str
    broken: tuple[str, ...]
    at: datetime


class SignatureMark(BaseModel):
    """Record of a cryptographic signature, checked when it was added.

    signer: fingerprint of its key; sha256: of its bundle; bound: whether it must name model, version and serving tags,
    which those recorded by earlier releases do not.
    """

    model_config = ConfigDict(frozen=True)

    signer: str
    sha256: str
    actor: str
    at: datetime
    bound: bool = Field(default=False, exclude_if=lambda bound: not bound)


class ModelVersion(BaseModel):
    """One immutable version of a model, with the approvals, gates and signatures recorded since.

    files: path in the version -> content; code_files: those that can execute code when loaded;
    metrics, tags, signature, lineage: as given; digest: SHA-256 of files and signature; key: the caller's
    idempotency key.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    model: str
    version: int = Field(ge=1)
    files: dict[str, Blob]
    signature: Signature | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)
    lineage: Lineage = Lineage()
    description: str = ""
    author: str
    created_at: datetime
    code_files: tuple[str, ...] = ()
    key: str | None = None
    digest: str = ""
    approvals: tuple[Approval, ...] = ()
    gates: dict[str, GateOutcome] = Field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    signatures: tuple[SignatureMark, ...] = ()
    deleted_at: datetime | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def status(self) -> Literal["READY", "REJECTED", "DELETED"]:
        """READY unless the version was deleted or anybody's latest review is a rejection."""
        if self.deleted_at is not None:
            return "DELETED"
        return "READY" if all(approval.approved for approval in self.approvals) else "REJECTED"

    @property
    def size_bytes(self) -> int:
        """Total size of all files in bytes."""
        return sum(blob.size for blob in self.files.values())

    def missing(self, policy: ModelPolicy, *, under_earlier: bool = False) -> tuple[str, ...]:
        """Conditions of `policy` that this version does not meet yet; empty if it may go live.

        under_earlier: approvals and gate results count too that were given while the model had another policy.
        """
        unmet = [text for gate in policy.gate_names if (text := self._unpassed(policy, gate, under_earlier))]
        valid = self._approvals_by(policy)
        standing = [each for each in valid if under_earlier or each.policy == policy.digest]
        if len(standing) < policy.approvals:
            who = f" from {sorted(policy.approvers)}" if policy.approvers else ""
            stale = sorted({each.actor for each in valid} - {each.actor for each in standing})
            again = f"; {stale} approved under an earlier policy and must again" if stale else ""
            unmet.append(
                f"{len(standing)} of {policy.approvals} approvals{who} (author: {self.author}){again}"
            )
        marks = {mark.signer for mark in self.signatures}
        if policy.signers and marks.isdisjoint(map(fingerprint, policy.signers)):
            unmet.append(f"not signed by one of its {len(policy.signers)} signers")
        return tuple(unmet)

    def accepted_code(self, policy: ModelPolicy) -> tuple[str, ...]:
        """Paths of files that can execute code and were accepted, by the policy or by an approval under it.

        The author's own approval accepts no code, unless the policy lets authors approve.
        """
        approvals = [each for each in self._approvals_by(policy) if each.policy == policy.digest]
        named = {path for approval in approvals for path in approval.accept_code}
        return tuple(
            path
            for path in self.code_files
            if path in named or any(fnmatchcase(path, pattern) for pattern in policy.allow_code)
        )

    def _approvals_by(self, policy: ModelPolicy) -> list[Approval]:
        """Approvals by people whom `policy` lets approve, and automatic ones where it lets retraining approve."""
        return [
            approval
            for approval in self.approvals
            if approval.approved
            and (policy.author_may_approve or approval.actor != self.author)
            and (not policy.approvers or approval.actor in policy.approvers)
            and (not approval.automatic or policy.automatic_approval is not None)
        ]

    def _unpassed(self, policy: ModelPolicy, gate: str, under_earlier: bool) -> str:  # noqa: FBT001 - private
        """Say why a gate is not passed, or return "" if it is."""
        outcome, demand = self.gates.get(gate), policy.demand(gate)
        if outcome is None:
            return f"gate {gate!r} has not run"
        if not outcome.passed:
            return f"gate {gate!r} has failed"
        if demand is None or under_earlier or outcome.demand == demand.digest:
            return ""
        return f"gate {gate!r} has not run with the limits and data of the policy; evaluate it again"


def jsonable(model: BaseModel) -> dict[str, Any]:
    """Convert `model` to finite JSON values; NaN and infinities become text, which reading turns back."""
    values: dict[str, Any] = json.loads(model.model_dump_json())
    return values


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinities by text in nested `values`, since JSON cannot express them."""
    return {str(name): _finite(value) for name, value in values.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return finite(value)
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    return value
