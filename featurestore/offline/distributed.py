"""Point-in-time joins and window aggregates over Ray Data, for tables that do not fit one machine.

Both are functions of all rows of a key, so rows are shuffled by key into partitions and each partition runs the local
code: identical results, whatever the number of blocks or partitions. Nothing is collected on the driver. Of the
feature store only this module and `online.spread` import Ray; `offline.partitioning` packs rows for the shuffle.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data.catalog import Catalog, ResolvedSource
from ray.data.context import ShuffleStrategy

from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.definitions.expectations import Freshness
from toque.featurestore.definitions.fields import EVENT_DAY, EVENT_TIMESTAMP
from toque.featurestore.definitions.views import FeatureView, Projection, ViewOrName
from toque.featurestore.errors import InvalidRows, UnknownDefinition
from toque.featurestore.offline.partitioning import ENTITIES, PART, ROWS, key_hashes, pack, unpack
from toque.featurestore.offline.prefilter import (
    ROWS_PER_STEP,
    Prefilter,
    candidates_of,
    entity_hashes,
    prefilter_of,
)
from toque.featurestore.offline.retrieval import (
    Features,
    PinnedRetrieval,
    Retrieval,
    Times,
    attach,
    check_entities,
    finish,
    stored_view,
    within_ttl,
)
from toque.featurestore.offline.tables import OfflineStore, storable
from toque.featurestore.offline.versions import File, Version, scan
from toque.featurestore.rows import check_rows, computing, conform, offline_schema
from toque.registry.store import ObjectStore, TableSnapshot
from toque.registry.store.tables.files import file_system

ROW = "toque_row"  # number of an entity row, to give rows back in order

_MIN_PARTITIONS = 8
_ROWS_PER_PARTITION = 500_000
_ROWS_PER_BLOCK = 250_000
# A shuffle cuts each task's rows into as many pieces as there are tasks, and pieces below 100 kB Ray keeps in the driver's own
# memory: few tasks of many rows each, so that pieces stay larger than that.
_TASKS, _MOST_FILTERED = 32, 1_250_000
MOST_ROWS_PER_TASK = 1_000_000

Dataset = ray.data.Dataset
_NEWEST = pa.schema([(EVENT_TIMESTAMP, TIMESTAMP)])


class Store(Protocol):
    """What the functions of this module need of a `FeatureStore`."""

    offline: OfflineStore

    def now(self) -> datetime:
        """Current time of the store's clock."""
        ...

    def get_feature_view(self, name: str) -> FeatureView:
        """The applied view of that name. Raises: UnknownDefinition."""
        ...

    def get_historical_features(
        self, entity_df: pa.Table, features: Features, *, as_known: bool = False
    ) -> PinnedRetrieval:
        """A retrieval of features for checked entity rows."""
        ...

    def check_fresh(self, view: FeatureView, rows: pa.Table) -> None:
        """Check rows against the view's `Freshness`. Raises: UnexpectedRows."""
        ...


def historical(job: PinnedRetrieval, *, partitions: int | None = None) -> Dataset:
    """Compute a retrieval job as a dataset: its entity rows, in order, with the features appended.

    partitions: of the keys; by default one for half a million stored rows, each CPU of the cluster, and at least 8.
    """
    numbered = job.entities.append_column(ROW, pa.array(np.arange(job.entities.num_rows)))
    size = _rows_per_task(2 * numbered.num_rows)  # narrow rows, so half as many blocks
    starts = range(0, max(numbered.num_rows, 1), size)
    dataset = ray.data.from_arrow([numbered.slice(at, size) for at in starts])
    count = _partitions(partitions, job, numbered.num_rows)
    return _joined(dataset, job, job.entities.column_names, partitions=count)


def get_historical_features(
    store: Store,
    entities: Dataset,
    features: Features,
    *,
    row_number: str,
    as_known: bool = False,
    partitions: int | None = None,
    between: Times = (None, None),
) -> Dataset:
    """Retrieve as `FeatureStore.get_historical_features` does, for an entity table that is itself a dataset.

    row_number: its Int64 column that numbers the rows; they come back in that order. between: first and last event time
    of its rows, as far as known, so that files of other times are not read.
    Raises: InvalidRows, UnknownDefinition.
    """
    columns = entities.schema().names
    if row_number not in columns:
        raise InvalidRows(f"entity table: row number column {row_number!r} is missing; got {columns}")
    job = store.get_historical_features(_empty(entities), features, as_known=as_known)
    return join_dataset(job, entities, row_number=row_number, partitions=partitions, between=between)


def join_dataset(
    job: PinnedRetrieval,
    entities: Dataset,
    *,
    row_number: str,
    partitions: int | None = None,
    between: Times = (None, None),
    rows: int = 0,
) -> Dataset:
    """Retrieve as `get_historical_features` does, at the versions that `job` has fixed for no rows of the entity table.

    rows: of the entity table, as far as known: a partition holds half a million of them.
    """
    columns = job.entities.column_names
    columns = columns if row_number in columns else [*columns, row_number]
    checked = _mapped(entities, partial(_checked, retrieval=job.retrieval, row_number=row_number))
    return _joined(checked, job, columns, partitions=_partitions(partitions, job, rows), between=between)


def _empty(dataset: Dataset) -> pa.Table:
    schema = dataset.schema()
    return pa.schema(list(zip(schema.names, schema.types, strict=True))).empty_table()


def _checked(entities: pa.Table, *, retrieval: Retrieval, row_number: str) -> pa.Table:
    return check_entities(entities, retrieval).append_column(ROW, entities.column(row_number))


def _joined(
    entities: Dataset,
    job: PinnedRetrieval,
    columns: Sequence[str],
    *,
    partitions: int,
    between: Times = (None, None),
) -> Dataset:
    for lookup in job.retrieval.lookups:
        left = _mapped(entities, partial(_pack_entities, lookup=lookup, partitions=partitions))
        keys = [key.name for key in stored_view(lookup).join_keys]
        packed = partial(_pack_rows, keys=keys, partitions=partitions)
        right = _mapped(_stored_rows(job, lookup, between), packed)
        join = partial(_join_partition, lookup=lookup, as_known=job.reads_as_known(lookup))
        entities = _by_partition(left.union(right), join)
    finished = partial(finish, entity_columns=[*columns, ROW], retrieval=job.retrieval)
    in_order = _mapped(entities, finished).sort(ROW).drop_columns([ROW])
    in_order.context.execution_options.preserve_order = True  # else blocks come as their tasks end
    return in_order


def _partitions(given: int | None, job: PinnedRetrieval | None = None, rows: int = 0) -> int:
    """Number of partitions of the keys: for each CPU one at least, and none of many more rows than another."""
    cpus = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]  # Ray leaves it so
    most = rows + (0 if job is None else job.most_stored_rows())
    return given or max(_MIN_PARTITIONS, int(cpus), most // _ROWS_PER_PARTITION)


def _stored_rows(job: PinnedRetrieval, lookup: Projection, between: Times) -> Dataset:
    """Read, in tasks, the view's rows that can be an answer; with all features, as ties may need them."""
    view = stored_view(lookup)
    snapshot = job.versions[view.name]
    if snapshot is None:
        return ray.data.from_arrow(offline_schema(view).empty_table())
    version = job.offline.version(view, snapshot.version)
    prefilter = _prefilter(job, lookup)
    most = MOST_ROWS_PER_TASK if prefilter is None else _MOST_FILTERED
    bounds = job.bounds(lookup) if job.entities.num_rows else within_ttl(between, view)
    shares = file_shares(version.files, bounds, most=most) if version else ()
    tasks = [{"files": files} for files in shares]
    if not tasks:
        return ray.data.from_arrow(offline_schema(view).empty_table())
    read = partial(
        _read_files,
        offline=job.offline,
        view=view,
        number=snapshot.version,
        known_else=job.known_else(lookup),
    )
    if prefilter is not None:
        read = partial(
            _read_answers, **read.keywords, as_known=job.reads_as_known(lookup), prefilter=prefilter
        )
    return _mapped(ray.data.from_items(tasks, override_num_blocks=len(tasks)), read)


def _rows_per_task(rows: int, *, most: int = MOST_ROWS_PER_TASK) -> int:
    return min(max(rows // _TASKS, _ROWS_PER_BLOCK), most)


def file_shares(
    files: Sequence[File], bounds: Times = (None, None), *, most: int = MOST_ROWS_PER_TASK
) -> Iterator[list[int]]:
    """Group the files that may hold rows within the bounds into shares of one task each, by their index."""
    candidates = [(number, file.rows) for number, file in enumerate(files) if file.may_hold(*bounds)]
    enough = _rows_per_task(sum(rows for _, rows in candidates), most=most)
    share: list[int] = []
    rows = 0
    for number, more in candidates:
        share.append(number)
        rows += more
        if rows >= enough:
            yield share
            share, rows = [], 0
    if share:
        yield share


# Versions opened by this worker, cached because opening takes time for every file of a version.
_opened: dict[tuple[str, int], Version] = {}
_MOST_OPENED = 4


def _version(offline: OfflineStore, view: FeatureView, number: int) -> Version | None:
    key = (offline.table(view).uri, number)
    version = _opened.get(key) or offline.version(view, number)
    if version is not None and key not in _opened:
        if len(_opened) >= _MOST_OPENED:
            _opened.clear()
        _opened[key] = version
    return version


def _read_files(
    tasks: pa.Table, *, offline: OfflineStore, view: FeatureView, number: int, known_else: str | None
) -> pa.Table:
    version, files = _files(tasks, offline=offline, view=view, number=number)
    return scan(version, files, offline_schema(view), known_else=known_else)


def _files(
    tasks: pa.Table, *, offline: OfflineStore, view: FeatureView, number: int
) -> tuple[Version, list[File]]:
    version = _version(offline, view, number)
    if version is None:
        raise UnknownDefinition(f"feature view {view.name!r}: version {number} of its table cannot be read")
    return version, [version.files[at] for numbers in tasks.column("files").to_pylist() for at in numbers]


def _read_answers(
    tasks: pa.Table,
    *,
    offline: OfflineStore,
    view: FeatureView,
    number: int,
    known_else: str | None,
    as_known: bool,
    prefilter: "ray.ObjectRef[Prefilter]",
) -> pa.Table:
    """Read rows of the files that can be an entity row's answer, in steps, since few of them are."""
    version, files = _files(tasks, offline=offline, view=view, number=number)
    read = offline.batches(
        view, version, files, start=None, end=None, rows=ROWS_PER_STEP, known_else=known_else
    )
    return candidates_of((rows for rows, _ in read), ray.get(prefilter), view, as_known=as_known)


def _mapped(dataset: Dataset, compute: Callable[[pa.Table], pa.Table]) -> Dataset:
    return dataset.map_batches(compute, batch_format="pyarrow", batch_size=None)


def _pack_entities(table: pa.Table, *, lookup: Projection, partitions: int) -> pa.Table:
    return pack(table, entity_hashes(table, lookup), side=ENTITIES, partitions=partitions)


def _pack_rows(table: pa.Table, *, keys: Sequence[str], partitions: int) -> pa.Table:
    return pack(table, key_hashes(table, keys), side=ROWS, partitions=partitions)


def _prefilter(job: PinnedRetrieval, lookup: Projection) -> "ray.ObjectRef[Prefilter] | None":
    """Put the prefilter in Ray's store, once for all nodes; None where the entity table is a lazy dataset."""
    prefilter = prefilter_of(job, lookup)
    return None if prefilter is None else ray.put(prefilter)


def _join_partition(group: pa.Table, *, lookup: Projection, as_known: bool) -> pa.Table:
    entities, rows = unpack(group, ENTITIES), unpack(group, ROWS)
    if entities is None:  # no entity row has these keys
        return pa.table({})
    if rows is None:
        rows = offline_schema(stored_view(lookup)).empty_table()
    return attach(entities, rows, lookup, as_known=as_known)[0]


def compute_offline(
    store: Store,
    view: ViewOrName,
    events: Dataset,
    *,
    since: datetime | None = None,
    partitions: int | None = None,
) -> TableSnapshot:
    """Compute a view's rows as `FeatureStore.compute_offline` does, from a dataset of events, in one commit.

    Raises: InvalidRows, UnknownDefinition (also if the view has no source).
    """
    found = store.get_feature_view(view if isinstance(view, str) else view.name)
    keys = [key.name for key in found.join_keys]
    rows = by_key(events, computing(found, since), keys=keys, partitions=partitions)
    return write_offline(store, found, rows, partitions=partitions)


def by_key(
    dataset: Dataset,
    compute: Callable[[pa.Table], pa.Table],
    *,
    keys: Sequence[str],
    partitions: int | None = None,
) -> Dataset:
    """Run `compute` on all rows of each key together; a partition has many keys, and no key is in two."""
    count = _partitions(partitions)
    packed = _mapped(dataset, partial(_pack_rows, keys=list(keys), partitions=count))
    return _by_partition(packed, partial(_computed, compute=compute))


def _by_partition(packed: Dataset, compute: Callable[[pa.Table], pa.Table]) -> Dataset:
    """Run `compute` on the packed rows of each partition.

    Sorts the few packed rows, in tasks: the hash shuffle starts actors for every shuffle, which took ten times
    as long for a table of 300,000 rows.
    """
    packed.context.shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED
    return packed.groupby(PART).map_groups(compute, batch_format="pyarrow")


def _computed(group: pa.Table, *, compute: Callable[[pa.Table], pa.Table]) -> pa.Table:
    return compute(unpack(group, ROWS))


def write_offline(
    store: Store, view: ViewOrName, rows: Dataset, *, partitions: int | None = None
) -> TableSnapshot:
    """Write rows as `FeatureStore.write_offline` does, from a dataset: one commit, and one file a day.

    Expectations are checked on each block, `Freshness` on all of them: then the rows are computed before any is
    written, and Ray keeps them meanwhile, spilled to disk beyond its memory.
    Raises: InvalidRows, UnknownDefinition.
    """
    found = store.get_feature_view(view if isinstance(view, str) else view.name)
    table = store.offline.create(found)
    shaped = _mapped(rows, partial(_shaped, view=found, now=store.now()))
    if any(isinstance(each, Freshness) for each in found.expectations):
        shaped = shaped.materialize()
        newest = _mapped(shaped, _newest).take_all()
        store.check_fresh(found, pa.Table.from_pylist(newest, schema=_NEWEST))
    by_day = by_key(shaped, _unchanged, keys=[EVENT_DAY], partitions=partitions)
    by_day.write_delta(table.name, catalog=StoreCatalog(table.store), partition_by=[EVENT_DAY])
    return table.snapshot()


def _shaped(rows: pa.Table, *, view: FeatureView, now: datetime) -> pa.Table:
    typed = conform(view, rows, clock=lambda: now)
    check_rows(view, typed)
    return storable(typed)


def _newest(rows: pa.Table) -> pa.Table:
    return pa.table([pa.array([pc.max(rows.column(EVENT_TIMESTAMP)).as_py()], TIMESTAMP)], schema=_NEWEST)


def _unchanged(rows: pa.Table) -> pa.Table:
    return rows


class StoreCatalog(Catalog):
    """Catalog of the tables of a store, by their names.

    Ray resolves a table again when its credentials have expired; workers renew theirs by themselves.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def resolve(self, table: str, **_: Any) -> ResolvedSource:
        """Find where the table `table` is, and how it is reached."""
        uri, options = self.store.table_location(table)
        if not options:
            return ResolvedSource(path=uri)
        return ResolvedSource(path=uri, filesystem=file_system(self.store, table), storage_options=options)
