"""Comparison of monitoring tools, each in its own process, on the same data sets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RUNS = {"ours": 200, "evidently": 20, "nannyml": 20}
_QUIET = {"NML_DISABLE_USAGE_LOGGING": "1", "DO_NOT_TRACK": "1", "PYTHONWARNINGS": "ignore"}


def compare_with_peers(peer_python: str | None) -> None:
    """Print a table of all tools. peer_python: interpreter for NannyML; without one its column is left out.

    Raises: RuntimeError with what a tool said, if it fails.
    """
    tools = {"ours": sys.executable, "evidently": sys.executable}
    if peer_python is None:
        print("# NannyML left out: name the interpreter of an environment that has it with --peer-python")
    else:
        tools["nannyml"] = peer_python
    figures = [figures_of(name, python) for name, python in tools.items()]
    names = [f"{one['tool']} ({RUNS[name]} runs)" for name, one in zip(tools, figures, strict=True)]
    print(f"| {'set':45} | " + " | ".join(names) + " |")
    for row in figures[0]["figures"]:
        values = " | ".join(
            f"{one['figures'][row]:{len(name)}.3f}" for one, name in zip(figures, names, strict=True)
        )
        print(f"| {row:45} | {values} |")


def figures_of(name: str, python: str) -> dict[str, Any]:
    """Measure all figures of a tool; the large window in its own process, for its peak memory."""
    small, large = _run(name, python, str(RUNS[name])), _run(name, python, "large")
    return small | {"figures": small["figures"] | large["figures"]}


def _run(name: str, python: str, what: str) -> dict[str, Any]:
    done = subprocess.run(
        [python, "-m", "toque.load.peers.monitoring", name, what],
        cwd=Path(__file__).resolve().parents[3],
        env=os.environ | _QUIET,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} on {python} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
