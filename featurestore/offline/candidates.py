"""Stored rows that can be the answer of some entity row, read in steps: a join that holds few rows of a large table.

Of any part of a table only its candidates count (see `prefilter`), and candidates of candidates are enough: so the rows read
so far are cut down again whenever they have doubled, and memory follows the entity rows, whatever the table's size.
"""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.encoding import microseconds
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP
from toque.featurestore.definitions.views import FeatureView, Projection
from toque.featurestore.offline.partitioning import Hashes, key_hashes
from toque.featurestore.offline.pinned_retrieval import (
    PinnedRetrieval,
    attach,
    finish,
    stored_view,
    typed_keys,
)
from toque.featurestore.offline.prefilter import Prefilter
from toque.featurestore.rows import offline_schema

ROWS_PER_STEP = 100_000
_ENTITY_ROWS_PER_STEP = 250_000


def join_in_steps(job: PinnedRetrieval, *, step_rows: int = ROWS_PER_STEP) -> pa.Table:
    """Compute the rows of `RetrievalJob.to_arrow`, reading the stored rows in steps.

    step_rows: stored rows that are read at once.
    """
    table = job.entities
    for lookup in job.retrieval.lookups:
        rows = answers_of(job, lookup, step_rows=step_rows)
        table, _ = attach(table, rows, lookup, as_known=job.reads_as_known(lookup))
    return finish(table, job.entities.column_names, job.retrieval)


def answers_of(job: PinnedRetrieval, lookup: Projection, *, step_rows: int = ROWS_PER_STEP) -> pa.Table:
    """Read the stored rows of a lookup that can be the answer of some entity row."""
    view, prefilter = stored_view(lookup), prefilter_of(job, lookup)
    snapshot = job.versions[view.name]
    version = None if snapshot is None else job.offline.version(view, snapshot.version)
    if version is None or prefilter is None:
        return offline_schema(view).empty_table()
    start, end = job.bounds(lookup)
    files = [file for file in version.files if file.may_hold(start, end)]
    known_else = job.known_else(lookup)
    read = job.offline.batches(
        view, version, files, start=start, end=end, rows=step_rows, known_else=known_else
    )
    return candidates_of((rows for rows, _ in read), prefilter, view, as_known=job.reads_as_known(lookup))


def candidates_of(
    parts: Iterable[pa.Table], prefilter: Prefilter, view: FeatureView, *, as_known: bool
) -> pa.Table:
    """Select from parts of a view's rows those that can be an answer, in the order of the parts."""
    keys = [key.name for key in view.join_keys]

    def chosen(rows: pa.Table) -> pa.Table:
        hashes = key_hashes(rows, keys)
        found = prefilter.candidates(rows, hashes, keys=keys, ttl=view.ttl, as_known=as_known)
        return rows.take(pa.array(found))

    kept, waiting = list[pa.Table](), list[pa.Table]()
    for rows in parts:
        waiting.append(chosen(rows))
        before = sum(part.num_rows for part in kept)
        if sum(part.num_rows for part in waiting) > max(before, len(prefilter.moments)):
            kept, waiting = [chosen(pa.concat_tables([*kept, *waiting]))], []
    return pa.concat_tables([*kept, *waiting] or [offline_schema(view).empty_table()])


def prefilter_of(job: PinnedRetrieval, lookup: Projection) -> Prefilter | None:
    """Build the prefilter of a job's entity rows; None if it has none."""
    count = job.entities.num_rows
    if not count:
        return None
    slices = (job.entities.slice(at, _ENTITY_ROWS_PER_STEP) for at in range(0, count, _ENTITY_ROWS_PER_STEP))
    pieces = ((entity_hashes(rows, lookup), microseconds(rows.column(EVENT_TIMESTAMP))) for rows in slices)
    times = pc.min_max(job.entities.column(EVENT_TIMESTAMP).cast(pa.int64())).as_py()
    return Prefilter.of(pieces, rows=count, first_us=times["min"], last_us=times["max"])


def entity_hashes(entities: pa.Table, lookup: Projection) -> Hashes:
    """Hash the keys of entity rows in the view's types, so that they hash as in the view's rows."""
    return key_hashes(typed_keys(entities, lookup), lookup.key_columns)
