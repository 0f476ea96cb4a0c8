"""Backup of a platform and the way back: its store, and the predictions and labels that only Redis holds.

Online features are not in it: `materialize` writes them again from the tables. A backup is a copy of the store that is
brought up to date by the next one, so it costs what is new.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from toque.functions.prediction_log.writing.drain import WriterExport, add_exports, drain, export_streams
from toque.functions.prediction_log.writing.wal import default_wal_root
from toque.registry.access import DEFAULT_WORKSPACE, Access, workspace_store
from toque.registry.errors import RegistryError
from toque.registry.history import FoldOf
from toque.registry.store import ObjectStore, Progress
from toque.registry.times import from_text, to_text, utc_now
from toque.registry.transfer import CopyReport, address, copy_store, find_marker, forget_marker

__all__ = ["BackupReport", "back_up", "last_backup", "restore"]

_STREAMS = "copies/streams/"
_RECORD = "copies/last-backup"
_ACTOR = "backup"
Report = Callable[[str], None]


class BackupReport(BaseModel, frozen=True, arbitrary_types_allowed=True):
    """Result of a backup or of a restore.

    copy_report: None where an earlier restore had copied everything. records: those of the streams that were in no table;
    for a restore, the rows of which there are.
    """

    copy_report: CopyReport | None
    records: int = 0


def back_up(
    store: ObjectStore,
    redis_url: str | None,
    target: ObjectStore,
    *,
    scratch: Path | None = None,
    fold_of: FoldOf = lambda _store, _path: None,
    on_progress: Progress | None = None,
    report: Report = lambda _: None,
) -> BackupReport:
    """Drain the prediction log, export what came since, and copy the store to `target`, or what is new to an earlier backup.

    store: the platform's. redis_url: None to leave Redis out. The platform may run meanwhile. Raises: as `copy_store`;
    redis.RedisError.
    """
    exports: dict[str, WriterExport] = {}
    if redis_url is not None:
        known = {workspace.name for workspace in Access(store, actor=_ACTOR).list_workspaces()}
        workspaces = sorted(known | {DEFAULT_WORKSPACE})
        report("draining the prediction log")
        for each in workspaces:
            inside = workspace_store(store, each)
            drain(inside, redis_url, workspace=each, wal_root=default_wal_root(inside.url))
        moment = to_text(utc_now())
        found = enumerate(export_streams(redis_url, workspaces))
        exports = {f"{_STREAMS}{moment}/{number:06d}": export for number, export in found}
    older = [key for key in target.list(_STREAMS) if key not in exports]
    copied = copy_store(
        store,
        target,
        scratch=scratch,
        fold_of=fold_of,
        on_progress=on_progress,
        report=report,
        beside={key: export.to_bytes() for key, export in exports.items()},
    )
    if redis_url is not None and not copied.findings:
        for key in older:
            target.delete(key)
    if not copied.findings:
        _record(store, copied.whole_at, report)
    return BackupReport(copy_report=copied, records=sum(len(each.frames) for each in exports.values()))


def last_backup(store: ObjectStore) -> datetime | None:
    """Moment of the platform that its newest whole backup holds; None before the first. Raises: Unavailable."""
    data = store.find(_RECORD)
    return None if data is None else from_text(data.decode())


def restore(
    backup: ObjectStore,
    store: ObjectStore,
    *,
    scratch: Path | None = None,
    fold_of: FoldOf = lambda _store, _path: None,
    on_progress: Progress | None = None,
    report: Report = lambda _: None,
) -> BackupReport:
    """Copy a backup to an empty store and append to its tables what Redis held; may be killed and repeated.

    Nothing may run on the store yet; afterwards it is a platform's, which no copy is brought up to date in. A backup that
    was interrupted gives the moment that it had come to. Raises: as `copy_store`; PredictionLogError if an export is
    damaged.
    """
    found = find_marker(store)
    copied = None
    if found is None or found.under_way or found.source != address(backup):
        copied = copy_store(
            backup, store, scratch=scratch, fold_of=fold_of, on_progress=on_progress, report=report
        )
        if copied.findings:
            return BackupReport(copy_report=copied)
    report("appending what the streams held")
    exports = (
        WriterExport.from_bytes(backup.get(key), where=f"{key} in {backup.url}")
        for key in backup.list(_STREAMS)
    )
    added = add_exports(partial(workspace_store, store), exports)
    forget_marker(store)
    return BackupReport(copy_report=copied, records=added.predictions + added.labels)


def _record(store: ObjectStore, whole_at: datetime, report: Report) -> None:
    """Leave in the platform's store how new its backup is, which the alert about old backups reads.

    No copy takes the record along: of a restored platform there is no backup yet.
    """
    try:
        store.put(_RECORD, to_text(whole_at).encode())
    except RegistryError as error:
        report(f"the backup is whole, and {store.url} does not say so, for the alert BackupStale: {error}")
