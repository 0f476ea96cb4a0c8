"""Functions that erase a subject and continue erasures that were killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from toque.functions.maintenance.erasure.affected import affected
from toque.functions.maintenance.erasure.indexes import drop_indexes
from toque.functions.maintenance.erasure.lease import only_erasure
from toque.functions.maintenance.erasure.places import (
    collect_prediction_ids,
    erase_from_objects,
    erase_from_tables,
    preview,
)
from toque.functions.maintenance.erasure.record import (
    Certificate,
    ErasurePreview,
    Erasures,
    PendingErasure,
    hash_of,
)
from toque.functions.maintenance.erasure.redis_keys import (
    clear_log,
    erase_online,
    forget_streams,
    rewrite_files,
)
from toque.functions.maintenance.erasure.subject import Subject, Traces
from toque.functions.maintenance.errors import MaintenanceError
from toque.functions.prediction_log import PSEUDONYM_KEY, default_wal_root
from toque.functions.runtime.context import Context, context
from toque.functions.runtime.declaration import Cron, Retries
from toque.functions.runtime.function import function
from toque.registry import utc_now

LOG_PATIENCE_S = 60.0


@function(http=True, role="admin", timeout_s=6 * 3600, retries=Retries(max_attempts=1), max_concurrency=1)
def erase_subject(
    entity: dict[str, str] | None = None, unit: str | None = None, *, text: bool = False
) -> Certificate:
    """Erase an entity, a unit or both from tables, stream, files, features, reports and results; returns its certificate.

    entity: values by join key, all of which a row or JSON must have; unit: as the split sees it; text: erase, too, what mentions
    a value of at least 8 characters as a whole word in any text, whoever it is about. Called again after a kill, it goes on where it was.
    Raises: MaintenanceError while another erasure is under way, and in a durable call, whose stored arguments would name
    the subject.
    """
    here = context()
    if here.invocation is not None:
        raise _durable("erase_subject")
    subject = Subject(entity=entity or {}, unit=unit)
    pending = Erasures(here.store).request(subject, actor=here.actor, now=utc_now(), text=text)
    with only_erasure(here.store) as check:
        return _carry_out(here, pending, check)


@function(
    http=True,
    role="admin",
    timeout_s=6 * 3600,
    retries=Retries(max_attempts=3, backoff_s=60.0),
    max_concurrency=1,
    schedule=Cron("47 3 * * *", jitter_s=600),
)
def finish_erasures() -> list[Certificate]:
    """Carry out every erasure that was requested and is not complete, such as after a kill; runs every night."""
    here = context()
    if not Erasures(here.store).pending():
        return []
    with only_erasure(here.store) as check:
        return [_carry_out(here, pending, check) for pending in Erasures(here.store).pending()]


@function(http=True, role="admin", timeout_s=6 * 3600)
def preview_erasure(
    entity: dict[str, str] | None = None, unit: str | None = None, *, text: bool = False
) -> ErasurePreview:
    """List what `erase_subject` would remove from tables and objects, with why and whose it is; changes nothing."""
    here = context()
    if here.invocation is not None:
        raise _durable("preview_erasure")
    subject = Subject(entity=entity or {}, unit=unit)
    traces = Traces.of(subject, key=here.find_secret(PSEUDONYM_KEY), text=text)
    ids = collect_prediction_ids(here.store, traces)
    return preview(here.store, replace(traces, ids=frozenset(ids)))


@function(http=True, role="admin")
def list_erasures() -> list[Certificate]:
    """List the certificates of this workspace's erasures, oldest request first."""
    return Erasures(context().store).certificates()


def _durable(name: str) -> MaintenanceError:
    return MaintenanceError(
        f"{name} was submitted as a durable call, which stores its arguments; call it directly"
    )


def _carry_out(here: Context, pending: PendingErasure, check: Callable[[], None]) -> Certificate:
    """Erase place by place, each step safe to repeat; the certificate is written last, then the subject is forgotten.

    check: raises once another erasure may have begun.
    """
    erasures, key = Erasures(here.store), here.find_secret(PSEUDONYM_KEY)
    done = erasures.find(pending.id)
    if done is not None:  # killed between the certificate and the end
        return erasures.complete(done)
    holds_until = utc_now()
    silent = []
    if here.redis_url is not None:
        root = default_wal_root(here.store_url, here.log_folder)
        silent = clear_log(
            here.store, here.redis_url, workspace=here.workspace, wal_root=root, timeout_s=LOG_PATIENCE_S
        )
    traces = Traces.of(pending.subject, key=key, text=pending.text)
    found = collect_prediction_ids(here.store, traces)
    pending.prediction_ids = sorted({*(pending.prediction_ids or ()), *found})
    erasures.save(pending)
    traces = replace(traces, ids=frozenset(pending.prediction_ids))
    left = erase_from_tables(here.store, traces, pending, save=lambda: erasures.save(pending), check=check)
    if here.redis_url is not None:
        forget_streams(here.features(), pending.tables)  # before online rows go, which they would write again
    pending.count("vector indexes", drop_indexes(here.features(), pending.tables))
    check()
    left += erase_from_objects(here.store, traces, pending, actor=here.actor)
    if here.redis_url is not None:
        pending.count("online features", erase_online(here.features(), traces))
        left += [each for each in (rewrite_files(here.redis_url),) if each]
    training_sets, models = affected(here.registry(), pending.tables)
    return erasures.complete(
        Certificate(
            id=pending.id,
            **hash_of(pending.subject),
            requested_at=pending.requested_at,
            requested_by=pending.requested_by,
            holds_until=holds_until,
            completed_at=utc_now(),
            tables=pending.tables,
            removed=pending.removed,
            training_sets=training_sets,
            models=models,
            left=left,
            silent_writers=silent,
            pseudonyms=key is not None,
            text=pending.text,
        )
    )
