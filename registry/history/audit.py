"""Audit of a store: every journal folded again from its first entry and compared with what replicas would start from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toque.registry.errors import Damaged, RegistryError
from toque.registry.history.folds import FoldOf, entries_fold, registry_fold
from toque.registry.history.published import Part, parts
from toque.registry.journal.adoption import find_adopted
from toque.registry.journal.deletions import deleted_journals
from toque.registry.journal.heads import Heads, journal_counts
from toque.registry.journal.high_water import lost, mark_of
from toque.registry.registry import Registry

if TYPE_CHECKING:
    from toque.registry.journal import Entry
    from toque.registry.store import ObjectStore

_READERS = 8
_Expected = Mapping[int, str]  # number of entries of a journal -> digest of the last


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
