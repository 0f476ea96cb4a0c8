"""Verdicts on files that were loaded once within limits, so that the same files need not be loaded so again here.

They stay on this machine, in a folder that only this user can read or write: a verdict in the store would let whoever
writes the store pass files that were never tried. Refusals are not kept, for their reason may pass.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import machine, python_version

from toque.functions.model_formats.formats import Format
from toque.registry.models import Signature
from toque.registry.store import private_folder
from toque.registry.store.blobs import LocalFile

_log = logging.getLogger(__name__)


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
