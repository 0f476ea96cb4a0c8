"""Maintenance of offline feature tables as functions for a schedule: compact nightly, expire and erase old rows.

All are safe beside writers, materialization and each other, and may be killed and repeated at any time.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from toque.featurestore import Upkeep, compact, erase, expire
from toque.functions.arguments import Views
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Retries
from toque.functions.runtime.function import function

_MIB = 2**20


@function(http=True, timeout_s=3600, retries=Retries(max_attempts=3), max_concurrency=1)
def compact_features(
    views: Views = None,
    file_mib: Annotated[
        int, Field(ge=1, le=16_384, description="About how large a merged file may become, in MiB.")
    ] = 128,
) -> list[Upkeep]:
    """Merge the small files of each event day of views; no row changes."""
    features = context().features()
    names = _names(views)
    return [compact(features, name, file_bytes=file_mib * _MIB) for name in names]


@function(http=True, timeout_s=3600, retries=Retries(max_attempts=3), max_concurrency=1)
def expire_features(
    keep_days: Annotated[
        dict[str, Annotated[float, Field(gt=0, le=36_500)]],
        Field(description="Days that rows are kept, by the name of the view; at least the view's ttl."),
    ],
) -> list[Upkeep]:
    """Remove old event days from views' tables; older versions of a table keep them until `erase_features`.

    Raises: InvalidDefinition for a view without ttl, or a longer one.
    """
    features = context().features()
    return [expire(features, view, keep=timedelta(days=days)) for view, days in keep_days.items()]


@function(http=True, timeout_s=3600, retries=Retries(max_attempts=3), max_concurrency=1)
def erase_features(
    views: Views = None,
    grace_days: Annotated[
        float,
        Field(
            ge=1,
            le=36_500,
            description="Days that a file must be out of use before it is deleted; at least 1.",
        ),
    ] = 30.0,
) -> list[Upkeep]:
    """Delete files that compaction and expiry have taken out of use; training sets keep their own rows.

    Versions of the tables that needed such a file cannot be read again.
    """
    features = context().features()
    return [erase(features, name, grace=timedelta(days=grace_days)) for name in _names(views)]


def _names(views: list[str] | None) -> list[str]:
    return [view.name for view in context().features().list_feature_views()] if views is None else views
