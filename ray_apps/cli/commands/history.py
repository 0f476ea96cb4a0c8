"""`toque store audit`, `audit-keys`, `store copy`, `backup`, `restore`: whether a store is what was written, and its copies.

They read the store itself, on this machine, with keys that only its operator has: a platform that was broken into would lie.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from toque.ray_apps.cli.arguments import Commands, Given, add, arg, flag, group
from toque.ray_apps.cli.errors import Failed, UsageError
from toque.ray_apps.cli.output import chosen, columns, message, note, say, table, value

if TYPE_CHECKING:
    from toque.functions.maintenance.backup import BackupReport
    from toque.ray_apps.local import Settings
    from toque.registry import ObjectStore
    from toque.registry.audit_keys import AuditKeys
    from toque.registry.history import AuditReport
    from toque.registry.transfer import CopyReport

# registry, functions and toque.ray_apps.local are imported by what needs them: they bring the tables, half a second.

_FROM = arg("source FROM", "the store: its url, or the path of a folder")
_TO = arg(
    "target TO", "where to: a url or the path of a folder, empty or with an earlier copy of the same store"
)
_BACKUP_TO = arg("target TO", "where the backups are: a url or the path of a folder, empty the first time")
_BACKUP = arg("source BACKUP", "the backup: a url or the path of a folder")
_INTO = arg("--store URL", "address of the empty store to fill (default: as `toque up` would take it)")
_REDIS = arg("--redis URL", "address of its Redis (default: that of the environment or of the platform here)")
_NO_REDIS = flag("--no-redis", "leave out what Redis holds: predictions and labels of the last seconds")
_SCRATCH = arg("--scratch FOLDER", "where temporary files go (default: the machine's temporary folder)")
_MODEL = arg("model", "audit this model's journals only", nargs="?")
_HEADS = arg("--heads TARGET", "compare with the heads published there: a folder, or the url of a store")
_PUBLISH = arg(
    "--publish TARGET", "publish the heads there if nothing was found: a folder, or the url of a store"
)
_STORE = arg("--store URL", "address of the store (default: that of the environment or of the platform here)")
_KEY = arg("key", "id of the key, as `toque store keys list` shows it")
_KEYS = columns("key: id | makes MACs: newest")


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
        store = open_copy(_settings(given).store_url, backup)
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
        value((asdict(copied) if copied else {}) | ({"records": backup.records} if backup else {}))
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


def register(commands: Commands) -> None:
    """Add the commands on a store."""
    store = group(
        commands, "store", "Audit, copy, back up and restore a store, and keep the keys of its history."
    )
    add(store, "audit", _audit, _MODEL, _HEADS, _PUBLISH, _STORE)
    keys = group(store, "keys", "Adopt a store, and list, rotate and retire the keys of its history.")
    add(keys, "list", _list, _STORE)
    add(keys, "adopt", _adopt, _STORE)
    add(keys, "rotate", _rotate, _STORE)
    add(keys, "retire", _retire, _KEY, _STORE)
    add(store, "copy", _copy, _FROM, _TO, _SCRATCH)
    add(store, "backup", _backup, _BACKUP_TO, _STORE, _REDIS, _NO_REDIS, _SCRATCH)
    add(store, "restore", _restore, _BACKUP, _INTO, _SCRATCH)


def _audit(given: Given) -> int:
    """Fold every journal again and look for forged history; exit code 1 if there is some."""
    from toque.registry import utc_now
    from toque.registry.history import publish_heads

    with failing():
        store = open_audited(given)
        report = _report(store, given.model, given.heads)
        published = None
        if given.publish and not report.findings:
            published = publish_heads(store, _target(given.publish), utc_now)
    if chosen(given.output) == "json":
        value(asdict(report) | {"published": published})
    else:
        _print(report, published)
    return 1 if report.findings else 0


def _print(report: AuditReport, published: str | None) -> None:
    for finding in report.findings:
        say(finding)
    if report.unsigned:
        note("without an audit key, only history that contradicts itself is found; set TOQUE_AUDIT_KEY_FILE")
    read = f"{report.journals} journals, {report.entries} entries, {report.signatures} signatures"
    if not report.findings:
        say(f"{read} and {report.heads} recorded heads: the history is as it was written")
    else:
        note(f"{len(report.findings)} findings in {read}; nothing was published")
    if published:
        say(f"published {published}")


def _list(given: Given) -> None:
    """List the ids of the audit keys, oldest first."""
    with failing():
        ids = _keys(given).ids
    rows = [{"id": each, "newest": each == ids[-1]} for each in ids]
    table(given.output, _KEYS, rows, remark="" if rows else "there are no audit keys here")


def _adopt(given: Given) -> None:
    """Accept what a store holds that is older than its audit keys; nothing else should write meanwhile."""
    from toque.registry import open_store, utc_now
    from toque.registry.history import adopt_all

    with failing():
        store = open_store(_settings(given).store_url, audit_keys=_keys(given))
        count = adopt_all(store, utc_now)
    message(given.output, f"{count} journals are accepted as they are now", {"journals": count})


def _rotate(given: Given) -> None:
    """Add a key to the key file: it makes MACs from now on, and the others still verify."""
    import secrets  # late: OpenSSL, for a new key alone

    from toque.registry.audit_keys import key_id

    file, key = _key_file(given), secrets.token_hex(32)
    _write(file, [*file.read_text().splitlines(), key])
    message(given.output, f"the key {key_id(key)} in {file} makes MACs from now on", {"key": key_id(key)})


def _retire(given: Given) -> None:
    """Take a key out of the key file, after an audit: what it made counts up to now, and nothing after."""
    from toque.registry import utc_now
    from toque.registry.audit_keys import key_id, read_keys
    from toque.registry.history import adopt_all

    file = _key_file(given)
    with failing():
        kept = [key for key in read_keys(file) if key_id(key) != given.key]
        store = open_audited(given)
        if given.key not in store.audit_keys.ids[:-1]:
            raise UsageError(
                f"{given.key} is not one of the older keys; `toque store keys rotate` adds a newer one"
            )
        report = _report(store, None, None)
        if report.findings:
            _print(report, None)
            raise Failed("the key is not retired: what it made must be in order first")
        adopt_all(store, utc_now)
    _write(file, kept)
    message(given.output, f"the key {given.key} is retired", {"key": given.key})


def _report(store: ObjectStore, model: str | None, heads: str | None) -> AuditReport:
    from toque.ray_apps.cli.platform_folds import platform_fold
    from toque.registry.history import audit, read_published

    published, problems = read_published(_target(heads), store.audit_keys) if heads else ([], [])
    if heads and not published and not problems:
        problems = [f"{heads} holds no published heads"]
    report = audit(store, heads=published, model=model, fold_of=platform_fold)
    return replace(report, findings=(*problems, *report.findings))


def _settings(given: Given) -> Settings:
    from toque.ray_apps.local import Settings

    given_url = getattr(given, "store", None)
    store_url = address_of(given, given_url) if given_url else None
    return Settings.of(os.environ, home=Path(given.home), store_url=store_url)


def address_of(given: Given, text: str) -> str:
    """Read the address of a store from a url, or from the path of a folder.

    A bucket whose url names no region or endpoint is one at the server of the platform's own store.
    """
    from toque.ray_apps.local import Settings

    if "://" not in text:
        return Path(text).absolute().as_uri()
    own = urlsplit(Settings.of(os.environ, home=Path(given.home)).store_url)
    if not text.startswith("s3://") or "?" in text or own.scheme != "s3":
        return text
    server = "&".join(each for each in own.query.split("&") if each.startswith(("region=", "endpoint=")))
    return f"{text}?{server}" if server else text


def _keys(given: Given) -> AuditKeys:
    from toque.registry.audit_keys import AuditKeys

    keys, file = AuditKeys.of_environment(os.environ), _settings(given).audit_key_file
    return keys if keys or not file.exists() else AuditKeys.of_file(file)


def open_audited(given: Given, url: str | None = None) -> ObjectStore:
    """Open a store with its audit keys: those that a variable names, else those in the state folder if they are this store's.

    url: of another than the one that is given or found here.
    """
    from toque.ray_apps.local.audit_key import is_key_of
    from toque.registry import open_store
    from toque.registry.audit_keys import AuditKeys

    settings, keys = _settings(given), AuditKeys.of_environment(os.environ)
    address = url or settings.store_url
    if not keys and settings.audit_key_file.exists():
        own = AuditKeys.of_file(settings.audit_key_file)
        if is_key_of(own, address, settings):
            return open_store(address, audit_keys=own)
        note(
            f"the audit key in {settings.audit_key_file} is not one of {address}, which is read without; name its own in "
            "TOQUE_AUDIT_KEY_FILE"
        )
    return open_store(address, audit_keys=keys)


def open_copy(url: str, of: ObjectStore) -> ObjectStore:
    """Open the store that another is copied to, under the same audit keys."""
    from toque.registry import open_store

    return open_store(url, audit_keys=of.audit_keys)


def _target(target: str) -> ObjectStore:
    """Open where heads are published: a url, or the path of a folder."""
    from toque.registry import open_store

    return open_store(target if "://" in target else Path(target).absolute().as_uri())


def _key_file(given: Given) -> Path:
    """Find the file of the audit keys. Raises: UsageError if they come from a variable, or there are none."""
    file = _settings(given).audit_key_file
    if not file.exists():
        raise UsageError(
            f"no audit key in {file}; `toque up` makes one, or write `openssl rand -hex 32` to a file of mode 600 and "
            "name it in TOQUE_AUDIT_KEY_FILE"
        )
    return file


def _write(file: Path, lines: list[str]) -> None:
    from toque.ray_apps.local.state_file import write_private

    write_private(file, "".join(f"{line}\n" for line in lines))


@contextmanager
def failing() -> Iterator[None]:
    """Turn the registry's errors into one line. Raises: Failed; UsageError for a malformed url or key."""
    from toque.registry import InvalidInput, RegistryError

    try:
        yield
    except InvalidInput as error:
        raise UsageError(str(error)) from error
    except RegistryError as error:
        raise Failed(str(error)) from error
