"""The online feature store: packed rows in Redis, written newest-wins and read in one round trip."""

from toque.featurestore.online.materialize import Materialized, Materializer
from toque.featurestore.online.redis_store import OnlineStore
from toque.featurestore.online.serving import OnlineFeatures, Status

__all__ = ["Materialized", "Materializer", "OnlineFeatures", "OnlineStore", "Status"]
