"""Policy of a model, written by an admin: what a version must show before it goes live, and who may decide what."""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from toque.registry.access.signing import canonical
from toque.registry.names import check_name
from toque.registry.text_patterns import check_pattern


class GateData(BaseModel):
    """Rows that a gate must be judged on.

    table: name of the evaluation table, or a pattern such as `training/late/*-holdout`. label: its label's column.
    entities: the table that its rows were built from, by the lineage stored with it; then none of them may lie before
    the end of the version's own training rows. min_days: least time that they span.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str = Field(min_length=1)
    label: str | None = None
    entities: str | None = None
    min_days: float | None = Field(default=None, gt=0.0)

    def allows(self, table: str) -> bool:
        """Whether the policy accepts evaluation on the table of this name."""
        return fnmatchcase(table, self.table)


class GateDemand(BaseModel):
    """Gate that the policy demands, with its limits and data.

    limits: fields of `toque.functions.evaluation.Gate`, or of `AnswerGate` for language models, other than the name; what is left out has
    that class's default.
    data: the rows to judge on; None: those that the caller chooses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    limits: dict[str, JsonValue] = Field(default_factory=dict)
    data: GateData | None = None

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        return check_name(name, what="gate")

    @property
    def digest(self) -> str:
        """SHA-256 of name, limits and data, which stands in each result that was judged by them."""
        return _digest(self)


class AutomaticApproval(BaseModel):
    """Permission to approve a challenger that passed its gates without a person.

    reason: why that is acceptable for this model. max_per_30_days: most automatic approvals within 30 days; None: any number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str = Field(min_length=1, max_length=2000)
    max_per_30_days: int | None = Field(default=None, ge=1)


class ModelPolicy(BaseModel):
    """Conditions that a version must meet before it may go live.

    guarded: aliases that need it; with any, a share of the traffic needs it too. approvals: how many people
    must approve; approvers: who may (empty: anyone). gates: which must have passed: a name, or a `GateDemand` with limits and
    data. author_may_approve: whether the author counts. signers: public keys (PEM), one of which must have signed; with any,
    no file of a version is handed out unless such a signature holds. overriders: who may go live against these conditions
    in an emergency (empty: any admin). allow_code: patterns of files that can execute code and are accepted in every version.
    automatic_approval: whether retraining may approve its own challengers; None: people do. trusted_types: classes that a model
    saved by skops may name beside those that skops knows to be safe, such as "sklearn.tree._tree.Tree". declining: regular
    expressions of RE2 by which an answer of a language model declines to answer, beside the English ones that the door knows;
    those of the policy, as they count for all versions alike. keep_texts: share of a language model's answers of which the prediction
    log keeps what was asked and said; rows with counts and times are kept of all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    guarded: frozenset[str] = frozenset()
    approvals: int = Field(default=1, ge=0, strict=True)
    approvers: frozenset[str] = frozenset()
    gates: tuple[str | GateDemand, ...] = ()
    author_may_approve: bool = Field(default=False, strict=True)
    signers: tuple[str, ...] = ()
    overriders: frozenset[str] = frozenset()
    allow_code: tuple[str, ...] = ()
    automatic_approval: AutomaticApproval | None = None
    trusted_types: frozenset[str] = frozenset()
    declining: tuple[str, ...] = Field(default=(), max_length=100)
    keep_texts: float = Field(default=1.0, ge=0.0, le=1.0, strict=True)

    @field_validator("signers")
    @classmethod
    def _keys(cls, signers: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(canonical(key) for key in signers)

    @field_validator("declining")
    @classmethod
    def _patterns(cls, declining: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_pattern(each, field="declining") for each in declining)

    @field_validator("gates")
    @classmethod
    def _gates_once(cls, gates: tuple[str | GateDemand, ...]) -> tuple[str | GateDemand, ...]:
        names = [_name_of(gate) for gate in gates]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"gates {twice} are demanded twice; keep one of each name")
        return gates

    @property
    def gate_names(self) -> tuple[str, ...]:
        """Names of the gates that a version must have passed."""
        return tuple(_name_of(gate) for gate in self.gates)

    @property
    def digest(self) -> str:
        """SHA-256 of all that the policy says, which stands in each gate result and approval."""
        return _digest(self)

    def demand(self, gate: str) -> GateDemand | None:
        """Find the limits and data that the policy sets for a gate; None if it sets none."""
        return next((each for each in self.gates if isinstance(each, GateDemand) and each.name == gate), None)

    def recorded(self) -> dict[str, Any]:
        """Convert the policy to the JSON values that stand for it in the journal, defaults left out."""
        return _recorded(self)


def _name_of(gate: str | GateDemand) -> str:
    return gate if isinstance(gate, str) else gate.name


def _recorded(model: BaseModel) -> dict[str, Any]:
    """Leave defaults out, so that a field which a later release adds changes no digest, and an older one can read on."""
    values: dict[str, Any] = json.loads(json.dumps(model.model_dump(exclude_defaults=True), default=sorted))
    return values


def _digest(model: BaseModel) -> str:
    text = json.dumps(_recorded(model), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
