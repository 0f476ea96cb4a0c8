"""Folders that only this user can enter, whatever the umask, and although others may write beside them.

A fixed name in the machine's temporary folder can be made first by anybody: as a folder of theirs, or as a link to
somewhere else. Whatever is put there would be theirs to read and to replace, so such a folder is refused.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from toque.registry.errors import Forbidden

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def private_folder(path: Path) -> Path:
    """Make a folder with mode 0700, or take an earlier one of this user, and close it to others.

    Raises: Forbidden if something else has its name: a link, a folder of another user, one that others can write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    remedy = "remove it, or set TMPDIR to a folder of your own"
    if not stat.S_ISDIR(found.st_mode):
        raise Forbidden(f"{path} is no folder but a link or a file; {remedy}")
    if found.st_uid != os.geteuid():
        raise Forbidden(f"{path} belongs to user {found.st_uid}, not to {os.geteuid()}; {remedy}")
    if found.st_mode & _OTHERS_WRITE:
        raise Forbidden(
            f"{path} has mode {found.st_mode & 0o777:o}: others may have written into it; {remedy}"
        )
    if found.st_mode & _OTHERS:
        path.chmod(0o700)
    return path


def temporary_folder(name: str) -> Path:
    """Make this user's private folder for the purpose `name` below the machine's temporary folder.

    All processes of the user on this machine get the same one. Raises: Forbidden as `private_folder`.
    """
    return private_folder(private_folder(Path(tempfile.gettempdir()) / f"toque-{os.getuid()}") / name)
