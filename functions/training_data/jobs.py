"""Functions on sample sets: written from a table such as a training set, and deleted."""

from __future__ import annotations

from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Retries
from toque.functions.runtime.function import function
from toque.functions.training_data.index import SetRef, ShardFormat, delete_set
from toque.functions.training_data.writer import write_table
from toque.registry import TableSnapshot


@function(http=True, timeout_s=3600, retries=Retries(max_attempts=3))
def write_sample_set(
    dataset: TableSnapshot,
    name: str,
    columns: list[str] | None = None,
    form: ShardFormat = "arrow",
    shard_mb: int = 64,
) -> SetRef:
    """Write the rows of a table's version, such as a training set, as the next version of the sample set `name`.

    columns: by default all; form: of the shards; shard_mb: size of a shard's samples in memory, of which one is held.
    Raises: NotFound; SampleSetError if the table has no rows.
    """
    return write_table(
        context().store, name, dataset, columns=columns, form=form, shard_bytes=max(1, shard_mb) << 20
    )


@function(http=True, timeout_s=3600, retries=Retries(max_attempts=3))
def delete_sample_set(sample_set: SetRef) -> SetRef:
    """Delete a version of a sample set, its index first, so that nobody opens what is being deleted; safe to repeat."""
    delete_set(context().store, sample_set)
    return sample_set
