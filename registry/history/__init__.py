"""Audits of a whole store's history, and the heads of its journals published outside the store.

It reads the journals of every room by their stored form; of states it knows the registry's own and those it is given.
"""

from toque.registry.history.audit import AuditReport, audit
from toque.registry.history.folds import FoldOf
from toque.registry.history.published import adopt_all, publish_heads, read_published

__all__ = ["AuditReport", "FoldOf", "adopt_all", "audit", "publish_heads", "read_published"]
