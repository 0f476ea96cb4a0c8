"""Options of `@function(...)` and their validation at import, and types of arguments that come by HTTP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from types import FunctionType
from typing import Any

from toque.functions.runtime.declaration import Cron, OnEvent, Resources, Retries
from toque.functions.runtime.declaration.command import Command, Route, View
from toque.functions.runtime.errors import DeclarationError
from toque.functions.runtime.signature import Signature
from toque.registry.access import Role
from toque.registry.errors import InvalidInput

_SECRET = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KINDS: dict[str, tuple[type, ...]] = {
    "resources": (Resources,),
    "timeout_s": (int, float, type(None)),
    "retries": (Retries,),
    "max_concurrency": (int, type(None)),
    "cache": (bool,),
    "secrets": (tuple,),
    "warm": (int,),
    "in_thread": (bool,),
    "durable": (bool,),
    "demand": (FunctionType,),
    "schedule": (tuple,),
    "on": (tuple,),
    "http": (bool,),
    "role": (Role,),
    "command": (tuple,),
    "view": (View,),
    "route": (str,),
    "admin_for": (dict,),
}
_MEMBERS: dict[str, type] = {"secrets": str, "schedule": Cron, "on": OnEvent, "command": str}
CALLER_ROLES = (Role.viewer, Role.operator, Role.approver, Role.admin)
# JSON Schema's formats of values that name something beyond the workspace, and of secrets.
_REACHING = frozenset(
    {"path", "file-path", "directory-path", "uri", "uri-reference", "multi-host-uri", "password"}
)


def checked_options(name: str, declared: Mapping[str, Any]) -> dict[str, Any]:
    """Validate the options of the function `name`; schedule, on and command become tuples, role a Role.

    A function with a route is callable by HTTP, and answers from a thread of the gateway.
    Raises: DeclarationError.
    """
    options = {each: value for each, value in declared.items() if not (value is None and each != "timeout_s")}
    options |= {"http": True, "in_thread": True} if "route" in options else {}
    if "role" in options:
        options["role"] = _checked_role(name, options)
    for each, member in _MEMBERS.items():
        given = options.get(each, ())
        options[each] = (given,) if isinstance(given, member) else tuple(given)
        if not all(isinstance(item, member) for item in options[each]):
            raise DeclarationError(f"{name}: {each}={given!r} must be {member.__name__}, or several")
    for each, value in options.items():
        if each not in _KINDS:
            raise DeclarationError(f"{name}: no such option {each!r}; there are {', '.join(_KINDS)}")
        if not isinstance(value, _KINDS[each]):
            raise DeclarationError(f"{name}: {each}={value!r} must be {_KINDS[each][0].__name__}")
    _check_values(name, options)
    return options


def _checked_role(name: str, options: Mapping[str, Any]) -> Role:
    if not options.get("http"):
        raise DeclarationError(
            f"{name}: role={options['role']!r} says who may call it by HTTP; add http=True"
        )
    try:
        role = Role.parse(options["role"])
    except InvalidInput as error:
        raise DeclarationError(f"{name}: {error}") from error
    if role not in CALLER_ROLES:
        known = ", ".join(each.name for each in CALLER_ROLES)
        raise DeclarationError(f"{name}: role={role.name!r} runs no functions; there are {known}")
    return role


def _check_values(name: str, options: Mapping[str, Any]) -> None:
    for each in ("timeout_s", "max_concurrency"):
        if options.get(each) is not None and not options[each] > 0:
            raise DeclarationError(f"{name}: {each}={options[each]!r} must be above 0, or None")
    if options.get("warm", 0) < 0:
        raise DeclarationError(f"{name}: warm={options['warm']!r} must be a number of workers, 0 or more")
    if not options.get("durable", True):
        for each in ("schedule", "on", "cache", "warm", "demand"):
            if options.get(each):
                raise DeclarationError(
                    f"{name}: {each} is of durable calls, which durable=False refuses; leave one out"
                )
    for secret in options["secrets"]:
        if not _SECRET.fullmatch(secret):
            raise DeclarationError(
                f"{name}: secrets={secret!r} is not a name; use letters, digits and _ as in API_KEY"
            )


def checked_commands(signature: Signature, options: Mapping[str, Any]) -> tuple[Command, ...]:
    """Read the commands that a function declares. Raises: DeclarationError if one cannot be, or nobody may call it by HTTP."""
    commands = options["command"]
    if commands and not options.get("http"):
        raise DeclarationError(f"{signature.name}: command={commands[0]!r} is called by HTTP; add http=True")
    arguments = signature.input_schema.get("properties", {}) if commands else {}
    view = options.get("view")
    known = {*arguments, *signature.output_schema.get("properties", {}), "result"} if view else set()
    failures = view.failure.split(" | ") if view and view.failure else []
    fields = [f"{{{each.partition(': ')[0]}}}" for each in failures]
    for text in (view.text, view.empty, view.page, *failures, *fields) if view else ():
        if unknown := sorted({name for _, name, _, _ in Formatter().parse(text) if name} - known):
            raise DeclarationError(
                f"{signature.name}: view names {unknown} in {text!r}; there are {', '.join(sorted(known))}"
            )
    return tuple(Command.parse(text, function=signature.name, arguments=arguments) for text in commands)


def checked_route(signature: Signature, options: Mapping[str, Any]) -> Route | None:
    """Read the route that a function declares. Raises: DeclarationError if it, or `admin_for`, names what is no argument."""
    arguments = signature.signature.parameters
    if unknown := sorted({*options.get("admin_for", ())} - {*arguments}):
        raise DeclarationError(f"{signature.name}: admin_for names the arguments {unknown}, which it has not")
    text = options.get("route")
    return Route.parse(text, function=signature.name, arguments=arguments) if text else None


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
