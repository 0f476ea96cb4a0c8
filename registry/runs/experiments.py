"""Notes about experiments: a free title, tags, and whether an experiment is deleted.

An experiment exists as soon as it has a run, with or without a note. One journal keeps the notes of all experiments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from toque.registry.errors import AlreadyExists, NotFound
from toque.registry.journal import Entry, Fold, Journal
from toque.registry.names import check_name
from toque.registry.runs.runs import Runs
from toque.registry.times import Clock, from_text, to_text, utc_now


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment with its name, free title, tags and times.

    title: unique among experiments that are not deleted; deleted: hidden, its runs stay.
    """

    name: str
    title: str
    created_at: datetime
    changed_at: datetime
    tags: Mapping[str, str] = field(default_factory=dict)
    deleted: bool = False


Notes = Mapping[str, Experiment]


class Experiments(Runs):
    """The part of the registry that creates, finds, changes and lists experiments."""

    def __init__(self, store: Any, *, actor: str, clock: Clock = utc_now) -> None:
        super().__init__(store, actor=actor, clock=clock)
        journal = Journal(store, "experiment-notes/journal", actor=actor, clock=clock)
        self._notes: Fold[Notes] = Fold(journal, {}, _step, encode=_encode, decode=_decode, carry=True)

    def follow_notes(self) -> Fold[Notes]:
        """Follow titles, tags and deletions of experiments by name: `.refresh()` is one read."""
        return self._notes

    def create_experiment(
        self, name: str, *, title: str = "", tags: Mapping[str, str] | None = None
    ) -> Experiment:
        """Create an experiment before it has a run; 1 write.

        title: free text; "": the name.
        Raises: AlreadyExists if the name or the title is taken; InvalidInput for a malformed name.
        """
        check_name(name, what="experiment")
        wanted = title or name

        def decide(notes: Notes) -> dict[str, Any]:
            taken = notes.get(name) or _titled(notes, wanted)
            if taken is not None:
                raise AlreadyExists(
                    f"experiment {taken.title!r} exists already, under the name {taken.name!r}"
                )
            return {"kind": "created", "name": name, "title": wanted, "tags": dict(tags or {})}

        self._notes.transact(decide)
        return self._notes.state[name]

    def get_experiment(self, name: str) -> Experiment:
        """Get an experiment that was created or has a run; 1 read when warm. Raises: NotFound; InvalidInput."""
        check_name(name, what="experiment")
        found = self._notes.refresh().get(name) or self._unnoted(name)
        if found is None:
            raise NotFound(f"experiment {name!r} does not exist; create it, or start a run in it")
        return found

    def find_experiment(self, title: str) -> Experiment | None:
        """Find the experiment of that title, or None; deleted experiments come last."""
        noted = sorted(self._notes.refresh().values(), key=lambda note: note.deleted)
        return next((each for each in noted if each.title == title), None) or next(
            (each for each in self.all_experiments() if each.title == title), None
        )

    def all_experiments(self) -> list[Experiment]:
        """List every experiment, deleted ones included, oldest first; lists the store."""
        notes = self._notes.refresh()
        unnoted = (self._unnoted(name) for name in self.list_experiments() if name not in notes)
        found = [*notes.values(), *(each for each in unnoted if each is not None)]
        return sorted(found, key=lambda each: (each.created_at, each.name))

    def change_experiment(
        self,
        name: str,
        *,
        title: str | None = None,
        tags: Mapping[str, str | None] | None = None,
        deleted: bool | None = None,
    ) -> Experiment:
        """Change the title, add or remove (None) tags, delete or restore the experiment; 1 write.

        Raises: NotFound; AlreadyExists if another experiment has that title.
        """
        before = self.get_experiment(name)

        def decide(notes: Notes) -> dict[str, Any] | None:
            note = notes.get(name, before)
            wanted = replace(
                note,
                title=note.title if title is None else title,
                tags=_merged(note.tags, tags or {}),
                deleted=note.deleted if deleted is None else deleted,
            )
            other = None if wanted.deleted else _titled(notes, wanted.title)
            if other is not None and other.name != name:
                raise AlreadyExists(f"experiment {other.name!r} has the title {wanted.title!r} already")
            unchanged = name in notes and wanted == note
            return None if unchanged else {"kind": "changed", "experiment": _plain(wanted)}

        self._notes.transact(decide)
        return self._notes.state[name]

    def _unnoted(self, name: str) -> Experiment | None:
        """Experiment without a note, derived from its runs; None without runs."""
        runs = self.index(name).refresh().values()
        started = min((run.started_at for run in runs), default=None)
        return None if started is None else Experiment(name, name, started, started)


def _titled(notes: Notes, title: str) -> Experiment | None:
    active = (note for note in notes.values() if not note.deleted)
    return next((note for note in active if note.title == title), None)


def _merged(tags: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in {**tags, **changes}.items() if value is not None}


def _step(notes: Notes, entry: Entry) -> Notes:
    body = entry.body
    if body["kind"] == "created":
        made = Experiment(body["name"], body["title"], entry.at, entry.at, body["tags"])
        return {**notes, made.name: made}
    changed = replace(_parsed(body["experiment"]), changed_at=entry.at)
    return {**notes, changed.name: changed}


def _encode(notes: Notes) -> list[dict[str, Any]]:
    return [_plain(note) for note in notes.values()]


def _decode(data: list[dict[str, Any]]) -> Notes:
    return {note.name: note for note in map(_parsed, data)}


def _plain(note: Experiment) -> dict[str, Any]:
    return {**asdict(note), "created_at": to_text(note.created_at), "changed_at": to_text(note.changed_at)}


def _parsed(data: Mapping[str, Any]) -> Experiment:
    return Experiment(
        **{**data, "created_at": from_text(data["created_at"]), "changed_at": from_text(data["changed_at"])}
    )
