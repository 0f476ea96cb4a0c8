"""Journal of a batch source's loads: what each brought, and how far the source was read."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from toque.featurestore.errors import UnreadableSource
from toque.registry.journal import Entry, Fold, Journal

SHOWN = 100
"""Greatest number of pieces and reasons that a load or a lineage names."""
_KEPT = 20  # loads in the state of a source; all are in its journal
BACKFILL = ":backfill"
"""Key in a position of the range that is being loaded again: its start, its end, and until when it was."""

ROWS_READ = ":rows"
"""Key in a position of the number of rows that were read, of a source that numbers them."""


class Loaded(BaseModel):
    """Sum of all loads up to one: rows stored, and the first and last time of their events."""

    model_config = ConfigDict(frozen=True)

    rows: int = 0
    first: datetime | None = None
    last: datetime | None = None

    def __add__(self, other: Loaded) -> Loaded:
        return Loaded(
            rows=self.rows + other.rows,
            first=min((each for each in (self.first, other.first) if each is not None), default=None),
            last=max((each for each in (self.last, other.last) if each is not None), default=None),
        )


class SourceLoad(BaseModel):
    """Load of a batch source, as its journal has it.

    number: from 1. read: of what, a name for each piece, the first hundred. rows: that were new and fit. known: that were
    stored before. rejected: that did not fit and are kept aside, with reasons by how often. unreadable: pieces that could not
    be read, with the reason; the next load tries them again. removed: rows that went at the source since; they stay here. backfill: start and end of the event times that were read again.
    total: of all loads up to this one; None after loads that did not count it.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    number: int
    at: datetime
    read: list[str]
    rows: int
    known: int = 0
    rejected: int = 0
    reasons: dict[str, int] = {}
    unreadable: dict[str, str] = {}
    removed: int = 0
    first: datetime | None = None
    last: datetime | None = None
    backfill: tuple[datetime, datetime] | None = None
    total: Loaded | None = None

    @property
    def loaded(self) -> Loaded:
        """Rows that this load stored, and their times."""
        return Loaded(rows=self.rows, first=self.first, last=self.last)


class SourceLineage(BaseModel):
    """Part of a batch source that something was made from: all its loads up to one.

    reads: the reader, without secrets. load, at: number and time of the last load. rows, first, last: of all loads: how many,
    and the first and last time of their events; None if earlier loads did not count them. read: what the last loads read
    (files, versions, snapshots, values of the watermark), newest first, at most a hundred.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    reads: dict[str, Any]
    load: int
    at: datetime
    rows: int | None
    first: datetime | None
    last: datetime | None
    read: list[str]


@dataclass(frozen=True, slots=True)
class SourceState:
    """State of a source: how far it was read, and its last loads."""

    position: dict[str, Any] = field(default_factory=dict)
    loads: tuple[SourceLoad, ...] = ()

    @property
    def number(self) -> int:
        """Number of the last load, 0 before the first."""
        return self.loads[-1].number if self.loads else 0

    @property
    def total(self) -> Loaded | None:
        """Sum of all loads; None if it was not counted from the first on."""
        if not self.loads:
            return Loaded()
        if self.loads[-1].total is None and self.loads[0].number == 1:
            return sum((each.loaded for each in self.loads), Loaded())
        return self.loads[-1].total


def loads_in(journal: Journal) -> Fold[SourceState]:
    """Fold a source's journal into its state."""
    return Fold(journal, SourceState(), _step, encode=_encode, decode=_decode)


def lineage_of(log: Fold[SourceState], reads: dict[str, Any], number: int) -> SourceLineage:
    """Describe all loads up to `number` as lineage. Raises: UnreadableSource if there is no such load."""
    kept = [each for each in log.refresh().loads if each.number <= number]
    if not kept:  # longer ago than the state reaches back; a journal's entries are its loads
        entry = log.journal.find(number - 1)
        if entry is None:
            raise UnreadableSource(f"{log.journal.path}: the journal has no load {number}")
        kept = [SourceLoad.model_validate(entry.body["load"])]
    last, total = kept[-1], SourceState(loads=tuple(kept)).total
    return SourceLineage(
        source=last.source,
        reads=reads,
        load=last.number,
        at=last.at,
        rows=None if total is None else total.rows,
        first=None if total is None else total.first,
        last=None if total is None else total.last,
        read=[name for load in reversed(kept) for name in load.read][:SHOWN],
    )


def _step(state: SourceState, entry: Entry) -> SourceState:
    load = SourceLoad.model_validate(entry.body["load"])
    return SourceState(state.position | entry.body["position"], (*state.loads, load)[-_KEPT:])


def _encode(state: SourceState) -> Any:
    return [state.position, [each.model_dump(mode="json") for each in state.loads]]


def _decode(kept: Any) -> SourceState:
    return SourceState(kept[0], tuple(SourceLoad.model_validate(each) for each in kept[1]))
