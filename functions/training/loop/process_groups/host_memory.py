"""What a process does with host memory that its tensors have freed: it keeps it for the next step, or gives it back at once.

Both by `mallopt` of glibc (its manual, "Malloc Tunable Parameters"); other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_C = ctypes.CDLL(None)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
_NEVER, _MIB = -1, 1 << 20
_MOST_MMAP_THRESHOLD = 32 * _MIB  # larger blocks go back to the system in any case
_THREAD_HEAP = 64 * _MIB  # memory of a thread is kept in heaps of this size
_DEFAULT_THRESHOLD = _DEFAULT_PAD = 128 << 10
_lock = threading.Lock()
_keeping = 0


def return_freed_memory() -> None:
    """Give freed tensors back to the system from now on: by default glibc comes to keep blocks of up to 32 MiB, and so gathered layers."""
    _set(_MMAP_THRESHOLD, _DEFAULT_THRESHOLD)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what a step frees for the next one; at the end of the last such context all of it goes back.

    By default glibc gives back the free end of its heap, and a thread's heaps as they empty. Whether gradients are such an end is
    chance: what a checkpoint leaves in memory decides it. Then the kernel has to clear their pages anew in each step, which took
    .4 s for .7 GiB.
    """
    global _keeping  # noqa: PLW0603 - the allocator is the process's own, too
    with _lock:
        _keeping += 1
        _set(_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)
        _set(_TRIM_THRESHOLD, _NEVER)
        _set(_TOP_PAD, _THREAD_HEAP)  # a heap that empties stays if this much is not left before it
    try:
        yield
    finally:
        with _lock:
            _keeping -= 1
            if not _keeping:
                _set(_TRIM_THRESHOLD, 2 * _MOST_MMAP_THRESHOLD)  # where glibc's own adaption ends
                _set(_TOP_PAD, _DEFAULT_PAD)
                if trim := getattr(_C, "malloc_trim", None):
                    trim(ctypes.c_size_t(0))


def _set(parameter: int, value: int) -> None:
    if mallopt := getattr(_C, "mallopt", None):
        mallopt(parameter, value)
