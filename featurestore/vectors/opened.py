"""Opens a view's vectors for a search: the offline table's rows, and those pushed online since."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from toque.featurestore.definitions.dtypes import Vector
from toque.featurestore.definitions.encoding import RowLayout
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import InvalidDefinition
from toque.featurestore.offline.tables import OfflineStore
from toque.featurestore.online.redis_store import OnlineStore
from toque.featurestore.vectors.builds import IndexBuild, IndexBuilds, Loader
from toque.featurestore.vectors.following import FOLLOWERS
from toque.featurestore.vectors.query import Ask, Embed, Neighbours, checked_k, index_of
from toque.featurestore.vectors.refreshing import Refresh
from toque.featurestore.vectors.searched import Searched
from toque.featurestore.vectors.where import Where, conditions_of


class Source(Protocol):
    """What a search needs of a feature store."""

    offline: OfflineStore

    @property
    def place(self) -> str:
        """Store and project, for what a process keeps of them."""
        ...

    @property
    def has_online(self) -> bool:
        """Whether there is an online store."""
        ...

    @property
    def online(self) -> OnlineStore:
        """Online store of the features."""
        ...

    def now(self) -> datetime:
        """Current time of the store's clock."""
        ...

    def builds(self, view: str, field: str) -> IndexBuilds:
        """Builds of the index of a vector field."""
        ...

    def layouts(self, view: str) -> list[RowLayout]:
        """Layouts of all versions of a view."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """How a search is made.

    field: by default the view's only vector; where: conditions on other columns; at: time as of which, by default now, with
    the rows that were just pushed; exact: compare every row, even where there is an index; embed: makes the vector of a text; max_age_s: how long ago the offline table may have been
    looked at.
    """

    field: str | None = None
    k: int = 10
    where: Where | None = None
    at: datetime | None = None
    exact: bool = False
    embed: Embed | None = None
    max_age_s: float = 1.0


def search(source: Source, view: FeatureView, ask: Ask, options: Options) -> Neighbours:
    """Find the rows of a view that are nearest to what is asked.

    Raises: InvalidRows, InvalidDefinition, UnknownDefinition, OnlineStoreUnavailable.
    """
    index = index_of(view, options.field)
    k, conditions = checked_k(options.k), conditions_of(view, options.where or {})
    rows = FOLLOWERS.of(source.place, view, index.field)
    builds = source.builds(view.stored_as, index.field)
    now = rows.read(source.offline, builds, view, index, max_age_s=options.max_age_s)
    layers = now.layers
    if options.at is None and source.has_online:
        layouts = source.layouts(view.name)
        layers = rows.recent.extend(
            layers, now.version, source.online, view, layouts, max_age_s=options.max_age_s
        )
    loaded = None if options.exact else now.loaded
    searched = Searched(view, index, layers, now.version, loaded)
    at = source.now() if options.at is None else options.at
    return searched.search(ask, k=k, where=conditions, at=at, embed=options.embed)


def refresh(source: Source, view: FeatureView, field: str | None) -> IndexBuild | None:
    """Bring the index of a view up to date; returns the build, or None if no row came since the last.

    Raises: InvalidDefinition if the view declares no index; RecallTooLow.
    """
    index = index_of(view, field)
    if index not in view.indexes:
        raise InvalidDefinition(
            f"feature view {view.name!r} declares no index over {index.field!r}; give it indexes=[VectorIndex({index.field!r})]"
        )
    builds = source.builds(view.stored_as, index.field)
    made = Refresh(source.offline, builds, view, index, source.now()).run(
        Loader().newest(builds, view, index)
    )
    FOLLOWERS.expire(source.place, view.stored_as)
    return made


def of_vectors(view: FeatureView) -> bool:
    """Whether a view has a vector, so that rows pushed online are noted for searches."""
    return any(isinstance(f.dtype, Vector) for f in view.schema)
