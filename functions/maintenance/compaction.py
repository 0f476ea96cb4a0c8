"""Compaction of tables as functions on a schedule: all of them every night, the open day of the log every hour."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, Field

from toque.featurestore import compact
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Cron, Retries
from toque.functions.runtime.function import function
from toque.registry import Table
from toque.registry.store import table_names
from toque.registry.store.tables.naming import is_log, is_stream
from toque.registry.store.tables.upkeep import compact_days, compact_table, trim_log, vacuum_table

_MIB = 2**20
_DRAINED = ("predictions/", "predictions_large/", "labels")
_MANY_FILES = 32
"""Files of one day from which they are merged; a busy model's drain makes 360 an hour."""


class Compaction(BaseModel, frozen=True):
    """Files of one table that were merged, that came of it, and that were deleted as out of use."""

    table: str
    merged: int
    made: int
    deleted: int = 0


@function(
    http=True,
    timeout_s=3600,
    retries=Retries(max_attempts=3),
    max_concurrency=1,
    schedule=Cron("17 2 * * *", jitter_s=600),
)
def compact_tables(
    file_mib: Annotated[
        int, Field(ge=1, le=16_384, description="About how large a merged file may become, in MiB.")
    ] = 128,
    grace_days: Annotated[
        float,
        Field(
            ge=1,
            le=36_500,
            description=(
                "Days that a file of predictions, labels or findings must be out of use before it is deleted; "
                "at least 1."
            ),
        ),
    ] = 7.0,
) -> list[Compaction]:
    """Merge small files of the platform's tables and delete those of the log that are out of use; no row changes.

    Of streams, files that are out of use go after one day. Files of features stay for training sets until
    `erase_features`.
    """
    here = context()
    done = []
    for name in table_names(here.store):
        if is_log(name):
            table = Table(here.store, name)
            merged, made = compact_table(table, file_bytes=file_mib * _MIB)
            grace = timedelta(days=1 if is_stream(name) else grace_days)
            deleted = vacuum_table(table, grace=grace)
            done.append(Compaction(table=name, merged=merged, made=made, deleted=deleted))
    features = here.features()
    for view in features.list_feature_views():
        upkeep = compact(features, view, file_bytes=file_mib * _MIB)
        done.append(
            Compaction(
                table=f"features/{features.project}/{view.name}", merged=upkeep.removed, made=upkeep.added
            )
        )
    return done


@function(
    http=True,
    timeout_s=1800,
    retries=Retries(max_attempts=2),
    max_concurrency=1,
    schedule=Cron("41 * * * *", jitter_s=300),
)
def compact_open_days(
    file_mib: Annotated[
        int,
        Field(
            ge=1,
            le=16_384,
            description=(
                "Size in MiB from which a file is left alone, so that an hour rewrites at most so much of each day."
            ),
        ),
    ] = 128,
) -> list[Compaction]:
    """Merge the small files that the log has of yesterday and today, so that readers never open a day's thousands.

    Old entries of the logs of streams' tables go, too: a stream makes 17,000 a day.
    """
    here = context()
    now = here.clock()
    days = [f"{now - timedelta(days=back):%Y-%m-%d}" for back in (0, 1)]
    done = []
    for name in table_names(here.store):
        if name.startswith(_DRAINED):
            merged, made = compact_days(
                Table(here.store, name), days, at_least=_MANY_FILES, file_bytes=file_mib * _MIB
            )
            if merged:
                done.append(Compaction(table=name, merged=merged, made=made))
        elif is_stream(name):
            trim_log(Table(here.store, name))
    return done
