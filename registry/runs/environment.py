"""Environment of a run: interpreter, machine, packages and code state; and resources used."""

from __future__ import annotations

import json
import os
import platform
import resource
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any

_GIT_TIMEOUT_S = 2.0
_BROUGHT = "TOQUE_RUN_ENVIRONMENT"  # what the executor starts a run's processes with, as JSON
_PACKAGES = ("ray", "torch", "numpy", "pyarrow", "polars", "scikit-learn", "deltalake")


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Collect facts about this process as JSON, once a process."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "command": sys.argv[:1],
        "packages": {name: version for name in (*_PACKAGES, *_brought()) if (version := _version(name))},
    }
    commit = _git("rev-parse", "HEAD")
    if commit:
        facts["git"] = {"commit": commit, "dirty": bool(_git("status", "--porcelain", "-uno"))}
    return facts


@dataclass(frozen=True, slots=True)
class Usage:
    """Clock and CPU seconds that this process and its children had used at a moment."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> Usage:
        """Measure what this process has used so far."""
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(time.monotonic(), sum(part.ru_utime + part.ru_stime for part in (own, children)))

    def since(self) -> dict[str, float]:
        """Report what was used from then to now, and the process's peak memory."""
        now = Usage.now()
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "wall_s": round(now.wall_s - self.wall_s, 3),
            "cpu_s": round(now.cpu_s - self.cpu_s, 3),
            "peak_memory_bytes": peak_bytes,
        }


def _brought() -> list[str]:
    """Names of the packages that a submission brought into this process."""
    brought = json.loads(os.environ.get(_BROUGHT) or "{}")
    return [package.partition("==")[0] for package in brought.get("packages", ())]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    """Run git in the working folder; "" where git or a repository is absent."""
    command = ["git", *arguments]  # found on PATH: the user's own git
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
