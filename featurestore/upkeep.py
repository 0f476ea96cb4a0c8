"""Maintenance of offline tables: compaction, expiry of old rows, and deletion of unused files.

Each operation is one Delta commit, so a reader sees the table before or after it, appends go on meanwhile, and a kill
leaves only files that no version names. Older versions stay readable, and with them every training set's lineage, until
`erase` deletes their files.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from deltalake import DeltaTable
from pydantic import BaseModel, ConfigDict

from toque.featurestore.definitions.fields import EVENT_DAY
from toque.featurestore.definitions.views import FeatureView, ViewOrName
from toque.featurestore.errors import InvalidDefinition
from toque.featurestore.store import FeatureStore
from toque.registry.errors import NotFound

FILE_BYTES = 128 * 2**20
LEAST_GRACE = timedelta(days=1)  # a slower append than this could lose files that it has not committed yet


class Upkeep(BaseModel):
    """Result of maintenance on one view's table.

    table_version: after it, None if there is no table; added, removed: number of files; rows: number removed.
    """

    model_config = ConfigDict(frozen=True)

    view: str
    table_version: int | None = None
    added: int = 0
    removed: int = 0
    rows: int = 0


def compact(fs: FeatureStore, view: ViewOrName, *, file_bytes: int = FILE_BYTES) -> Upkeep:
    """Merge the small files of each event day, up to about `file_bytes` each; rows do not change.

    Raises: UnknownDefinition; Unavailable if other maintenance keeps interfering.
    """
    found = fs.get_feature_view(view if isinstance(view, str) else view.name)

    def optimize(table: DeltaTable) -> dict[str, Any]:
        done: dict[str, Any] = table.optimize.compact(target_size=file_bytes)
        return done

    version, done = _commit(fs, found, optimize)
    return Upkeep(
        view=found.name,
        table_version=version,
        added=done.get("numFilesAdded", 0),
        removed=done.get("numFilesRemoved", 0),
    )


def expire(fs: FeatureStore, view: ViewOrName, *, keep: timedelta) -> Upkeep:
    """Remove event days that ended longer than `keep` ago from a view's table and those of its earlier generations.

    Older versions of the tables still have them.

    keep: at least the view's ttl, so that no read as of now changes.
    Raises: InvalidDefinition if the view has no ttl or a longer one; UnknownDefinition.
    """
    found = fs.get_feature_view(view if isinstance(view, str) else view.name)
    if found.ttl is None:
        msg = (
            f"feature view {found.name!r} has no ttl, so the newest row of a key counts however old it is; "
            "give the view a ttl before rows of it expire"
        )
        raise InvalidDefinition(msg)
    if keep < found.ttl:
        raise InvalidDefinition(
            f"feature view {found.name!r} uses rows for {found.ttl}; keep them at least as long, not {keep}"
        )
    first_kept = (fs.now() - keep).date().isoformat()
    return _sum([_expired(fs, each, first_kept) for each in _generations(fs, found)])


def _expired(fs: FeatureStore, view: FeatureView, first_kept: str) -> Upkeep:
    """Remove the event days before one from the table of one generation."""
    old = f"{EVENT_DAY} < '{first_kept}'"
    rows = _rows_before(fs, view, first_kept)
    if not rows:  # an empty delete would still be a commit
        version = fs.offline.version(view)
        return Upkeep(view=view.name, table_version=None if version is None else version.number)
    version_number, done = _commit(fs, view, lambda table: dict(table.delete(old)))
    return Upkeep(
        view=view.name, table_version=version_number, removed=done.get("num_removed_files", 0), rows=rows
    )


def _generations(fs: FeatureStore, view: FeatureView) -> list[FeatureView]:
    """List the generations of a view before the one in force, which comes last."""
    return [
        *(
            each
            for each in fs.list_generations()
            if each.name == view.name and each.generation < view.generation
        ),
        view,
    ]


def _sum(done: list[Upkeep]) -> Upkeep:
    """Sum what was done to the tables of all generations of a view, whose last one is the one in force."""
    return done[-1].model_copy(
        update={
            "removed": sum(each.removed for each in done),
            "rows": sum(each.rows for each in done),
        }
    )


def _rows_before(fs: FeatureStore, view: FeatureView, day: str) -> int:
    version = fs.offline.version(view)
    return sum(f.rows for f in version.files if f.day < day) if version else 0


def erase(fs: FeatureStore, view: ViewOrName, *, grace: timedelta) -> Upkeep:
    """Delete files that the table of no generation has named for `grace`; versions that need them become unreadable.

    grace: at least a day, so that no append that is still being written loses its files.
    Raises: InvalidDefinition for less; UnknownDefinition.
    """
    found = fs.get_feature_view(view if isinstance(view, str) else view.name)
    if grace < LEAST_GRACE:
        raise InvalidDefinition(
            f"feature view {found.name!r}: files must have been unused for at least {LEAST_GRACE}, got {grace}"
        )
    hours = int(grace / timedelta(hours=1))

    def vacuum(table: DeltaTable) -> dict[str, Any]:
        gone = table.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=True)
        return {"removed": len(gone)}

    done = [_commit(fs, each, vacuum) for each in _generations(fs, found)]
    removed = sum(result.get("removed", 0) for _, result in done)
    return Upkeep(view=found.name, table_version=done[-1][0], removed=removed)


def _commit(
    fs: FeatureStore, view: FeatureView, change: Callable[[DeltaTable], dict[str, Any]]
) -> tuple[int | None, dict[str, Any]]:
    """Run `change` on the newest version and retry on conflicts; returns the version and the result of `change`."""

    def changed(opened: DeltaTable) -> tuple[int, dict[str, Any]]:
        result = change(opened)
        return opened.version(), result

    try:
        return fs.offline.table(view).commit(changed)
    except NotFound:
        return None, {}
