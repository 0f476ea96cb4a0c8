"""Pages of monitors, with alarms and findings, and of predictions, found by id or by model, time and entity."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

from fastapi import Query
from markupsafe import Markup
from starlette.responses import Response

from toque.functions.pages.charts import Level, Point, Series, draw_lines
from toque.functions.pages.rendering import number
from toque.ray_apps.console.page import ApiError, Page
from toque.ray_apps.console.route import Entry, Operator, Sent, Viewer, pages_router

router = pages_router()
ENTRY = Entry("Monitors", "monitors")
PREDICTIONS_ENTRY = Entry("Predictions", "predictions")
ROWS = 50
WRONG: Final = frozenset({"alarm", "drifted", "vanished", "incident", "contradicted"})
MOST_HOURS: Final = 24 * 31
_MODELS = 200
_EXPECTED = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY})
Text = Annotated[str, Query(max_length=512)]
Days = Annotated[int, Query(ge=1, le=3_650)]
_HOURS: Final = (1, 4, 24, 72, 168)
Name = Annotated[str | None, Query(max_length=400)]


@router.get("/predictions")
async def find_predictions(
    page: Viewer,
    model: Annotated[str, Query(max_length=128)] = "",
    entity: Text = "",
    before: Annotated[str, Query(max_length=64)] = "",
    hours: Annotated[float, Query(gt=0, le=MOST_HOURS)] = 24.0,
    order: Literal["newest", "worst"] = "newest",
    version: Annotated[str, Query(pattern=r"^[0-9]{0,10}$")] = "",
) -> Response:
    """Find predictions of a model by time, entity and version, newest or worst first; or by id, which leads to its page."""
    models = await page.api.get("/models", limit=_MODELS)
    found, refusal = [], ""
    asked: dict[str, Any] = {"model": model, "hours": hours, "limit": ROWS, "order": order}
    asked |= {"entity": entity.strip()} if entity.strip() else {}
    asked |= {"before": _moment(before)} if before else {}
    asked |= {"version": int(version)} if version else {}
    if model:
        try:
            found = await page.api.call("list_predictions", **asked)
        except ApiError as error:
            if error.status not in _EXPECTED:
                raise
            refusal = error.detail
    return await page.render(
        "predictions.html",
        live=("tables/predictions",) if model and not before else (),
        models=[model["name"] for model in models],
        model=model,
        entity=entity,
        before=before,
        hours=hours,
        order=order,
        version=version,
        predictions=found,
        refusal=refusal,
        asked=asked,
        following=found[-1]["predicted_at"] if len(found) == ROWS and order == "newest" else None,
    )


@router.get("/predictions/by-id")
async def go_to_prediction(page: Viewer, id: Text, days: Days = 30) -> Response:  # noqa: A002  # a field of the form
    """Go to the page of the prediction, request or trace of an id."""
    return page.go(page.link("predictions", id.strip(), days=days))


@router.get("/predictions/{prediction}")
async def show_prediction(
    page: Viewer,
    prediction: str,
    model: Annotated[str | None, Query(max_length=128)] = None,
    days: Days = 30,
    explain: bool = False,  # noqa: FBT001, FBT002  # a query parameter
    times: bool = False,  # noqa: FBT001, FBT002  # as above
) -> Response:
    """Show what became of a request: answers, stages, labels, verdicts; inputs and explanation to those who may read them.

    explain: also what each feature added to the answer, for which the version is loaded. times: also when each feature was known,
    for which the feature views are read.
    """
    try:
        found = await page.api.get(f"/traces/{page.quoted(prediction)}", model=model, days=days)
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return await page.render(
            "prediction_none.html", HTTPStatus.NOT_FOUND, prediction=prediction, why=error.detail, days=days
        )
    rows = found["predictions"]
    row = next((row for row in rows if not row["shadow"]), rows[0])
    asked = {name: row[name] for name in ("model", "prediction_id", "predicted_at")}
    may = page.may("operator", row["model"])
    inputs = await page.told(page.api.call("prediction_inputs", **asked)) if may else None
    explained = await page.told(page.api.call("explain_prediction", **asked)) if may and explain else None
    known = await page.told(page.api.call("prediction_feature_times", **asked)) if may and times else None
    return await page.render(
        "prediction.html",
        times=known if known is None or isinstance(known, str) else {each["column"]: each for each in known},
        prediction=prediction,
        rows=rows,
        row=row,
        asked=asked,
        inputs=inputs,
        explained=_explained(explained, inputs) if isinstance(explained, dict) else explained,
        longest=[max((s["begin_ms"] + s["duration_ms"] for s in row["stages"]), default=0.0) for row in rows],
    )


@router.get("/monitors")
async def list_alarms(page: Viewer, after: Annotated[str | None, Query(max_length=128)] = None) -> Response:
    """Show the alarms of all models that stand, every error budget, and the models whose monitors can be looked at."""
    alarms, false_alarms, budgets, models = await asyncio.gather(
        page.api.call("open_alarms"),
        page.told(page.api.call("false_alarm_budget")),
        page.told(page.api.call("error_budgets")),
        page.api.get("/models", limit=ROWS, after=after),
    )
    following = models[-1]["name"] if len(models) == ROWS else None
    return await page.render(
        "monitors.html",
        live=("alarms/*",),
        alarms=alarms,
        false_alarms=false_alarms,
        budgets=budgets,
        models=models,
        counts=Counter(alarm["model"] for alarm in alarms),
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
    chosen = monitor or next((monitor["monitor"] for monitor in monitors), None)
    findings = []
    if chosen is not None:
        findings = await page.api.call("monitor_findings", model=model, monitor=chosen)
    subjects = list(dict.fromkeys(finding["subject"] for finding in findings))
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
        chart=_chart([finding for finding in findings if finding["subject"] == shown]),
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


def _explained(found: dict[str, Any], inputs: Any) -> dict[str, Any]:
    """Lay an explanation out: the features by what they added, with their values and bars of a length up to 100."""
    values = inputs["values"] if isinstance(inputs, dict) else {}
    parts = sorted(found["attributions"].items(), key=lambda part: abs(part[1]), reverse=True)
    most = max((abs(each) for _, each in parts), default=0.0) or 1.0
    rows = [
        {"name": name, "given": values.get(name), "added": added, "length": round(100 * added / most, 1)}
        for name, added in parts
    ]
    return found | {"rows": rows}


def _moment(text: str) -> str:
    """Read a moment as a browser's field or a link has it; one without a zone is UTC."""
    return text if text.endswith("Z") or "+" in text else f"{text}Z"


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
    return list({finding["subject"]: finding for finding in findings}.values())


def _chart(findings: list[dict[str, Any]]) -> Markup:
    """Draw what a monitor measured on one subject, beside its reference or limit."""
    key = "statistic" if any(finding["statistic"] is not None for finding in findings) else "value"
    limit = "threshold" if key == "statistic" else "reference"
    points = [
        Point(datetime.fromisoformat(finding["end"]), finding[key], note=_note(finding, key))
        for finding in findings
        if finding[key] is not None
    ]
    held = next((finding[limit] for finding in reversed(findings) if finding[limit] is not None), None)
    levels = [] if held is None else [Level(held, "limit" if limit == "threshold" else "reference", "floor")]
    subject = findings[-1]["subject"] if findings else ""
    return draw_lines([Series(subject, points)], label=f"{subject}: {key} of each cohort", levels=levels)


def _note(finding: dict[str, Any], key: str) -> str:
    said = f": {finding['text']}" if finding["text"] else ""
    return f"{number(finding[key])}, {finding['verdict']} on {number(finding['rows'])} rows{said}"
