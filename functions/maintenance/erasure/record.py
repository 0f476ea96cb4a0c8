"""Record of an erasure: what is pending, kept in the store until all is removed, and the certificate that stays."""

from __future__ import annotations

import uuid
from contextlib import suppress
from datetime import datetime

from pydantic import BaseModel, Field

from toque.functions.maintenance.erasure.subject import Subject, new_salt
from toque.registry import AlreadyExists, Dependent, ObjectStore, TableSnapshot

_PENDING = "erasures/pending/"


class TableErasure(BaseModel, frozen=True):
    """Rows removed from one table: their number in all its files, and the versions (first, last) that had them."""

    rows: int
    files: int
    versions: tuple[tuple[int, int], ...]

    def __add__(self, other: TableErasure) -> TableErasure:
        return TableErasure(
            rows=self.rows + other.rows,
            files=self.files + other.files,
            versions=tuple(sorted({*self.versions, *other.versions})),
        )

    def touches(self, version: int) -> bool:
        """Whether a version of the table had such rows."""
        return any(first <= version <= last for first, last in self.versions)


class PendingErasure(BaseModel):
    """An erasure that is not complete: its subject, which is known only until then, and what was done so far.

    text: whether what mentions the subject in a text goes, too; False in records of earlier releases.
    prediction_ids: of the subject's predictions, by which its labels are found; None until they are collected.
    removed: numbers of what was removed, by place.
    """

    id: str
    subject: Subject
    requested_at: datetime
    requested_by: str
    text: bool = False
    prediction_ids: list[str] | None = None
    tables: dict[str, TableErasure] = Field(default_factory=dict)
    removed: dict[str, int] = Field(default_factory=dict)

    def count(self, place: str, number: int) -> None:
        """Add to the number of what was removed in a place."""
        if number:
            self.removed[place] = self.removed.get(place, 0) + number


class TablePreview(BaseModel, frozen=True):
    """What an erasure would find in one table, in files that may repeat a row.

    rows: that would go; staying: that mention the subject in a text and would stay; why: rows of both kinds by the column that
    shows it; whose: first of the units and entities that they have.
    """

    rows: int
    staying: int
    why: dict[str, int]
    whose: list[str]


class ErasurePreview(BaseModel, frozen=True):
    """What an erasure would remove, and why, from tables and objects; what has not reached the tables yet is not among it.

    objects: why each would go, by key; staying: keys of objects that mention the subject in a text and would stay; left: why a
    table could not be searched.
    """

    tables: dict[str, TablePreview]
    objects: dict[str, str]
    staying: list[str]
    left: list[str]


class Certificate(BaseModel, frozen=True):
    """Proof of an erasure: what was removed where, when, by whom, and what was made from it before.

    subject_hash: scrypt of the subject with `salt`; who knows the subject can check it (`Subject.digest`).
    holds_until: all that was stored before this time was searched; what came later is not covered.
    tables: rows by table, in files that may repeat a row; removed: numbers by place.
    training_sets, models: made from the subject's rows before; the sets are readable without these rows, the models keep
    what they have learned. left: objects that hold the subject and cannot be changed. silent_writers: processes that did
    not confirm that their write-ahead files have dropped it. pseudonyms: whether pseudonyms were searched as well; text:
    whether texts that mention the subject were.
    """

    id: str
    subject_hash: str
    salt: str
    requested_at: datetime
    requested_by: str
    holds_until: datetime
    completed_at: datetime
    tables: dict[str, TableErasure]
    removed: dict[str, int]
    training_sets: list[TableSnapshot]
    models: list[Dependent]
    left: list[str]
    silent_writers: list[str]
    pseudonyms: bool
    text: bool = True  # certificates of earlier releases, which always searched texts, do not say


class Erasures:
    """Erasures in a store: the pending ones, and the certificates of those that are complete."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def request(self, subject: Subject, *, actor: str, now: datetime, text: bool = False) -> PendingErasure:
        """Record an erasure before anything is removed; one that is pending for the same subject goes on, with as many places."""
        for pending in self.pending():
            if pending.subject == subject:
                if text and not pending.text:
                    pending.text = True
                    self.save(pending)
                return pending
        request = PendingErasure(
            id=uuid.uuid4().hex, subject=subject, requested_at=now, requested_by=actor, text=text
        )
        self.save(request)
        return request

    def pending(self) -> list[PendingErasure]:
        """List the erasures that are not complete."""
        found = (self._store.find(key) for key in self._store.list(_PENDING))
        return [PendingErasure.model_validate_json(data) for data in found if data is not None]

    def save(self, pending: PendingErasure) -> None:
        """Store the progress of an erasure."""
        self._store.put(f"{_PENDING}{pending.id}.json", pending.model_dump_json().encode())

    def complete(self, certificate: Certificate) -> Certificate:
        """Store a certificate, once, and forget the subject; returns the one that is stored."""
        key = f"erasures/{certificate.id}.json"
        with suppress(AlreadyExists):  # a run that was killed right after it
            self._store.create(key, certificate.model_dump_json(indent=1).encode())
        self._store.delete(f"{_PENDING}{certificate.id}.json")
        return Certificate.model_validate_json(self._store.get(key))

    def find(self, erasure: str) -> Certificate | None:
        """Find the certificate of an erasure."""
        data = self._store.find(f"erasures/{erasure}.json")
        return None if data is None else Certificate.model_validate_json(data)

    def certificates(self) -> list[Certificate]:
        """List all certificates, oldest request first."""
        keys = (key for key in self._store.list("erasures/") if key.count("/") == 1)
        found = [Certificate.model_validate_json(self._store.get(key)) for key in keys]
        return sorted(found, key=lambda each: each.requested_at)


def hash_of(subject: Subject) -> dict[str, str]:
    """Hash a subject with a new salt, as the fields of a certificate."""
    salt = new_salt()
    return {"subject_hash": subject.digest(salt), "salt": salt}
