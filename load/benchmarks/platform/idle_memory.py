"""Memory of a platform on this machine: `python -m toque.load.benchmarks.platform.idle_memory HOME`, while `toque up` runs there.

Prints each process with its resident size (RSS), which counts shared pages in every process, its proportional size (PSS), whose sum is
what the machine gives, and its processor time; and how long the start took. Wait for a minute before: what checks a model's files ends when it
was not needed for so long.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Memory of one process, in bytes, and the processor time that it took."""

    name: str
    rss: int
    pss: int
    cpu_s: float


def memory_of(home: Path) -> list[ProcessMemory]:
    """Measure the processes of the platform's sessions, and those whose environment names its folder, the largest first."""
    sessions = {each["leader"] for each in json.loads((home / "up.json").read_text())["sessions"].values()}
    found, own = [], os.getsid(0)
    for process in psutil.process_iter():
        try:
            session, values = os.getsid(process.pid), process.environ().values()
            if session != own and (session in sessions or any(str(home) in value for value in values)):
                used, time = process.memory_full_info(), process.cpu_times()
                name = " ".join(process.cmdline())[:70]
                found.append(ProcessMemory(name, used.rss, used.pss, time.user + time.system))
        except (psutil.Error, OSError):  # it has ended, or is another user's
            continue
    return sorted(found, key=lambda one: one.rss, reverse=True)


def main() -> int:
    """Print the processes of the platform in the folder that is named on the command line."""
    home = Path(sys.argv[1]).resolve()
    found = memory_of(home)
    for one in found:
        print(f"RSS {one.rss / _MIB:7.0f} MiB  PSS {one.pss / _MIB:7.0f} MiB  {one.cpu_s:6.1f} s  {one.name}")
    rss, pss = sum(one.rss for one in found), sum(one.pss for one in found)
    cpu_s = sum(one.cpu_s for one in found)
    print(f"{len(found)} processes: RSS {rss / 1e9:.2f} GB, PSS {pss / 1e9:.2f} GB, {cpu_s:.1f} CPU s")
    timings = json.loads((home / "up.json").read_text())["timings_s"]
    print(f"start: {timings}")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
