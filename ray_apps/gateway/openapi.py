"""The OpenAPI document: the gateway's routes, and every function under its own path with its own schemas.

Each operation says by `x-toque-role` which roles may call it, one of which is enough; an empty list needs no token. The functions
are those declared to be callable by HTTP that belong to the workspace.
"""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from toque.functions.runtime import catalog
from toque.functions.runtime.context import Context
from toque.functions.runtime.errors import UnknownFunction
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.ray_apps.admission import Admitted
from toque.ray_apps.admission.guarded_route import rule_of
from toque.ray_apps.gateway.services import Services
from toque.registry import Role

GENERIC = "/functions/{name}"
ROLE = "x-toque-role"
_DEFINITION = re.compile(r"^#/\$defs/")
_NEVER_NULL = ("number", "integer", "string", "boolean", "array", "object")
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
WORKSPACE: dict[str, Any] = {
    "name": "X-Toque-Workspace",
    "in": "header",
    "description": "Workspace of the request; by default the only one that the token's grants name, else `default`. "
    "A path below `/workspaces/{name}` says the same.",
    "schema": {"type": "string", "pattern": "^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$"},
}


def install(app: FastAPI) -> None:
    """Make the application's own OpenAPI document the one of the default workspace."""

    def document_of_default() -> dict[str, Any]:
        services: Services = app.state.services
        return document(app, list_http(services.context))

    app.openapi = document_of_default  # type: ignore[method-assign]  # FastAPI documents this way of extending it


def document(app: FastAPI, functions: list[DeclaredFunction]) -> dict[str, Any]:
    """Build the document of the application's routes and of `functions`; takes some 100 ms."""
    made = get_openapi(
        title="Toque",
        version=app.version,
        description=app.description,
        routes=app.routes,
        separate_input_output_schemas=False,
    )
    return with_functions(_with_problems(_with_roles(made, app.state.routes)), functions)


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
    return [each for each in general.get("parameters", []) if each.get("in") != "path"]


def _call_operation(
    document: dict[str, Any], general: dict[str, Any], function: DeclaredFunction, called: str
) -> dict[str, Any]:
    operation = deepcopy(general)
    component = _UNNAMEABLE.sub(".", called)
    operation["operationId"] = f"call_{called}"
    operation["summary"] = function.doc.splitlines()[0] if function.doc else function.name
    operation["description"] = function.doc
    operation["parameters"] = _without_path(general)
    operation[ROLE] = [function.role.name]
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
        if value.get("default", ...) is None and value.get("type") in _NEVER_NULL:
            value = {
                key: content for key, content in value.items() if key != "default"
            }  # NaN, as JSON has it
        return {
            key: _DEFINITION.sub(f"#/components/schemas/{prefix}.", each)
            if key == "$ref" and isinstance(each, str)
            else _renamed(each, prefix)
            for key, each in value.items()
        }
    return [_renamed(each, prefix) for each in value] if isinstance(value, list) else value


def _with_roles(document: dict[str, Any], routes: list[Any]) -> dict[str, Any]:
    """Say of each operation which roles may call it, and in which header the workspace goes."""
    document.setdefault("components", {})["parameters"] = {"Workspace": WORKSPACE}
    for route in routes:
        operations = document["paths"].get(route.path_format, {}) if isinstance(route, APIRoute) else {}
        for method in route.methods or ():
            operation = operations.get(method.lower())
            required = None if operation is None else rule_of(route.dependant)
            if operation is not None and required is not None:
                operation[ROLE] = [role.name for role in required.rule.roles]
                if not required.rule.is_open and not route.path.startswith(
                    "/workspaces/"
                ):  # its path names it
                    reference = {"$ref": "#/components/parameters/Workspace"}
                    operation["parameters"] = [*operation.get("parameters", []), reference]
    return document


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


def list_http(context: Context) -> list[DeclaredFunction]:
    """List the functions that are callable by HTTP in the context's workspace, by name."""
    return [each for each in catalog.all_functions() if is_visible(each, context)]


def is_visible(function: DeclaredFunction, context: Context) -> bool:
    """Whether a function is callable by HTTP in the context's workspace; its role is another question."""
    return function.http and context.sees(function.reference)


def get_http(name: str, context: Context, admitted: Admitted) -> DeclaredFunction:
    """Return the function `name`, importing nothing.

    Raises: UnknownFunction, also for one that is not callable by HTTP: those who run functions are told the remedy.
    """
    found = catalog.find_declared(name, where=lambda each: is_visible(each, context))
    if found is not None:
        return found
    known = ", ".join(dict.fromkeys(each.name for each in list_http(context))) or "none"
    remedy = "is its module imported (TOQUE_PROJECT)?"
    hidden = catalog.find_declared(name, where=lambda each: context.sees(each.reference))
    if hidden is not None and admitted.may(Role.operator):
        remedy = "it is declared for Python callers only; @function(http=True) opens it"
    raise UnknownFunction(f"no function {name!r} is callable by HTTP: {remedy} Callable are: {known}")
