"""Registration of versions (files first, then one journal entry) and garbage collection of unused files.

The two meet safely without any clock. Files are stored under the model's current generation. A collection
first appends an entry that opens a new one, then deletes files of older generations that no version uses. A
registration under way meets that entry when it appends, and stores its files again. A collector that stalls
can only delete keys that no later registration may name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from toque.registry.errors import InvalidInput, NotFound, Refused
from toque.registry.models import decisions
from toque.registry.models.code_files import executable_files
from toque.registry.models.model_journals import ModelJournals
from toque.registry.models.state import ModelState
from toque.registry.models.versions import Lineage, ModelVersion, Signature, finite, jsonable
from toque.registry.names import check_name
from toque.registry.store import Blob, Progress
from toque.registry.store.blobs import Blobs, LocalFile, scan

_PATIENCE_S = 1200.0  # what was uploaded is worth waiting for, however many others register


class _GarbageCollected(Exception):  # noqa: N818 - a signal between two functions of this module, not an error
    """Garbage was collected between upload and append, so the uploaded files may be gone."""


class Registration(ModelJournals):
    """The part of the registry that registers versions and deletes files which no version uses."""

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
        keep: int | None = None,
        on_progress: Progress | None = None,
    ) -> ModelVersion:
        """Register the files at `path` (a folder or a file) as the next version.

        The files are stored first, in parallel; then one journal entry makes the version, whole and READY.
        F new files cost F + 1 writes and 2 reads.
        key: idempotency key: a second call with it returns the version of the first.
        allow_code: paths of files that can execute code when loaded (pickles, scripts, formats that are not known), accepted by name.
        keep: an earlier version, whose files the new one has too where `path` has none of that name; nobody sends them again.
        on_progress: called with the bytes of each piece as it is stored, or found to be stored already.
        Raises: NotFound if the model does not exist; InvalidInput for bad files and a description that is too long; Refused for code.
        """
        files = scan(Path(path))
        code = executable_files(files)
        refused = sorted(set(code) - set(allow_code))
        if refused:
            raise Refused(
                f"{refused} can execute code when loaded, or are of no format that is known to be data; store safetensors or "
                f"an exported graph, or accept them by name: allow_code={refused}"
            )
        content = {
            "signature": None if signature is None else jsonable(signature),
            "metrics": _numbers(metrics or {}),
            "tags": {str(tag): str(value) for tag, value in (tags or {}).items()},
            "lineage": jsonable(lineage or Lineage()),
            "description": decisions.check_description(description),
            "code_files": list(code),
            "key": key,
        }
        return self._register(name, files, content, keep, on_progress)

    def collect_garbage(self, *, grace: timedelta = timedelta(days=1)) -> list[str]:
        """Delete files that no version uses; returns their keys.

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
        self,
        name: str,
        files: Mapping[str, LocalFile],
        content: decisions.Body,
        keep: int | None,
        on_progress: Progress | None,
    ) -> ModelVersion:
        state = self.follow(name).refresh()
        while True:
            decisions.require_model(state)
            done = _with_key(state, content["key"])
            if done is not None:
                return done
            kept = _kept(state, keep, files)
            stored = self._store_files(state, files, on_progress)
            held = kept | {path: stored[file.sha256] for path, file in files.items()}
            code = [*content["code_files"], *_code_of(state, keep, kept)]
            body = {**content, "code_files": code, "files": {path: jsonable(held[path]) for path in held}}
            body["digest"] = _digest(body)
            blobs = {blob.sha256: blob for blob in held.values()}
            try:
                entry, state = self._change(name, _registration(body, blobs), patience_s=_PATIENCE_S)
            except _GarbageCollected:
                state = self.follow(name).state
                continue
            if entry is not None:
                return state.versions[entry.body["version"]["version"]]

    def _store_files(
        self, state: ModelState, files: Mapping[str, LocalFile], on_progress: Progress | None
    ) -> dict[str, Blob]:
        """Upload files to blobs by content digest, except content that a version has already."""
        known = state.blobs()
        distinct = {file.sha256: file for file in files.values()}
        new = [file for digest, file in distinct.items() if digest not in known]
        if on_progress:
            on_progress(sum(file.size for file in files.values()) - sum(file.size for file in new))
        uploaded = self._blobs(state.name).upload(new, generation=state.generation, on_progress=on_progress)
        return {digest: known[digest] for digest in distinct if digest in known} | uploaded

    def _blobs(self, name: str) -> Blobs:
        return Blobs(self.store, f"models/{check_name(name)}/blobs")


def _kept(state: ModelState, keep: int | None, files: Mapping[str, LocalFile]) -> dict[str, Blob]:
    """Files that an earlier version gives to a new one. Raises: NotFound if it does not exist or was deleted."""
    if keep is None:
        return {}
    earlier = state.versions.get(keep)
    if earlier is None or earlier.deleted_at is not None:
        raise NotFound(f"keep={keep}: {state.name} has no such version; it has {sorted(state.versions)}")
    return {path: blob for path, blob in earlier.files.items() if path not in files}


def _code_of(state: ModelState, keep: int | None, kept: Mapping[str, Blob]) -> list[str]:
    """List the kept files that can execute code, which were accepted when they were sent."""
    return [] if keep is None else [path for path in state.versions[keep].code_files if path in kept]


def _registration(
    body: decisions.Body, stored: Mapping[str, Blob]
) -> Callable[[ModelState], decisions.Body | None]:
    """Make the decision that adds a version, unless its uploaded files may have been garbage-collected."""

    def decide(state: ModelState) -> decisions.Body | None:
        decisions.require_model(state)
        if _with_key(state, body["key"]) is not None:
            return None
        known = state.blobs()
        if any(
            blob.generation != state.generation and known.get(digest) != blob
            for digest, blob in stored.items()
        ):
            raise _GarbageCollected
        number = max(state.versions, default=0) + 1
        return {"kind": "version-created", "version": {**body, "version": number}}

    return decide


def _with_key(state: ModelState, key: str | None) -> ModelVersion | None:
    if key is None:
        return None
    return next((version for version in state.versions.values() if version.key == key), None)


def _digest(body: Mapping[str, Any]) -> str:
    """Hash what determines the version's behaviour: its files and its tensor signature."""
    files = {path: blob["sha256"] for path, blob in body["files"].items()}
    text = json.dumps([files, body["signature"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _numbers(metrics: Mapping[str, float]) -> decisions.Body:
    """Convert metrics to finite JSON. Raises: InvalidInput for a value that is not a number."""
    for metric, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInput(f"metric {metric!r}={value!r} is not a number; pass float(value)")
    return finite({metric: float(value) for metric, value in metrics.items()})
