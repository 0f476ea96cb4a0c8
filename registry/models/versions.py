"""Values of a model's journal: versions with their signatures and lineage, approvals, gate outcomes and overrides.

Signatures are in terms of the Open Inference Protocol. The tags of a version that change how it is served are signed
with its files, and frozen once it is approved. Serving reads a version's tags through `serving_tags`, so that a tag
which is not listed here can have no effect.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from toque.registry.access.signing import fingerprint
from toque.registry.models.policy import ModelPolicy
from toque.registry.store import Blob, TableSnapshot

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "BF16",
    "FP32",
    "FP64",
    "BYTES",
]
_FLOATS = {"FP16", "BF16", "FP32", "FP64"}
_TEXTS = {"BYTES"}
_SEVERAL_LABELS = "label_probability"  # output of a model of which several classes may be true


class TensorSpec(BaseModel):
    """Name, type and shape of one tensor.

    shape: one size a dimension, -1 for any. columns: names along the last dimension of a table-like tensor
    `[-1, F]`, by which features become tensors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=128)
    datatype: Datatype
    shape: list[int]
    columns: list[str] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(size < -1 for size in self.shape):
            raise ValueError(f"tensor {self.name!r}: shape {self.shape} has a size below -1 (-1 means any)")
        if self.columns is not None:
            if not self.shape or self.shape[-1] not in {-1, len(self.columns)}:
                raise ValueError(
                    f"tensor {self.name!r}: {len(self.columns)} columns do not fit the last size of {self.shape}"
                )
            if len(set(self.columns)) != len(self.columns):
                raise ValueError(f"tensor {self.name!r}: a column is named twice in {self.columns}")
        return self

    def check(self, values: Any) -> None:
        """Check that nested lists `values` have this shape and type.

        Raises: ValueError naming the tensor and the first value that does not fit.
        """
        self._check(values, self.shape, "")

    def _check(self, values: Any, shape: list[int], where: str) -> None:
        if not shape:
            if not self._is_value(values):
                raise ValueError(f"tensor {self.name!r}{where}: {values!r} is not {self.datatype}")
            return
        if not isinstance(values, list):
            raise ValueError(f"tensor {self.name!r}{where}: want a list (shape {self.shape}), got {values!r}")  # noqa: TRY004 - pydantic collects ValueErrors
        if shape[0] not in {-1, len(values)}:
            raise ValueError(f"tensor {self.name!r}{where}: has {len(values)} of {shape[0]} values")
        for index, value in enumerate(values):
            self._check(value, shape[1:], f"{where}[{index}]")

    def _is_value(self, value: Any) -> bool:
        if self.datatype == "BOOL":
            return isinstance(value, bool)
        if self.datatype in _TEXTS:
            return isinstance(value, str)
        if self.datatype in _FLOATS:
            return isinstance(value, int | float) and not isinstance(value, bool)
        return isinstance(value, int) and not isinstance(value, bool)


class Signature(BaseModel):
    """Inputs and outputs of a model, in order.

    kind: `chat` for a language model, which an engine answers and whose tensors are what the prediction log keeps.
    example: input name -> nested lists that fit, used to warm a replica up; NaN is a missing number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    inputs: list[TensorSpec] = Field(min_length=1)
    outputs: list[TensorSpec] = Field(min_length=1)
    example: dict[str, Any] | None = None
    kind: Literal["tensors", "chat"] = Field(default="tensors", exclude_if=lambda kind: kind == "tensors")

    @model_validator(mode="before")
    @classmethod
    def _restore(cls, data: Any) -> Any:
        """Turn text back into NaN and infinities in stored examples, since JSON has no numbers for them."""
        if isinstance(data, dict) and isinstance(data.get("example"), dict):
            specs = [TensorSpec.model_validate(spec) for spec in data.get("inputs", ())]
            floats = {spec.name for spec in specs if spec.datatype in _FLOATS}
            example = {
                name: _numbers(values) if name in floats else values
                for name, values in data["example"].items()
            }
            return {**data, "example": example}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for kind, specs in (("input", self.inputs), ("output", self.outputs)):
            names = [spec.name for spec in specs]
            if len(set(names)) != len(names):
                raise ValueError(f"an {kind} is named twice: {names}")
        if self.example is not None:
            if set(self.example) != {spec.name for spec in self.inputs}:
                raise ValueError(
                    f"example names {sorted(self.example)}, inputs are {[s.name for s in self.inputs]}"
                )
            for spec in self.inputs:
                spec.check(self.example[spec.name])
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, of which one is true, that the first output has a probability for; empty for other answers."""
        output = self.outputs[0]
        several = len(output.columns or ()) > 1 and output.datatype in _FLOATS
        return tuple(output.columns or ()) if several and output.name != _SEVERAL_LABELS else ()

    def input(self, name: str) -> TensorSpec:
        """Get the input called `name`. Raises: KeyError, with the names there are."""
        for spec in self.inputs:
            if spec.name == name:
                return spec
        raise KeyError(f"no input {name!r}; there are {[spec.name for spec in self.inputs]}")


def _numbers(values: Any) -> Any:
    if isinstance(values, list):
        return [_numbers(value) for value in values]
    if isinstance(values, str) and values in {"NaN", "Infinity", "-Infinity"}:
        return math.nan if values == "NaN" else math.copysign(math.inf, -1 if values[0] == "-" else 1)
    return values


class Lineage(BaseModel):
    """The run, data, features and code that a version was made from.

    run: id of the run that trained it; datasets: table snapshots; features: feature view -> digest of its
    definition; code: digest of the code; parent: the version it challenges or was tuned from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str | None = None
    datasets: list[TableSnapshot] = Field(default_factory=list)
    features: dict[str, str] = Field(default_factory=dict)
    code: str | None = None
    parent: int | None = None

    def depends_on(self, source: TableSnapshot | str) -> bool:
        """Whether the version was made from `source`: a table snapshot, a run id, or a digest of code or features."""
        if isinstance(source, TableSnapshot):
            return source in self.datasets
        return source in {self.run, self.code, *self.features.values()}


class Dependent(BaseModel):
    """A version that depends on a given source, and how it is used now.

    aliases: that point to it; arm: the arm of live traffic it serves, if any.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    version: int
    aliases: tuple[str, ...] = ()
    arm: str | None = None


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


def merged_tags(tags: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Merge changes into tags; a value of None removes the tag."""
    return {name: value for name, value in {**tags, **changes}.items() if value is not None}


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


SERVING_TAGS: Final = frozenset(
    {
        "feature_service",  # where the values of keys are looked up
        "missing_features",
        "missing_defaults",
        "max_batch_rows",
        "max_batch_wait_ms",
    }
)


def serving_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Select the tags that change how a version is served."""
    return {tag: value for tag, value in tags.items() if tag in SERVING_TAGS}
