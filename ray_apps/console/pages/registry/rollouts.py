"""Pages of rollouts: those of the workspace, and one with its confidence sequence, verdict and buttons."""

from __future__ import annotations

import asyncio
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Query
from markupsafe import Markup
from starlette.responses import Response

from toque.ray_apps.console.api import ApiError
from toque.ray_apps.console.charts import Level, Mark, Point, Series, draw_lines
from toque.ray_apps.console.entry import Entry
from toque.ray_apps.console.page import Page
from toque.ray_apps.console.rendering import number
from toque.ray_apps.console.route import CHANGE, Form, page_for, pages_router
from toque.registry import Role

router = pages_router()
ENTRY = Entry("Rollouts", "rollouts")
Viewer = Annotated[Page, page_for(Role.viewer)]
Operator = Annotated[Page, page_for(Role.operator)]
_CHANGES: Final[dict[str, tuple[str, dict[str, str], str]]] = {
    "pause": ("pause_rollout", {}, "The rollout is paused; its guardrails go on."),
    "resume": ("resume_rollout", {}, "The rollout goes on."),
    "promote": ("end_rollout", {"action": "promote"}, "The challenger becomes the champion."),
    "roll-back": ("end_rollout", {"action": "roll_back"}, "The challenger is rolled back."),
}


@router.get("/rollouts")
async def list_rollouts(page: Viewer) -> Response:
    """List the newest rollout of each model, those under way first."""
    return await page.render(
        "rollouts.html", live=("rollouts/*",), rollouts=await page.api.call("list_rollouts")
    )


@router.get("/rollouts/{model}")
async def show_rollout(
    page: Viewer, model: str, rollout: Annotated[int | None, Query(ge=0)] = None
) -> Response:
    """Show one rollout: how sure it is by now, what is missing, what every rule finds, what was decided."""
    try:
        record, look, history = await asyncio.gather(
            page.api.call("rollout_record", model=model, rollout=rollout),
            page.api.call("look_at_rollout", model=model),
            page.api.call("rollout_status", model=model),
        )
    except ApiError as error:
        if error.status not in {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}:
            raise
        await page.api.get(f"/models/{page.quoted(model)}")  # 404 for a model that is not there
        none_yet = error.status == HTTPStatus.CONFLICT and rollout is None
        status = HTTPStatus.OK if none_yet else HTTPStatus.NOT_FOUND
        return await page.render(
            "rollout_none.html", status, model=model, why="" if none_yet else error.detail
        )
    newest = look["rollout"] == record["state"]["rollout"]
    return await page.render(
        "rollout.html",
        live=(f"rollouts/{model}", f"models/{model}"),
        model=model,
        state=record["state"],
        look=look if newest else None,
        chart=_sequence(record),
        decisions=[each for each in record["looks"][::-1] if each["action"] != "hold"],
        last=record["looks"][-1] if record["looks"] else None,
        looks=len(record["looks"]) + record["left_out"],
        changes=record["changes"][::-1],
        outcomes=history["outcomes"][::-1],
    )


@router.post("/rollouts/{model}/{change}")
async def change_rollout(page: Operator, model: str, change: str, form: Annotated[Form, CHANGE]) -> Response:
    """Pause, resume or end the open rollout in the viewer's name."""
    to = page.link("rollouts", model)
    if change not in _CHANGES:
        return page.go(to, notice=f"A rollout knows no change {change!r}.", kind="error")
    function, arguments, done = _CHANGES[change]
    body = {"model": model, "reason": form.get("reason", "")} | arguments
    return await page.change(to, done, "POST", f"/functions/{function}", body)


def _sequence(record: dict[str, Any]) -> Markup:
    """Draw how the interval of the improvement narrowed, with what was decided and what is worth a promotion."""
    looks = record["looks"]
    versions = dict.fromkeys(gain["version"] for look in looks for gain in look["gains"])
    series = [
        Series(
            f"version {version}",
            [_point(look, gain) for look in looks for gain in look["gains"] if gain["version"] == version],
        )
        for version in versions
    ]
    floor = record["state"]["policy"]["min_effect"]
    levels = [Level(floor, "worth a promotion", "floor")] + ([Level(0.0, "no difference")] if floor else [])
    marks = [Mark(_at(look), look["action"]) for look in looks if look["action"] != "hold"]
    label = "Improvement of the mean loss over time, with bounds that hold at every look"
    return draw_lines(series, label=label, levels=levels, marks=marks)


def _point(look: dict[str, Any], gain: dict[str, Any]) -> Point:
    bounds = "no bounds yet"
    if gain["lower"] is not None:
        bounds = f"{number(gain['lower'])} to {number(gain['upper'])}"
    note = f"{number(gain['estimate'])} ({bounds}) on {number(gain['labels'])} labels, {look['action']}"
    return Point(_at(look), gain["estimate"], gain["lower"], gain["upper"], note)


def _at(look: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(look["at"])
