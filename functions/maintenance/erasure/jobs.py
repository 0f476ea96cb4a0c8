"""Functions that erase a subject, and continue erasures that were killed.

One erasure at a time rewrites a store's tables, by a lease: two at once would undo each other's rewriting. Vector indexes hold
copies of rows and are built anew without them. Redis holds the subject in the prediction stream with its write-ahead files, in
online features, and in its own files.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

from deltalake import DeltaTable
from pydantic import Field
from redis.exceptions import ResponseError

from toque.clusters.redis_clients import open_redis, primaries
from toque.featurestore import FeatureStore, FeatureView
from toque.featurestore.online.keys import prefix
from toque.featurestore.streams.table import announce_rewrite
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
    TableErasure,
    hash_of,
)
from toque.functions.maintenance.erasure.sample_sets import erase_from_sets
from toque.functions.maintenance.erasure.subject import Subject, Traces
from toque.functions.prediction_log import PSEUDONYM_KEY, default_wal_root, drain
from toque.functions.prediction_log.writing.lost_writers import KINDS
from toque.functions.prediction_log.writing.stream import Stream
from toque.functions.runtime.context import Context, context
from toque.functions.runtime.declaration import Cron, Retries
from toque.functions.runtime.declaration.command import View
from toque.functions.runtime.durable.heartbeat import repeated
from toque.functions.runtime.function import function
from toque.registry import Dependent, ObjectStore, Registry, RegistryError, Table, TableSnapshot, utc_now
from toque.registry.lease import StoreLease, passing_s
from toque.registry.store import table_names

LOG_PATIENCE_S = 60.0
BEAT_S = 10.0
TERM_S = 60.0  # of the lease, which is renewed every `BEAT_S`
_REWRITE_S = 300.0
_NEVER_TRAINING_SETS = ("predictions/", "features/", "monitoring/", "labels", "scores/")
SubjectEntity = Annotated[
    dict[str, str] | None,
    Field(
        description=(
            "Values of the entity by join key, all of which a row or JSON must have; "
            "may be left out if there is a unit."
        )
    ),
]
SubjectUnit = Annotated[
    str | None,
    Field(description="Unit as the traffic split sees it; may be left out if there is an entity."),
]
SubjectText = Annotated[
    bool,
    Field(
        description=(
            "Whether any text that mentions a value of at least 8 characters as a whole word counts too, "
            "whoever it is about."
        )
    ),
]


class MaintenanceError(Exception):
    """Raised where maintenance cannot be done as asked; the message says what to do instead."""


class UnfinishedErasureError(MaintenanceError):
    """Raised where an erasure has done all but files that a writer is about to name; a later round ends it."""


@function(
    http=True,
    role="admin",
    timeout_s=6 * 3600,
    retries=Retries(max_attempts=1),
    max_concurrency=1,
    durable=False,
)
def erase_subject(
    entity: SubjectEntity = None, unit: SubjectUnit = None, *, text: SubjectText = False
) -> Certificate:
    """Erase an entity, a unit or both from tables, stream, files, features, reports and results; returns its certificate.

    Called again after a kill, it goes on where it was.
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
    done: list[Certificate] = []
    waiting: list[str] = []
    with only_erasure(here.store) as check:
        for pending in Erasures(here.store).pending():
            check()
            try:
                done.append(_carry_out(here, pending, check))
            except UnfinishedErasureError as error:
                waiting.append(str(error))
    if waiting:
        raise UnfinishedErasureError(
            f"{len(done)} erasures are complete and {len(waiting)} are not: {waiting[0]}"
        )
    return done


@function(http=True, role="admin", timeout_s=6 * 3600, durable=False)
def preview_erasure(
    entity: SubjectEntity = None, unit: SubjectUnit = None, *, text: SubjectText = False
) -> ErasurePreview:
    """List what `erase_subject` would remove from tables and objects, with why and whose it is; changes nothing."""
    here = context()
    if here.invocation is not None:
        raise _durable("preview_erasure")
    subject = Subject(entity=entity or {}, unit=unit)
    traces = Traces.of(subject, key=here.find_secret(PSEUDONYM_KEY), text=text)
    ids = collect_prediction_ids(here.store, traces)
    return preview(here.store, replace(traces, ids=frozenset(ids)))


@function(
    http=True,
    role="admin",
    command="privacy erasures",
    view=View(
        columns="id | by: requested_by | completed: completed_at | tables: tables as {key}: {rows} rows",
        newest="completed_at",
        empty="nothing was erased yet",
    ),
)
def list_erasures() -> list[Certificate]:
    """List the certificates of this workspace's erasures, oldest request first."""
    return Erasures(context().store).certificates()


def _durable(name: str) -> MaintenanceError:
    return MaintenanceError(
        f"{name} was called within a durable call, which stores its arguments; call it directly"
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
    left, waiting = erase_from_tables(
        here.store, traces, pending, save=lambda: erasures.save(pending), check=check
    )
    if here.redis_url is not None:
        forget_streams(here.features(), pending.tables)  # before online rows go, which they would write again
    pending.count("vector indexes", drop_indexes(here.features(), pending.tables))
    check()
    left += erase_from_sets(here.store, traces, pending)
    check()
    left += erase_from_objects(here.store, traces, pending, actor=here.actor)
    if here.redis_url is not None:
        pending.count("online features", erase_online(here.features(), traces))
        left += [each for each in (rewrite_files(here.redis_url),) if each]
    if waiting:
        erasures.save(pending)
        raise UnfinishedErasureError(
            "the subject is erased, but for files that are still being written, and the erasure stays recorded: call "
            f"finish_erasures, or leave it to the nightly run. {'; '.join(waiting)}"
        )
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


def drop_indexes(features: FeatureStore, tables: Iterable[str]) -> int:
    """Drop the indexes of the views whose tables lost rows; returns their number. Searches are exact until the next refresh.

    tables: names such as `features/default/pages`.
    """
    prefix = f"features/{features.project}/"
    views = sorted({name.removeprefix(prefix) for name in tables if name.startswith(prefix)})
    return sum(features.drop_indexes(view) for view in views if "/" not in view)


def affected(
    registry: Registry, tables: Mapping[str, TableErasure]
) -> tuple[list[TableSnapshot], list[Dependent]]:
    """List the training sets that had erased rows, or were joined from tables that had, and the versions made of them."""
    sets = {
        snapshot
        for snapshot, sources in _training_sets(registry)
        if _any_touched({snapshot, *sources}, tables)
    }
    datasets = {
        dataset
        for model in registry.list_models()
        for version in registry.list_versions(model)
        for dataset in version.lineage.datasets
        if dataset in sets or _any_touched({dataset}, tables)
    }
    found = sorted(sets | datasets, key=str)
    dependents = {
        (each.model, each.version): each for source in found for each in registry.dependents(source)
    }
    return found, [dependents[key] for key in sorted(dependents)]


def _any_touched(snapshots: set[TableSnapshot], tables: Mapping[str, TableErasure]) -> bool:
    return any(each.name in tables and tables[each.name].touches(each.version) for each in snapshots)


def _training_sets(registry: Registry) -> Iterator[tuple[TableSnapshot, set[TableSnapshot]]]:
    """Yield each stored training set with the snapshots that its lineage names."""
    for name in table_names(registry.store):
        if name.startswith(_NEVER_TRAINING_SETS):
            continue
        table = Table(registry.store, name)
        for commit in DeltaTable(table.uri, storage_options=table.storage_options or None).history():
            kept = json.loads(commit.get("toque", "{}"))
            if "training_set" in kept:
                yield (
                    TableSnapshot(name=name, version=commit["version"]),
                    set(_snapshots_in(json.loads(kept["training_set"]))),
                )


def _snapshots_in(value: Any) -> Iterator[TableSnapshot]:
    """Yield every table snapshot in a lineage, at any depth."""
    if isinstance(value, dict):
        if value.keys() == {"name", "version"}:
            yield TableSnapshot.model_validate(value)
        for each in value.values():
            yield from _snapshots_in(each)


_unanswered: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
"""By process, as one may be forked, and store: names of holders that may have the lease without knowing it, for the next claim."""


class Holder:
    """One erasure's claim to the lease, which ends for good at the first term that no renewal reached."""

    def __init__(self, store: ObjectStore, *, clock: Callable[[], float] = passing_s) -> None:
        """Claim the lease of a store's erasures. clock: seconds that pass, of this holder alone. Raises: MaintenanceError while another has it."""
        try:
            name = _unanswered[os.getpid(), store.url].pop()  # no other thread gets it, too
        except IndexError:
            name = uuid.uuid4().hex
        self._lease = StoreLease(store, "erasure", name, term_s=TERM_S, clock=clock)
        self._clock = clock
        try:
            self._until = self._lease.renew()
        except RegistryError:
            self._leave_name()
            raise
        if not self._has_it():
            raise MaintenanceError(
                "another erasure is under way, or was killed less than a minute ago; yours is recorded: "
                "call finish_erasures then, or leave it to the nightly run"
            )

    def renew(self) -> None:
        """Renew the lease, unless it was lost: what was read before may be out of date. Raises: RegistryError."""
        if self._has_it():
            self._until = self._lease.renew()

    def check(self) -> None:
        """Raise MaintenanceError once the lease was lost; asked before each rewriting."""
        if not self._has_it():
            raise MaintenanceError(
                f"the lease of erasures could not be renewed for {TERM_S:g} s, and another erasure may have begun; yours is "
                "recorded: call finish_erasures, or leave it to the nightly run"
            )

    def release(self) -> None:
        """Give the lease back, so that another erasure need not wait for its end. Raises: RegistryError."""
        try:
            self._lease.release()
        except RegistryError:
            self._leave_name()
            raise
        finally:
            self._until = float("-inf")

    def _leave_name(self) -> None:
        """Leave the name to the next claim of this process, which then need not wait for the end of a term that nobody uses."""
        _unanswered[os.getpid(), self._lease.store.url].append(self._lease.holder)

    def _has_it(self) -> bool:
        return self._clock() < self._until


@contextmanager
def only_erasure(store: ObjectStore) -> Iterator[Callable[[], None]]:
    """Hold the lease of a store's erasures within the block; that of a killed process is taken over after a minute.

    Returns: `Holder.check`. Raises: MaintenanceError if another erasure is under way.
    """
    holder = Holder(store)
    try:
        with repeated(holder.renew, every_s=BEAT_S, name="erasure-lease", tolerated=RegistryError):
            yield holder.check
    finally:
        with suppress(RegistryError):  # it ends by itself
            holder.release()


def clear_log(
    store: ObjectStore, redis_url: str, *, workspace: str, wal_root: Path, timeout_s: float
) -> list[str]:
    """Drain all that was logged by now into a workspace's tables, and have every writer drop it from its files.

    Returns: the writers that did not confirm it in `timeout_s`, as those of another machine that is away.
    """
    client = open_redis(redis_url, timeout_s=30.0)
    try:
        streams = [Stream(client, kind, workspace=workspace) for kind in KINDS]
        requests = [stream.request_rotation() for stream in streams]
        deadline = time.monotonic() + timeout_s
        while True:
            drain(store, redis_url, workspace=workspace, wal_root=wal_root)
            silent = [
                f"{stream.kind}/{writer}"
                for stream, number in zip(streams, requests, strict=True)
                for writer in stream.not_rotated(number)
            ]
            if not silent or time.monotonic() > deadline:
                return silent
            time.sleep(0.1)
    finally:
        client.close()


def erase_online(features: FeatureStore, traces: Traces) -> int:
    """Delete the online rows of the subject's entities in every view that has its join keys; returns their number."""
    client = features.online.client
    deleted = 0
    with features.online.reachable():
        for view in features.list_generations():
            for key in _keys_of(client, features.project, view, traces):
                deleted += int(client.delete(key))
    return deleted


def forget_streams(features: FeatureStore, tables: Iterable[str]) -> None:
    """Have the consumers of streams whose tables lost rows forget the events that they hold. tables: their names."""
    lost = set(tables)
    for source in features.list_stream_sources():
        if features.stream_table(source).table.name in lost:
            announce_rewrite(features.online, source)


def _keys_of(client: Any, project: str, view: FeatureView, traces: Traces) -> Iterator[bytes]:
    """Yield the keys of a view's rows that are the subject's or, where texts count, mention one of its long values."""
    names = [key.name for key in view.join_keys]
    is_named = bool(traces.values) and traces.values.keys() <= set(names)
    if not (is_named or traces.text):
        return
    start = prefix(project, view.stored_as)
    for key in client.scan_iter(match=f"{_literal(start)}*", count=1_000):
        parts = [unquote(part) for part in key.decode()[len(start) :].split("|")]
        row = dict(zip(names, parts, strict=False))
        if (is_named and all(row.get(name) in accepted for name, accepted in traces.values.items())) or (
            traces.text and traces.mentions((client.get(key) or b"").decode("utf-8", "replace"))
        ):
            yield key


def _literal(text: str) -> str:
    """Escape what SCAN's patterns give a meaning."""
    return "".join(f"\\{each}" if each in "*?[]\\" else each for each in text)


def rewrite_files(redis_url: str) -> str:
    """Have Redis, each primary of a Cluster, write its files anew, without what was deleted; returns why it could not, or an empty text.

    Raises: redis.RedisError if it does not answer.
    """
    client = open_redis(redis_url, timeout_s=30.0)
    try:
        for server in primaries(client):
            _rewrite(server)
    except ResponseError as error:
        return f"Redis refused to write its files anew ({error}); see its provider for when they are replaced"
    except TimeoutError:
        return f"Redis did not finish writing its files anew in {_REWRITE_S:g} s; run BGREWRITEAOF and BGSAVE"
    else:
        return ""
    finally:
        client.close()


def _rewrite(server: Any) -> None:
    """Have one server write its files anew. Raises: TimeoutError, ResponseError."""
    if server.info("persistence").get("aof_enabled"):
        server.bgrewriteaof()
        _wait(server, "aof_rewrite_in_progress", "aof_rewrite_scheduled")
    if server.config_get("save").get("save"):
        server.bgsave(schedule=True)
        _wait(server, "rdb_bgsave_in_progress")


def _wait(server: Any, *flags: str) -> None:
    """Wait until none of these flags is set. Raises: TimeoutError."""
    deadline = time.monotonic() + _REWRITE_S
    while any(int(server.info("persistence").get(flag, 0)) for flag in flags):
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)
