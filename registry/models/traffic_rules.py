"""Which requests go to one version whatever their unit: ordered rules on the attributes that a caller says.

A rule is no experiment: it takes a request before holdouts, layer and split are asked, from held-out units and from
others alike, so what it leaves is still assigned at random; what it takes is logged under an arm of its own,
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
]  # the rule of `names`, for schemas
Text = Annotated[str, StringConstraints(max_length=256)]
BY_RULE = "rule:"
"""What the arm of a request that came by rule begins with; no arm of a split has a colon in its name."""
MAX_RULES = 64
_COMPARED = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


class Condition(BaseModel):
    """What one attribute of a request must be; a request that does not say the attribute does not meet it.

    op: "in" (equal to one of `values`), "prefix" (begins with one of them), or "<", "<=", ">", ">=" (a number, held
    against the only value; an attribute that is no number does not meet it).
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
        """Whether a request with these attributes meets it."""
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
    """Requests that meet all of `when` go to one version, whoever asks.

    to: the version's number, or "champion", whichever that is. When a rule is set it may name any arm, which stands for
    the version of that arm then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Named
    when: tuple[Condition, ...] = Field(min_length=1, max_length=16)
    to: Annotated[int, Field(ge=1, le=2**31)] | Named

    @property
    def arm(self) -> str:
        """What requests that come by it are logged under."""
        return BY_RULE + self.name

    @property
    def versions(self) -> tuple[int, ...]:
        """The version that it names, if it names one by number."""
        return (self.to,) if isinstance(self.to, int) else ()

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Whether it takes a request with these attributes."""
        for condition in self.when:  # noqa: SIM110  # on the way of a request: a generator costs twice as much
            if not condition.holds(attributes):
                return False
        return True


def _number(text: str) -> float:
    """`text` as a number; NaN, which is neither more nor less than anything, if it is none."""
    try:
        return float(text)
    except ValueError:
        return nan
