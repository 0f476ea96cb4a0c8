"""One rule on a text: what it finds there, and what follows."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from toque.functions.generative.guardrails.injection import injection_families
from toque.functions.generative.guardrails.personal_data import KINDS, PersonalData, mask, spans
from toque.functions.generative.guardrails.schema import check_schema, fits_schema
from toque.registry.text_patterns import check_pattern, count_matches, replace_matches

__all__ = ["Guardrail", "plain"]

_OWN_FIELD: Final = {
    "max_length": ("length",),
    "patterns": ("deny", "allow"),
    "json_schema": ("json_schema",),
    "data": ("personal_data",),
    "threshold": ("injection",),
}
_NEEDED: Final = {
    "length": "max_length",
    "deny": "patterns",
    "allow": "patterns",
    "json_schema": "json_schema",
}
_MASKING: Final = frozenset({"personal_data", "deny"})
_REMOVED: Final = "[removed]"


class Guardrail(BaseModel):
    """A rule on what is asked or answered.

    kind: `length` for more than `max_length` characters in all; `personal_data` for such as `data` lists; `deny` for one of
    `patterns`; `allow` for none of them; `json_schema` for an answer that is not JSON of that schema; `injection` for text
    that looks like orders to the model, by at least `threshold` of its heuristics. patterns: regular expressions of RE2, whose
    time is linear in the text, whatever their case. action: `refuse`; `redact` what is found and go on; or `flag` it in the log
    and the series alone. name: in the log and to the caller, by default the kind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["length", "personal_data", "deny", "allow", "json_schema", "injection"]
    name: str = Field(default="", max_length=60)
    action: Literal["refuse", "redact", "flag"] = "refuse"
    max_length: int | None = Field(default=None, ge=1)
    patterns: tuple[str, ...] = Field(default=(), max_length=1_000)
    data: tuple[PersonalData, ...] = KINDS
    json_schema: dict[str, Any] | None = None
    threshold: int = Field(default=1, ge=1, le=6)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field, kinds in _OWN_FIELD.items():
            if field in self.model_fields_set and self.kind not in kinds:
                raise ValueError(f"{field} with kind={self.kind!r}: it belongs to {' or '.join(kinds)}")
        needed = _NEEDED.get(self.kind)
        if needed and not getattr(self, needed):
            raise ValueError(f"kind={self.kind!r} needs {needed}")
        if self.action == "redact" and self.kind not in _MASKING:
            raise ValueError(
                f"action='redact' with kind={self.kind!r}: only {sorted(_MASKING)} know what to mask"
            )
        for pattern in self.patterns:
            check_pattern(pattern, field="patterns")
        if self.json_schema is not None:
            check_schema(self.json_schema)
        return self

    @property
    def label(self) -> str:
        """Name of the rule in the log and to the caller."""
        return self.name or self.kind

    def find(self, text: str) -> int:
        """Count what the rule finds in a text that `plain` has made comparable; 0: it has nothing against it."""
        return _FINDERS[self.kind](self, text)

    def masked(self, text: str) -> str:
        """Mask what the rule finds; the text as it is for a rule that knows no place of it."""
        if self.kind == "personal_data":
            return mask(text, spans(text, self.data))
        if self.kind == "deny":
            for pattern in self.patterns:
                text = replace_matches(pattern, text, _REMOVED)
        return text


def plain(text: str) -> str:
    """Make a text comparable: compatibility forms of letters become the usual ones, and invisible characters go."""
    if text.isascii():
        return text
    return "".join(each for each in unicodedata.normalize("NFKC", text) if unicodedata.category(each) != "Cf")


def _find_injection(rule: Guardrail, text: str) -> int:
    found = len(injection_families(text))
    return found if found >= rule.threshold else 0


_FINDERS: Final[dict[str, Callable[[Guardrail, str], int]]] = {
    "length": lambda rule, text: int(len(text) > (rule.max_length or 0)),
    "personal_data": lambda rule, text: len(spans(text, rule.data)),
    "deny": lambda rule, text: sum(count_matches(each, text) for each in rule.patterns),
    "allow": lambda rule, text: int(not any(count_matches(each, text) for each in rule.patterns)),
    "json_schema": lambda rule, text: int(not fits_schema(text, rule.json_schema or {})),
    "injection": _find_injection,
}
