"""Memory of a platform on this machine, while `toque up` runs in HOME.

Prints each process with its resident size (RSS), which counts shared pages in every process, its proportional size (PSS), whose sum is
what the machine gives, and its processor time; and how long the start took. Wait for a minute before: what checks a model's files ends when it
was not needed for so long.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import psutil

from toque.load.benchmarks.harness import MIB, NotPossible, main, say


def run(home: Path) -> None:
    """Print the processes of the platform in a folder, the largest first."""
    home = home.resolve()
    state = json.loads((home / "up.json").read_text())
    sessions = {session["leader"] for session in state["sessions"].values()}
    sizes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it has ended, or is another user's
            session, values = os.getsid(process.pid), process.environ().values()
            if session != os.getsid(0) and (
                session in sessions or any(str(home) in value for value in values)
            ):
                used, cpu = process.memory_full_info(), process.cpu_times()
                sizes.append((used.rss, used.pss, cpu.user + cpu.system, " ".join(process.cmdline())[:70]))
    if not sizes:
        raise NotPossible(f"no process of a platform in {home} runs here")
    for rss, pss, cpu_s, name in sorted(sizes, reverse=True):
        say(f"RSS {rss / MIB:7.0f} MiB  PSS {pss / MIB:7.0f} MiB  {cpu_s:6.1f} s  {name}")
    rss, pss, cpu_s = (sum(column) for column in list(zip(*sizes, strict=True))[:3])
    say(f"{len(sizes)} processes: RSS {rss / 1e9:.2f} GB, PSS {pss / 1e9:.2f} GB, {cpu_s:.1f} CPU s")
    say(f"start: {state['timings_s']}")


if __name__ == "__main__":
    main(run)
