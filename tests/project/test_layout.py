"""The folder tree is the design: names that nobody else owns, and a Makefile that says what it can do."""

import importlib.metadata
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = (
    "clusters",
    "examples",
    "featurestore",
    "functions",
    "kernels",
    "load",
    "ray_apps",
    "registry",
    "toque",
)


def test_no_installed_distribution_owns_one_of_our_names():
    owners = importlib.metadata.packages_distributions()
    foreign = {room: set(owners.get(room, ())) - {"toque"} for room in ROOMS}
    assert not {room: names for room, names in foreign.items() if names}


def test_make_alone_prints_every_target_that_is_promised():
    printed = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    promised = {"setup", "demo", "up", "down", "test", "lint", "format", "bench", "clean"}
    assert promised <= set(re.findall(r"make ([a-z-]+) ", printed))
