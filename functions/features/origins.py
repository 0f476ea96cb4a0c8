"""Origins of model versions: training sets, feature tables, and the parts of batch sources that they were made from."""

from __future__ import annotations

import json

from pydantic import BaseModel

from toque.functions.arguments import Model, Version
from toque.functions.features.jobs import TrainingSetLineage
from toque.functions.runtime.context import context
from toque.functions.runtime.function import function
from toque.registry import Lineage, NotFound, Table, TableSnapshot


class DatasetOrigin(BaseModel, frozen=True):
    """Table that a version was made from. training_set: where it came from, if `build_training_set` made it."""

    table: TableSnapshot
    training_set: TrainingSetLineage | None = None


class VersionOrigins(BaseModel, frozen=True):
    """Data that a model version was made from, back to the batch sources."""

    model: str
    version: int
    lineage: Lineage
    datasets: list[DatasetOrigin]


@function(http=True, role="viewer", timeout_s=60)
def version_origins(model: Model, version: Version) -> VersionOrigins:
    """Trace a model version back to its training sets, their feature tables and batch sources, with what was read of each.

    Raises: NotFound.
    """
    lineage = context().registry().get_version(model, version).lineage
    datasets = [DatasetOrigin(table=each, training_set=_training_set(each)) for each in lineage.datasets]
    return VersionOrigins(model=model, version=version, lineage=lineage, datasets=datasets)


def _training_set(table: TableSnapshot) -> TrainingSetLineage | None:
    """Find the lineage of a training set; None for another table, or one that is no longer there."""
    try:
        kept = Table(context().store, table.name).metadata(table.version)
    except NotFound:
        return None
    return (
        TrainingSetLineage.model_validate(json.loads(kept["training_set"]))
        if "training_set" in kept
        else None
    )
