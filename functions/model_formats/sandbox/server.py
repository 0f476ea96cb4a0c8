"""The process that loads models first: forks a child for each, confines it, and reports how it ended.

It reads no file of a model itself, so its children begin clean. A library takes seconds to import: it is imported here,
once, before the fork. The process ends with the one that started it, and when it was not needed for a minute.
Landlock decides which files are read; a seccomp filter takes away network, other processes and writing. It lists what is forbidden,
as libraries that parse models differ too much in what they call; later calls of Linux fail as in a kernel without them.
Source: https://docs.kernel.org/userspace-api/landlock.html; linux/seccomp.h, linux/bpf_common.h; numbers: asm/unistd_64.h and
asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import platform
import select
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from toque.functions.model_formats.errors import ArtifactRefused
from toque.functions.model_formats.formats import PYTHON_MODEL
from toque.functions.model_formats.load import check_example, load
from toque.functions.model_formats.sandbox.messages import (
    FILES,
    RESOURCES,
    SYSTEM_CALLS,
    LoadRequest,
    Verdict,
    import_all,
    limit_resources,
)

IDLE_S = 60.0
MAX_ANSWER = 1 << 14
MAX_REASON = 2_000
_END_WITH_PARENT = 1
_PIPE = 3


def serve() -> None:
    """Answer requests from standard input on standard output, until it closes or none comes for a minute."""
    asked, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # what libraries print goes where errors go, not into our answers
    import_all(sys.argv[1:])
    with os.fdopen(asked, "rb") as requests, os.fdopen(answers, "wb") as out:
        while select.select([requests], [], [], IDLE_S)[0]:
            line = requests.readline()
            if not line:
                return
            out.write(_answer(LoadRequest.model_validate_json(line)).model_dump_json().encode() + b"\n")
            out.flush()


def _answer(request: LoadRequest) -> Verdict:
    import_all(request.modules)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _load_and_exit(request, writing)
    os.close(writing)
    try:
        answer = _read(reading, time.monotonic() + request.limits.wall_s)
    finally:
        os.close(reading)
        for end in (os.killpg, os.kill):  # also before it leads a group, and what it may have started
            with suppress(ProcessLookupError):
                end(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    if answer is None:
        return Verdict(reason=f"it took longer than wall_s={request.limits.wall_s:g}")
    with suppress(ValueError):  # the child's words may be a model's: they are checked, and never unpickled
        return Verdict.model_validate_json(answer)
    return Verdict(reason=_death(status, usage.ru_utime + usage.ru_stime, request))


def _death(status: int, used_s: float, request: LoadRequest) -> str:
    if used_s >= request.limits.cpu_s - 0.5:
        return f"it used more than cpu_s={request.limits.cpu_s} on a processor"
    how = (
        f"signal {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else f"status {status}"
    )
    return f"it ended the process that loaded it, by {how}"


def _read(pipe: int, until: float) -> bytes | None:
    """What a child wrote before it ended, or None if it still runs at `until`."""
    parts: list[bytes] = []
    while select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(pipe, MAX_ANSWER)
        if not part or sum(map(len, parts)) > MAX_ANSWER:
            return b"".join(parts)
        parts.append(part)
    return None


def _load_and_exit(request: LoadRequest, pipe: int) -> NoReturn:
    """Load the files in this child, which was forked for it and ends here whatever happens."""
    tempfile.tempdir = "/nonexistent"  # libraries that only ask for its name must not look for a writable one
    held: tuple[str, ...] = ()
    reason: str | None = None
    try:
        pipe = _keep_only(pipe)
        _import_project(request.folder)
        held = _confine(request)
        model = load(request.folder, signature=request.signature, trusted_types=request.trusted_types)
        check_example(model)
    except MemoryError:
        reason = "it needs more memory than memory_bytes"
    except BaseException as error:  # noqa: BLE001 - whatever it is, this process ends
        reason = f"{error}"[:MAX_REASON] or type(error).__name__
    try:
        os.write(pipe, json.dumps({"reason": reason, "held": held}).encode())
    finally:
        os._exit(0)


def _keep_only(pipe: int) -> int:
    """End with the parent, and close every descriptor but the pipe; nothing that a library prints is seen."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    if pipe != _PIPE:
        os.dup2(pipe, _PIPE)
    os.closerange(_PIPE + 1, os.sysconf("SC_OPEN_MAX"))
    return _PIPE


def _import_project(folder: Path) -> None:
    """Import the project whose class reads the files: trusted code, which may read what it needs to begin."""
    project = os.environ.get("TOQUE_PROJECT")
    if project and (folder / PYTHON_MODEL).is_file():
        try:
            importlib.import_module(project)
        except Exception as error:
            raise ArtifactRefused(
                f"TOQUE_PROJECT={project!r} cannot be imported where few variables of the environment are: {error!r}"
            ) from error


def _confine(request: LoadRequest) -> tuple[str, ...]:
    """Take away what a load does not need; returns what the kernel holds to."""
    limit_resources(request.limits)
    held = [RESOURCES]
    if restrict_files(request.folder):
        held.append(FILES)
    if forbid_system_calls():
        held.append(SYSTEM_CALLS)
    return tuple(held)


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


_DENIED = """
socket 41 198, connect 42 203, accept 43 202, accept4 288 242, bind 49 200, listen 50 201,
execve 59 221, execveat 322 281, fork 57 -, vfork 58 -, unshare 272 97, setns 308 268, chroot 161 51,
pivot_root 155 41, mount 165 40, umount2 166 39, move_mount 429 429, open_tree 428 428, fsopen 430 430,
fspick 433 433, fsconfig 431 431, fsmount 432 432, mount_setattr 442 442, ptrace 101 117,
process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440, kcmp 312 272, pidfd_open 434 434,
pidfd_getfd 438 438, pidfd_send_signal 424 424, tkill 200 130, rt_sigqueueinfo 129 138,
rt_tgsigqueueinfo 297 240, bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, io_uring_setup 425 425,
io_uring_enter 426 426, io_uring_register 427 427, keyctl 250 219, add_key 248 217, request_key 249 218,
init_module 175 105, finit_module 313 273, delete_module 176 106, kexec_load 246 104, kexec_file_load 320 294,
reboot 169 142, swapon 167 224, swapoff 168 225, acct 163 89, quotactl 179 60, quotactl_fd 443 443, creat 85 -,
rename 82 -, renameat 264 38, renameat2 316 276, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36,
unlink 87 -, unlinkat 263 35, mkdir 83 -, mkdirat 258 34, rmdir 84 -, mknod 133 -, mknodat 259 33,
truncate 76 45, ftruncate 77 46, fallocate 285 47, chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452,
chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7,
removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16, utime 132 -, utimes 235 -, futimesat 261 -,
utimensat 280 88, open_by_handle_at 304 265, name_to_handle_at 303 264, setrlimit 160 164, setuid 105 146,
setgid 106 144, setreuid 113 145, setregid 114 143, setresuid 117 147, setresgid 119 149, setgroups 116 159,
setfsuid 122 151, setfsgid 123 152, capset 126 91, personality 135 92, iopl 172 -, ioperm 173 -,
settimeofday 164 170, clock_settime 227 112, clock_adjtime 305 266, adjtimex 159 171, sethostname 170 161,
setdomainname 171 162, syslog 103 116, vhangup 153 58, memfd_create 319 279, memfd_secret 447 447, shmget 29 194,
shmat 30 196, msgget 68 186, semget 64 190, mq_open 240 180, migrate_pages 256 238, move_pages 279 239,
fanotify_init 300 262, socketpair 53 199, sync 162 81, syncfs 306 267, io_setup 206 0, process_mrelease 448 448,
shmctl 31 195, semop 65 193, semctl 66 191, semtimedop 220 192, msgsnd 69 189, msgrcv 70 188, msgctl 71 187, mq_unlink 241 181,
inotify_add_watch 254 27, fanotify_mark 301 263, setpriority 141 140, ioprio_set 251 30, mlockall 151 230
"""
"""System calls that fail with EPERM, with their numbers on x86_64 and aarch64."""
_OPEN, _OPENAT, _OPENAT2, _CLONE, _CLONE3 = (2, -1), (257, 56), (437, 437), (56, 220), (435, 435)
_KILL, _TGKILL, _PRLIMIT, _SECCOMP = (62, 129), (234, 131), (302, 261), (317, 277)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x4000_0000  # the same calls by other numbers
_LATER = 463  # setxattrat, of Linux 6.13, is the first call that this list has not looked at; numbers are the same everywhere since 424
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CLONE_THREAD = 0x0001_0000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _FAIL, _KILL_PROCESS = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_SET_MODE_FILTER, _ALL_THREADS = 1, 1
Instruction = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def forbid_system_calls() -> bool:
    """Forbid the calls to all threads of this process, for good; False where the kernel has no such filter."""
    found = _ARCHITECTURES.get(platform.machine())
    if found is None:
        return False
    column, architecture = found
    libc = ctypes.CDLL(None, use_errno=True)
    code = b"".join(struct.pack("=HBBI", *each) for each in _filter(column, architecture, os.getpid()))
    held = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.cast(held, ctypes.c_void_p))
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    number = _SECCOMP[column]
    return bool(libc.syscall(number, _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(program)) == 0)


def _filter(column: int, architecture: int, process: int) -> Iterator[Instruction]:
    yield (_LOAD, 0, 0, _ARCHITECTURE)
    yield (_EQUAL, 1, 0, architecture)
    yield (_RETURN, 0, 0, _KILL_PROCESS)
    yield (_LOAD, 0, 0, _NUMBER)
    if column == 0:
        yield from _fail_if((_AT_LEAST, 0, 1, _X32))
    yield from _fail_if((_AT_LEAST, 0, 1, _LATER), errno.ENOSYS)
    for entry in _DENIED.replace("\n", " ").split(","):
        number = entry.split()[1 + column]
        if number != "-":
            yield from _fail_if((_EQUAL, 0, 1, int(number)))
    for call in (_OPENAT2, _CLONE3):  # their arguments cannot be seen; libraries then use the older call
        yield from _fail_if((_EQUAL, 0, 1, call[column]), errno.ENOSYS)
    for call, place in ((_OPEN, 1), (_OPENAT, 2)):
        yield from _decide(call[column], place, (_ANY_BIT, 0, 1, _WRITES))
    yield from _decide(_CLONE[column], 0, (_ANY_BIT, 1, 0, _CLONE_THREAD))
    for call in (_KILL, _TGKILL):
        yield from _decide(call[column], 0, (_EQUAL, 1, 0, process))
    yield from _forbid_pointer(_PRLIMIT[column], 2)  # to new limits
    yield (_RETURN, 0, 0, _ALLOW)


def _fail_if(test: Instruction, error: int = errno.EPERM) -> Iterator[Instruction]:
    """Fail a call whose number passes the test; test: with jumps over one instruction where it does not."""
    yield test
    yield (_RETURN, 0, 0, _FAIL | error)


def _decide(number: int, argument: int, test: Instruction) -> Iterator[Instruction]:
    """Decide a call by the lower half of one of its arguments.

    test: with jumps over one instruction, a failure, where the call is allowed.
    """
    if number < 0:  # not on this architecture
        return
    yield (_EQUAL, 0, 4, number)
    yield (_LOAD, 0, 0, _FIRST_ARGUMENT + 8 * argument)
    yield test
    yield (_RETURN, 0, 0, _FAIL | errno.EPERM)
    yield (_RETURN, 0, 0, _ALLOW)


def _forbid_pointer(number: int, argument: int) -> Iterator[Instruction]:
    """Fail a call with a pointer in one of its arguments; null is allowed."""
    place = _FIRST_ARGUMENT + 8 * argument
    yield (_EQUAL, 0, 6, number)
    yield (_LOAD, 0, 0, place)
    yield (_EQUAL, 0, 2, 0)
    yield (_LOAD, 0, 0, place + 4)
    yield (_EQUAL, 1, 0, 0)
    yield (_RETURN, 0, 0, _FAIL | errno.EPERM)
    yield (_RETURN, 0, 0, _ALLOW)


if __name__ == "__main__":
    serve()
    os._exit(0)  # libraries complain when an interpreter that imported them ends
