"""Makes the platform's audit key once, beside the store and readable by this user only, and opens the store with it."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

from toque.ray_apps.local.errors import LocalError
from toque.ray_apps.local.state_file import write_private
from toque.registry import Damaged, Journal, open_store, utc_now
from toque.registry.audit_keys import AuditKeys
from toque.registry.history import adopt_all
from toque.registry.journal.heads import PATH as ADOPTED

if TYPE_CHECKING:
    from toque.ray_apps.local.settings import Settings
    from toque.registry import ObjectStore
    from toque.registry.store import Announce


def make_audit_key(settings: Settings) -> None:
    """Make a key unless there is one, and accept what the store holds already under it.

    A key that was made and not put in its place yet, because this was killed, is taken up again.
    Raises: LocalError if the store has audit keys of another place.
    """
    file = settings.audit_key_file
    if file.exists():
        return
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pending = file.with_name(f"{file.name}.pending")
    if not pending.exists():
        write_private(pending, f"{secrets.token_hex(32)}\n")
    try:
        adopt_all(open_store(settings.store_url, audit_keys=AuditKeys.of_file(pending)), utc_now)
    except Damaged as error:
        raise LocalError(
            f"{settings.store_url} has audit keys already; copy their file to {file}, or name it in "
            f"TOQUE_AUDIT_KEY_FILE: {error}"
        ) from error
    pending.replace(file)


def open_platform_store(settings: Settings, *, announce: Announce | None = None) -> ObjectStore:
    """Open the store with the platform's audit keys, if it has some. announce: see `open_store`."""
    file = settings.audit_key_file
    keys = AuditKeys.of_file(file) if file.exists() else None
    return open_store(settings.store_url, audit_keys=keys, announce=announce)


def is_key_of(keys: AuditKeys, url: str, settings: Settings) -> bool:
    """Whether keys that lie in a state folder are those of a store: its own, one that was written under them, or a copy of such.

    Another store's journals have no MAC of them, and would all seem forged. Where it cannot be told they count as its own.
    """
    if url == f"file://{settings.home / 'store'}":
        return True
    store = open_store(url)
    adopted = store.find(ADOPTED)
    if adopted is not None:
        foreign = re.search(rb'"mac": ?"([0-9a-f]+):', adopted)
        return foreign is None or foreign[1].decode() in keys.ids
    first = Journal(store, "access/journal", actor="audit").find(0)  # what `toque up` writes first
    return first is not None and first.mac.partition(":")[0] in keys.ids
