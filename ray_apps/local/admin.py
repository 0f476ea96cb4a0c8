"""Creates the administrator's token once, and keeps it in the state folder, readable by this user only."""

from __future__ import annotations

from contextlib import suppress

from ray_apps.local.settings import Settings
from ray_apps.local.state_file import write_private
from registry import EVERY_WORKSPACE, Access, NotFound, open_store

NAME = "admin"


def admin_token(settings: Settings) -> str:
    """Read the token in `settings.token_file`; if the store does not know it, create a new one there.

    A store that was emptied or replaced does not know the old token.
    """
    access = Access(open_store(settings.store_url), actor="toque-up")
    kept = settings.token_file.read_text().strip() if settings.token_file.exists() else ""
    if kept and access.verify(kept):
        return kept
    with suppress(NotFound):  # usually there is no such token
        access.revoke(NAME)  # a live token whose secret is lost
    made = access.create_token(NAME, "admin", workspace=EVERY_WORKSPACE)
    write_private(settings.token_file, made)
    return made
