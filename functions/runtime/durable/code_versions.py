"""Rules for several versions of a function's code at once: which version may start or resume an invocation.

Each executor has one version. An invocation belongs to the code that it was submitted with and, once steps
are recorded, to the code that recorded them. Executors with other code leave it to executors with that code
for a while. After that they start an invocation without steps, and end one with steps, which cannot resume on
other code.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.errors import CodeChanged

START_PATIENCE_S = 2.0
RESUME_PATIENCE_S = 60.0
_IMMEDIATELY = datetime.min.replace(tzinfo=UTC)  # by any clock: clocks differ between machines, and jump


def earliest_start(record: Record, digest: str, *, patience_s: float) -> datetime:
    """Compute the time from which an executor with the code `digest` may claim the invocation.

    patience_s: how long an invocation with steps of other code is left to executors with that code.
    """
    if digest == (record.started_digest or record.digest):
        return _IMMEDIATELY
    wait_s = patience_s if bound_to_other_code(record, digest) else min(START_PATIENCE_S, patience_s)
    return record.due + timedelta(seconds=wait_s)


def code_changed_entry(record: Record, digest: str) -> dict[str, Any] | None:
    """Make the entry that ends an invocation which the code `digest` cannot resume; None if it can."""
    if not bound_to_other_code(record, digest):
        return None
    changed = CodeChanged(
        f"{record.function} has {len(record.steps)} recorded steps of code {record.started_digest}, and no executor "
        f"has that code; here it is {digest}. Run the old code, or redrive it to go on with this one"
    )
    failure = {"type": type(changed).__name__, "message": str(changed)}
    return {"kind": "dead", "lost": True, "failure": failure}


def bound_to_other_code(record: Record, digest: str) -> bool:
    """Whether only code other than `digest` may resume the invocation."""
    return bool(record.steps) and record.started_digest not in {None, digest}
