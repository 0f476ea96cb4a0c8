"""Pages of predictions: found by id, or by model, time and entity; one with its stages, label, verdicts and inputs."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

from fastapi import Query
from starlette.responses import Response

from toque.ray_apps.console.api import ApiError
from toque.ray_apps.console.entry import Entry
from toque.ray_apps.console.page import Page
from toque.ray_apps.console.route import page_for, pages_router
from toque.registry import Role

router = pages_router()
ENTRY = Entry("Predictions", "predictions")
ROWS = 50
MOST_HOURS: Final = 24 * 31
_MODELS = 200
_EXPECTED = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY})
Viewer = Annotated[Page, page_for(Role.viewer)]
Text = Annotated[str, Query(max_length=512)]
Days = Annotated[int, Query(ge=1, le=3_650)]


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
        models=[each["name"] for each in models],
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
    row = next((each for each in rows if not each["shadow"]), rows[0])
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
