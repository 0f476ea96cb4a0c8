"""Options of `@function(...)` and their validation at import."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from toque.functions.runtime.declaration import Cron, OnEvent, Resources, Retries
from toque.functions.runtime.errors import DeclarationError
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
    "demand": (FunctionType,),
    "schedule": (tuple,),
    "on": (tuple,),
    "http": (bool,),
    "role": (Role,),
}
_MEMBERS: dict[str, type] = {"secrets": str, "schedule": Cron, "on": OnEvent}
CALLER_ROLES = (Role.viewer, Role.operator, Role.approver, Role.admin)


def checked_options(name: str, declared: Mapping[str, Any]) -> dict[str, Any]:
    """Validate the options of the function `name`; schedule and on become tuples, role a Role.

    Raises: DeclarationError.
    """
    options = {each: value for each, value in declared.items() if not (value is None and each != "timeout_s")}
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
    for secret in options["secrets"]:
        if not _SECRET.fullmatch(secret):
            raise DeclarationError(
                f"{name}: secrets={secret!r} is not a name; use letters, digits and _ as in API_KEY"
            )
