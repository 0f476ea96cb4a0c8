"""Pages of functions, with a form that calls one, and of durable invocations, with the buttons that steer one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Annotated, Any, Final

from fastapi import Query
from markupsafe import Markup
from starlette.responses import Response

from toque.functions.pages import Node
from toque.functions.pages.charts import draw_columns
from toque.functions.runtime.durable.record import ENDED, Status
from toque.ray_apps.console.page import ApiError, Page
from toque.ray_apps.console.route import Entry, Operator, Sent, Viewer, pages_router
from toque.ray_apps.function_schemas import options, parameters, read_text

router = pages_router()
ENTRY = Entry("Functions", "functions")
INVOCATIONS_ENTRY = Entry("Invocations", "invocations")
ROWS = 50
INDEXED: Final = ("queued", "running", "failed", "waiting", "dead")
SCANNED = 1_000  # invocations that a search for a function looks at
_STEPS_DRAWN = 24
_SEGMENTS = 100  # of a log that the API gives at once
Id = Annotated[str | None, Query(pattern=r"^[0-9A-Za-z_-]{1,64}$")]
Segment = Annotated[str, Query(pattern=r"^[0-9a-f-]{0,64}$")]
_FIELD = "argument:"  # what the name of an argument's field begins with
_LAST_SHOWN = 10
_LAST_SCANNED = 500  # invocations among which the last ones are looked for


@router.get("/invocations")
async def list_invocations(
    page: Viewer,
    state: Status | None = None,
    function: Annotated[str | None, Query(max_length=128)] = None,
    after: Id = None,
) -> Response:
    """List invocations, the newest first, a page at a time, of a state or a function if one is chosen."""
    scan = SCANNED if function else None
    found = await page.api.get(
        "/invocations", state=state, function=function or None, after=after, scan=scan, limit=ROWS
    )
    return await page.render(
        "invocations.html",
        live=("dead_letters",) if state == "dead" else ("invocations/*",),
        invocations=found,
        states=INDEXED,
        scanned=scan,
        state=state,
        function=function or "",
        after=after,
        following=found[-1]["id"] if len(found) == ROWS else None,
    )


@router.get("/invocations/{invocation}")
async def show_invocation(page: Viewer, invocation: str, after: Segment = "") -> Response:
    """Show one invocation: its state, steps, arguments, result or failure, and its log from a segment on."""
    return await _shown_invocation(page, invocation, after)


@router.post("/invocations/{invocation}/cancel")
async def cancel(page: Operator, invocation: str, _: Sent) -> Response:
    """Cancel an invocation that has not ended."""
    done = "It is cancelled; running work is killed."
    return await page.change(
        page.link("invocations", invocation), done, "DELETE", f"/invocations/{page.quoted(invocation)}"
    )


@router.post("/invocations/{invocation}/redrive")
async def redrive(page: Operator, invocation: str, _: Sent) -> Response:
    """Queue a dead or cancelled invocation again."""
    return await _post(page, invocation, "redrive", {}, "It is queued again; its finished steps are kept.")


@router.post("/invocations/{invocation}/purge")
async def purge(page: Operator, invocation: str, _: Sent) -> Response:
    """Remove an invocation from the dead letters."""
    return await _post(page, invocation, "purge", None, "It is no dead letter any more; its record stays.")


@router.post("/invocations/{invocation}/signal")
async def signal(page: Operator, invocation: str, form: Sent) -> Response:
    """Send a workflow the signal that it waits for, with a JSON value."""
    text = form.get("value", "").strip()
    try:
        value = json.loads(text) if text else None
    except ValueError as error:
        refusal = f"value: not JSON: {error}; write a text in quotes"
        return await _shown_invocation(page, invocation, typed=text, error=refusal)
    name = form.get("name", "")
    return await _post(page, invocation, f"signals/{page.quoted(name)}", value, f"Signal {name} is sent.")


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


async def _shown(
    page: Page, name: str, *, typed: Mapping[str, str] = MappingProxyType({}), error: str = ""
) -> Response:
    """Render the page of one function. typed: arguments that somebody wrote and that are refused for `error`."""
    found, latest = await asyncio.gather(
        page.api.get(f"/functions/{page.quoted(name)}"),
        page.api.get("/invocations", function=name, limit=_LAST_SHOWN, scan=_LAST_SCANNED),
    )
    return await page.render(
        "function.html",
        HTTPStatus.UNPROCESSABLE_ENTITY if error else HTTPStatus.OK,
        live=() if error else ("schedules/*", "invocations/*"),
        error=error,
        typed=typed,
        function=found,
        arguments=parameters(found["input_schema"]),
        options=options(found["input_schema"]),
        latest=latest,
        scanned=_LAST_SCANNED,
    )


@router.post("/functions/{name}/call")
async def call(page: Operator, name: str, form: Sent) -> Response:
    """Queue an invocation of a function in the viewer's name and go to its page."""
    described = await page.api.get(f"/functions/{page.quoted(name)}")
    typed = {
        field.removeprefix(_FIELD): text
        for field, text in form.items()
        if field.startswith(_FIELD) and text.strip()
    }
    arguments = {}
    for option in options(described["input_schema"]):
        if option.name in typed:
            try:
                arguments[option.name] = read_text(option, typed[option.name])
            except ValueError as error:
                refusal = f"{option.name}: {typed[option.name][:80]!r} is not {option.kind}: {error}"
                return await _shown(page, name, typed=typed, error=refusal)
    try:
        accepted = await page.api.submit(name, arguments)
    except ApiError as error:
        return await _shown(page, name, typed=typed, error=error.detail)
    return page.go(page.link("invocations", accepted["id"]), notice=f"{name} is queued.")


async def _shown_invocation(
    page: Page, invocation: str, after: str = "", *, typed: str = "", error: str = ""
) -> Response:
    """Render the page of one invocation. typed: value of a signal that somebody wrote and that is refused for `error`."""
    path = f"/invocations/{page.quoted(invocation)}"
    found, log = await asyncio.gather(page.api.get(path), page.api.get(f"{path}/logs", after=after))
    declared = await page.told(page.api.get(f"/functions/{page.quoted(found['function'])}"))
    return await page.render(
        "invocation.html",
        HTTPStatus.UNPROCESSABLE_ENTITY if error else HTTPStatus.OK,
        error=error,
        typed=typed,
        live=() if error or found["status"] in ENDED else (f"invocations/{invocation}",),
        invocation=found,
        has_page=not isinstance(declared, str),  # a function that is not called by HTTP has none
        ended=found["status"] in ENDED,
        steps=_steps(found, page),
        steps_left=max(0, len(found["steps"]) - _STEPS_DRAWN),
        lines=[line for segment in log for line in segment["lines"]],
        after=after,
        following=log[-1]["name"] if len(log) == _SEGMENTS else None,
    )


async def _post(page: Page, invocation: str, verb: str, body: Any, done: str) -> Response:
    to = page.link("invocations", invocation)
    return await page.change(to, done, "POST", f"/invocations/{page.quoted(invocation)}/{verb}", body)


def _steps(invocation: dict[str, Any], page: Page) -> Markup:
    """Draw the way of a workflow: its parent, its finished steps in their order, and what it is at now."""
    steps = invocation["steps"][:_STEPS_DRAWN]
    if not steps and invocation["parent"] is None:
        return Markup()
    columns = [[Node("step " + str(number), name)] for number, name in enumerate(steps, 1)]
    if invocation["parent"] is not None:
        link = page.link("invocations", invocation["parent"])
        columns.insert(0, [Node("called by", invocation["parent"][:12], link=link)])
    now = f"signal {invocation['waits_for']}" if invocation["waits_for"] else invocation["function"]
    columns.append([Node(invocation["status"], now, "own")])
    return draw_columns(columns, label=f"Steps of {invocation['function']} {invocation['id']}")
