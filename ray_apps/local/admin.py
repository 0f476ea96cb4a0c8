"""Creates the administrator's token once, kept in the state folder, and the workspaces that projects are for."""

from __future__ import annotations

from contextlib import suppress

from toque.ray_apps.local.audit_key import open_platform_store
from toque.ray_apps.local.settings import Settings
from toque.ray_apps.local.state_file import write_private
from toque.registry import EVERY_WORKSPACE, Access, AlreadyExists, NotFound

NAME = "admin"
ACTOR = "toque-up"


def admin_token(settings: Settings) -> str:
    """Read the token in `settings.token_file`; if the store does not know it, create a new one there.

    A store that was emptied or replaced does not know the old token.
    """
    access = Access(open_platform_store(settings), actor=ACTOR)
    kept = settings.token_file.read_text().strip() if settings.token_file.exists() else ""
    if kept and access.verify(kept):
        return kept
    with suppress(NotFound):  # usually there is no such token
        access.revoke(NAME)  # a live token whose secret is lost
    made = access.create_token(NAME, "admin", workspace=EVERY_WORKSPACE)
    write_private(settings.token_file, made)
    return made


def create_workspaces(settings: Settings) -> list[str]:
    """Create the workspaces of the projects that the platform does not have yet; returns their names."""
    access = Access(open_platform_store(settings), actor=ACTOR)
    known = {each.name for each in access.list_workspaces()}
    from toque.functions.runtime.context import projects_of  # late: it imports Ray

    missing = [name for name in projects_of(settings.project or "") if name not in known]
    for name in missing:
        with suppress(AlreadyExists):  # somebody made it just now
            access.create_workspace(name)
    return missing
