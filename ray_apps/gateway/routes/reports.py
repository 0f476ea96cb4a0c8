"""Routes of reports: pages that functions wrote into the store, listed and read."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from toque.ray_apps.admission import GuardedRoute
from toque.ray_apps.console.route import SANDBOX
from toque.ray_apps.gateway.services import Viewer, context_of, services_of
from toque.ray_apps.gateway.wire import Json
from toque.registry import NotFound, ObjectStore

router = APIRouter(route_class=GuardedRoute, tags=["reports"])

Kind = Literal["model", "rollout", "alarm", "evidently", "features"]
_FOLDER: Final = "reports/"
_NAME: Final = re.compile(
    r"(?:(?P<features>features-)(?P<view>.+)|(?P<model>.+?)(?:-(?P<kind>rollout|alarm|evidently)(?:-(?P<part>[0-9a-f]+))?)?)\.html"
)


class ReportEntry(BaseModel):
    """A report that a function wrote. subject: the model it is about, or the feature view; written_at: when its page was made last."""

    name: str
    kind: Kind
    subject: str
    written_at: datetime | None


@router.get("/reports", response_model=list[ReportEntry])
async def list_reports(
    request: Request,
    _: Viewer,
    subject: Annotated[str | None, Query(max_length=128)] = None,
    kind: Kind | None = None,
    after: Annotated[str, Query(max_length=400)] = "",
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> Json:
    """List reports by name, of a model or a feature view if it is given; `after` is the last name listed before."""
    context = await context_of(request)

    def listed() -> list[dict[str, Any]]:
        found = []
        for key in context.store.list(_FOLDER, after=f"{_FOLDER}{after}" if after else ""):
            entry = _entry(context.store, key)
            if entry is None or subject not in {None, entry.subject} or kind not in {None, entry.kind}:
                continue
            found.append(entry.model_dump(mode="json"))
            if len(found) == limit:
                break
        return found

    return Json(await services_of(request).run(listed))


@router.get("/reports/{name}", response_class=HTMLResponse)
async def get_report(
    request: Request,
    name: Annotated[
        str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*\.html$", max_length=240)
    ],  # a part of a key is no longer
    _: Viewer,
) -> HTMLResponse:
    """Read the page of a report, which may load nothing and has no access to anything of the platform."""
    context = await context_of(request)
    page = await services_of(request).run(context.store.find, f"{_FOLDER}{name}")
    if page is None:
        raise NotFound(f"there is no report {name!r}; `GET /reports` lists them")
    return HTMLResponse(page, headers={"Content-Security-Policy": SANDBOX})


def _entry(store: ObjectStore, key: str) -> ReportEntry | None:
    """Describe a report by its key; None for anything else in the folder."""
    name = key.removeprefix(_FOLDER)
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    kind: Any = "features" if found["features"] else found["kind"] or "model"
    return ReportEntry(
        name=name, kind=kind, subject=found["view"] or found["model"], written_at=store.find_modified_at(key)
    )
