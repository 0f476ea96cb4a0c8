"""Times of the rows behind features that were read for one entity at some moment."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from toque.featurestore.definitions.encoding import RowLayout
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.definitions.views import Projection
from toque.featurestore.offline import point_in_time
from toque.featurestore.offline.candidates import answers_of
from toque.featurestore.offline.pinned_retrieval import stored_view, typed_keys
from toque.featurestore.retrieval import Features
from toque.featurestore.store import FeatureStore


@dataclass(frozen=True, slots=True)
class RowTime:
    """Row of a view that a read at a moment finds by point in time; the times are None where there is none.

    columns: of the output, with the feature that each is. event_at: the row's time; created_at: when it was written.
    """

    view: str
    columns: Mapping[str, str]
    event_at: datetime | None
    created_at: datetime | None


def row_times(
    fs: FeatureStore, keys: Mapping[str, Any], features: Features, *, at: datetime
) -> list[RowTime]:
    """Find the row of each stored view that features of one entity came from at a moment, as far as it was written by then.

    keys: values of join keys by column; a view whose keys are not all among them is left out.
    Raises: UnknownDefinition; InvalidRows for a key of another type.
    """
    lookups = fs.plan_features(features).lookups
    return [_found(fs, keys, one, at) for one in lookups if set(one.key_columns) <= set(keys)]


def _found(fs: FeatureStore, keys: Mapping[str, Any], lookup: Projection, at: datetime) -> RowTime:
    view = stored_view(lookup)
    entity = pa.table({name: [keys[name]] for name in lookup.key_columns} | {EVENT_TIMESTAMP: [at]})
    job = fs.get_historical_features(entity, [lookup], as_known=True)
    rows = answers_of(job, lookup)
    match = point_in_time.search(
        typed_keys(job.entities, lookup),
        rows,
        keys=list(zip(lookup.key_columns, (key.name for key in view.join_keys), strict=True)),
        layout=RowLayout(list(view.schema)),
        ttl=view.ttl,
        as_known=True,
    )
    row = int(np.asarray(match.index)[0])
    times = (
        {name: rows.column(name)[row].as_py() for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP)}
        if row >= 0
        else {}
    )
    columns = {column: field.name for column, field in lookup.columns.items()}
    return RowTime(view.name, columns, times.get(EVENT_TIMESTAMP), times.get(CREATED_TIMESTAMP))
