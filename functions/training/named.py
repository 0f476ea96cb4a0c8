"""Parts of torch chosen by name with arguments, as settings that are JSON; known without torch."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator


class Named(BaseModel):
    """Class of torch by its name, such as "SGD", with its arguments; a text alone is a name without arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"[A-Za-z][A-Za-z0-9]*")
    arguments: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given


ADAMW = Named(name="AdamW")
