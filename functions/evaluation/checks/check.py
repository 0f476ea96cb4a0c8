"""One limit, and whether it was kept."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Check(BaseModel):
    """One limit: the value found, the limit, and which side of it is good. note: what a reader wants to know beside."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    value: float
    limit: float
    rule: str
    passed: bool
    note: str = ""


def at_most(name: str, value: float, limit: float, note: str = "") -> Check:
    """Passes where value <= limit; NaN does not."""
    return Check(name=name, value=value, limit=limit, rule="at most", passed=bool(value <= limit), note=note)


def at_least(name: str, value: float, limit: float, note: str = "") -> Check:
    """Passes where value >= limit; NaN does not."""
    return Check(name=name, value=value, limit=limit, rule="at least", passed=bool(value >= limit), note=note)
