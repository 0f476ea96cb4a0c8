"""Versions of a language model that are ready: their prompt read, their weights here, their engine running."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, Protocol

from pydantic import ValidationError

from toque.functions.generative import (
    ADAPTER,
    ADAPTER_FOLDER,
    CHAT_TEMPLATE,
    WEIGHTS,
    WEIGHTS_FOLDER,
    EngineSettings,
    Prompt,
    engine_files,
    is_generative,
    read_prompt,
    read_settings,
    weights_in,
)
from toque.functions.generative.engines import EngineDown, EngineProcesses, EngineSpec, Lease
from toque.ray_apps.predictor.versions.loaded import LoadError
from toque.registry.errors import RegistryError
from toque.registry.models import ModelVersion
from toque.registry.store import Blob

__all__ = ["GenerativeVersion", "VersionStarter"]

_FOLDERS: Final = (WEIGHTS_FOLDER, ADAPTER_FOLDER)


class FileSource(Protocol):
    """The part of the registry that has the files of versions."""

    def download(self, name: str, version: int, *, to: Path, paths: Collection[str]) -> Path:
        """Fetch some of a version's files, their digests verified. Raises: RegistryError."""
        ...


class GenerativeVersion:
    """A version that can answer. lease: its hold on an engine, which versions of the same weights and adapter share."""

    def __init__(self, record: ModelVersion, prompt: Prompt, settings: EngineSettings, lease: Lease) -> None:
        self.record, self.prompt, self.settings, self.lease = record, prompt, settings, lease
        self.version = record.version

    def __str__(self) -> str:
        return f"{self.record.model}@{self.version}"


class VersionStarter:
    """Starts versions of language models, in the threads that follow their policies.

    source: the registry, for the files. engines: of the event loop `loop`; no two workspaces share one, as its cache of prefixes
    would tell by its speed what the other asked. folder: for weights, each there once for a workspace.
    start_s: for an engine to answer.
    """

    def __init__(
        self,
        source: FileSource,
        engines: EngineProcesses,
        *,
        workspace: str,
        loop: asyncio.AbstractEventLoop,
        folder: Path,
        start_s: float = 300.0,
        threads: int | None = None,
    ) -> None:
        self._source, self._engines, self._loop = source, engines, loop
        self._workspace, self._folder = workspace, folder / workspace
        self._start_s, self._threads = start_s, threads
        self._users: Counter[str] = Counter()
        self._guard = threading.Lock()

    def start(self, record: ModelVersion) -> GenerativeVersion:
        """Fetch a version's files, and start its engine unless it runs. Raises: LoadError, with the reason."""
        if not is_generative(record) or weights_in(record.files) is None:
            raise LoadError(f"{record.model}@{record.version} is no version of a language model")
        files = engine_files(record)
        try:
            with tempfile.TemporaryDirectory(dir=self._made_folder()) as scratch:
                paths = [
                    name for name in record.files if name not in files or not self._path(files[name]).exists()
                ]
                self._source.download(record.model, record.version, to=Path(scratch), paths=paths)
                prompt, settings = read_prompt(Path(scratch)), read_settings(Path(scratch))
                self._keep(files, Path(scratch))
        except (RegistryError, OSError, ValidationError) as error:
            raise LoadError(f"{record.model}@{record.version} cannot be fetched: {error}") from error
        weights = self._placed(files, WEIGHTS, WEIGHTS_FOLDER)
        assert weights is not None  # noqa: S101  # looked for above
        adapter = self._placed(files, ADAPTER, ADAPTER_FOLDER)
        template = self._path(files[CHAT_TEMPLATE]) if CHAT_TEMPLATE in files else None
        spec = EngineSpec(weights, adapter, template, settings, self._threads)
        starting = asyncio.run_coroutine_threadsafe(self._lease(spec), self._loop)
        try:
            return GenerativeVersion(record, prompt, settings, starting.result())
        except EngineDown as error:
            self._release(files)
            raise LoadError(f"{record.model}@{record.version} cannot be served: {error}") from error

    def dropped(self, version: GenerativeVersion) -> None:
        """Give back what a version held that is served no more; its running answers go on."""
        self._release(engine_files(version.record))
        self._loop.call_soon_threadsafe(version.lease.release)

    async def _lease(self, spec: EngineSpec) -> Lease:
        lease = self._engines.lease(spec)
        try:
            await lease.ready(self._start_s)
        except BaseException:
            lease.release()
            raise
        return lease

    def _made_folder(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self._folder

    def _path(self, blob: Blob) -> Path:
        return self._folder / blob.sha256

    def _placed(self, files: Mapping[str, Blob], file: str, folder: str) -> Path | None:
        """Path of a version's weights or adapter: of the one file, or of the folder that has its files by their names; None if it has none."""
        if file in files:
            return self._path(files[file])
        inside = _in_folder(files, folder)
        if not inside:
            return None
        listed = "\n".join(f"{name} {blob.sha256}" for name, blob in inside.items())
        return self._folder / f"{folder}-{hashlib.sha256(listed.encode()).hexdigest()}"

    def _keep(self, files: Mapping[str, Blob], scratch: Path) -> None:
        with self._guard:
            for name, blob in files.items():
                if (scratch / name).exists():
                    shutil.move(scratch / name, self._path(blob))
                self._users[blob.sha256] += 1
            for name in _FOLDERS:
                self._lay_out(files, name)

    def _lay_out(self, files: Mapping[str, Blob], name: str) -> None:
        folder, inside = self._placed(files, "", name), _in_folder(files, name)
        if folder is None:
            return
        folder.mkdir(exist_ok=True)
        for file, blob in inside.items():
            with contextlib.suppress(FileExistsError):  # another version of the same content
                os.link(self._path(blob), folder / file)
        self._users[folder.name] += 1

    def _release(self, files: Mapping[str, Blob]) -> None:
        """Delete weights that no version here needs any more; an engine that still runs has them open."""
        with self._guard:
            folders = [found for name in _FOLDERS if (found := self._placed(files, "", name)) is not None]
            for path in [*map(self._path, files.values()), *folders]:
                self._users[path.name] -= 1
                if self._users[path.name]:
                    continue
                del self._users[path.name]
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def _in_folder(files: Mapping[str, Blob], folder: str) -> dict[str, Blob]:
    """Files of a version that are in a folder, by their names in it."""
    beginning = f"{folder}/"
    return {name.removeprefix(beginning): blob for name, blob in files.items() if name.startswith(beginning)}
