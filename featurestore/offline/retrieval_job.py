"""A training set that is not computed yet: here as a table, or on a cluster as a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from toque.featurestore.definitions.views import Projection
from toque.featurestore.offline.retrieval import PinnedRetrieval, attach, finish, stored_view

if TYPE_CHECKING:
    import pandas as pd
    import ray.data


class RetrievalJob(PinnedRetrieval):
    """A training set that is computed when one of its `to_…` methods is called."""

    __slots__ = ()

    def to_arrow(self) -> pa.Table:
        """Compute the entity rows, in order, with the feature columns appended."""
        table = self.entities
        for lookup in self.retrieval.lookups:
            table = self._append(table, lookup)
        return finish(table, self.entities.column_names, self.retrieval)

    def to_pandas(self) -> pd.DataFrame:
        """Compute the rows of `to_arrow` as a pandas frame."""
        return self.to_arrow().to_pandas()

    def to_ray(self, *, partitions: int | None = None) -> ray.data.Dataset:
        """Compute the rows of `to_arrow` as a Ray dataset, joined partition by partition on the cluster.

        partitions: of the keys; by default as many as the cluster has CPUs, and at least 8.
        """
        from toque.featurestore.offline.distributed import (
            historical,  # late: it imports Ray, which few callers need
        )

        return historical(self, partitions=partitions)

    def _append(self, table: pa.Table, lookup: Projection) -> pa.Table:
        view = stored_view(lookup)
        as_known = self.reads_as_known(lookup)
        joined, ties = attach(table, self.read(lookup, lookup.features), lookup, as_known=as_known)
        if ties and set(lookup.features) != set(view.features):  # the whole row decides a tie
            joined, _ = attach(table, self.read(lookup, view.features), lookup, as_known=as_known)
        return joined
