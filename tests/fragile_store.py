"""A store in a folder whose process dies at one of its writes, for tests of what is left behind."""

from typing import Any

from registry.store import FolderStore


class KilledError(Exception):
    """Stands for the end of the process."""


class FragileStore(FolderStore):
    """A store whose process dies before its write number `fatal`, counted from 1; 0: never."""

    writes = 0
    fatal = 0

    def _write(self, write: Any, *arguments: Any) -> None:
        self.writes += 1
        if self.writes == self.fatal:
            raise KilledError
        write(*arguments)

    def create(self, key: str, data: bytes) -> None:
        self._write(super().create, key, data)

    def put(self, key: str, data: bytes) -> None:
        self._write(super().put, key, data)

    def delete(self, key: str) -> None:
        self._write(super().delete, key)
