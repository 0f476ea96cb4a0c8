"""The filter decides each call as meant, on both architectures; the kernel's own run of it is in `test_sandbox.py`."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from toque.functions.model_formats.sandbox.server import Instruction, _filter

PROCESS = 4_711
THREAD, POINTER = 0x0001_0000, 0x7F00_0000_0000
X86, ARM = (0, 0xC000003E), (1, 0xC00000B7)
ALLOWED, FAIL, KILL = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
DENIED, ABSENT = FAIL | errno.EPERM, FAIL | errno.ENOSYS
CASES = {  # call: numbers, arguments, decision; numbers as `man 2 syscall` and strace's tables have them
    "read": ((0, 63), (0,), ALLOWED),
    "mmap": ((9, 222), (0, 4096), ALLOWED),
    "openat to read": ((257, 56), (0, 0, os.O_RDONLY | os.O_CLOEXEC), ALLOWED),
    "openat to write": ((257, 56), (0, 0, os.O_WRONLY), DENIED),
    "openat to create": ((257, 56), (0, 0, os.O_CREAT), DENIED),
    "open to append": ((2, None), (0, os.O_RDWR | os.O_APPEND), DENIED),
    "openat2": ((437, 437), (), ABSENT),
    "socket": ((41, 198), (2,), DENIED),
    "execve": ((59, 221), (), DENIED),
    "fork": ((57, None), (), DENIED),
    "clone of a thread": ((56, 220), (THREAD | 0x100,), ALLOWED),
    "clone of a process": ((56, 220), (0x11,), DENIED),
    "clone3": ((435, 435), (), ABSENT),
    "tgkill of itself": ((234, 131), (PROCESS, PROCESS, 6), ALLOWED),
    "tgkill of another": ((234, 131), (1, 1, 6), DENIED),
    "kill of all": ((62, 129), (2**64 - 1, 9), DENIED),
    "prlimit64 to read": ((302, 261), (0, 9, 0, POINTER), ALLOWED),
    "prlimit64 to set": ((302, 261), (0, 9, POINTER, 0), DENIED),
    "prlimit64 at a round address": ((302, 261), (0, 9, 1 << 40, 0), DENIED),
    "io_uring_setup": ((425, 425), (), DENIED),
    "socketpair": ((53, 199), (1,), DENIED),
    "sync": ((162, 81), (), DENIED),
    "mseal": ((462, 462), (), ALLOWED),
    "setxattrat": ((463, 463), (), ABSENT),
    "a call of a kernel to come": ((999, 999), (), ABSENT),
    "ptrace": ((101, 117), (), DENIED),
    "getpid by its x32 number": ((0x4000_0000 | 39, None), (), DENIED),
}


def decide(program: list[Instruction], data: bytes) -> int:
    """Run a filter as the kernel does. Source: networking/filter.rst of the kernel's documentation."""
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        else:
            holds = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize("architecture", [X86, ARM], ids=["x86_64", "aarch64"])
@pytest.mark.parametrize("case", CASES)
def test_each_call_is_decided_as_meant(case: str, architecture: tuple[int, int]) -> None:
    numbers, arguments, decision = CASES[case]
    column, audited = architecture
    number = numbers[column]
    program = list(_filter(column, audited, PROCESS))
    assert len(program) < 4_096  # the kernel's bound
    padded = [*arguments, *[0] * (6 - len(arguments))]
    if number is not None:
        assert decide(program, struct.pack("=IIQ6Q", number, audited, 0, *padded)) == decision
    assert (
        decide(program, struct.pack("=IIQ6Q", 0, 0x4000_0003, 0, *padded)) == KILL
    )  # another architecture's call
