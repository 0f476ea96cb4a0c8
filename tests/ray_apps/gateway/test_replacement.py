"""A gateway that replaces another is ready when its functions are imported; the first one answers before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BUILT = """
import os, sys, threading
import toque.ray_apps.discovery, toque.ray_apps.gateway.deployment as gateway, toque.ray_apps.serve.process

entered, go = threading.Event(), threading.Event()
usual, said = os.getpriority(os.PRIO_PROCESS, 0), []

def lowered():
    return os.getpriority(os.PRIO_PROCESS, os.getpid()) - usual

def discover(projects, *, awaited):
    assert awaited == (sys.argv[1] == "others")
    said.append(lowered())
    entered.set()
    go.wait()

toque.ray_apps.discovery.discover = discover
toque.ray_apps.serve.process.is_worker_of_ray = lambda: True
gateway.others_answered_at_start = lambda: sys.argv[1] == "others"
building = threading.Thread(target=gateway.build, daemon=True)
building.start()
assert entered.wait(120)
building.join(1 if sys.argv[1] == "others" else 120)
print("waits" if building.is_alive() else "is ready")
go.set()
building.join(120)
print("waits" if building.is_alive() else "is ready")
print(*said, lowered(), gateway.NICENESS)
"""


@pytest.mark.parametrize(("who", "said"), [("others", ["waits", "is ready"]), ("nobody", ["is ready"] * 2)])
def test_a_gateway_is_ready_before_its_functions_only_where_nobody_else_answers(
    who: str, said: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUILT, who],
        env=os.environ | {"TOQUE_STORE": f"file://{tmp_path}/store"},
        capture_output=True,
        text=True,
        check=False,
    )
    *states, priorities = done.stdout.splitlines()
    assert states == said, done.stderr[-3000:]
    at_imports, at_last, asked = map(int, priorities.split())
    assert (at_imports, at_last) == (
        0,
        asked,
    )  # with its imports last among all that start, it would answer nobody
