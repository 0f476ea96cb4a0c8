"""The part of the registry that creates models, and reads, verifies and deletes versions."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from toque.registry.errors import Damaged, NotFound, Refused
from toque.registry.journal import Entry
from toque.registry.models import decisions, reviews
from toque.registry.models.lineage import Dependent
from toque.registry.models.model_card import model_card
from toque.registry.models.policy import ModelPolicy
from toque.registry.models.registration import Registration
from toque.registry.models.signed_versions import SignedVersions
from toque.registry.models.state import ModelState, step
from toque.registry.models.versions import ModelVersion
from toque.registry.store import Progress, TableSnapshot
from toque.registry.times import as_utc


class Verified(BaseModel):
    """Counts of what `verify` has read and found undamaged."""

    model_config = ConfigDict(frozen=True)

    entries: int
    blobs: int
    size_bytes: int


class Models(Registration, SignedVersions):
    """Models and versions: create, tag, read, download, verify and delete."""

    def create_model(
        self,
        name: str,
        *,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        policy: ModelPolicy | None = None,
        exist_ok: bool = False,
    ) -> ModelState:
        """Create a model; with `exist_ok` an existing one is left as it is.

        Raises: AlreadyExists; InvalidInput for a malformed name or a description that is too long.
        """

        def decide(state: ModelState) -> decisions.Body | None:
            if exist_ok and state.created_at is not None:
                return None
            return decisions.create_model(
                state, description=description, tags=tags or {}, policy=policy or ModelPolicy()
            )

        fold = self.follow(name)
        if fold.next == 0:
            # The name comes first: `list_models` skips a name without a model.
            self.store.put(f"model-names/{name}", b"")
        return self._change(name, decide)[1]

    def delete_model(self, name: str, *, reason: str = "") -> None:
        """Delete a model that never had a version; its journal stays, and its name may be used again.

        Raises: NotFound; Refused if it had a version.
        """
        self._change(name, lambda state: decisions.delete_model(state, reason=reason))

    def get_model(self, name: str) -> ModelState:
        """Get the model's current state. Raises: NotFound."""
        state = self.follow(name).refresh()
        decisions.require_model(state)
        return state

    def set_model_tags(
        self, name: str, tags: Mapping[str, str | None], *, description: str | None = None
    ) -> ModelState:
        """Add or replace tags (None removes one) and, if given, the description. Raises: NotFound; InvalidInput."""
        body: decisions.Body = {"kind": "model-changed", "tags": dict(tags)}
        body |= {} if description is None else {"description": decisions.check_description(description)}

        def decide(state: ModelState) -> decisions.Body:
            decisions.require_model(state)
            return body

        return self._change(name, decide)[1]

    def find_version(self, name: str, version: int | str) -> ModelVersion | None:
        """Find a version by number or alias, or None; deleted ones by number only. 1 read when warm."""
        state = self.follow(name).refresh()
        number = state.aliases.get(version) if isinstance(version, str) else version
        return None if number is None else state.versions.get(number)

    def get_version(self, name: str, version: int | str) -> ModelVersion:
        """Get a version by number or alias. Raises: NotFound."""
        found = self.find_version(name, version)
        if found is None:
            state = self.follow(name).state
            decisions.require_model(state)
            raise NotFound(
                f"{name}@{version} does not exist; versions go to {max(state.versions, default=0)}, "
                f"aliases are {dict(state.aliases)}"
            )
        return found

    def list_versions(self, name: str) -> list[ModelVersion]:
        """List all versions that are not deleted, oldest first. Raises: NotFound if the model does not exist."""
        return [version for version in self.get_model(name).versions.values() if version.deleted_at is None]

    def set_version_tags(self, name: str, version: int, tags: Mapping[str, str | None]) -> ModelVersion:
        """Add or replace tags of a version (None removes one).

        Raises: NotFound; Refused for a tag that changes how the version is served, once it is approved or was live.
        """
        return self._change(name, lambda state: reviews.set_tags(state, version, tags))[1].versions[version]

    def delete_version(self, name: str, version: int, *, reason: str = "") -> ModelVersion:
        """Mark a version as deleted; its number is never used again and its history stays.

        Raises: NotFound; Refused while an alias or traffic points to it.
        """
        return self._change(name, lambda state: decisions.delete_version(state, version, reason=reason))[
            1
        ].versions[version]

    def download(
        self,
        name: str,
        version: int | str,
        to: str | Path,
        *,
        paths: Collection[str] | None = None,
        allow_code: Collection[str] = (),
        on_progress: Progress | None = None,
    ) -> Path:
        """Write a version's files below the folder `to`, every digest checked; returns the folder.

        paths: of the files to write; None: all. allow_code: paths of files that can execute code, to be accepted by name.
        Raises: NotFound; Damaged if a stored byte was changed; Refused for code, for a deleted version, and
            where the policy names signers and the version has no signature of theirs.
        """
        found = self.get_version(name, version)
        if found.deleted_at is not None:
            raise Refused(f"{name}@{found.version} was deleted at {found.deleted_at.isoformat()}")
        unknown = sorted(set(paths or ()) - set(found.files))
        if unknown:
            raise NotFound(f"{name}@{found.version} has no files {unknown}; it has {sorted(found.files)}")
        wanted = {path: blob for path, blob in found.files.items() if paths is None or path in paths}
        refused = sorted(set(found.code_files) & set(wanted) - set(allow_code))
        if refused:
            raise Refused(
                f"{name}@{found.version}: {refused} can execute code; have an approver accept it "
                f"(approve with accept_code={refused}), or in your own program pass allow_code={refused}"
            )
        self._require_signed(name, found)
        folder = Path(to)
        self._blobs(name).download(wanted, folder, on_progress=on_progress)
        return folder

    def history(self, name: str, *, last: int | None = None) -> list[Entry]:
        """List the changes of the model, oldest first, with actor, time and reason; one read each.

        last: how many of the newest; None: all. Raises: NotFound.
        """
        fold, start = self.follow(name), 0
        if last is not None:
            fold.refresh()
            start = max(0, fold.next - last)
        entries = list(fold.journal.entries(start))
        if not entries:
            decisions.require_model(ModelState(name=name))
        return entries

    def card(self, name: str, version: int | str) -> str:
        """Render the model card of a version in Markdown from what is recorded. Raises: NotFound."""
        found = self.get_version(name, version)
        return model_card(self.follow(name).state, found)

    def alias_at(self, name: str, alias: str, at: datetime) -> int | None:
        """Version that `alias` pointed to at a moment, or None. Raises: NotFound; InvalidInput for a naive time."""
        return self.model_at(name, at).aliases.get(alias)

    def model_at(self, name: str, at: datetime) -> ModelState:
        """Rebuild the model's state at a moment. Raises: NotFound; InvalidInput for a naive time."""
        moment = as_utc(at, name="at")
        entries = self.history(name)
        known = max((entry.number for entry in entries if entry.at <= moment), default=-1)
        state = ModelState(name=name)
        for entry in entries[: known + 1]:
            state = step(state, entry)
        return state

    def verify(self, name: str) -> Verified:
        """Verify the model's hash chain, fold it again, and read every blob and signature.

        Raises: Damaged, naming the first damaged object; NotFound.
        """
        count = self.follow(name).verify()
        blobs = self.get_model(name).blobs()
        problems = self.check_signatures(name)
        if problems:
            raise Damaged("; ".join(problems))
        with tempfile.TemporaryDirectory() as scratch:
            size_bytes = self._blobs(name).check(blobs.values(), Path(scratch))
        return Verified(entries=count, blobs=len(blobs), size_bytes=size_bytes)

    def dependents(self, source: TableSnapshot | str) -> list[Dependent]:
        """List every version made from `source`: a table snapshot, a code digest, a run id or a view digest."""
        found: list[Dependent] = []
        for name in self.list_models():
            state = self.follow(name).state
            found.extend(
                _dependent(state, version.version)
                for version in state.versions.values()
                if version.deleted_at is None and version.lineage.depends_on(source)
            )
        return found


def _dependent(state: ModelState, number: int) -> Dependent:
    aliases = tuple(alias for alias, target in state.aliases.items() if target == number)
    traffic = state.traffic
    arms = [arm.name for arm in traffic.arms if arm.version == number] if traffic else []
    return Dependent(model=state.name, version=number, aliases=aliases, arm=arms[0] if arms else None)
