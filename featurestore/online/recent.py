"""Keys of the rows that were pushed online lately, in the order of their arrival, so that a search finds them at once.

A Redis stream a view, `toque-recent:{project:view}`, of bounded length. A key is added before its row is written, so that a kill in
between leaves a key whose row has nothing new.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.online.redis_store import OnlineStore

MOST_KEYS = 10_000
_FIELD = b"k"
_FIRST = "0-0"
_KEYS_AT_ONCE = 1_000

Key = tuple[Any, ...]


class RecentKeys:
    """Stream of the keys of a view that were pushed online lately."""

    def __init__(self, online: OnlineStore, view: FeatureView) -> None:
        self._online = online
        self._names = [key.name for key in view.join_keys]
        self._stream = f"toque-recent:{{{online.project}:{view.stored_as}}}"

    def add(self, rows: pa.Table) -> None:
        """Add the keys of rows that are about to be written. Raises: OnlineStoreUnavailable."""
        self.add_keys(tuple(row.values()) for row in rows.select(self._names).to_pylist())

    def add_keys(self, keys: Iterable[Key]) -> None:
        """Add keys in their order. Raises: OnlineStoreUnavailable."""
        with self._online.reachable():
            pipe = self._online.client.pipeline(transaction=False)
            for number, key in enumerate(dict.fromkeys(keys), start=1):
                pipe.xadd(self._stream, {_FIELD: json.dumps(key)}, maxlen=MOST_KEYS, approximate=True)
                if number % _KEYS_AT_ONCE == 0:
                    pipe.execute()
            pipe.execute()

    def after(self, position: str = _FIRST) -> tuple[list[Key], str]:
        """Read the keys that were added after a position, each once, and the position after them.

        Raises: OnlineStoreUnavailable.
        """
        with self._online.reachable():
            found: Sequence[tuple[bytes, dict[bytes, bytes]]] = self._online.client.xrange(
                self._stream, min=f"({position}"
            )
        keys = dict.fromkeys(tuple(json.loads(fields[_FIELD])) for _, fields in found)
        return list(keys), found[-1][0].decode() if found else position

    def forget(self, position: str) -> None:
        """Drop the keys up to a position. Raises: OnlineStoreUnavailable."""
        milliseconds, _, number = position.partition("-")
        with self._online.reachable():
            self._online.client.xtrim(
                self._stream, minid=f"{milliseconds}-{int(number) + 1}", approximate=False
            )
