"""Nearest neighbours over the vectors of feature views: exact, by an index, and as of any time.

Must not know where a query comes from; a text is embedded by what the caller passes.
"""

from toque.featurestore.vectors.builds import IndexBuild, IndexBuilds, indexed_fields
from toque.featurestore.vectors.following import FOLLOWERS
from toque.featurestore.vectors.opened import Options, RecallTooLow, of_vectors, refresh, search
from toque.featurestore.vectors.searching import MOST, Ask, Embed, Neighbour, Neighbours, Where

__all__ = [
    "FOLLOWERS",
    "MOST",
    "Ask",
    "Embed",
    "IndexBuild",
    "IndexBuilds",
    "Neighbour",
    "Neighbours",
    "Options",
    "RecallTooLow",
    "Where",
    "indexed_fields",
    "of_vectors",
    "refresh",
    "search",
]
