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
from typing import Protocol

from pydantic import ValidationError

from functions.generative import (
    ADAPTER,
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
from functions.generative.engines import EngineDown, EngineProcesses, EngineSpec, Lease
from ray_apps.predictor.versions.loaded import LoadError
from registry.errors import RegistryError
from registry.models import ModelVersion
from registry.store import Blob

__all__ = ["GenerativeVersion", "VersionStarter"]


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
        spec = EngineSpec(
            self._weights(files),
            self._path(files[ADAPTER]) if ADAPTER in files else None,
            self._path(files[CHAT_TEMPLATE]) if CHAT_TEMPLATE in files else None,
            settings,
            self._threads,
        )
        key = "-".join([self._workspace, *(blob.sha256 for blob in files.values())])
        starting = asyncio.run_coroutine_threadsafe(self._lease(key, spec), self._loop)
        try:
            return GenerativeVersion(record, prompt, settings, starting.result())
        except EngineDown as error:
            self._release(files)
            raise LoadError(f"{record.model}@{record.version} cannot be served: {error}") from error

    def dropped(self, version: GenerativeVersion) -> None:
        """Give back what a version held that is served no more; its running answers go on."""
        self._release(engine_files(version.record))
        self._loop.call_soon_threadsafe(version.lease.release)

    async def _lease(self, key: str, spec: EngineSpec) -> Lease:
        lease = self._engines.lease(key, spec)
        try:
            await lease.process.ready(self._start_s)
        except BaseException:
            lease.release()
            raise
        return lease

    def _made_folder(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self._folder

    def _path(self, blob: Blob) -> Path:
        return self._folder / blob.sha256

    def _weights(self, files: Mapping[str, Blob]) -> Path:
        """Path of a version's weights: the one file, or the folder that has its files by their names."""
        folder = _in_folder(files)
        if not folder:
            return self._path(files[WEIGHTS])
        listed = "\n".join(f"{name} {blob.sha256}" for name, blob in folder.items())
        return self._folder / f"{WEIGHTS_FOLDER}-{hashlib.sha256(listed.encode()).hexdigest()}"

    def _keep(self, files: Mapping[str, Blob], scratch: Path) -> None:
        with self._guard:
            for name, blob in files.items():
                if (scratch / name).exists():
                    shutil.move(scratch / name, self._path(blob))
                self._users[blob.sha256] += 1
            folder = self._weights(files)
            for name, blob in _in_folder(files).items():
                folder.mkdir(exist_ok=True)
                with contextlib.suppress(FileExistsError):  # another version of the same weights
                    os.link(self._path(blob), folder / name)
            self._users[folder.name] += 1

    def _release(self, files: Mapping[str, Blob]) -> None:
        """Delete weights that no version here needs any more; an engine that still runs has them open."""
        with self._guard:
            for path in [*map(self._path, files.values()), self._weights(files)]:
                self._users[path.name] -= 1
                if self._users[path.name]:
                    continue
                del self._users[path.name]
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def _in_folder(files: Mapping[str, Blob]) -> dict[str, Blob]:
    """Files of the folder of weights, by their names in it."""
    beginning = f"{WEIGHTS_FOLDER}/"
    return {name.removeprefix(beginning): blob for name, blob in files.items() if name.startswith(beginning)}
