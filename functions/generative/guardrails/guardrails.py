"""The guardrails of a prompt: rules before the model is asked, and rules on what it answers."""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from toque.functions.generative.guardrails.rule import Guardrail

__all__ = ["GuardrailStage", "Guardrails"]

GuardrailStage = Literal["before", "after"]
_ONLY: Final = {"json_schema": "after", "injection": "before"}


class Guardrails(BaseModel):
    """Rules on what a caller sends, and on what the model answers, in the order in which they are applied.

    before: on the texts of the caller's messages and variables; the prompt's own are not looked at. after: on the answer's
    text, its reasoning and the arguments of its calls of tools; a stream is held until they have passed it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: tuple[Guardrail, ...] = Field(default=(), max_length=32)
    after: tuple[Guardrail, ...] = Field(default=(), max_length=32)

    @model_validator(mode="after")
    def _placed(self) -> Self:
        stages: tuple[tuple[GuardrailStage, tuple[Guardrail, ...]], ...] = (
            ("before", self.before),
            ("after", self.after),
        )
        for stage, rules in stages:
            names = [each.label for each in rules]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"guardrails.{stage}: {twice} are named twice; give each a name")
            for each in rules:
                if _ONLY.get(each.kind, stage) != stage:
                    raise ValueError(
                        f"guardrails.{stage}: kind={each.kind!r} belongs to {_ONLY[each.kind]!r} alone"
                    )
        return self
