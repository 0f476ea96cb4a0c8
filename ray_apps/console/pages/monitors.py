"""Pages of monitors: alarms of every model that stand, and one model's monitors, alarms in time and findings."""

from __future__ import annotations

import asyncio
import math
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import Query
from markupsafe import Markup
from starlette.responses import Response

from toque.ray_apps.console.api import ApiError
from toque.ray_apps.console.charts import Level, Point, Series, draw_lines
from toque.ray_apps.console.entry import Entry
from toque.ray_apps.console.page import Page
from toque.ray_apps.console.pages.predictions import MOST_HOURS
from toque.ray_apps.console.rendering import number
from toque.ray_apps.console.route import CHANGE, Form, page_for, pages_router
from toque.registry import Role

router = pages_router()
ENTRY = Entry("Monitors", "monitors")
ROWS = 50
WRONG: Final = frozenset({"alarm", "drifted", "vanished", "incident", "contradicted"})
_HOURS: Final = (1, 4, 24, 72, 168)
Viewer = Annotated[Page, page_for(Role.viewer)]
Operator = Annotated[Page, page_for(Role.operator)]
Sent = Annotated[Form, CHANGE]
Name = Annotated[str | None, Query(max_length=400)]


@router.get("/monitors")
async def list_alarms(page: Viewer, after: Annotated[str | None, Query(max_length=128)] = None) -> Response:
    """Show the alarms of all models that stand, every error budget, and the models whose monitors can be looked at."""
    alarms, budgets, models = await asyncio.gather(
        page.api.call("open_alarms"),
        page.told(page.api.call("error_budgets")),
        page.api.get("/models", limit=ROWS, after=after),
    )
    counts: dict[str, int] = {}
    for alarm in alarms:
        counts[alarm["model"]] = counts.get(alarm["model"], 0) + 1
    following = models[-1]["name"] if len(models) == ROWS else None
    return await page.render(
        "monitors.html",
        live=("alarms/*",),
        alarms=alarms,
        budgets=budgets,
        models=models,
        counts=counts,
        after=after,
        following=following,
    )


@router.get("/monitors/{model}")
async def show_monitors(
    page: Viewer,
    model: str,
    monitor: Name = None,
    subject: Name = None,
    before: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """Show what stands, who looks after it, what each monitor judged last, one monitor's findings, scores and all alarms."""
    _, standing, alerts, monitors, history, scores = await asyncio.gather(
        page.api.get(f"/models/{page.quoted(model)}"),
        page.api.call("standing_alarms", model=model),
        page.api.call("alert_status", model=model),
        page.api.call("monitor_status", model=model),
        page.api.call("alarm_history", model=model, before=before, limit=ROWS),
        page.api.call("live_scores", model=model),
    )
    chosen = monitor or next((each["monitor"] for each in monitors), None)
    findings = []
    if chosen is not None:
        findings = await page.api.call("monitor_findings", model=model, monitor=chosen)
    subjects = list(dict.fromkeys(each["subject"] for each in findings))
    shown = subject if subject in subjects else _most_suspect(findings)
    return await page.render(
        "monitor.html",
        live=(f"alarms/{model}", f"alerts/{model}", "tables/scores"),
        model=model,
        standing=[each | {"about": f"{each['monitor']}/{each['subject']}"} for each in standing[::-1]],
        told=alerts["standing"],
        silences=alerts["silences"],
        monitors=monitors,
        scores=scores,
        monitor=chosen,
        subjects=subjects,
        subject=shown,
        chart=_chart([each for each in findings if each["subject"] == shown]),
        newest=_newest(findings),
        history=history,
        before=before,
        following=history[-1]["number"] if len(history) == ROWS else None,
        hours=_HOURS,
        wrong=WRONG,
        cohort=lambda of: _cohort(page, model, of),
    )


@router.post("/monitors/{model}/acknowledge")
async def acknowledge(page: Operator, model: str, form: Sent) -> Response:
    """Look after a standing alert in the viewer's name: nobody is told of it again, but of its end."""
    body = {"model": model, "about": form.get("about", "")}
    told = f"You look after {body['about']}; nobody is told of it again."
    return await page.change(page.link("monitors", model), told, "POST", "/functions/acknowledge_alert", body)


@router.post("/monitors/{model}/silence")
async def silence(page: Operator, model: str, form: Sent) -> Response:
    """Tell nobody about a subject for some hours; 0 hours end a silence."""
    to, about, hours = page.link("monitors", model), form.get("about", ""), form.get("hours", "")
    if not hours.isdecimal():
        return page.go(to, notice=f"hours={hours!r} is no whole number of hours", kind="error")
    body = {"model": model, "about": about, "hours": int(hours), "reason": form.get("reason", "")}
    told = (
        f"Nobody is told of {about} for {hours} hours."
        if int(hours)
        else f"People are told of {about} again."
    )
    return await page.change(to, told, "POST", "/functions/silence_alerts", body)


@router.post("/monitors/{model}/slices")
async def search_slices(page: Operator, model: str, _: Sent) -> Response:
    """Queue a search for the slices of requests that lose most, and go to its invocation."""
    try:
        accepted = await page.api.submit("worst_slices", {"model": model})
    except ApiError as error:
        return page.go(page.link("monitors", model), notice=error.detail, kind="error")
    return page.go(page.link("invocations", accepted["id"]), notice="The search is queued.")


def _cohort(page: Page, model: str, of: dict[str, Any]) -> str:
    """Make the address of the predictions that a finding or an alarm is about, as far back as a list of them may go."""
    span = datetime.fromisoformat(of["end"]) - datetime.fromisoformat(of["start"])
    hours = min(max(math.ceil(span.total_seconds() / 3600), 1), MOST_HOURS)
    return page.link("predictions", model=model, before=of["end"], hours=hours)


def _most_suspect(findings: list[dict[str, Any]]) -> str | None:
    """Choose the subject that is looked at first: one that is wrong now, else the first."""
    newest = _newest(findings)
    wrong = [each["subject"] for each in newest if each["verdict"] in WRONG]
    return next(iter(wrong or [each["subject"] for each in newest]), None)


def _newest(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """List the last finding on each subject."""
    return list({each["subject"]: each for each in findings}.values())


def _chart(findings: list[dict[str, Any]]) -> Markup:
    """Draw what a monitor measured on one subject, beside its reference or limit."""
    key = "statistic" if any(each["statistic"] is not None for each in findings) else "value"
    limit = "threshold" if key == "statistic" else "reference"
    points = [
        Point(datetime.fromisoformat(each["end"]), each[key], note=_note(each, key))
        for each in findings
        if each[key] is not None
    ]
    held = next((each[limit] for each in reversed(findings) if each[limit] is not None), None)
    levels = [] if held is None else [Level(held, "limit" if limit == "threshold" else "reference", "floor")]
    subject = findings[-1]["subject"] if findings else ""
    return draw_lines([Series(subject, points)], label=f"{subject}: {key} of each cohort", levels=levels)


def _note(finding: dict[str, Any], key: str) -> str:
    said = f": {finding['text']}" if finding["text"] else ""
    return f"{number(finding[key])}, {finding['verdict']} on {number(finding['rows'])} rows{said}"
