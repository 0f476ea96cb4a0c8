"""The offline feature store: tables, the point-in-time join, and training sets on one machine or many."""

from toque.featurestore.offline.retrieval_job import RetrievalJob
from toque.featurestore.offline.tables import OfflineStore

__all__ = ["OfflineStore", "RetrievalJob"]
