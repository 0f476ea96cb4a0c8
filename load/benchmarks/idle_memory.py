"""Memory of a platform on this machine: `python -m load.benchmarks.idle_memory HOME`, while `toque up` runs there.

Prints each process with its resident size (RSS), which counts shared pages in every process, and its proportional size (PSS), whose sum is
what the machine gives; and how long the start took.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Memory of one process, in bytes."""

    name: str
    rss: int
    pss: int


def memory_of(home: Path) -> list[ProcessMemory]:
    """Measure the processes whose environment or command names the state folder, the largest first."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
            if process.pid != psutil.Process().pid and any(str(home) in word for word in words):
                used = process.memory_full_info()
                found.append(ProcessMemory(" ".join(process.cmdline())[:70], used.rss, used.pss))
        except psutil.Error:  # it has ended, or is another user's
            continue
    return sorted(found, key=lambda one: one.rss, reverse=True)


def main() -> int:
    """Print the processes of the platform in the folder that is named on the command line."""
    home = Path(sys.argv[1]).resolve()
    found = memory_of(home)
    for one in found:
        print(f"RSS {one.rss / _MIB:7.0f} MiB  PSS {one.pss / _MIB:7.0f} MiB  {one.name}")
    rss, pss = sum(one.rss for one in found), sum(one.pss for one in found)
    print(f"{len(found)} processes: RSS {rss / 1e9:.2f} GB, PSS {pss / 1e9:.2f} GB")
    timings = json.loads((home / "up.json").read_text())["timings_s"]
    print(f"start: {timings}")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
