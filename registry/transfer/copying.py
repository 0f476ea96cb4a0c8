"""Copying a whole store while it is written: the copy is the store of one moment, by the source's clock.

What was written up to that moment is copied and nothing later. A writer writes what an entry names before the entry, and
reads an entry before it writes one that answers it; so nothing in the copy refers to what was not copied. The order of the
writes keeps that true when the copy is killed: content first, then entries and commits by the time of their writing, then
what is rewritten in place, and last the removal of what the source no longer has. What is rewritten in place is read
before the moment: read later, a cursor could be ahead of the entries that are copied, and what lies between would be passed
over for good. One that is older than the entries only has work done again, as after a crash.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from toque.registry.access.grants import DEFAULT_WORKSPACE, split_workspace_url
from toque.registry.errors import Damaged, InvalidInput, NewerFormat, NotFound, Refused, Unavailable
from toque.registry.history import FoldOf
from toque.registry.store import ObjectInfo, ObjectStore
from toque.registry.transfer.inventory import (
    Inventory,
    Item,
    Kind,
    Mover,
    SourceChangedError,
    as_us,
    batches,
    is_deletable,
    kind_of,
)
from toque.registry.transfer.verification import Verified, verify_copy

if TYPE_CHECKING:
    from toque.registry.store import ObjectStore, Progress


_ATTEMPTS = 8
_BATCH = 256
_POLL_S = 0.05
_FIRST_ENTRY = "/entries/00000000.json"
_NOTHING: Mapping[str, bytes] = MappingProxyType({})
Report = Callable[[str], None]
FOLDER: Final = "copies/"
_MARKER = f"{FOLDER}marker.json"
_IN_FLIGHT = f"{FOLDER}in-flight.json"
_MARKER_FORMAT = 1


@dataclass(frozen=True, slots=True)
class CopyReport:
    """Result of one copy of a store.

    whole_at: the moment of the source that the target holds now; objects, size_bytes: what was written by this copy;
    removed: objects that the source no longer has; interrupted: whether the source is itself a copy that was stopped,
    so that a moment between two of its copies was taken.
    """

    whole_at: datetime
    objects: int
    size_bytes: int
    removed: int
    interrupted: bool
    verified: Verified

    @property
    def findings(self) -> tuple[str, ...]:
        """What is wrong with the copy, each in a sentence."""
        return self.verified.findings


def copy_store(
    source: ObjectStore,
    target: ObjectStore,
    *,
    scratch: Path | None = None,
    fold_of: FoldOf = lambda _store, _path: None,
    on_progress: Progress | None = None,
    report: Report = lambda _: None,
    beside: Mapping[str, bytes] = _NOTHING,
) -> CopyReport:
    """Copy a platform's store, or bring an earlier copy of it up to date; kill it at any time and call it again.

    target: empty, or a copy of the same source. scratch: folder for temporary files (default: the machine's), with room
    for what is rewritten in place and four of the largest objects twice. fold_of: as for `audit`. beside: further objects
    of the target, under `copies/`, that are written before anything else.
    Raises: InvalidInput for stores that cannot be copied so; Refused if the target holds anything else; Damaged if what
    was written is not what was read; Unavailable if the source keeps changing what is copied.
    """
    _check_places(source, target)
    before, interrupted = _begin(source, target)
    for key, data in beside.items():
        target.put(key, data)
    with tempfile.TemporaryDirectory(prefix="toque-copy-", dir=scratch) as folder:
        copy = _Copy(source, target, Path(folder), before, on_progress, report)
        try:
            for attempt in range(_ATTEMPTS):
                try:
                    whole_at = copy.run()
                    break
                except SourceChangedError as change:
                    report(f"{change} while it was copied; taking another moment ({attempt + 1})")
            else:
                raise Unavailable(
                    f"{source.url} removed or rewrote what was copied {_ATTEMPTS} times; copy it when no retention, "
                    "erasure or garbage collection runs"
                )
            report("verifying")
            verified = verify_copy(source, target, copy.known, fold_of=fold_of)
        finally:
            copy.close()
    if not verified.findings:
        put_marker(target, before.model_copy(update={"whole_at": whole_at, "under_way": False}))
    return CopyReport(
        whole_at, copy.mover.copied, copy.mover.copied_bytes, copy.removed, interrupted, verified
    )


class _Copy:
    """One copy while it runs. before: the target's marker; removed: objects that were removed from the target."""

    def __init__(
        self,
        source: ObjectStore,
        target: ObjectStore,
        scratch: Path,
        before: CopyMarker,
        on_progress: Progress | None,
        report: Report,
    ) -> None:
        self._source, self._target, self._before, self._report = source, target, before, report
        self._scratch = scratch
        self._states = States(source, scratch)
        self.mover = Mover(source, target, scratch, on_progress)
        self.known = Inventory(scratch)
        self.removed = 0

    def close(self) -> None:
        """End the threads and close the inventory."""
        self.mover.close()
        self.known.close()

    def run(self) -> datetime:
        """Copy the source as of a moment, which is returned. Raises: SourceChangedError; as `copy_store`."""
        whole_at = self._list()
        for series in self.known.lost_history():
            if not is_deletable(series):
                raise Refused(
                    f"{series} in {self._target.url} has a history that {self._source.url} lacks: it was written to since, or "
                    "the source lost history; copy to an empty target"
                )
        settled = list(self._states.settled(self.known))
        self._report("copying content")
        self.mover.run(self.mover.move, self.known.content())
        self._report("copying journals and logs of tables")
        for batch in batches(self.known.history(self._before.whole_at), _BATCH):
            put_in_flight(self._target, tuple(item.key for item in batch))
            self.mover.run(self.mover.move, batch)
        put_in_flight(self._target, ())
        self.mover.run(self._write_state, settled)
        self._remove(
            lambda key: key.endswith(_FIRST_ENTRY)
        )  # without it, a journal is one that is being deleted
        self._remove(lambda _: True)
        return whole_at

    def _write_state(self, state: tuple[Item, Path | bytes]) -> int:
        item, content = state
        data = content if isinstance(content, bytes) else content.read_bytes()
        self.mover.write(item, data)
        return len(data)

    def _remove(self, chosen: Callable[[str], bool]) -> None:
        """Remove chosen objects from the target that the source no longer has."""
        extra = [key for key in self.known.extra() if key not in self._states.kept and chosen(key)]
        self.mover.each(self._target.delete, extra)
        self.removed += len(extra)
        self.known.forget(extra)

    def _list(self) -> datetime:
        """List both stores, and read the source's states before the moment, which is returned."""
        self._report(f"listing {self._target.url}")
        self.known.clear()
        self.known.read_target(self._target.scan(""))
        self._report(f"listing {self._source.url}")
        self._states.read(self.known, self._before.whole_at, self.mover)
        whole_at = self._source.now()
        while self._source.now() <= whole_at:  # what is written from now on has a later time
            time.sleep(_POLL_S)
        self.known.read_source(self._source.scan(""), until=whole_at, without=in_flight(self._source))
        gap = self.known.find_gap()
        if gap is not None:
            raise SourceChangedError(f"{gap} was rewritten")
        return whole_at


def _begin(source: ObjectStore, target: ObjectStore) -> tuple[CopyMarker, bool]:
    """Mark the target as a copy that is under way; returns its marker, and whether the source is an interrupted copy."""
    if next(source.list(""), None) is None:
        raise NotFound(f"{source.url} holds nothing; is the address right?")
    origin = find_marker(source)
    if origin is not None and origin.whole_at is None:
        raise Refused(f"{source.url} is a copy of {origin.source} that never ended; finish that one first")
    found = find_marker(target)
    if found is None and next(target.list(""), None) is not None:
        raise Refused(f"{target.url} is not empty and no copy of a store; copy to an empty target")
    marker = found or CopyMarker(source=address(source))
    if marker.source != address(source):
        raise Refused(
            f"{target.url} is a copy of {marker.source}, not of {source.url}; copy to an empty target"
        )
    marker = marker.model_copy(update={"under_way": True})
    put_marker(target, marker)
    return marker, origin is not None and origin.under_way


def _check_places(source: ObjectStore, target: ObjectStore) -> None:
    for store in (source, target):
        if split_workspace_url(address(store))[1] != DEFAULT_WORKSPACE:
            raise InvalidInput(
                f"{store.url} is the part of a workspace; what authenticates its history holds at the platform's address: "
                "copy the platform's store"
            )
    a, b = address(source), address(target)
    if a == b or f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/"):
        raise InvalidInput(f"{source.url} and {target.url} lie in each other; copy to another place")


class CopyMarker(BaseModel):
    """Record of a copy, in the copy.

    source: url of the store without its settings. whole_at: moment of the source that the copy holds, by the source's
    clock; None until the first copy ended. under_way: whether a copy has begun and not ended; what is here is then the
    store of some moment, `in_flight` left aside.
    """

    model_config = ConfigDict(frozen=True)

    format: int = _MARKER_FORMAT
    source: str
    whole_at: datetime | None = None
    under_way: bool = False


class _InFlight(BaseModel):
    """Keys of the batch of entries and commits that is being written."""

    keys: tuple[str, ...] = ()


def address(store: ObjectStore) -> str:
    """Address of a store: its url without settings such as an endpoint."""
    return store.url.partition("?")[0]


def find_marker(store: ObjectStore) -> CopyMarker | None:
    """Find the marker of a copy; None in a store that is none. Raises: Damaged; NewerFormat."""
    data = store.find(_MARKER)
    if data is None:
        return None
    try:
        marker = CopyMarker.model_validate_json(data)
    except ValidationError as error:
        raise Damaged(f"{_MARKER} in {store.url} is not readable: {error}") from error
    if marker.format > _MARKER_FORMAT:
        raise NewerFormat(f"{_MARKER} in {store.url}", marker.format, _MARKER_FORMAT)
    return marker


def put_marker(store: ObjectStore, marker: CopyMarker) -> None:
    """Write the marker of a copy."""
    store.put(_MARKER, marker.model_dump_json().encode())


def forget_marker(store: ObjectStore) -> None:
    """Remove the marker: the copy is a store of its own from now on."""
    for key in (_IN_FLIGHT, _MARKER):
        store.delete(key)


def put_in_flight(store: ObjectStore, keys: tuple[str, ...]) -> None:
    """Write which entries and commits are about to be written."""
    store.put(_IN_FLIGHT, _InFlight(keys=keys).model_dump_json().encode())


def in_flight(store: ObjectStore) -> frozenset[str]:
    """Read which entries and commits were about to be written when a copy stopped."""
    data = store.find(_IN_FLIGHT)
    return frozenset() if data is None else frozenset(_InFlight.model_validate_json(data).keys)


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
