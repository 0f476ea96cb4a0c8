"""Journals: numbered, chained entries with compare-and-append, and the states folded from them."""

from registry.journal.conflict import Conflict
from registry.journal.entry import Entry
from registry.journal.fold import Fold
from registry.journal.journal import Journal

__all__ = ["Conflict", "Entry", "Fold", "Journal"]
