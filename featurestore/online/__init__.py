"""The online feature store: packed rows in Redis, written newest-wins and read in one round trip."""

from featurestore.online.materialize import Materialized, Materializer
from featurestore.online.redis_store import OnlineStore
from featurestore.online.serving import OnlineFeatures, Status

__all__ = ["Materialized", "Materializer", "OnlineFeatures", "OnlineStore", "Status"]
