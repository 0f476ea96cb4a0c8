"""Names of environment variables in files, and which of them somebody reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import ray

from tests.clusters.files import ROOT

_NAME = re.compile(r"\b(?:TOQUE|RAY)_[A-Za-z_]+")
_OURS = ("clusters", "featurestore", "functions", "ray_apps", "registry")
_OF_RAY = ("_common", "_private", "autoscaler", "dashboard", "scripts", "serve/_private")


def named_in(text: str) -> set[str]:
    """List the variables of ours and of Ray that a text names."""
    return set(_NAME.findall(text))


def unread(names: set[str]) -> set[str]:
    """List those that neither our code nor Ray's reads."""
    return {name for name in names if not (name in _read_by_us() or name in _read_by_ray() or _in_core(name))}


@cache
def _read_by_us() -> set[str]:
    files = [file for room in _OURS for suffix in ("py", "sh") for file in (ROOT / room).rglob(f"*.{suffix}")]
    return {name for file in files for name in named_in(file.read_text())}


@cache
def _read_by_ray() -> set[str]:
    return {name for file in _files_of_ray() for name in named_in(file.read_text())}


def _files_of_ray() -> Iterator[Path]:
    for folder in _OF_RAY:
        yield from (Path(ray.__file__).parent / folder).rglob("*.py")


def _in_core(name: str) -> bool:
    """Whether Ray's core has a setting that `RAY_{setting}` overrides, by the words in its library."""
    setting = name.removeprefix("RAY_")
    return setting.islower() and setting.encode() in (Path(ray.__file__).parent / "_raylet.so").read_bytes()
