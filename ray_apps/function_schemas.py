"""JSON Schemas of functions in words, for the command line, the console and the reference; known without Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


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


Kind = Literal["text", "integer", "number", "boolean", "json", "integer or text", "number or text"]
_KINDS: dict[str, Kind] = {"string": "text", "integer": "integer", "number": "number", "boolean": "boolean"}


@dataclass(frozen=True, slots=True)
class Option:
    """An argument as a command line takes it. several: a list of such values; default: as JSON, empty where it is required."""

    name: str
    kind: Kind
    several: bool
    required: bool
    default: str
    choices: tuple[str, ...]
    help: str


def options(schema: Mapping[str, Any]) -> list[Option]:
    """List the arguments of a function as a command line takes them, by the JSON Schema of its arguments object."""
    properties, definitions = schema.get("properties", {}), schema.get("$defs", {})
    return [
        Option(
            each.name,
            *_kind(properties[each.name], definitions),
            required=each.required,
            default=each.default,
            choices=_choices(properties[each.name]),
            help=each.description,
        )
        for each in parameters(schema)
    ]


def read_text(option: Option, text: str) -> Any:
    """Read an argument as a person types it; several values stand on a line each. Raises: ValueError."""
    if option.several:
        return [_read(option.kind, line.strip()) for line in text.splitlines() if line.strip()]
    return _read(option.kind, text)


def _read(kind: Kind, text: str) -> Any:
    if kind in {"text", "number or text"} or (kind == "integer or text" and not text.isdecimal()):
        return text
    if kind == "boolean":
        return text == "true"
    return float(text) if kind == "number" else int(text) if kind != "json" else json.loads(text)


def command_table(description: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce a function's description to what a command line needs of it: commands, view, route, arguments, what it does."""
    return {
        "function": description["name"],
        "summary": description["doc"].partition("\n")[0].partition(" Raises:")[0],
        "commands": description["commands"],
        "view": description["view"],
        "route": description["route"],
        "options": [asdict(option) for option in options(description["input_schema"])],
    }


def _kind(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[Kind, bool]:
    """Find how a command line reads a value of a schema, and whether it takes several."""
    alternatives = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    kinds = {_scalar(one, definitions) for one in alternatives}
    if kinds in ({"integer", "text"}, {"number", "text"}):
        return ("integer or text" if "integer" in kinds else "number or text"), False
    if len(alternatives) == 1 and alternatives[0].get("type") == "array":
        item = _scalar(alternatives[0].get("items", {}), definitions)
        return ("json", False) if item in {"json", "boolean"} else (item, True)
    return (kinds.pop() if len(kinds) == 1 else "json"), False


def _scalar(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Kind:
    if "$ref" in schema:
        schema = definitions.get(str(schema["$ref"]).rpartition("/")[2], {})
    if "const" in schema or "enum" in schema:
        return (
            "text"
            if all(isinstance(one, str) for one in schema.get("enum", [schema.get("const")]))
            else "json"
        )
    return _KINDS.get(str(schema.get("type")), "json")


def _choices(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The values that a schema allows, where they are texts."""
    found = [value for one in schema.get("anyOf", [schema]) for value in one.get("enum", [])]
    return tuple(found) if found and all(isinstance(value, str) for value in found) else ()
