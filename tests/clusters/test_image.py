"""The image's Dockerfile and what it is built from agree with the project."""

from __future__ import annotations

import re
import tomllib

from packaging.specifiers import SpecifierSet

from tests.clusters.files import FOLDER, ROOT

DOCKERFILE = (FOLDER / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_image_holds_every_package():
    copied = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = set(PROJECT["tool"]["importlinter"]["root_packages"])
    linked = {
        path.name for path in (ROOT / "toque").iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert {name for name in copied if (ROOT / name).is_dir()} == packages | linked


def test_nothing_comes_into_the_image_that_is_not_named():
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    assert [line for line in lines if not line.startswith("!")] == ["*", "**/__pycache__", "**/*.pyc"]


def test_the_python_is_that_of_the_other_files_and_the_extras_exist():
    version = re.search(r"PYTHON=python:(3\.\d+)-", DOCKERFILE)
    assert version
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(f"{version[1]}.0")
    assert f"py{version[1].replace('.', '')}" in (FOLDER / "aws-gpu.yaml").read_text()
    extras = re.search(r"EXTRAS=(\S+)", DOCKERFILE)
    assert extras
    assert set(extras[1].split(",")) < set(PROJECT["project"]["optional-dependencies"])


def test_the_image_installs_from_the_locks_and_does_not_run_as_root():
    assert "python -m tests.project.install --image" in DOCKERFILE
    assert not re.search(r"pip3? install", DOCKERFILE)
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    users = re.findall(r"^USER (\S+)", last, re.MULTILINE)
    assert users == ["1000:1000"]
    assert "useradd --uid 1000" in last
