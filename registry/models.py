"""Models and their versions: register, read, check and delete."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from registry import rules
from registry.blobs import Blobs, LocalFile, Progress, code_in, scan
from registry.entry import Entry
from registry.errors import InvalidInput, NotFound, Refused
from registry.lineage import Dependent, Lineage
from registry.model_state import ModelState, step
from registry.names import check_name
from registry.shelf import Shelf
from registry.signature import Signature
from registry.tables import TableSnapshot
from registry.times import as_utc
from registry.versions import Blob, ModelPolicy, ModelVersion, finite, jsonable


class Verified(BaseModel):
    """What `verify` has read and found in order."""

    model_config = ConfigDict(frozen=True)

    entries: int
    blobs: int
    size_bytes: int


class _SweptMeanwhile(Exception):  # noqa: N818 - a signal between two functions here, not an error
    """Garbage was collected between upload and append: what was uploaded may be gone."""


class Models(Shelf):
    """The part of the registry about models and versions."""

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

        Raises: AlreadyExists; InvalidInput for a malformed name.
        """

        def decide(state: ModelState) -> rules.Body | None:
            if exist_ok and state.created_at is not None:
                return None
            return rules.create_model(
                state, description=description, tags=tags or {}, policy=policy or ModelPolicy()
            )

        fold = self.follow(name)
        if fold.next == 0:
            self.store.put(
                f"model-names/{name}", b""
            )  # first: a name without a model is skipped by list_models
        return self._change(name, decide)[1]

    def get_model(self, name: str) -> ModelState:
        """The model as it is now. Raises: NotFound."""
        state = self.follow(name).refresh()
        rules.require_model(state)
        return state

    def list_models(self) -> list[str]:
        """Names of all models, sorted."""
        names = [key.removeprefix("model-names/") for key in self.store.list("model-names/")]
        return [name for name in names if self.follow(name).refresh().created_at is not None]

    def set_model_tags(
        self, name: str, tags: Mapping[str, str], *, description: str | None = None
    ) -> ModelState:
        """Add or replace tags and, if given, the description. Raises: NotFound."""
        body: rules.Body = {"kind": "model-changed", "tags": dict(tags)}
        body |= {} if description is None else {"description": description}

        def decide(state: ModelState) -> rules.Body:
            rules.require_model(state)
            return body

        return self._change(name, decide)[1]

    def create_version(
        self,
        name: str,
        path: str | Path,
        *,
        signature: Signature | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        lineage: Lineage | None = None,
        description: str = "",
        key: str | None = None,
        allow_code: Collection[str] = (),
        on_progress: Progress | None = None,
    ) -> ModelVersion:
        """Register the files at `path` (a folder or a file) as the next version.

        The files are stored first, in parallel; then one journal entry makes the version, whole and READY.
        F new files cost F + 1 writes and 2 reads.
        key: idempotency key: a second call with it returns the version the first made.
        allow_code: paths of files that can execute code when loaded (pickles, scripts), accepted by name.
        on_progress: called with the bytes of each file once it is stored.
        Raises: NotFound if the model does not exist; InvalidInput for bad files; Refused for code.
        """
        files = scan(Path(path))
        code = code_in(files)
        refused = sorted(set(code) - set(allow_code))
        if refused:
            raise Refused(
                f"{refused} can execute code when loaded; store safetensors or an exported graph, or accept "
                f"them by name: allow_code={refused}"
            )
        content = {
            "signature": None if signature is None else jsonable(signature),
            "metrics": _numbers(metrics or {}),
            "tags": {str(tag): str(value) for tag, value in (tags or {}).items()},
            "lineage": jsonable(lineage or Lineage()),
            "description": description,
            "code_files": list(code),
            "key": key,
        }
        return self._register(name, files, content, on_progress)

    def find_version(self, name: str, version: int | str) -> ModelVersion | None:
        """A version by number or alias, or None; deleted ones by number only. 1 read when warm."""
        state = self.follow(name).refresh()
        number = state.aliases.get(version) if isinstance(version, str) else version
        return None if number is None else state.versions.get(number)

    def get_version(self, name: str, version: int | str) -> ModelVersion:
        """A version by number or alias. Raises: NotFound."""
        found = self.find_version(name, version)
        if found is None:
            state = self.follow(name).state
            rules.require_model(state)
            raise NotFound(
                f"{name}@{version} does not exist; versions go to {max(state.versions, default=0)}, "
                f"aliases are {dict(state.aliases)}"
            )
        return found

    def list_versions(self, name: str) -> list[ModelVersion]:
        """All versions that are not deleted, oldest first. Raises: NotFound if the model does not exist."""
        return [version for version in self.get_model(name).versions.values() if version.deleted_at is None]

    def set_version_tags(self, name: str, version: int, tags: Mapping[str, str | None]) -> ModelVersion:
        """Add or replace tags of a version (None removes one). Raises: NotFound."""

        def decide(state: ModelState) -> rules.Body | None:
            old = rules.require_version(state, version).tags
            same = all(old.get(tag) == value for tag, value in tags.items())
            return None if same else {"kind": "version-changed", "version": version, "tags": dict(tags)}

        return self._change(name, decide)[1].versions[version]

    def delete_version(self, name: str, version: int, *, reason: str = "") -> ModelVersion:
        """Mark a version as deleted; its number is never used again and its history stays.

        Raises: NotFound; Refused while an alias or traffic points to it.
        """
        return self._change(name, lambda state: rules.delete_version(state, version, reason=reason))[
            1
        ].versions[version]

    def download(
        self,
        name: str,
        version: int | str,
        to: str | Path,
        *,
        allow_code: Collection[str] = (),
        on_progress: Progress | None = None,
    ) -> Path:
        """Write a version's files below the folder `to`, every digest checked; returns the folder.

        allow_code: paths of files that can execute code, to be accepted by name.
        Raises: NotFound; Damaged if a stored byte was changed; Refused for code or a deleted version.
        """
        found = self.get_version(name, version)
        if found.deleted_at is not None:
            raise Refused(f"{name}@{found.version} was deleted at {found.deleted_at.isoformat()}")
        refused = sorted(set(found.code_files) - set(allow_code))
        if refused:
            raise Refused(
                f"{name}@{found.version}: {refused} can execute code; accept it: allow_code={refused}"
            )
        folder = Path(to)
        self._blobs(name).download(found.files, folder, on_progress=on_progress)
        return folder

    def history(self, name: str) -> list[Entry]:
        """Every change of the model, oldest first, with actor, time and reason. Raises: NotFound."""
        entries = list(self.follow(name).journal.entries())
        if not entries:
            rules.require_model(ModelState(name=name))
        return entries

    def alias_at(self, name: str, alias: str, at: datetime) -> int | None:
        """The version behind `alias` at a moment, or None. Raises: NotFound; InvalidInput for a naive time."""
        return self.model_at(name, at).aliases.get(alias)

    def model_at(self, name: str, at: datetime) -> ModelState:
        """The whole model as it was at a moment. Raises: NotFound; InvalidInput for a naive time."""
        moment = as_utc(at, name="at")
        entries = self.history(name)
        known = max((entry.number for entry in entries if entry.at <= moment), default=-1)
        state = ModelState(name=name)
        for entry in entries[: known + 1]:
            state = step(state, entry)
        return state

    def verify(self, name: str) -> Verified:
        """Walk the model's hash chain and read every blob.

        Raises: Damaged, naming the first damaged thing; NotFound.
        """
        count = self.follow(name).journal.verify()
        blobs = self.get_model(name).blobs()
        with tempfile.TemporaryDirectory() as scratch:
            size_bytes = self._blobs(name).check(blobs.values(), Path(scratch))
        return Verified(entries=count, blobs=len(blobs), size_bytes=size_bytes)

    def dependents(self, source: TableSnapshot | str) -> list[Dependent]:
        """Every version that was made from `source`: a table snapshot, a code digest, a run id, a view digest."""
        found: list[Dependent] = []
        for name in self.list_models():
            state = self.follow(name).state
            found.extend(
                _dependent(state, version.version)
                for version in state.versions.values()
                if version.deleted_at is None and version.lineage.depends_on(source)
            )
        return found

    def collect_garbage(self, *, grace: timedelta = timedelta(days=1)) -> list[str]:
        """Delete files no version uses; returns their keys.

        First a journal entry opens a new generation, then files of older ones that no version uses are
        deleted. A registration under way meets that entry when it appends, and stores its files again under
        the new generation: so nothing reachable is ever deleted, however slow either of them is.
        grace: files of versions deleted more recently are kept.
        """
        removed = []
        for name in self.list_models():
            removed += self._sweep(name, grace)
        return removed

    def _sweep(self, name: str, grace: timedelta) -> list[str]:
        blobs = self._blobs(name)
        prefix = f"models/{name}/blobs/"
        now = self.clock()

        def kept(state: ModelState) -> set[str]:
            living = (
                version
                for version in state.versions.values()
                if version.deleted_at is None or now - version.deleted_at < grace
            )
            return {blobs.key(blob) for version in living for blob in version.files.values()}

        if set(self.store.list(prefix)) <= kept(self.follow(name).refresh()):
            return []
        _, state = self._change(name, lambda state: {"kind": "swept", "generation": state.generation + 1})
        current = f"{prefix}{state.generation:08d}/"
        used = kept(state)
        dead = [key for key in self.store.list(prefix) if key not in used and key < current]
        for key in dead:
            self.store.delete(key)
        return dead

    def _register(
        self, name: str, files: Mapping[str, LocalFile], content: rules.Body, on_progress: Progress | None
    ) -> ModelVersion:
        state = self.follow(name).refresh()
        while True:
            rules.require_model(state)
            done = _with_key(state, content["key"])
            if done is not None:
                return done
            stored = self._store_files(state, files, on_progress)
            body = {**content, "files": {path: jsonable(stored[file.sha256]) for path, file in files.items()}}
            body["digest"] = _digest(body)
            try:
                entry, state = self._change(name, _registration(body, stored))
            except _SweptMeanwhile:
                state = self.follow(name).state
                continue
            if entry is not None:
                return state.versions[entry.body["version"]["version"]]

    def _store_files(
        self, state: ModelState, files: Mapping[str, LocalFile], on_progress: Progress | None
    ) -> dict[str, Blob]:
        """Content digest -> blob; content that a version has already is not sent again."""
        known = state.blobs()
        new = [file for file in files.values() if file.sha256 not in known]
        reused = {file.sha256: known[file.sha256] for file in files.values() if file.sha256 in known}
        return reused | self._blobs(state.name).upload(
            new, generation=state.generation, on_progress=on_progress
        )

    def _blobs(self, name: str) -> Blobs:
        return Blobs(self.store, f"models/{check_name(name)}/blobs")


def _registration(body: rules.Body, stored: Mapping[str, Blob]) -> Callable[[ModelState], rules.Body | None]:
    """The decision that adds a version, as long as what was stored for it cannot have been swept."""

    def decide(state: ModelState) -> rules.Body | None:
        rules.require_model(state)
        if _with_key(state, body["key"]) is not None:
            return None
        known = state.blobs()
        if any(
            blob.generation != state.generation and known.get(digest) != blob
            for digest, blob in stored.items()
        ):
            raise _SweptMeanwhile
        number = max(state.versions, default=0) + 1
        return {"kind": "version-created", "version": {**body, "version": number}}

    return decide


def _with_key(state: ModelState, key: str | None) -> ModelVersion | None:
    if key is None:
        return None
    return next((version for version in state.versions.values() if version.key == key), None)


def _digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of what makes the version behave as it does: its files and its signature."""
    files = {path: blob["sha256"] for path, blob in body["files"].items()}
    text = json.dumps([files, body["signature"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _numbers(metrics: Mapping[str, float]) -> rules.Body:
    """Metrics as JSON. Raises: InvalidInput for a value that is no number."""
    for metric, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInput(f"metric {metric!r}={value!r} is not a number; pass float(value)")
    return finite({metric: float(value) for metric, value in metrics.items()})


def _dependent(state: ModelState, number: int) -> Dependent:
    aliases = tuple(alias for alias, target in state.aliases.items() if target == number)
    traffic = state.traffic
    arms = [arm.name for arm in traffic.arms if arm.version == number] if traffic else []
    return Dependent(model=state.name, version=number, aliases=aliases, arm=arms[0] if arms else None)
