"""Loads the rows of a view from the batch source that it declares, and writes what a model is asked about beside them."""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from toque.featurestore import BatchSource, FeatureView
from toque.functions.features.entity_rows import EVENT_TIMESTAMP, LABEL_KNOWN_AT
from toque.functions.features.load_rows import LoadedRows
from toque.functions.features.sources import refresh_features
from toque.functions.runtime.context import context
from toque.registry import InvalidInput, Table
from toque.registry.store import check_table_name

__all__ = ["load_declared"]


def load_declared(
    view: FeatureView, *, entities: str, label: pl.Expr | str, label_delay: timedelta = timedelta(0)
) -> LoadedRows:
    """Load what is new at a view's batch source, bring it into the view, and write the table of entities from all of its rows.

    view: applied already, with `events`. entities: name of the table of entities, which is replaced as a whole, at once: key, time
    and label of each row. label: a column of the source, or an expression of its columns that is named as the label.
    label_delay: how long after its time a row's label becomes known. Raises: InvalidInput if the view has no batch source or that has
    no rows; RefreshError.
    """
    if not isinstance(view.events, BatchSource):
        raise InvalidInput(
            f"feature view {view.name!r} declares no batch source; give it events=BatchSource(…)"
        )
    done = refresh_features([view.name])
    used, expression = context(), pl.col(label) if isinstance(label, str) else label
    keys = [key.name for key in view.join_keys]
    read = used.features().source_table(view.events).rows(columns=[*keys, *expression.meta.root_names()])
    rows = pl.DataFrame(read)
    if not rows.height:
        raise InvalidInput(f"batch source {view.events.name!r} has no rows; is the file empty?")
    asked = rows.select(
        *keys, EVENT_TIMESTAMP, expression, (pl.col(EVENT_TIMESTAMP) + label_delay).alias(LABEL_KNOWN_AT)
    )
    Table(used.store, check_table_name(entities, what="entities")).overwrite(asked.to_arrow())
    name = expression.meta.output_name()
    return LoadedRows(
        rows=rows.height,
        written=sum(each.rows for each in done.views),
        labelled=rows.height - asked[name].null_count(),
    )
