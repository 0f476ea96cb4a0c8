"""Has a model's files loaded first by a process of its own, with limits, and refuses those that do not pass.

Parsers of model files are native libraries: a file made for it can crash them, or take all memory. So the files are
loaded, and the recorded example is answered, where that ends nobody else. Files that passed need not be tried here again: verdicts
stay on this machine, in a folder that only this user can read or write, since in the store whoever writes it would pass files
that were never tried. Refusals are not kept, for their reason may pass.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import select
import subprocess
import sys
import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import machine, python_version

from toque.functions.model_formats.errors import ArtifactRefused, TrainingError
from toque.functions.model_formats.formats import FORMATS, PROGRAM_FILE, PYTHON_MODEL, Format, inspect
from toque.functions.model_formats.sandbox.messages import (
    ALL_LIMITS,
    LoadRequest,
    SandboxLimits,
    Verdict,
    import_all,
)
from toque.registry.models import Signature
from toque.registry.store import private_folder
from toque.registry.store.blobs import LocalFile

_log = logging.getLogger(__name__)
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "TOQUE_PROJECT")
"""Variables that the process gets; no other, since they may hold secrets."""
_SET_VARIABLES = {
    "HOME": "/nonexistent",
    "PYTHONDONTWRITEBYTECODE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
IMPORT_S = 120.0
"""For the process to start and to import a library, on a busy machine."""


class SandboxFailed(TrainingError):  # noqa: N818 - says what happened
    """The process that loads models first did not answer; that says nothing about the files."""


class Sandbox:
    """Loads models' files within limits before this process does. Safe to call from several threads.

    verdicts: folder for what passed, on this machine. environment: of which the process gets a few variables.
    """

    def __init__(self, limits: SandboxLimits, *, verdicts: Path, environment: Mapping[str, str]) -> None:
        self._limits, self._verdicts = limits, Verdicts(verdicts)
        self._environment = {name: environment[name] for name in _KEPT_VARIABLES if name in environment}
        self._server: _Server | None = None
        self._turn = threading.Lock()
        self.held: tuple[str, ...] | None = None  # what the kernel limited at the last load

    def start(self) -> None:
        """Start the process, so that it imports what programs take while this one does; not where any files passed."""
        with self._turn:
            if self._server is None and not self._verdicts.any():
                self._server = _Server(self._environment, FORMATS[PROGRAM_FILE].modules)

    def check(self, folder: Path, signature: Signature, *, trusted_types: Collection[str] = ()) -> None:
        """Have the files in `folder` loaded and the signature's example answered, unless they passed here before.

        trusted_types: classes that a file of skops may name, as the model's policy says.
        The files of a project's class always are: its code may have changed since.
        Raises: ArtifactRefused with the reason and the limits; SandboxFailed.
        """
        found, files = inspect(folder)
        key = verdict_key(found, files, signature)
        if found.file != PYTHON_MODEL and self._verdicts.passed(key):
            return
        limits = self._limits.for_files(sum(file.size for file in files.values()))
        request = LoadRequest(
            folder=folder.resolve(),
            modules=found.modules,
            signature=signature,
            limits=limits,
            trusted_types=tuple(sorted(trusted_types)),
        )
        verdict = self._ask(request)
        self.tell(verdict.held)
        if verdict.reason is not None:
            raise ArtifactRefused(
                f"{verdict.reason} (loaded in a process of its own, with {limits}; no process that serves loads it: mend "
                "the model, or raise options.sandbox of the predictor if it needs more)"
            )
        self._verdicts.add(key)

    def close(self) -> None:
        """End the process, if it runs."""
        with self._turn:
            if self._server is not None:
                self._server.close()
            self._server = None

    def _ask(self, request: LoadRequest) -> Verdict:
        with self._turn:
            if self._server is not None:
                with suppress(SandboxFailed):  # it ended because nobody needed it
                    return self._server.ask(request)
                self._server.close()
            self._server = _Server(self._environment)
            try:
                return self._server.ask(request)
            except SandboxFailed:
                self._server.close()
                self._server = None
                raise

    def tell(self, held: tuple[str, ...]) -> None:
        """Log what the kernel limits, once, as a warning if that is not everything."""
        if not held or held == self.held:
            return
        self.held = held
        missing = [each for each in ALL_LIMITS if each not in held]
        if missing:
            _log.warning(
                "models are loaded first in a process of its own, but this kernel does not limit %s; it limits %s",
                " nor ".join(missing), "; ".join(held),
            )  # fmt: skip
        else:
            _log.info("models are loaded first in a process of its own, with limits on %s", "; ".join(held))


class _Server:
    """The process, as its parent sees it. modules: that it imports before it is asked."""

    def __init__(self, environment: Mapping[str, str], modules: Sequence[str] = ()) -> None:
        paths = os.pathsep.join(dict.fromkeys(os.path.abspath(each) for each in sys.path))  # noqa: PTH100 - "" too
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-P", "-m", "toque.functions.model_formats.sandbox.server", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env={**environment, **_SET_VARIABLES, "PYTHONPATH": paths},
        )
        self.close = weakref.finalize(self, _end, self._process)  # a load that it may be at ends too

    def ask(self, request: LoadRequest) -> Verdict:
        """Send a request and wait for its verdict. Raises: SandboxFailed."""
        asked, answers = self._process.stdin, self._process.stdout
        if asked is None or answers is None:
            raise SandboxFailed("the process that loads models first has no pipes")
        try:
            asked.write(request.model_dump_json().encode() + b"\n")
            asked.flush()
        except OSError as error:
            raise SandboxFailed(f"the process that loads models first has ended: {error}") from error
        import_all(request.modules)  # at the same time as the process does: this one loads the files next
        patience_s = request.limits.wall_s + IMPORT_S
        if not select.select([answers], [], [], patience_s)[0]:
            raise SandboxFailed(f"the process that loads models first gave no answer in {patience_s:g} s")
        line = answers.readline()
        if not line:
            raise SandboxFailed(
                "the process that loads models first has ended; is the machine out of memory?"
            )
        return Verdict.model_validate_json(line)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


class Verdicts:
    """Keys of files that passed, as empty files in a folder that only this user can enter.

    Raises: Forbidden if the folder is somebody else's, or others could have written into it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)

    def passed(self, key: str) -> bool:
        """Whether files of this key passed here before."""
        return (self._folder / key).is_file()

    def any(self) -> bool:
        """Whether any files passed here before."""
        return next(self._folder.iterdir(), None) is not None

    def add(self, key: str) -> None:
        """Note that files of this key passed."""
        try:
            (self._folder / key).touch(mode=0o600)
        except OSError as error:
            _log.warning("%s: a verdict is not kept, so its files are tried again: %s", self._folder, error)


def verdict_key(found: Format, files: Mapping[str, LocalFile], signature: Signature) -> str:
    """Digest of the files, the signature and the releases of what reads them: a new release tries them again."""
    content = {
        "files": {name: file.sha256 for name, file in sorted(files.items())},
        "signature": signature.model_dump_json(),
        "python": f"{python_version()} {machine()}",
        "releases": {each: _release(each) for each in (*found.distributions, "numpy")},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _release(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
