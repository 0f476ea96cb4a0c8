"""Writes the lock files, with the hash of every file that pip may install: `make lock`.

    python -m tests.project.lock path/to/uv

Three files come of it. `requirements.lock` is all that an install takes, for Linux on Python 3.11 to 3.13, except torch: there are
several builds of each of its versions. `requirements-torch.lock` is the build on PyPI with what only that needs (CUDA's
libraries); `requirements-triton.lock` is for machines whose pip is given a build of torch without them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK, TORCH_LOCK, TRITON_LOCK = (
    ROOT / name for name in ("requirements.lock", "requirements-torch.lock", "requirements-triton.lock")
)
TOOLS, TOOLS_LOCK = ROOT / "security" / "tools.in", ROOT / "security" / "tools.lock"
_NAME = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)")
_VIA = re.compile(r"# via (.*)$", re.MULTILINE)
_ONLY_FOR_TORCH = ("nvidia-", "cuda-", "triton")
_HEADER = "# Written by `make lock`; change pyproject.toml or constraints.txt instead.\n"


@dataclass(frozen=True, slots=True)
class Locked:
    """A pinned package: its lines in the lock file with markers and hashes, and the packages that ask for it."""

    name: str
    version: str
    lines: str
    via: frozenset[str]


def read_lock(text: str) -> list[Locked]:
    """Read the packages of a lock file; one that has several versions, by its markers, is there as often."""
    found = []
    for part in re.split(r"\n(?=[a-z0-9])", text):
        if head := _NAME.match(part):
            via = _VIA.search(part)
            names = frozenset(via[1].split(", ")) if via else frozenset()
            lines = "\n".join(line for line in part.splitlines() if not line.strip().startswith("#"))
            found.append(Locked(head[1], head[2], lines, names))
    return found


def only_for_torch(found: Iterable[Locked]) -> set[str]:
    """Name torch and the libraries of CUDA that nothing else asks for."""
    asked: Mapping[str, frozenset[str]] = {one.name: one.via for one in found}
    names = {"torch", "triton"}
    while more := {
        name
        for name, via in asked.items()
        if name not in names and name.startswith(_ONLY_FOR_TORCH) and via and via <= names
    }:
        names |= more
    return names


def main(uv: str) -> None:
    """Write all lock files."""
    everything = ["pyproject.toml", "--all-extras", "--constraint", "constraints.txt"]
    found = read_lock(_compile(uv, *everything))
    torch = only_for_torch(found)
    _write(LOCK, (one for one in found if one.name not in torch))
    _write(TORCH_LOCK, (one for one in found if one.name in torch))
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "triton.in"
        wanted.write_text(f"{_declared('triton')}\n")
        _write(TRITON_LOCK, read_lock(_compile(uv, str(wanted), "--no-deps")))
    _write(TOOLS_LOCK, read_lock(_compile(uv, str(TOOLS))))


def _compile(uv: str, *arguments: str) -> str:
    """Resolve for every supported Python and processor on Linux; returns the lock with the packages that ask for each."""
    fixed = ["--universal", "--python-version", "3.11", "--generate-hashes", "--annotation-style", "line"]
    command = [uv, "pip", "compile", "--quiet", "--no-header", "--no-emit-index-url", *fixed, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _declared(name: str) -> str:
    """Find a dependency of an extra in pyproject.toml as it is declared there."""
    import tomllib  # late: only this function needs it

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return next(line for group in extras.values() for line in group if re.match(rf"{name}\b(?!-)", line))


def _write(path: Path, packages: Iterable[Locked]) -> None:
    """Write a lock file whole or not at all."""
    lines = _HEADER + "".join(f"{one.lines}\n" for one in packages)
    new = path.with_name(f"{path.name}.new")
    new.write_text(lines)
    new.replace(path)


if __name__ == "__main__":
    main(sys.argv[1])
