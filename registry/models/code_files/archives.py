"""Opening of zip archives that strangers made, so that none takes more memory than its size warrants."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from io import SEEK_END
from pathlib import Path
from typing import IO, Final

_MOST_TIMES: Final = 8
_SLACK_BYTES: Final = 16 << 20
_METHODS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


def open_archive(source: Path | IO[bytes]) -> zipfile.ZipFile:
    """Open an archive to read, if all its members together are at most eight times its size and 16 MiB.

    Raises: BadZipFile if they are larger, are packed in an unusual way, or there is no archive.
    """
    archive = zipfile.ZipFile(source)
    size = source.stat().st_size if isinstance(source, Path) else source.seek(0, SEEK_END)
    fault = _fault(archive.infolist(), size)
    if fault is not None:
        archive.close()
        raise zipfile.BadZipFile(f"{fault}: write the archive without compression")
    return archive


def _fault(members: Sequence[zipfile.ZipInfo], size: int) -> str | None:
    unpacked = sum(member.file_size for member in members)
    if unpacked > _MOST_TIMES * size + _SLACK_BYTES:
        return f"{size:,} bytes unpack to {unpacked:,}"
    unusual = [member.filename for member in members if member.compress_type not in _METHODS]
    return f"{unusual[0]} is packed in an unusual way" if unusual else None
