"""Landlock: from now on this process may read some folders and nothing else, and open no connection.

Source: https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

_CREATE, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ABI_VERSION, _PATH_BENEATH = 1, 1
_NO_NEW_PRIVILEGES = 38
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of rights on files by version of Landlock; all are taken away."""
_NET_SINCE, _SCOPES_SINCE = 4, 6
_CONNECT_AND_BIND, _SOCKETS_AND_SIGNALS = 0b11, 0b11
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/zero", "/dev/urandom",
    "/dev/random", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system",
)  # fmt: skip
"""Paths that libraries read, none of which belongs to the platform or to another process."""


def restrict_files(folder: Path) -> bool:
    """Let this thread, and those that it starts, read `folder`, Python's code and the system's libraries only.

    False where the kernel has no Landlock.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE, None, 0, _ABI_VERSION)
    if version < 1:
        return False
    rights = (1 << _FILE_RIGHTS[min(version, max(_FILE_RIGHTS))]) - 1
    fields = [rights]
    fields += [_CONNECT_AND_BIND] if version >= _NET_SINCE else []
    fields += [_SOCKETS_AND_SIGNALS] if version >= _SCOPES_SINCE else []
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    rules = libc.syscall(_CREATE, attributes, len(attributes), 0)
    if rules < 0:
        return False
    try:
        for path, allowed in _readable(folder):
            _allow(libc, rules, path, allowed)
        return bool(
            libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0 and libc.syscall(_RESTRICT_SELF, rules, 0) == 0
        )
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: Path, allowed: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there needs no right
    try:
        rule = struct.pack("=Qi", allowed if path.is_dir() else allowed & _READ_FILE, opened)
        libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, rule, 0)
    finally:
        os.close(opened)


def _readable(folder: Path) -> Iterator[tuple[Path, int]]:
    python = [Path(each) for each in {sys.prefix, sys.base_prefix, sys.exec_prefix}]
    libraries = [Path(each) for each in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if each]
    for path in (folder, *python, *libraries, *map(Path, _SYSTEM)):
        yield path, _READ_FILE | _READ_DIR
    for entry in map(Path, filter(None, sys.path)):
        if not any(entry.is_relative_to(each) for each in python):
            yield from _code_in(entry)


def _code_in(entry: Path) -> Iterable[tuple[Path, int]]:
    """The code in a folder of the import path, which may hold a store or secrets beside it."""
    project = os.environ.get("TOQUE_PROJECT", "").partition(".")[0]
    yield entry, _READ_DIR
    if entry.is_dir():
        for each in entry.iterdir():
            if each.suffix == ".py" or each.name == project or (each / "__init__.py").is_file():
                yield each, _READ_FILE | _READ_DIR
