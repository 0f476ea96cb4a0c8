"""Result of checking one limit of a gate."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Check(BaseModel):
    """Result of checking one limit: the value found, the limit, and which side is good. note: details for the reader."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    value: float
    limit: float
    rule: str
    passed: bool
    note: str = ""


def at_most(name: str, value: float, limit: float, note: str = "") -> Check:
    """Check that value <= limit; NaN does not pass."""
    return Check(name=name, value=value, limit=limit, rule="at most", passed=bool(value <= limit), note=note)


def at_least(name: str, value: float, limit: float, note: str = "") -> Check:
    """Check that value >= limit; NaN does not pass."""
    return Check(name=name, value=value, limit=limit, rule="at least", passed=bool(value >= limit), note=note)
