"""Pages of experiments and runs: lists, search, one run with its curves, many compared, and a version made of one.

Runs are compared in parallel coordinates, as SVG made on the server: an axis for each parameter and metric, a line for each run.
"""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import Query
from markupsafe import Markup
from starlette.responses import Response

from toque.functions.pages.charts import NARROW, Line, Point, Series, draw_lines, draw_parallel
from toque.functions.pages.rendering import number
from toque.ray_apps.console.page import ApiError, Page
from toque.ray_apps.console.route import Entry, Operator, Sent, Viewer, pages_router

router = pages_router()
ENTRY = Entry("Experiments", "experiments")
ROWS = 50
_COLUMNS = 4  # parameters and metrics that a list shows of each
_POINTS = 300  # of a curve
_CURVES = 24  # of a run
_MOST_COMPARED = 50
_LOG_MINUTES, _LINES = 10, 200  # of the log of a run
COMPARED: Final = 20  # runs that one click compares
_AXES = 8
_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
_MACHINE: Final = "system/"  # begins the names of metrics of the machine, as MLflow's clients log them
_NEWEST = "attributes.start_time DESC"
Text = Annotated[str, Query(max_length=4_000)]
Id = Annotated[str | None, Query(pattern=r"^[0-9A-Za-z_-]{1,64}$")]


@router.get("/experiments")
async def list_experiments(page: Viewer) -> Response:
    """List the experiments, the one with the newest run first."""
    return await page.render(
        "experiments.html", live=("experiments/*",), experiments=await page.api.get("/experiments")
    )


@router.get("/experiments/{experiment}")
async def show_experiment(
    page: Viewer, experiment: str, where: Text = "", order_by: Text = "", after: Id = None
) -> Response:
    """List and search the runs of an experiment; a search that cannot be read says where it fails."""
    runs, refusal = [], ""
    order = order_by.strip() or _NEWEST
    try:
        runs = await page.api.get(
            "/runs", experiment=experiment, where=where, order_by=order, after=after, limit=ROWS
        )
    except ApiError as error:
        if error.status not in {HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT}:
            raise
        refusal = error.detail
    compared = urlencode([("run", run["id"]) for run in runs[:COMPARED]]) if len(runs) > 1 else ""
    return await page.render(
        "experiment.html",
        live=() if where else (f"experiments/{experiment}",),
        experiment=experiment,
        runs=runs,
        refusal=refusal,
        where=where,
        order_by=order,
        params=_names(runs, "params")[:_COLUMNS],
        metrics=_names(runs, "metrics")[:_COLUMNS],
        after=after,
        most=min(len(runs), COMPARED),
        compared=compared and f"{page.link('runs', 'compare')}?{compared}",
        following=runs[-1]["id"] if len(runs) == ROWS else None,
    )


@router.get("/runs/compare")
async def compare_runs(
    page: Viewer,
    run: Annotated[list[str], Query(max_length=_MOST_COMPARED)] = [],  # noqa: B006  # read only
) -> Response:
    """Show runs side by side: parallel coordinates, then what differs."""
    chosen = list(dict.fromkeys(run))
    found = await asyncio.gather(*(page.api.get(f"/runs/{page.quoted(each)}") for each in chosen))
    params, metrics = (_rows(found, kind) for kind in ("params", "metrics"))
    return await page.render(
        "runs_compare.html",
        runs=found,
        names=[_name(each) for each in found],
        params=params,
        metrics=metrics,
        drawing=_parallel(found, params, metrics, page),
    )


@router.get("/runs/{run}")
async def show_run(page: Viewer, run: str) -> Response:
    """Show one run: curves, parameters, metrics, files, what it was made from and with."""
    path = f"/runs/{page.quoted(run)}"
    found, series = await asyncio.gather(page.api.get(path), page.api.get(f"{path}/series", points=_POINTS))
    curves = {name: points for name, points in series.items() if len(points) > 1}
    shown = [name for name in curves if not name.startswith(_MACHINE)]
    facts, receipt = dict(found["facts"]), await _receipt(page, found)
    return await page.render(
        "run.html",
        live=_topics(found),
        run=found,
        made_by=_made_by(found),
        name=_name(found),
        curves={name: _curve(name, curves[name]) for name in shown[:_CURVES]},
        machine={name: _curve(name, curves[name]) for name in curves if name.startswith(_MACHINE)},
        curves_left=max(0, len(shown) - _CURVES),
        environment=facts.pop("environment", None),
        resources=facts.pop("resources", None),
        receipt=receipt,
        facts=facts,
        lines=await _log(page, found),
        log_minutes=_LOG_MINUTES,
        folders=sorted(  # that could be a model, the root last
            {path.rpartition("/")[0] for path in found["artifacts"]},
            key=lambda folder: (not folder, folder),
        ),
    )


@router.get("/runs/{run}/files/{path:path}")
async def download(page: Viewer, run: str, path: str) -> Response:
    """Send a file of a run to the browser, to be saved and never shown."""
    answer = await page.api.download(
        f"/runs/{page.quoted(run)}/artifacts/{'/'.join(map(page.quoted, path.split('/')))}"
    )
    name = page.quoted(path.rpartition("/")[2])
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{name}"}
    return Response(answer, media_type="application/octet-stream", headers=headers)


@router.post("/runs/{run}/register")
async def register(page: Operator, run: str, form: Sent) -> Response:
    """Make a version of a model of a run's files, in the viewer's name, and go to its page."""
    body = {
        "model": form.get("model", "").strip(),
        "path": form.get("path", ""),
        "description": form.get("description", ""),
        "accept_code": form.all("accept_code"),
    }
    try:
        made = await page.api.send("POST", f"/runs/{page.quoted(run)}/register", body)
    except ApiError as error:
        return page.go(page.link("runs", run), notice=error.detail, kind="error")
    told = f"{made['model']}@{made['version']} is registered from this run."
    return page.go(page.link("models", made["model"], "versions", made["version"]), notice=told)


def _topics(run: dict[str, Any]) -> tuple[str, ...]:
    """Name what the page of a run follows while it runs: what the run logs, and the log of the invocation that makes it."""
    if run["status"] != "RUNNING":
        return ()
    invocation = _made_by(run)
    return (f"runs/{run['id']}", *((f"invocations/{invocation}",) if invocation else ()))


def _made_by(run: dict[str, Any]) -> str:
    """Id of the invocation that made a run, by its tag; empty if there is none, or it could be no id, as anybody may set tags."""
    found = str(run["tags"].get("invocation", ""))
    return found if _ID.fullmatch(found) else ""


async def _receipt(page: Page, run: dict[str, Any]) -> dict[str, Any] | None:
    """Find what the invocation that made a run used; None of a run that was made elsewhere, or has not ended."""
    invocation = _made_by(run)
    found = await page.api.find(f"/invocations/{page.quoted(invocation)}") if invocation else None
    receipt: dict[str, Any] | None = found and found["receipt"]
    return receipt


async def _log(page: Page, run: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the last lines of the invocation that made a run; none of a run that was made elsewhere, or whose log is gone."""
    invocation = _made_by(run)
    if not invocation:
        return []
    end = datetime.fromisoformat(run["ended_at"]) if run["ended_at"] else page.now
    after = f"{int(1000 * (end.timestamp() - 60 * _LOG_MINUTES)):013d}"
    segments = await page.api.find(f"/invocations/{page.quoted(invocation)}/logs", after=after) or []
    return [line for segment in segments for line in segment["lines"]][-_LINES:]


def _curve(name: str, points: list[list[Any]]) -> Markup:
    """Draw a metric over its steps; values that are no finite numbers are left out."""
    line = [Point(float(step), value) for step, value, _ in points if value is not None]
    last = number(line[-1].value) if line else "no finite value"
    label = f"{name} over {number(points[-1][0])} steps, last {last}"
    return draw_lines([Series(name, line)], label=label, width=NARROW)


def _parallel(
    runs: list[dict[str, Any]], params: list[dict[str, Any]], metrics: list[dict[str, Any]], page: Page
) -> Markup:
    """Draw what differs between runs: parameters to the left of metrics, as many as there is room for."""
    differing = [row["name"] for row in metrics if row["differs"]][: _AXES // 2]
    axes = [f"params.{row['name']}" for row in params if row["differs"]][: _AXES - len(differing)]
    axes += [f"metrics.{name}" for name in differing]
    lines = [
        Line(
            _name(run),
            {f"{kind}.{key}": value for kind in ("params", "metrics") for key, value in run[kind].items()},
            page.link("runs", run["id"]),
        )
        for run in runs
    ]
    return draw_parallel(axes, lines, label=f"Parameters and metrics of {len(runs)} runs")


def _name(run: dict[str, Any]) -> str:
    return str(run["name"] or run["id"][:12])


def _names(runs: list[dict[str, Any]], kind: str) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run[kind]))


def _rows(runs: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Line up what each run has under the same name; `differs` where they do not agree; least and most of numbers."""
    rows = []
    for name in _names(runs, kind):
        values = [run[kind].get(name) for run in runs]
        numbers = [value for value in values if isinstance(value, int | float)]
        least, most = (min(numbers), max(numbers)) if numbers else (None, None)
        differs = any(value != values[0] for value in values)
        rows.append({"name": name, "values": values, "differs": differs, "least": least, "most": most})
    return sorted(rows, key=lambda row: not row["differs"])
