"""Catalog of applied definitions: every version of each, as a pure fold of a journal."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from toque.featurestore.errors import UnknownDefinition
from toque.registry.journal import Entry


def readable_kind(kind: str) -> str:
    """Write a kind of definition for people, with spaces."""
    return kind.replace("_", " ")


@dataclass(frozen=True, slots=True)
class Record:
    """One applied version of one definition.

    version: from 1; digest: of the part that decides the numbers; definition: all of it as JSON;
    entry, at, actor: the journal entry that applied it; removed: whether this version removes the definition.
    """

    kind: str
    name: str
    version: int
    digest: str
    definition: Mapping[str, Any] = field(hash=False)
    entry: int
    at: datetime
    actor: str
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Catalog:
    """All versions of all definitions by `kind/name`, oldest first."""

    records: Mapping[str, tuple[Record, ...]] = field(default_factory=dict, hash=False)

    def find(self, kind: str, name: str) -> Record | None:
        """Find the version in force, or None."""
        versions = self.records.get(f"{kind}/{name}", ())
        return versions[-1] if versions and not versions[-1].removed else None

    def get(self, kind: str, name: str) -> Record:
        """Get the version in force of a definition.

        Raises: UnknownDefinition.
        """
        found = self.find(kind, name)
        if found is None:
            raise UnknownDefinition(
                f"no {readable_kind(kind)} {name!r} is applied; applied are {self.names(kind)}"
            )
        return found

    def names(self, kind: str) -> list[str]:
        """Names of the definitions in force, in order."""
        return sorted(v[-1].name for v in self.records.values() if v[-1].kind == kind and not v[-1].removed)

    def in_force(self) -> dict[str, Mapping[str, Any]]:
        """Definitions in force, by `kind/name`."""
        return {
            key: versions[-1].definition
            for key, versions in self.records.items()
            if versions and not versions[-1].removed
        }

    def versions(self, kind: str, name: str) -> tuple[Record, ...]:
        """List all versions of a definition, oldest first; empty if the name was never applied."""
        return self.records.get(f"{kind}/{name}", ())


def step(catalog: Catalog, entry: Entry) -> Catalog:
    """Apply one more journal entry to a catalog."""
    records = dict(catalog.records)
    for body in entry.body["definitions"]:
        key = f"{body['kind']}/{body['name']}"
        versions = records.get(key, ())
        record = Record(
            body["kind"], body["name"], len(versions) + 1, body["digest"], body["definition"],
            entry.number, entry.at, entry.actor,
        )  # fmt: skip
        records[key] = (*versions, record)
    for key in entry.body["removed"]:
        last = records[key][-1]
        removal = replace(
            last, version=last.version + 1, entry=entry.number, at=entry.at, actor=entry.actor, removed=True
        )
        records[key] = (*records[key], removal)
    return Catalog(records)


def encode(catalog: Catalog) -> dict[str, Any]:
    """Convert a catalog to JSON for the journal's snapshots."""
    return {
        key: [{n: getattr(r, n) for n in Record.__slots__} | {"at": r.at.isoformat()} for r in versions]
        for key, versions in catalog.records.items()
    }


def decode(state: Mapping[str, Any]) -> Catalog:
    """Read a catalog from the JSON of `encode`."""
    return Catalog(
        {
            key: tuple(Record(**{**r, "at": datetime.fromisoformat(r["at"])}) for r in versions)
            for key, versions in state.items()
        }
    )
