"""Answers against a JSON schema."""

from __future__ import annotations

import functools
import json
from typing import Any

__all__ = ["check_schema", "fits_schema"]


def check_schema(schema: dict[str, Any]) -> None:
    """Check that a schema is one, and looks nothing up elsewhere. Raises: ValueError."""
    from jsonschema import SchemaError  # late: only prompts with such a rule need it

    try:
        _validator(json.dumps(schema, sort_keys=True))
    except SchemaError as error:
        raise ValueError(f"json_schema: {error.message}") from error
    if outside := [each for each in _references(schema) if not each.startswith("#")]:
        raise ValueError(f"json_schema: $ref {outside[0]!r:.80} is elsewhere; put it under $defs")


def fits_schema(text: str, schema: dict[str, Any]) -> bool:
    """Whether a text is JSON of a schema."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(_validator(json.dumps(schema, sort_keys=True)).is_valid(found))


@functools.lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    from jsonschema.validators import Draft202012Validator, validator_for

    found = json.loads(schema)
    kind = validator_for(found, default=Draft202012Validator)
    kind.check_schema(found)
    return kind(found)


def _references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [each for item in schema for each in _references(item)]
    if not isinstance(schema, dict):
        return []
    own = [each for name in ("$ref", "$dynamicRef") if isinstance(each := schema.get(name), str)]
    return own + [each for value in schema.values() for each in _references(value)]
