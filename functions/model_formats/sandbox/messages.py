"""What a sandbox and the process that it asks say to each other, one JSON document a line, and that one's limits."""

from __future__ import annotations

import importlib
import resource
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from toque.registry.models import Signature

MAX_OPEN_FILES = 256
RESOURCES = "memory, time and open files"
FILES = "files to read (Landlock)"
SYSTEM_CALLS = "network and system calls (seccomp)"
ALL_LIMITS = (RESOURCES, FILES, SYSTEM_CALLS)


class SandboxLimits(BaseModel):
    """What the first load of a model's files may take before it is ended, and the version refused.

    memory_bytes: beside four times the size of the files, and the libraries. cpu_s, wall_s: of the whole load and
    the example's answer, on a processor and by the clock.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory_bytes: int = Field(default=2 << 30, ge=64 << 20)
    cpu_s: int = Field(default=60, ge=1)
    wall_s: float = Field(default=120.0, gt=0)

    def for_files(self, size_bytes: int) -> SandboxLimits:
        """The limits with the memory that files of this size need."""
        return self.model_copy(update={"memory_bytes": self.memory_bytes + 4 * size_bytes})

    def __str__(self) -> str:
        return f"memory_bytes={self.memory_bytes:,}, cpu_s={self.cpu_s:,} and wall_s={self.wall_s:,g}"


class LoadRequest(BaseModel):
    """Load the files in a folder within limits.

    modules: imported first, outside the limits. trusted_types: classes that a file of skops may name.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    folder: Path
    modules: tuple[str, ...]
    signature: Signature
    limits: SandboxLimits
    trusted_types: tuple[str, ...] = ()


class Verdict(BaseModel):
    """The end of a load within limits. reason: why the files cannot be served, or None; held: limits that the kernel enforced."""

    model_config = ConfigDict(frozen=True)

    reason: str | None = None
    held: tuple[str, ...] = ()


def limit_resources(limits: SandboxLimits) -> None:
    """Bound what this process may take from now on; memory counts beside what it has already."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + limits.memory_bytes
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, bound))


def import_all(modules: Iterable[str]) -> None:
    """Import modules; one that is absent or broken is reported by the load that needs it."""
    for module in modules:
        with suppress(Exception):  # a library without its shared objects raises what it likes
            importlib.import_module(module)
