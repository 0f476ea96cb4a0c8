"""Pages of functions: which can be called, when each runs next, and a form that calls one."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Annotated, Any

from starlette.responses import Response

from toque.ray_apps.console.api import ApiError
from toque.ray_apps.console.entry import Entry
from toque.ray_apps.console.page import Page
from toque.ray_apps.console.route import CHANGE, Form, page_for, pages_router
from toque.registry import Role

router = pages_router()
ENTRY = Entry("Functions", "functions")
_LATEST = 10
_SCANNED = 500  # invocations among which the last ones are looked for
Viewer = Annotated[Page, page_for(Role.viewer)]
Operator = Annotated[Page, page_for(Role.operator)]


@router.get("/functions")
async def list_functions(page: Viewer) -> Response:
    """Show the schedules with their next fire, and the functions that can be called."""
    schedules, functions = await asyncio.gather(
        page.api.get("/schedules"), page.api.get("/functions", brief=True)
    )
    return await page.render(
        "functions.html",
        live=("schedules/*",),
        schedules=sorted(schedules, key=lambda each: str(each["next_tick"])),
        functions=functions,
    )


@router.get("/functions/{name}")
async def show_function(page: Viewer, name: str) -> Response:
    """Show one function: what it takes and gives, its limits, its triggers and its last invocations."""
    return await _shown(page, name)


async def _shown(page: Page, name: str, *, typed: str = "{}", error: str = "") -> Response:
    """Render the page of one function. typed: arguments that somebody wrote and that are refused for `error`."""
    found, latest = await asyncio.gather(
        page.api.get(f"/functions/{page.quoted(name)}"),
        page.api.get("/invocations", function=name, limit=_LATEST, scan=_SCANNED),
    )
    return await page.render(
        "function.html",
        HTTPStatus.UNPROCESSABLE_ENTITY if error else HTTPStatus.OK,
        live=() if error else ("schedules/*", "invocations/*"),
        error=error,
        typed=typed,
        function=found,
        arguments=_arguments(found["input_schema"]),
        latest=latest,
        scanned=_SCANNED,
    )


@router.post("/functions/{name}/call")
async def call(page: Operator, name: str, form: Annotated[Form, CHANGE]) -> Response:
    """Queue an invocation of a function in the viewer's name and go to its page."""
    typed = form.get("arguments", "")
    try:
        arguments = json.loads(typed.strip() or "{}")
        accepted = await page.api.submit(name, arguments)
    except ValueError as error:
        return await _shown(page, name, typed=typed, error=f"arguments: not JSON: {error}")
    except ApiError as error:
        return await _shown(page, name, typed=typed, error=error.detail)
    return page.go(page.link("invocations", accepted["id"]), notice=f"{name} is queued.")


def _arguments(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Lay the arguments of a function out: name, type, default, what they mean."""
    required = set(schema.get("required", []))
    return [
        {
            "name": name,
            "type": _type(each),
            "required": name in required,
            "default": json.dumps(each["default"], ensure_ascii=False) if "default" in each else "",
            "about": each.get("description", ""),
        }
        for name, each in schema.get("properties", {}).items()
    ]


def _type(schema: dict[str, Any]) -> str:
    """Name the type that a JSON Schema describes."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(json.dumps(each) for each in schema["enum"])
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        return f"list of {_type(schema['items'])}"
    return str(schema.get("format") or schema.get("type", "any"))
