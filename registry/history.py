"""Audit of a store: every journal folded again from its first entry and compared with what replicas would start from.

Heads of a platform's journals are published to another store, where nobody can take them back. Each is a new object
that is never written again, so a bucket with object lock (or a folder that the platform's account may only add to)
keeps it as it was.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toque.registry.access import Access
from toque.registry.errors import Damaged, RegistryError
from toque.registry.journal import Fold, Journal
from toque.registry.journal.deletions import deleted_journals
from toque.registry.journal.heads import (
    Head,
    Heads,
    adopt,
    find_adopted,
    journal_counts,
    last_entries,
    parse_heads,
)
from toque.registry.journal.high_water import lost, mark_of
from toque.registry.registry import Registry

if TYPE_CHECKING:
    from toque.registry.audit_keys import AuditKeys
    from toque.registry.journal import Entry
    from toque.registry.store import ObjectStore
    from toque.registry.times import Clock


_READERS = 8
_Expected = Mapping[int, str]  # number of entries of a journal -> digest of the last
_HEADS_FOLDER = "heads/"
_PUBLISHED = "published"
_WORKSPACES = "workspaces/"
_ACTOR = "audit"
FoldOf = Callable[["ObjectStore", str], Fold[Any] | None]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit read, and what it found wrong, each in a sentence.

    heads: number of recorded heads that journals were compared with; unsigned: whether there were no audit keys, so that
    only what contradicts itself was found.
    """

    journals: int
    entries: int
    signatures: int
    heads: int
    unsigned: bool
    findings: tuple[str, ...]


def audit(
    store: ObjectStore,
    *,
    heads: Iterable[Heads] = (),
    model: str | None = None,
    fold_of: FoldOf = lambda _store, _path: None,
) -> AuditReport:
    """Audit all journals of a platform and the signatures of all versions; or those of one `model` in each workspace.

    store: the platform's, with its audit keys. heads: published ones, which each journal must still contain. fold_of:
    opens states that the registry does not know, by the journal's path.
    """
    made = _Audit(fold_of, model)
    made.expect("", heads)
    for part in parts(store):
        made.read(part)
    made.report_gone()
    return AuditReport(
        journals=len(made.seen),
        entries=sum(made.seen.values()),
        signatures=made.signatures,
        heads=sum(map(len, made.expected.values())),
        unsigned=not store.audit_keys,
        findings=tuple(made.findings),
    )


class _Audit:
    """An audit of a store while it reads. seen: number of entries by the journal's path; expected: recorded heads by the same; deleted: on purpose."""

    def __init__(self, fold_of: FoldOf, model: str | None) -> None:
        self._fold_of = fold_of
        self._model = model
        self.expected: dict[str, dict[int, str]] = defaultdict(dict)
        self.seen: dict[str, int] = {}
        self.deleted: set[str] = set()
        self.signatures = 0
        self.findings: list[str] = []

    def expect(self, prefix: str, heads: Iterable[Heads]) -> None:
        """Have journals compared with recorded heads; two that disagree are a finding."""
        for recorded in heads:
            for path, head in recorded.journals.items():
                if self._is_meant(path.removeprefix(prefix)):
                    known = self.expected[f"{prefix}{path}"].setdefault(head.count, head.digest)
                    if known != head.digest:
                        self.findings.append(
                            f"{prefix}{path}: recorded heads disagree on entry {head.count - 1}"
                        )

    def read(self, part: Part) -> None:
        """Audit the journals of one store."""
        if part.store.audit_keys:
            try:
                adopted = find_adopted(part.store)
                self.expect(part.prefix, [adopted] if adopted else [])
            except Damaged as error:
                self.findings.append(f"{part.prefix}{error}")
        with suppress(
            RegistryError, KeyError, TypeError, AttributeError
        ):  # that journal is audited below, as all others
            self.deleted |= {f"{part.prefix}{path}" for path in deleted_journals(part.store)}
        counts = journal_counts(part.store)
        self.findings += [
            f"{part.prefix}{mark.path} is gone; this machine has seen {mark.count} entries"
            for mark in lost(part.store, counts)
            if self._is_meant(mark.path) and f"{part.prefix}{mark.path}" not in self.expected
        ]
        paths = [path for path in sorted(counts) if self._is_meant(path)]
        with ThreadPoolExecutor(_READERS) as pool:
            for path, (count, problems) in zip(
                paths, pool.map(lambda path: self._journal(part, path), paths), strict=True
            ):
                self.seen[f"{part.prefix}{path}"] = count
                self.findings += problems
                if path.startswith("models/") and not problems:
                    self._signatures(part, path.split("/")[1])

    def report_gone(self) -> None:
        """Find journals of recorded heads that are not there at all."""
        for path, heads in sorted(self.expected.items()):
            if path not in self.seen and path not in self.deleted:
                self.findings.append(f"{path} is gone; it had {max(heads)} entries")

    def _is_meant(self, path: str) -> bool:
        place = path.split("/")
        place = place[2:] if place[0] == "workspaces" else place
        return self._model is None or place == ["models", self._model, "journal"]

    def _journal(self, part: Part, path: str) -> tuple[int, list[str]]:
        """Audit a journal; returns the number of entries that were read, and what is wrong."""
        whole = f"{part.prefix}{path}"
        expected: _Expected = {} if whole in self.deleted else self.expected.get(whole, {})
        problems: list[str] = []
        count = 0
        # Before the journal is read, as it may grow meanwhile.
        mark = None if whole in self.deleted else mark_of(part.store, path)

        def compare(entry: Entry) -> None:
            nonlocal count
            count = entry.number + 1
            if expected.get(count, entry.digest) != entry.digest:
                problems.append(
                    f"{part.prefix}{path} entry {entry.number} is not the one whose digest was recorded"
                )

        try:
            fold = registry_fold(part.store, path) or self._fold_of(part.store, path)
            (fold or entries_fold(part.store, path)).verify(compare)
        except RegistryError as error:
            text = str(error)
            problems.append(f"{part.prefix}{text if text.startswith(path) else f'{path}: {text}'}")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            problems.append(f"{part.prefix}{path} entry {count} cannot be folded: {error!r}")
        else:
            if max(expected, default=0) > count:
                problems.append(
                    f"{part.prefix}{path} ends after {count} entries; {max(expected)} were recorded"
                )
            if mark is not None and max(expected, default=0) <= count < mark.count:
                problems.append(
                    f"{part.prefix}{path} ends after {count} entries; this machine has seen {mark.count}"
                )
        return count, problems

    def _signatures(self, part: Part, model: str) -> None:
        registry = Registry(part.store, actor="audit")
        self.findings += [f"{part.prefix}{problem}" for problem in registry.check_signatures(model)]
        versions = registry.follow(model).state.versions.values()
        self.signatures += sum(len(version.signatures) for version in versions)


@dataclass(frozen=True, slots=True)
class Part:
    """A store with journals in a platform's: the platform's own with prefix "", or that of a workspace."""

    prefix: str
    store: ObjectStore


def publish_heads(store: ObjectStore, target: ObjectStore, clock: Clock) -> str:
    """Write the head of every journal of a platform to `target`; returns the key of the new object there.

    store: the platform's, with its audit keys; one listing, and one read for each journal.
    Raises: InvalidInput without audit keys; Damaged if a last entry is not readable.
    """
    at = clock()
    journals = {
        f"{part.prefix}{path}": Head(entry.number + 1, entry.digest)
        for part in parts(store)
        for path, entry in last_entries(part.store).items()
    }
    key = f"{_HEADS_FOLDER}{at:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}.json"
    target.create(key, Heads(at, journals).to_bytes(store.audit_keys.at(""), _PUBLISHED))
    return key


def read_published(target: ObjectStore, keys: AuditKeys) -> tuple[list[Heads], list[str]]:
    """Read all published heads, and what is wrong with those that are not of the keys."""
    heads, problems = [], []
    for key in target.list(_HEADS_FOLDER):
        try:
            heads.append(parse_heads(target.get(key), keys.at(""), _PUBLISHED, where=f"{target.url} {key}"))
        except Damaged as error:
            problems.append(str(error))
    return heads, problems


def adopt_all(store: ObjectStore, clock: Clock) -> int:
    """Adopt a platform's store and those of its workspaces, as `adopt`; returns the number of journals."""
    return sum(len(adopt(part.store, clock).journals) for part in parts(store))


def parts(store: ObjectStore) -> Iterator[Part]:
    """Iterate over the platform's store and those of its workspaces; one listing for each."""
    yield Part("", store)
    after = ""
    while (key := next(store.list(_WORKSPACES, after=after), None)) is not None:
        prefix = "/".join(key.split("/")[:2])
        yield Part(f"{prefix}/", store.within(prefix))
        after = f"{prefix}0"  # the code point after "/"


def registry_fold(store: ObjectStore, path: str) -> Fold[Any] | None:
    """Open the state that the registry folds from the journal at `path`, or None if it folds none."""
    match path.split("/"):
        case ["access", "journal"]:
            return Access(store, actor=_ACTOR).follow()
        case ["models", model, "journal"]:
            return Registry(store, actor=_ACTOR).follow(model)
        case ["layers", layer, "journal"]:
            return Registry(store, actor=_ACTOR).follow_layer(layer)
        case ["experiments", experiment, "journal"]:
            return Registry(store, actor=_ACTOR).index(experiment)
        case ["experiment-notes", "journal"]:
            return Registry(store, actor=_ACTOR).follow_notes()
    return None


def entries_fold(store: ObjectStore, path: str) -> Fold[None]:
    """Open a journal whose state is unknown: its entries are checked, and that a snapshot names one of them."""
    return Fold(Journal(store, path, actor=_ACTOR), None, lambda _, __: None)
