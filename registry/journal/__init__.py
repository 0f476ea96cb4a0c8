"""Journals: numbered, chained entries with compare-and-append, and the states folded from them."""

from toque.registry.journal.entry import Conflict, Entry
from toque.registry.journal.fold import Fold
from toque.registry.journal.journal import Journal

__all__ = ["Conflict", "Entry", "Fold", "Journal"]
