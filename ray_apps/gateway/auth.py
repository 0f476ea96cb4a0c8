"""Authentication of the gateway's requests: the roles that a route requires, checked before its body is read."""

from __future__ import annotations

from fastapi import Request

from toque.ray_apps.admission.admission import Admission, NotAdmitted
from toque.ray_apps.admission.guarded_route import allowed, client_of, header, workspace_named
from toque.ray_apps.gateway.problems import Problem
from toque.registry import Principal

__all__ = ["allowed", "identify_bearer", "problem_of_refusal"]


async def identify_bearer(request: Request) -> Principal:
    """Identify the caller of a request that no route has admitted. Raises: Problem 401, 503."""
    admission: Admission = request.app.state.admission
    try:
        return await admission.identify(header(request, "authorization"))
    except NotAdmitted as refusal:
        admission.note(
            refusal,
            who=None,
            what=f"{request.method} {request.url.path}",
            workspace=workspace_named(request),
            client=client_of(request),
        )
        raise problem_of_refusal(refusal) from refusal


def problem_of_refusal(refusal: NotAdmitted) -> Problem:
    """Convert the refusal of a request to a problem."""
    return Problem(refusal.status, str(refusal), headers=refusal.headers)
