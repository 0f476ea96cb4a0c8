"""The administrator's token: made once, kept in the state folder for this user only."""

from __future__ import annotations

from contextlib import suppress

from ray_apps.local.running import write_private
from ray_apps.local.settings import Settings
from registry import Access, NotFound, open_store

NAME = "admin"


def admin_token(settings: Settings) -> str:
    """The token in `settings.token_file`, if the store knows it; else a new one, written there.

    A store that was emptied or exchanged does not know the old one.
    """
    access = Access(open_store(settings.store_url), actor="toque-up")
    kept = settings.token_file.read_text().strip() if settings.token_file.exists() else ""
    if kept and access.verify(kept):
        return kept
    with suppress(NotFound):  # the usual case: there was none
        access.revoke(NAME)  # its secret is lost
    made = access.create_token(NAME, "admin")
    write_private(settings.token_file, made)
    return made
