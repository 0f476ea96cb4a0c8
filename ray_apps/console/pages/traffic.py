"""Pages of traffic, with one model's split, its rates and a change of it, and of rollouts, with verdicts and buttons."""

from __future__ import annotations

import asyncio
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Query
from markupsafe import Markup
from starlette.responses import Response

from toque.functions.pages.charts import Point, Series, draw_lines, draw_looks
from toque.ray_apps.console.live import figure_texts
from toque.ray_apps.console.page import ApiError, Page
from toque.ray_apps.console.route import Entry, Form, Operator, Sent, Viewer, pages_router

router = pages_router()
ENTRY = Entry("Traffic", "traffic")
ROLLOUTS_ENTRY = Entry("Rollouts", "rollouts")
ROWS = 50
_FREE = 2  # empty rows of the form for new arms
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
        chart=draw_looks(record),
        decisions=[each for each in record["looks"][::-1] if each["action"] != "hold"],
        last=record["looks"][-1] if record["looks"] else None,
        looks=len(record["looks"]) + record["left_out"],
        changes=record["changes"][::-1],
        outcomes=history["outcomes"][::-1],
    )


@router.post("/rollouts/{model}/{change}")
async def change_rollout(page: Operator, model: str, change: str, form: Sent) -> Response:
    """Pause, resume or end the open rollout in the viewer's name."""
    to = page.link("rollouts", model)
    if change not in _CHANGES:
        return page.go(to, notice=f"A rollout knows no change {change!r}.", kind="error")
    function, arguments, done = _CHANGES[change]
    body = {"model": model, "reason": form.get("reason", "")} | arguments
    return await page.change(to, done, "POST", f"/functions/{function}", body)


@router.get("/traffic")
async def list_traffic(page: Viewer, after: Annotated[str | None, Query(max_length=128)] = None) -> Response:
    """List the models that have a champion, with their splits."""
    models = await page.api.get("/models", limit=ROWS, after=after)
    following = models[-1]["name"] if len(models) == ROWS else None
    served = [model for model in models if model["traffic"]]
    return await page.render("traffic_list.html", live=("models/*",), models=served, following=following)


@router.get("/traffic/{model}")
async def show_traffic(page: Viewer, model: str) -> Response:
    """Show who answers for a model, at which rates, and the form that changes the split."""
    return await _shown(page, model)


@router.post("/traffic/{model}/preview")
async def preview(page: Viewer, model: str, form: Sent) -> Response:
    """Show who would move, for the split that the form describes."""
    try:
        arms = _arms(form)
        moved = await page.api.send("POST", f"/models/{page.quoted(model)}/traffic/preview", {"arms": arms})
    except (ApiError, ValueError) as error:
        return page.go(page.link("traffic", model), notice=str(error), kind="error")
    return await _shown(page, model, preview=moved | {"arms": arms, "shadows": _shadows(form)})


@router.post("/traffic/{model}/set")
async def set_traffic(page: Operator, model: str, form: Sent) -> Response:
    """Split the traffic as previewed, unless somebody changed the split since."""
    to, path = page.link("traffic", model), f"/models/{page.quoted(model)}/traffic"
    try:
        now = await page.api.get(path)
        body = {
            "arms": _arms(form),
            "shadows": _shadows(form),
            "layer": _layer(now),
            "rules": now["rules"],
            "expected": int(form.get("expected", "-1")),
            "reason": form.get("reason", ""),
        }
    except (ApiError, ValueError) as error:
        return page.go(to, notice=str(error), kind="error")
    return await page.change(to, "The traffic is split as previewed.", "PUT", path, body)


async def _shown(page: Page, model: str, preview: dict[str, Any] | None = None) -> Response:
    path = f"/models/{page.quoted(model)}"
    found, versions, live = await asyncio.gather(
        page.api.get(path), page.api.get(f"{path}/versions", limit=ROWS), _live(page, path)
    )
    rows = [] if found["traffic"] is None else found["traffic"]["arms"][1:]
    if preview is not None:
        rows = [{"name": name, **arm} for name, arm in preview["arms"].items()]
    return await page.render(
        "traffic.html",
        live=(f"models/{model}", f"figures/{model}"),
        model=found,
        versions=[each for each in versions[::-1] if each["status"] == "READY"],
        figures=figure_texts(live) if "arms" in live else {},
        unknown=live.get("missing", ""),
        chart=_rates(live) if "history" in live else Markup(),
        rows=rows,
        free=range(len(rows), len(rows) + _FREE),
        preview=preview,
    )


async def _live(page: Page, path: str) -> dict[str, Any]:
    """Get the live figures, or say why there are none."""
    try:
        found: dict[str, Any] = await page.api.get(f"{path}/live")
    except ApiError as error:
        if error.status != HTTPStatus.SERVICE_UNAVAILABLE:
            raise
        return {"missing": error.detail}
    return found


def _rates(live: dict[str, Any]) -> Markup:
    """Draw the requests a second of each arm, minute by minute; the running minute is left out, as it is not over."""
    minutes = live["history"][:-1]
    names = dict.fromkeys(["champion", *(name for each in minutes for name in each["requests"])])
    series = [
        Series(name, [Point(datetime.fromisoformat(minute["start"]), minute["requests"].get(name, 0) / 60) for minute in minutes])
        for name in names
    ]  # fmt: skip
    return draw_lines(series, label="Requests a second of each arm over the last half hour")


def _arms(form: Form) -> dict[str, dict[str, float]]:
    """Read the arms of the form, whose shares are in percent. Raises: ValueError naming the field."""
    found: dict[str, dict[str, float]] = {}
    for name, version, share in zip(form.all("arm"), form.all("version"), form.all("share"), strict=True):
        if not name.strip() or not share.strip():
            continue
        try:
            found[name.strip()] = {"version": int(version), "share": float(share) / 100}
        except ValueError as error:
            raise ValueError(
                f"arm {name!r}: version {version!r} or share {share!r} is not a number"
            ) from error
    return found


def _shadows(form: Form) -> list[int]:
    return [int(each) for each in form.all("shadow") if each.isdecimal()]


def _layer(traffic: dict[str, Any]) -> dict[str, Any] | None:
    """Ask for the same part of the same layer again."""
    layer = traffic["layer"]
    if layer is None:
        return None
    share = sum(stop - start for start, stop in layer["buckets"]) / 10_000
    return {"name": layer["name"], "share": share}
