"""Types that the arguments of a function callable by HTTP may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toque.functions.runtime.errors import DeclarationError
from toque.functions.runtime.signature import Signature

# JSON Schema's formats of values that name something beyond the workspace, and of secrets.
_REACHING = frozenset(
    {"path", "file-path", "directory-path", "uri", "uri-reference", "multi-host-uri", "password"}
)


def check_http_types(signature: Signature) -> None:
    """Check that a caller far away can give the arguments, and that none of them reaches beyond the workspace.

    Raises: DeclarationError for a type without a JSON Schema, and for a path, a URL or a secret among the arguments.
    """
    signature.output_schema  # noqa: B018  # raises for a type without one
    for each, kind in reaching_fields(signature.input_schema).items():
        raise DeclarationError(
            f"{signature.name}: {each} is a {kind}, which no caller by HTTP may choose: "
            "let the project's code or the context name it, or leave http=True out"
        )


def reaching_fields(schema: Mapping[str, Any]) -> dict[str, str]:
    """Find the fields of an object's JSON Schema that hold a path, a URL or a secret, each with its format."""
    found = {}
    for each, field in schema.get("properties", {}).items():
        formats = _formats(field, schema.get("$defs", {}), set()) & _REACHING
        if formats:
            found[each] = min(formats)
    return found


def _formats(value: Any, definitions: Mapping[str, Any], seen: set[str]) -> set[str]:
    """Collect the formats of texts in a JSON Schema, definitions that it refers to included."""
    if isinstance(value, list):
        return {each for item in value for each in _formats(item, definitions, seen)}
    if not isinstance(value, dict):
        return set()
    found = {value["format"]} if isinstance(value.get("format"), str) else set()
    referred = str(value.get("$ref", "")).rpartition("/")[2]
    if referred and referred not in seen:
        seen.add(referred)
        found |= _formats(definitions.get(referred), definitions, seen)
    return found.union(*(_formats(each, definitions, seen) for each in value.values()))
