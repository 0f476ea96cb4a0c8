"""Several versions of a function's code at once: which of them may run, or go on with, an invocation.

Each executor has one version. An invocation belongs to the code it was submitted with and, once steps of it are
recorded, to the code that recorded them. Executors that have that code come first; the others leave it to them for
a while. After that a run without steps is begun with the code there is, and one with steps cannot go on.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from functions.runtime.durable.record import Record
from functions.runtime.errors import CodeChanged

START_PATIENCE_S = 2.0
RESUME_PATIENCE_S = 60.0
_IMMEDIATELY = datetime.min.replace(
    tzinfo=UTC
)  # whatever the clocks say: they differ between machines, and jump


def earliest_start(record: Record, digest: str, *, patience_s: float) -> datetime:
    """From when an executor with the code `digest` may take up the invocation, once that is due.

    patience_s: how long one that has steps of other code is left to executors that have that.
    """
    if digest == (record.started_digest or record.digest):
        return _IMMEDIATELY
    wait_s = patience_s if bound_to_other_code(record, digest) else min(START_PATIENCE_S, patience_s)
    return record.due + timedelta(seconds=wait_s)


def code_changed_entry(record: Record, digest: str) -> dict[str, Any] | None:
    """The entry that says that the code `digest` cannot go on with the invocation; None if it can."""
    if not bound_to_other_code(record, digest):
        return None
    changed = CodeChanged(
        f"{record.function} has {len(record.steps)} recorded steps of code {record.started_digest}, and no executor "
        f"has that code; here it is {digest}. Run the old code, or redrive it to go on with this one"
    )
    failure = {"type": type(changed).__name__, "message": str(changed)}
    return {"kind": "dead", "lost": True, "failure": failure}


def bound_to_other_code(record: Record, digest: str) -> bool:
    """Whether only other code than `digest` may go on with it."""
    return bool(record.steps) and record.started_digest not in {None, digest}
