"""Route that reads the audit: who was refused what, and who changed access and models."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from toque.ray_apps.admission import GuardedRoute, NotAdmitted, admitted_of, allowed
from toque.ray_apps.gateway.services import services_of
from toque.ray_apps.gateway.wire import Json, Time
from toque.registry import EVERY_WORKSPACE, Principal, Role
from toque.registry.access.audit import AuditEntry, Kind, newest_first

router = APIRouter(route_class=GuardedRoute, tags=["access"])

LOOK_BACK = timedelta(days=7)
MAX_ENTRIES = 100_000
_FIELDS = tuple(AuditEntry.model_fields)

Admin = Annotated[Principal, allowed(Role.admin)]


_EXPORTS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "application/x-ndjson": {"schema": {"type": "string", "description": "an entry a line"}},
            "text/csv": {"schema": {"type": "string", "description": "an entry a row, below their names"}},
        }
    }
}


@router.get("/audit", response_model=list[AuditEntry], responses=_EXPORTS)
async def get_audit(
    request: Request,
    principal: Admin,
    since: Time | None = None,
    until: Time | None = None,
    actor: Annotated[str | None, Query(max_length=128)] = None,
    seen: Annotated[int | None, Query(ge=0)] = None,
    kind: Kind | None = None,
    everywhere: bool = False,  # noqa: FBT001, FBT002  # a query parameter
    limit: Annotated[int, Query(ge=1, le=MAX_ENTRIES)] = 1_000,
    export: Annotated[Literal["json", "ndjson", "csv"], Query(alias="format")] = "json",
) -> Response:
    """Read refused requests and changes, newest first, of the workspace or, for an admin of all, of every one.

    since: by default a week ago. until, seen: only what is older, and with `seen` of the very moment all but so many, so that a
    page leads on to the next without a loss. actor: only what this principal did or was refused; "" for callers without a token.
    format: ndjson and csv are for export.
    """
    if everywhere and not principal.may(Role.admin, EVERY_WORKSPACE):
        raise NotAdmitted(403, f"{principal.name} has {principal.roles}; everywhere=true needs admin:*")
    services = services_of(request)
    store = services.context.store
    begin = since or services.context.clock() - LOOK_BACK
    workspace = None if everywhere else admitted_of(request).workspace

    def found() -> list[AuditEntry]:
        every = [each.name for each in services.access_list.list_workspaces()]
        workspaces = every if workspace is None else [workspace]
        entries = (
            entry
            for entry in newest_first(store, workspaces, kind, since=begin)
            if (workspace is None or entry.workspace == workspace)
            and (actor is None or (entry.who or "") == actor)
        )
        return list(islice(_until(entries, until, seen), limit))

    return _rendered(await services.run(found), export)


def _until(entries: Iterable[AuditEntry], until: datetime | None, seen: int | None) -> Iterator[AuditEntry]:
    """Leave out what is later than `until`, and of its very moment the first `seen`; all of it without such a number."""
    same = 0
    for entry in entries:
        same += entry.at == until
        if until is None or entry.at < until or (entry.at == until and seen is not None and same > seen):
            yield entry


def _rendered(entries: list[AuditEntry], export: str) -> Response:
    rows = [entry.model_dump(mode="json") for entry in entries]
    if export == "json":
        return Json(rows)
    if export == "ndjson":
        return Response(
            b"".join(orjson.dumps(row) + b"\n" for row in rows), media_type="application/x-ndjson"
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, _FIELDS)
    writer.writeheader()
    writer.writerows({field: _safe(value) for field, value in row.items()} for row in rows)
    return Response(text.getvalue(), media_type="text/csv; charset=utf-8")


def _safe(value: object) -> object:
    """Keep a spreadsheet from reading a text that a caller chose as a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"} else value
