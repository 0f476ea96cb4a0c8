"""The OpenAPI document: the gateway's routes, and every function under its own path with its own schemas."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from functions.runtime.run.declared import DeclaredFunction
from ray_apps.gateway.routes.functions import http_functions

GENERIC = "/functions/{name}"
_DEFINITION = re.compile(r"^#/\$defs/")
_UNNAMEABLE = re.compile(r"[^A-Za-z0-9._-]")  # characters that the name of a component may not have

PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "RFC 9457",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}


def install(app: FastAPI) -> None:
    """Make the application's OpenAPI document include the functions that are declared when it is requested."""

    def document_with_functions() -> dict[str, Any]:
        document = get_openapi(
            title="Toque",
            version=app.version,
            description=app.description,
            routes=app.routes,
            separate_input_output_schemas=False,
        )
        return with_functions(_with_problems(document), http_functions())

    app.openapi = document_with_functions  # type: ignore[method-assign]  # FastAPI documents this way of extending it


def with_functions(document: dict[str, Any], functions: list[DeclaredFunction]) -> dict[str, Any]:
    """Replace the general path `/functions/{name}` of the document by one path for each function.

    If several modules declare a name, its functions are listed by reference, `module:name`.
    """
    paths = document["paths"]
    general = {method: paths.get(GENERIC, {}).get(method) for method in ("get", "post")}
    names = [each.name for each in functions]
    for function in functions if all(general.values()) else ():
        called = function.name if names.count(function.name) == 1 else function.reference
        paths[f"/functions/{called}"] = {
            "get": _describe_operation(general["get"], function, called),
            "post": _call_operation(document, general["post"], function, called),
        }
    if functions:
        paths.pop(GENERIC, None)
    return document


def _describe_operation(general: dict[str, Any], function: DeclaredFunction, called: str) -> dict[str, Any]:
    return general | {
        "operationId": f"describe_{called}",
        "summary": f"What {function.name} takes and returns",
        "parameters": _without_path(general),
    }


def _without_path(general: dict[str, Any]) -> list[Any]:
    return [each for each in general.get("parameters", []) if each["in"] != "path"]


def _call_operation(
    document: dict[str, Any], general: dict[str, Any], function: DeclaredFunction, called: str
) -> dict[str, Any]:
    operation = deepcopy(general)
    component = _UNNAMEABLE.sub(".", called)
    operation["operationId"] = f"call_{called}"
    operation["summary"] = function.doc.splitlines()[0] if function.doc else function.name
    operation["description"] = function.doc
    operation["parameters"] = _without_path(general)
    arguments = _hoisted(document, f"{component}_arguments", function.input_schema)
    operation["requestBody"] = {
        "required": bool(function.input_schema.get("required")),
        "content": {"application/json": {"schema": arguments}},
    }
    result = _hoisted(document, f"{component}_result", function.output_schema)
    operation["responses"]["200"] = {
        "description": "The result",
        "content": {"application/json": {"schema": result}},
    }
    return operation


def _hoisted(document: dict[str, Any], name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Move `schema` and its definitions to the components, under prefixed names; returns the reference to it."""
    components = document.setdefault("components", {}).setdefault("schemas", {})
    body = dict(schema)
    for definition, content in body.pop("$defs", {}).items():
        components[f"{name}.{definition}"] = _renamed(content, name)
    components[name] = _renamed(body, name)
    return {"$ref": f"#/components/schemas/{name}"}


def _renamed(value: Any, prefix: str) -> Any:
    if isinstance(value, dict):
        return {
            key: _DEFINITION.sub(f"#/components/schemas/{prefix}.", each)
            if key == "$ref" and isinstance(each, str)
            else _renamed(each, prefix)
            for key, each in value.items()
        }
    return [_renamed(each, prefix) for each in value] if isinstance(value, list) else value


def _with_problems(document: dict[str, Any]) -> dict[str, Any]:
    """Document a problem as every operation's error response, instead of FastAPI's validation errors."""
    components = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    components["Problem"] = PROBLEM
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {"description": "A problem", "content": content}
    return document
