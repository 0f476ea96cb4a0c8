"""Values of a model's journal: versions, approvals, gate outcomes, overrides and the policy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field, field_validator

from registry.access.signing import canonical, fingerprint
from registry.models.lineage import Lineage
from registry.models.signature import Signature
from registry.store import Blob


class Approval(BaseModel):
    """The latest approval or rejection of a version by one person."""

    model_config = ConfigDict(frozen=True)

    actor: str
    approved: bool
    comment: str = ""
    at: datetime


class GateOutcome(BaseModel):
    """The last result of one gate on a version."""

    model_config = ConfigDict(frozen=True)

    name: str
    passed: bool
    details: dict[str, Any] = Field(default_factory=dict)
    actor: str
    at: datetime


class Override(BaseModel):
    """Record that a version went live in an emergency against the policy; never removed."""

    model_config = ConfigDict(frozen=True)

    actor: str
    reason: str
    broken: tuple[str, ...]
    at: datetime


class SignatureMark(BaseModel):
    """Record of a cryptographic signature, checked when it was added. signer: fingerprint of its key; sha256: of its bundle."""

    model_config = ConfigDict(frozen=True)

    signer: str
    sha256: str
    actor: str
    at: datetime


class ModelPolicy(BaseModel):
    """Conditions that a version must meet before it may go live.

    guarded: aliases that need it; with any, a share of the traffic needs it too. approvals: how many people
    must approve; approvers: who may (empty: anyone). gates: which must have passed. author_may_approve:
    whether the author counts. signers: public keys (PEM), one of which must have signed; with any, no file of
    a version is handed out unless such a signature holds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    guarded: frozenset[str] = frozenset()
    approvals: int = Field(default=1, ge=0)
    approvers: frozenset[str] = frozenset()
    gates: tuple[str, ...] = ()
    author_may_approve: bool = False
    signers: tuple[str, ...] = ()

    @field_validator("signers")
    @classmethod
    def _keys(cls, signers: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(canonical(key) for key in signers)


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

    def missing(self, policy: ModelPolicy) -> tuple[str, ...]:
        """Conditions of `policy` that this version does not meet yet; empty if it may go live."""
        approvers = {
            approval.actor
            for approval in self.approvals
            if approval.approved
            and (policy.author_may_approve or approval.actor != self.author)
            and (not policy.approvers or approval.actor in policy.approvers)
        }
        unmet = [
            f"gate {gate!r} has {'failed' if gate in self.gates else 'not run'}"
            for gate in policy.gates
            if gate not in self.gates or not self.gates[gate].passed
        ]
        if len(approvers) < policy.approvals:
            who = f" from {sorted(policy.approvers)}" if policy.approvers else ""
            unmet.append(f"{len(approvers)} of {policy.approvals} approvals{who} (author: {self.author})")
        marks = {mark.signer for mark in self.signatures}
        if policy.signers and marks.isdisjoint(map(fingerprint, policy.signers)):
            unmet.append(f"not signed by one of its {len(policy.signers)} signers")
        return tuple(unmet)


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
