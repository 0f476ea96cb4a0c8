"""Vector indexes as functions: bring them up to date on a schedule, and tell how good and how current they are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from toque.featurestore import FeatureStoreError, FeatureView, Metric, VectorIndex
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Retries
from toque.functions.runtime.declaration.command import View
from toque.functions.runtime.function import function

__all__ = ["IndexRefreshError", "VectorIndexStatus", "refresh_vector_indexes", "vector_indexes"]

IndexedViews = Annotated[
    list[str] | None, Field(description="Names of feature views; all that declare an index unless given.")
]


INDEX_VIEW = View(
    columns="view | field | metric | build | rows | behind | recall | built: built_at",
    wide="least recall: least_recall | text model: text_model",
    empty="no feature view declares a vector index",
)


class VectorIndexStatus(BaseModel, frozen=True):
    """State of an index over a vector field.

    build: number of its newest build, None before the first. rows: versions of rows in it, and behind: rows in the offline
    table that it lacks, which searches compare one by one. recall: share of the ten nearest that it was measured to find.
    refreshed: whether this call made the build.
    """

    view: str
    field: str
    metric: Metric
    text_model: str
    least_recall: float
    build: int | None = None
    rows: int = 0
    behind: int = 0
    recall: float | None = None
    built_at: datetime | None = None
    refreshed: bool = False


class IndexRefreshError(FeatureStoreError):
    """Some indexes could not be refreshed; all others were."""


@function(
    http=True,
    timeout_s=4 * 3600,
    retries=Retries(max_attempts=2),
    max_concurrency=1,
    command="features refresh-vectors VIEWS",
    view=INDEX_VIEW,
)
def refresh_vector_indexes(views: IndexedViews = None) -> list[VectorIndexStatus]:
    """Bring the vector indexes of views up to date with their offline tables; only rows that are new are read.

    Safe to repeat, and to kill, at any time.
    Raises: IndexRefreshError, once all others had their turn, such as for a recall that is too low; UnknownDefinition.
    """
    features = context().features()
    done: list[VectorIndexStatus] = []
    failed: list[str] = []
    for view, index in _declared(views):
        try:
            built = features.refresh_index(view, index.field)
        except FeatureStoreError as error:
            failed.append(str(error))
        else:
            done.append(_status(view, index, refreshed=built is not None))
    if failed:
        raise IndexRefreshError("; ".join(failed))
    return done


@function(http=True, role="viewer", timeout_s=600, command="features vectors VIEWS", view=INDEX_VIEW)
def vector_indexes(views: IndexedViews = None) -> list[VectorIndexStatus]:
    """Tell of the vector indexes of views how many rows they have and lack, and how many of the nearest they find.

    Raises: UnknownDefinition.
    """
    return [_status(view, index, refreshed=False) for view, index in _declared(views)]


def _declared(views: Sequence[str] | None) -> list[tuple[FeatureView, VectorIndex]]:
    features = context().features()
    found = (
        features.list_feature_views()
        if views is None
        else [features.get_feature_view(name) for name in views]
    )
    return [(view, index) for view in found for index in view.indexes]


def _status(view: FeatureView, index: VectorIndex, *, refreshed: bool) -> VectorIndexStatus:
    features = context().features()
    build = features.builds(view.stored_as, index.field).newest()
    version = features.offline.version(view)
    stored = sum(file.rows for file in version.files) if version is not None else 0
    described = {
        "view": view.name,
        "field": index.field,
        "metric": index.metric,
        "text_model": index.text_model,
        "least_recall": index.least_recall,
        "refreshed": refreshed,
        "behind": stored if build is None else max(stored - build.rows, 0),
    }
    if build is not None:
        built = {"rows": build.rows, "recall": build.recall, "built_at": build.built_at}
        described |= {"build": build.number} | built
    return VectorIndexStatus.model_validate(described)
