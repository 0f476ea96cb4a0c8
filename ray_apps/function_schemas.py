"""JSON Schemas of functions in words, for the command line, the console and the reference; known without Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Parameter:
    """Argument of a function, or field of an object. default: as JSON, empty where it is required."""

    name: str
    type: str
    required: bool
    default: str
    description: str


def parameters(schema: Mapping[str, Any]) -> list[Parameter]:
    """List the properties of an object's schema, in order."""
    required = schema.get("required", [])
    return [
        Parameter(
            name,
            type_name(each),
            required=name in required,
            default="" if name in required else json.dumps(each.get("default"), ensure_ascii=False),
            description=each.get("description", ""),
        )
        for name, each in schema.get("properties", {}).items()
    ]


def type_name(schema: Mapping[str, Any]) -> str:
    """Name a schema's type in a word or two."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if several := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(type_name(each) for each in several))
    if "enum" in schema or "const" in schema:
        return " or ".join(json.dumps(each) for each in schema.get("enum") or [schema["const"]])
    if schema.get("type") == "array":
        return f"list of {type_name(schema.get('items', {}))}"
    if schema.get("type") == "object" and "title" in schema:
        return str(schema["title"])
    return str(schema.get("format") or schema.get("type", "any value"))
