"""Routes of workspaces by MLflow's protocol, and of what else this server says of itself."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field

from toque.ray_apps.admission import ANY_MODEL, GuardedRoute, NotAdmitted, admitted_of, allowed
from toque.ray_apps.mlflow.services import Refusal, services_of, unsupported
from toque.ray_apps.mlflow.wire import Body, Json
from toque.registry import EVERY_WORKSPACE, Access, NotFound, Principal, Role, Workspace

router = APIRouter(prefix="/3.0/mlflow", route_class=GuardedRoute)

Viewer = Annotated[Principal, allowed(Role.viewer, model=ANY_MODEL, anywhere=True)]
Admin = Annotated[Principal, allowed(Role.admin, anywhere=True)]


class DescribeWorkspace(Body):
    """Body that describes a workspace; where files and traces lie is the platform's affair."""

    description: str | None = Field(default=None, max_length=2000)
    default_artifact_root: str | None = None
    trace_archival_config: Json | None = None


class CreateWorkspace(DescribeWorkspace):
    """A workspace to create, with its description."""

    name: str


@router.get("/server-info")
def server_info(_: Viewer) -> Json:
    """Tell which optional parts of MLflow's protocol this server has: workspaces only."""
    return {
        "store_type": "toque",
        "workspaces_enabled": True,
        "trace_archival_enabled": False,
        "multipart_uploads_enabled": False,
        "multipart_downloads_enabled": False,
    }


@router.get("/workspaces")
def list_workspaces(request: Request, principal: Viewer) -> Json:
    """List the workspaces of which the caller may read something."""
    return {"workspaces": [_as_json(each) for each in _visible(request, principal).values()]}


@router.get("/workspaces/{name}")
def get_workspace(request: Request, name: str, principal: Viewer) -> Json:
    """Get a workspace of which the caller may read something; any other one is not found."""
    found = _visible(request, principal).get(name)
    if found is None:
        raise NotFound(f"workspace {name!r} does not exist, or {principal.name} has no grant in it")
    return {"workspace": _as_json(found)}


@router.post("/workspaces", status_code=HTTPStatus.CREATED)
def create_workspace(request: Request, body: CreateWorkspace, principal: Admin) -> Json:
    """Create a workspace with nothing in it; only an admin of all workspaces may."""
    made = _administered(request, principal, body).create_workspace(
        body.name, description=body.description or ""
    )
    services_of(request).access.list_workspaces()  # read again, so that this replica knows it at once
    return {"workspace": _as_json(made)}


@router.patch("/workspaces/{name}")
def update_workspace(request: Request, name: str, body: DescribeWorkspace, principal: Admin) -> Json:
    """Change the description of a workspace; only an admin of all workspaces may."""
    access = _administered(request, principal, body)
    return {"workspace": _as_json(access.change_workspace(name, description=body.description))}


@router.delete("/workspaces/{name}")
def delete_workspace(name: str, _: Admin) -> Json:
    """Refuse to delete a workspace, as history is kept."""
    raise unsupported(f"deleting workspace {name!r}", "revoke the tokens with grants in it")


def _visible(request: Request, principal: Principal) -> dict[str, Workspace]:
    """Find the workspaces in which a grant of the caller permits to read at least one model."""
    reached = {grant.workspace for grant in principal.grants if Role.viewer in grant.role.includes}
    every = services_of(request).access.list_workspaces()
    return {each.name: each for each in every if not reached.isdisjoint((each.name, EVERY_WORKSPACE))}


def _administered(request: Request, principal: Principal, body: DescribeWorkspace) -> Access:
    """Open the access list in the name of an admin of all workspaces. Raises: NotAdmitted; Refusal."""
    if not principal.may(Role.admin, EVERY_WORKSPACE):
        raise NotAdmitted(403, f"{principal.name} has {principal.roles}; this needs admin in all workspaces")
    if body.default_artifact_root or body.trace_archival_config:
        message = (
            "default_artifact_root, trace_archival_config: files lie in the platform's store; leave them out"
        )
        raise Refusal("INVALID_PARAMETER_VALUE", message)
    return Access(services_of(request).store, actor=admitted_of(request).principal.name)


def _as_json(workspace: Workspace) -> Json:
    return {"name": workspace.name, "description": workspace.description}
