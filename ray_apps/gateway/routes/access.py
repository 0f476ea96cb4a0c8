"""Routes of access: tokens, workspaces, the audit of refusals and changes, and codes that sign a browser in."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import Annotated, Any, Literal, Self, get_args

import orjson
from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from toque.functions.arguments import NAME, Name, Time
from toque.ray_apps.admission import ANY_MODEL, GuardedRoute, NotAdmitted, admitted_of, allowed
from toque.ray_apps.admission.guarded_route import header
from toque.ray_apps.gateway.problems import Problem
from toque.ray_apps.gateway.services import Admin, services_of
from toque.ray_apps.gateway.wire import Expiry, Json
from toque.ray_apps.token_cache import bearer_token
from toque.registry import Access, NotFound, Principal, Role
from toque.registry.access import EVERY_WORKSPACE, UNLIMITED, Grant, Limits, QueueShare, Workspace
from toque.registry.access.audit import AuditEntry, Kind, newest_first
from toque.registry.access.tokens import TOKEN_LIFETIME
from toque.registry.times import utc_now

router = APIRouter(route_class=GuardedRoute, tags=["access"])
LOOK_BACK = timedelta(days=7)
MAX_ENTRIES = 100_000
_FIELDS = tuple(AuditEntry.model_fields)
_EXPORTS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "application/x-ndjson": {"schema": {"type": "string", "description": "an entry a line"}},
            "text/csv": {"schema": {"type": "string", "description": "an entry a row, below their names"}},
        }
    }
}
WORKSPACE_NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
Anybody = Annotated[Principal, allowed(*Role, model=ANY_MODEL, anywhere=True)]
WorkspaceName = Annotated[str, Path(pattern=WORKSPACE_NAME)]
RoleName = Literal["viewer", "caller", "labeller", "operator", "approver", "admin", "predictor"]
_GRANT = rf"^({'|'.join(get_args(RoleName))})(:({WORKSPACE_NAME[1:-1]}|\*)(:{NAME[1:-1]})?)?$"
GrantText = Annotated[str, Field(pattern=_GRANT)]


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


class SignInCode(BaseModel):
    """Code that signs the caller's browser in once. path: the page that takes it."""

    code: str
    path: str
    expires_at: datetime


@router.post("/sign-in-codes", response_model=SignInCode, status_code=201)
async def create_sign_in_code(request: Request, _: Anybody) -> Json:
    """Make a code that signs a browser in to the console as the caller, once and within two minutes."""
    token = bearer_token(header(request, "authorization")) or ""
    sessions = request.app.state.console.sessions
    code, expires_at = await services_of(request).run(sessions.make_code, token)
    made = SignInCode(code=code, path=f"/ui/enter?code={code}", expires_at=expires_at)
    return Json(made.model_dump(mode="json"), 201)


class TokenRequest(BaseModel):
    """A token to create: whose, with which grants, until when.

    role, workspace, model: a grant; workspace: by default the request's, "*" for all. grants: further ones, each
    `role`, `role:workspace` or `role:workspace:model`. expires_at: by default in 90 days.
    """

    model_config = ConfigDict(extra="forbid")

    name: Name
    role: RoleName | None = None
    workspace: Annotated[str, Field(pattern=rf"{WORKSPACE_NAME}|^\*$")] | None = None
    model: Name | None = None
    grants: list[GrantText] = Field(default=[], max_length=64)
    limits: Limits = UNLIMITED
    expires_at: Expiry | None = None

    @model_validator(mode="after")
    def _grants_something(self) -> Self:
        if self.role is None and not self.grants:
            raise ValueError("grants: a token without a grant permits nothing; give a role")
        if self.role is None and (self.workspace or self.model):
            raise ValueError("role: missing, though workspace or model narrow it; give the role")
        return self


class NewToken(BaseModel):
    """A new token, whose secret `token` is shown only once. role: of the first grant, for one more release."""

    name: str
    role: str
    grants: list[str]
    expires_at: datetime | None
    token: str


class TokenEntry(BaseModel):
    """A token in the access list, without its secret.

    grants: each `role:workspace` or `role:workspace:model`; role: of the first grant, for one more release;
    last_used_at: to ten minutes.
    """

    id: str
    name: str
    role: str
    grants: list[str]
    limits: Limits
    created_by: str
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None


class WorkspaceRequest(BaseModel):
    """A workspace to create for a team. limits: bounds on the requests of all its callers together; queue: on its experiments."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=WORKSPACE_NAME)]
    description: str = Field(default="", max_length=2000)
    limits: Limits = UNLIMITED
    queue: QueueShare = QueueShare()


class WorkspaceChange(BaseModel):
    """What to change of a workspace; a field that is left out stays."""

    model_config = ConfigDict(extra="forbid")

    description: str | None = Field(default=None, max_length=2000)
    limits: Limits | None = None
    queue: QueueShare | None = None


@router.get("/tokens", response_model=list[TokenEntry])
async def list_tokens(request: Request, principal: Admin) -> Json:
    """List the tokens within the caller's reach, also expired and revoked ones, without their secrets."""
    kept = await services_of(request).run(_access(request, principal).list_tokens)
    return Json([_entry(each) for each in kept if principal.may_give(each.grants)])


@router.post("/tokens", response_model=NewToken, status_code=201)
async def create_token(request: Request, body: TokenRequest, principal: Admin) -> Json:
    """Create a bearer token with grants that the caller may give: wherever they reach, it must be an admin.

    Raises: Problem 409 if its expiry has passed, or a live token has its name.
    """
    if isinstance(body.expires_at, datetime) and body.expires_at <= utc_now():
        raise Problem(409, f"expires_at={body.expires_at.isoformat()} has passed; give a later time")
    grants = _grants_of(body, admitted_of(request).workspace)
    if not principal.may_give(grants):
        raise NotAdmitted(
            403,
            f"{principal.name} has {principal.roles}, and cannot give {', '.join(map(str, grants))}: "
            "only an admin of all that a grant reaches may give it",
        )
    expires_at = body.expires_at or utc_now() + TOKEN_LIFETIME
    access, services = _access(request, principal), services_of(request)
    made = await services.run(
        access.create_token, body.name, grants=grants, limits=body.limits, expires_at=expires_at
    )
    await _read_again(request)
    told = NewToken(
        name=body.name,
        role=grants[0].role.name,
        grants=[str(each) for each in grants],
        expires_at=expires_at if isinstance(expires_at, datetime) else None,
        token=made,
    )
    return Json(told.model_dump(mode="json"), 201)


@router.delete("/tokens/{name}", status_code=204)
async def revoke_token(request: Request, name: Name, principal: Admin) -> Response:
    """Revoke the token of that name, if all its grants are within the caller's reach; refused within two seconds.

    It is the live one, else the one that ended last.
    """
    access = _access(request, principal)

    def revoked() -> None:
        found = access.find_revocable(name)
        if found is None or not principal.may_give(found.grants):
            raise NotFound(
                f"no token is named {name!r} that was not revoked"
            )  # the same for one that is out of reach
        access.revoke(name)

    await services_of(request).run(revoked)
    await _read_again(request)
    return Response(status_code=204)


@router.get("/workspaces", response_model=list[Workspace])
async def list_workspaces(request: Request, principal: Anybody) -> Json:
    """List the workspaces that the caller has a grant in."""
    every = await services_of(request).run(_access(request, principal).list_workspaces)
    return Json([each.model_dump(mode="json") for each in every if _reaches(principal, each.name)])


@router.post("/workspaces", response_model=Workspace, status_code=201)
async def create_workspace(request: Request, body: WorkspaceRequest, principal: Admin) -> Json:
    """Create a workspace with nothing in it; only an admin of all workspaces may."""
    _require_platform_admin(principal)
    made = await services_of(request).run(_access(request, principal).create_workspace, **dict(body))
    await _read_again(request)
    return Json(made.model_dump(mode="json"), 201)


@router.get("/workspaces/{name}", response_model=Workspace)
async def get_workspace(request: Request, name: WorkspaceName, principal: Anybody) -> Json:
    """Get a workspace that the caller has a grant in."""
    every = await services_of(request).run(_access(request, principal).list_workspaces)
    found = next((each for each in every if each.name == name and _reaches(principal, name)), None)
    if found is None:
        raise NotFound(f"no workspace {name!r} that {principal.name} has a grant in")
    return Json(found.model_dump(mode="json"))


@router.patch("/workspaces/{name}", response_model=Workspace)
async def change_workspace(
    request: Request, name: WorkspaceName, body: WorkspaceChange, principal: Admin
) -> Json:
    """Change the description, limits or queue of a workspace; only an admin of all workspaces may."""
    _require_platform_admin(principal)
    made = await services_of(request).run(_access(request, principal).change_workspace, name, **dict(body))
    await _read_again(request)
    return Json(made.model_dump(mode="json"))


def _grants_of(body: TokenRequest, workspace: str) -> tuple[Grant, ...]:
    """Read the grants of a request. Raises: InvalidInput for a name that no grant may have."""
    narrowed = ":".join(filter(None, (body.role, body.workspace or workspace, body.model)))
    return tuple(map(Grant.parse, ([narrowed] if body.role else []) + body.grants))


def _entry(record: Any) -> dict[str, Any]:
    plain: dict[str, Any] = record.model_dump(mode="json", exclude={"digest"})
    return plain | {"grants": [str(each) for each in record.grants], "role": record.grants[0].role.name}


def _reaches(principal: Principal, workspace: str) -> bool:
    return any(grant.workspace in (workspace, EVERY_WORKSPACE) for grant in principal.grants)


def _require_platform_admin(principal: Principal) -> None:
    if not principal.may(Role.admin, EVERY_WORKSPACE):
        raise NotAdmitted(403, f"{principal.name} has {principal.roles}; this needs admin:* (all workspaces)")


async def _read_again(request: Request) -> None:
    """Reread the access list, so that this gateway applies the change at once."""
    await services_of(request).run(services_of(request).access_list.list_workspaces)
    request.app.state.admission.tokens.forget()


def _access(request: Request, principal: Principal) -> Access:
    return Access(services_of(request).context.store, actor=principal.name)


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
