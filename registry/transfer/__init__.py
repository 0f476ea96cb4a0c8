"""Copies of whole stores: a backup, a move from a folder to a bucket, or the way back from either.

It knows how a store's objects depend on each other, and nothing of what they mean.
"""

from toque.registry.transfer.copying import (
    CopyMarker,
    CopyReport,
    address,
    copy_store,
    find_marker,
    forget_marker,
)

__all__ = ["CopyMarker", "CopyReport", "address", "copy_store", "find_marker", "forget_marker"]
