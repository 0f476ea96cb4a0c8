"""Store that counts the requests it passes on, by verb."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from toque.registry import ObjectStore, open_store

REQUESTS = frozenset({"create", "put", "upload", "delete", "get", "find", "find_aged", "list", "download"})


class CountingStore:
    """Store that counts its requests, and is opened anew without a count in another process."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.requests: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.requests[name] += name in REQUESTS
        return getattr(self._store, name)

    def __reduce__(self) -> Any:
        return open_store, (self._store.url,)

    def count(self, call: Callable[[], object]) -> Counter[str]:
        """Make a call, and count its requests."""
        self.requests.clear()
        call()
        return +self.requests
