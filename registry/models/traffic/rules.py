"""Ordered traffic rules: requests with certain attributes go to one version whatever their unit.

A rule is not an experiment: it applies before holdouts, layer and split, to held-out units and others alike, so the
remaining requests are still assigned at random; requests that match are logged under an arm of their own,
`rule:{name}`, which nothing compares.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import cached_property
from math import isfinite, nan
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Named = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
]  # the pattern of `toque.registry.names`, for schemas
Text = Annotated[str, StringConstraints(max_length=256)]
BY_RULE = "rule:"
"""Prefix of the arms of requests that a rule sends; no arm of a split has a colon in its name."""
MAX_RULES = 64
_COMPARED = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


class Condition(BaseModel):
    """Condition on one attribute of a request; a request without the attribute does not meet it.

    op: "in" (equal to one of `values`), "prefix" (begins with one of them), or "<", "<=", ">", ">=" (a number, compared
    with the only value; an attribute that is not a number does not meet it).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attribute: Named
    op: Literal["in", "prefix", "<", "<=", ">", ">="]
    values: tuple[Text, ...] = Field(min_length=1, max_length=1_000)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.op == "prefix" and "" in self.values:
            raise ValueError(
                f"attribute {self.attribute!r}: every text begins with the prefix ''; give a longer one"
            )
        if self.op in _COMPARED and not (len(self.values) == 1 and isfinite(self._bound)):
            raise ValueError(
                f"attribute {self.attribute!r}: {self.op} compares with one number, got {list(self.values)!r:.80}"
            )
        return self

    def holds(self, attributes: Mapping[str, str]) -> bool:
        """Whether a request with these attributes meets the condition."""
        value = attributes.get(self.attribute)
        if value is None:
            return False
        if self.op == "in":
            return value in self._among
        if self.op == "prefix":
            return value.startswith(self.values)
        return bool(_COMPARED[self.op](_number(value), self._bound))

    @cached_property
    def _among(self) -> frozenset[str]:
        return frozenset(self.values)

    @cached_property
    def _bound(self) -> float:
        return _number(self.values[0])


class TrafficRule(BaseModel):
    """Send requests that meet all conditions of `when` to one version, whatever their unit.

    to: the version's number, or "champion" for the current one. When a rule is set it may name any arm, which stands for
    the version that the arm has at that time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Named
    when: tuple[Condition, ...] = Field(min_length=1, max_length=16)
    to: Annotated[int, Field(ge=1, le=2**31)] | Named

    @property
    def arm(self) -> str:
        """Arm under which requests of this rule are logged."""
        return BY_RULE + self.name

    @property
    def versions(self) -> tuple[int, ...]:
        """Version that the rule names by number; empty if it names the champion."""
        return (self.to,) if isinstance(self.to, int) else ()

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Whether a request with these attributes meets all conditions."""
        for condition in self.when:  # noqa: SIM110  # on every request's path: a generator costs twice as much
            if not condition.holds(attributes):
                return False
        return True


def _number(text: str) -> float:
    """Parse `text` as a number; NaN, which no comparison accepts, if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return nan
