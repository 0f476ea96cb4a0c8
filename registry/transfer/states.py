"""Objects that are rewritten in place, read before the moment of a copy and written after everything they refer to.

Read later, a cursor could be ahead of the entries that are copied, and what lies between would be passed over for good.
One that is older than the entries only has work done again, as after a crash.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from toque.registry.errors import NotFound
from toque.registry.store import ObjectInfo, ObjectStore
from toque.registry.transfer.inventory import Inventory, Item, as_us
from toque.registry.transfer.kinds import Kind, kind_of
from toque.registry.transfer.moving import Mover, SourceChangedError

_OWNED = ("runs/", "invocations/")  # rewritten by the owner of one run, and of no use without its process


class States:
    """States of a source as they were before a moment, in files below `scratch`."""

    def __init__(self, source: ObjectStore, scratch: Path) -> None:
        self._source = source
        self._folder = scratch / "states"
        self._folder.mkdir(exist_ok=True)
        self._read: dict[str, tuple[int, Path | None]] = {}

    def read(self, known: Inventory, since: datetime | None, mover: Mover) -> None:
        """Read every state that the target lacks or that was written since; before the moment is taken."""
        self._read.clear()
        waiting = []
        for number, info in enumerate(self._source.scan("")):
            if kind_of(info.key, info.size_bytes) is not Kind.STATE:
                continue
            if known.is_current(info, since):
                self._read[info.key] = as_us(info.modified_at), None
            else:
                waiting.append((info, self._folder / str(number)))
        mover.each(lambda each: self._fetch(*each), waiting)

    def _fetch(self, info: ObjectInfo, path: Path) -> None:
        data = self._source.find(info.key)
        if data is not None:  # else it went before the moment
            path.write_bytes(data)
            self._read[info.key] = as_us(info.modified_at), path

    @property
    def kept(self) -> frozenset[str]:
        """Keys of the states that were read; one that went since may have been there at the moment."""
        return frozenset(self._read)

    def settled(self, known: Inventory) -> Iterator[tuple[Item, Path | bytes]]:
        """Iterate over the states to write: those that were read, and those that were written between then and the moment.

        Raises: SourceChangedError if one cannot be told as it was.
        """
        gone = set(self._read)
        for item, meant in known.states():
            gone.discard(item.key)
            read = self._read.get(item.key)
            if read is not None and (not meant or read[0] == item.modified_us):
                if read[1] is not None:
                    yield item, read[1]
            elif meant:
                yield item, self._as_of_moment(item)
            elif not any(f"/{part}" in f"/{item.key}" for part in _OWNED):
                raise SourceChangedError(f"{item.key} is new")
        for key in gone:
            modified_us, path = self._read[key]
            if path is not None:
                yield Item(key, path.stat().st_size, modified_us, Kind.STATE), path

    def _as_of_moment(self, item: Item) -> bytes:
        """Read a state that was written last just before the moment."""
        try:
            data = self._source.get(item.key)
        except NotFound as error:
            raise SourceChangedError(f"{item.key} went") from error
        at = self._source.find_modified_at(item.key)
        if at is None or as_us(at) != item.modified_us:
            raise SourceChangedError(f"{item.key} was rewritten")
        return data
