"""Publishing of the heads of the platform's journals as a function for a schedule, such as hourly."""

from __future__ import annotations

from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Retries
from toque.functions.runtime.function import function
from toque.registry import open_store
from toque.registry.access import DEFAULT_WORKSPACE
from toque.registry.history import publish_heads

TARGET = "TOQUE_AUDIT_HEADS"


@function(http=True, secrets=(TARGET,), timeout_s=3600, retries=Retries(max_attempts=3), max_concurrency=1)
def publish_journal_heads() -> str:
    """Write the head of every journal to the store at `TOQUE_AUDIT_HEADS`, for `toque store audit --heads`; returns the key.

    Each call adds an object, whichever workspace it comes from; killed and repeated, it adds another.
    """
    used = context()
    platform = used.in_workspace(DEFAULT_WORKSPACE).store
    return publish_heads(platform, open_store(used.secret(TARGET)), used.clock)
