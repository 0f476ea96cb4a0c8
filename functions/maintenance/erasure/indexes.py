"""Vector indexes of views of which rows were erased: they hold copies of the rows, and are built anew without them."""

from __future__ import annotations

from collections.abc import Iterable

from toque.featurestore import FeatureStore


def drop_indexes(features: FeatureStore, tables: Iterable[str]) -> int:
    """Drop the indexes of the views whose tables lost rows; returns their number. Searches are exact until the next refresh.

    tables: names such as `features/default/pages`.
    """
    prefix = f"features/{features.project}/"
    views = sorted({name.removeprefix(prefix) for name in tables if name.startswith(prefix)})
    return sum(features.drop_indexes(view) for view in views if "/" not in view)
