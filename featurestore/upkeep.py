"""Maintenance of offline tables: compaction, expiry of old rows, and deletion of unused files.

Each operation is one Delta commit, so a reader sees the table before or after it, appends go on meanwhile, and a kill
leaves only files that no version names. Older versions stay readable, and with them every training set's lineage, until
`erase` deletes their files.
"""

from datetime import timedelta

from deltalake import DeltaTable
from pydantic import BaseModel, ConfigDict

from toque.featurestore.definitions.fields import EVENT_DAY
from toque.featurestore.definitions.views import FeatureView, ViewOrName
from toque.featurestore.errors import InvalidDefinition
from toque.featurestore.store import FeatureStore
from toque.registry.store.tables.upkeep import FILE_BYTES, compact_table, vacuum_table

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
    table = fs.offline.table(found)
    if not table.exists():
        return Upkeep(view=found.name)
    removed, added = compact_table(table, file_bytes=file_bytes)
    return Upkeep(view=found.name, table_version=table.version(), added=added, removed=removed)


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
    done = [_expired(fs, each, first_kept) for each in _generations(fs, found)]
    removed, rows = sum(each.removed for each in done), sum(each.rows for each in done)
    return done[-1].model_copy(update={"removed": removed, "rows": rows})


def _expired(fs: FeatureStore, view: FeatureView, first_kept: str) -> Upkeep:
    """Remove the event days before one from the table of one generation."""
    version = fs.offline.version(view)
    if version is None:
        return Upkeep(view=view.name)
    rows = sum(file.rows for file in version.files if file.day < first_kept)
    if not rows:  # an empty delete would still be a commit
        return Upkeep(view=view.name, table_version=version.number)

    def delete(opened: DeltaTable) -> Upkeep:
        removed = opened.delete(f"{EVENT_DAY} < '{first_kept}'").get("num_removed_files", 0)
        return Upkeep(view=view.name, table_version=opened.version(), removed=removed, rows=rows)

    return fs.offline.table(view).commit(delete)


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
    tables = [fs.offline.table(each) for each in _generations(fs, found)]
    removed = sum(vacuum_table(table, grace=grace) for table in tables if table.exists())
    newest = tables[-1].version() if tables[-1].exists() else None
    return Upkeep(view=found.name, table_version=newest, removed=removed)
