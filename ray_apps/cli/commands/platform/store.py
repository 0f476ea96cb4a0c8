"""`toque store copy`, `toque backup` and `toque restore`: the whole store to another place, and back.

They read the store itself, on this machine, with the audit keys of its operator.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toque.ray_apps.cli.arguments import arg, flag
from toque.ray_apps.cli.command import Commands, Given, add, group
from toque.ray_apps.cli.commands.platform.history import (
    address_of,
    failing,
    open_audited,
    open_copy,
    store_url_of,
)
from toque.ray_apps.cli.errors import UsageError
from toque.ray_apps.cli.output import chosen, note, say, value

if TYPE_CHECKING:
    from toque.functions.maintenance.backup import BackupReport
    from toque.registry.transfer import CopyReport

# registry, functions and toque.ray_apps.local are imported by what needs them: they bring the tables, half a second.

_FROM = arg("source FROM", "the store: its url, or the path of a folder")
_TO = arg(
    "target TO", "where to: a url or the path of a folder, empty or with an earlier copy of the same store"
)
_BACKUP_TO = arg("target TO", "where the backups are: a url or the path of a folder, empty the first time")
_BACKUP = arg("source BACKUP", "the backup: a url or the path of a folder")
_STORE = arg("--store URL", "address of the store (default: that of the environment or of the platform here)")
_INTO = arg("--store URL", "address of the empty store to fill (default: as `toque up` would take it)")
_REDIS = arg("--redis URL", "address of its Redis (default: that of the environment or of the platform here)")
_NO_REDIS = flag("--no-redis", "leave out what Redis holds: predictions and labels of the last seconds")
_SCRATCH = arg("--scratch FOLDER", "where temporary files go (default: the machine's temporary folder)")


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    add(group(commands, "store", "Copy a store."), "copy", _copy, _FROM, _TO, _SCRATCH)
    add(commands, "backup", _backup, _BACKUP_TO, _STORE, _REDIS, _NO_REDIS, _SCRATCH)
    add(commands, "restore", _restore, _BACKUP, _INTO, _SCRATCH)


def _copy(given: Given) -> int:
    """Copy a whole store, or what is new to an earlier copy of it; exit code 1 if the copy does not verify."""
    from toque.ray_apps.cli.platform_folds import platform_fold
    from toque.registry.transfer import copy_store

    with failing():
        source = open_audited(given, address_of(given, given.source))
        done = copy_store(
            source,
            open_copy(address_of(given, given.target), source),
            fold_of=platform_fold,
            **_options(given),
        )
    return _shown(given, done, None)


def _backup(given: Given) -> int:
    """Back up the store and what Redis holds, or what is new since the last backup there."""
    from toque.functions.maintenance.backup import back_up
    from toque.ray_apps.cli.platform_folds import platform_fold

    with failing():
        source = open_audited(given)
        target = open_copy(address_of(given, given.target), source)
        done = back_up(source, _redis_url(given), target, fold_of=platform_fold, **_options(given))
    return _shown(given, done.copy_report, done)


def _restore(given: Given) -> int:
    """Fill an empty store from a backup; nothing may run on it yet."""
    from toque.functions.maintenance.backup import restore
    from toque.ray_apps.cli.platform_folds import platform_fold

    with failing():
        backup = open_audited(given, address_of(given, given.source))
        store = open_copy(store_url_of(given), backup)
        done = restore(backup, store, fold_of=platform_fold, **_options(given))
    return _shown(given, done.copy_report, done)


def _options(given: Given) -> dict[str, Any]:
    """Read the options that the three commands share."""
    return {"scratch": Path(given.scratch) if given.scratch else None, "report": note}


def _redis_url(given: Given) -> str | None:
    """Find the address of the platform's Redis. Raises: UsageError if none is known."""
    if given.no_redis:
        return None
    from toque.clusters.redis_clients import redis_url_of
    from toque.ray_apps.local.state_file import find_platform

    running = find_platform(Path(given.home).resolve())
    found = given.redis or redis_url_of(os.environ) or (running.redis_url if running else None)
    if not found:
        raise UsageError(
            "which Redis? give --redis or set TOQUE_REDIS_URL, back up while the platform runs, or leave it out with "
            "--no-redis"
        )
    return str(found)


def _shown(given: Given, copied: CopyReport | None, backup: BackupReport | None) -> int:
    """Print what was done; returns the exit code."""
    findings = copied.findings if copied else ()
    if chosen(given.output) == "json":
        value(_content(copied) | ({"records": backup.records} if backup else {}))
        return 1 if findings else 0
    for finding in findings:
        say(finding)
    if copied and copied.interrupted:
        note("the source is a copy that was interrupted; the moment that it had come to was taken")
    if copied and copied.verified.unsigned:
        note("without an audit key, forged history is not found; set TOQUE_AUDIT_KEY_FILE")
    if findings:
        note(f"{len(findings)} findings: do not use what was written")
        return 1
    if copied:
        done = copied.verified
        say(
            f"{copied.objects} objects written ({copied.size_bytes} bytes), {copied.removed} removed; as of "
            f"{copied.whole_at.isoformat()}"
        )
        say(
            f"verified: {done.objects} objects, {done.journals} journals with {done.entries} entries, {done.tables} "
            f"tables with {done.rows} rows"
        )
    if backup:
        say(f"{backup.records} records that were in no table yet")
    return 0


def _content(copied: CopyReport | None) -> dict[str, Any]:
    return asdict(copied) if copied else {}
