"""The folder tree is the design: names that nobody else owns, and a Makefile that says what it can do."""

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.utils import is_kernels_available

import toque

ROOT = Path(__file__).parents[2]
ROOMS = ("clusters", "featurestore", "functions", "kernels", "load", "ray_apps", "registry")


def test_the_rooms_at_the_top_are_those_of_the_package() -> None:
    links = {path.name: path.resolve() for path in (ROOT / "toque").iterdir() if path.is_symlink()}
    assert links == {room: ROOT / room for room in ROOMS if room != "kernels"}
    links = {
        path.name: path.resolve() for path in (ROOT / "toque" / "kernels").iterdir() if path.is_symlink()
    }
    assert links == {path.name: path for path in (ROOT / "kernels").glob("*.py")}


def test_transformers_does_not_take_our_kernels_for_hugging_faces() -> None:
    """It looks for a package of that name, which a checkout's folder would be if it had an `__init__.py`."""
    assert not is_kernels_available()


def test_an_installation_brings_one_name() -> None:
    brought = {
        name for name, owners in importlib.metadata.packages_distributions().items() if "toque" in owners
    }
    assert {name for name in brought if not name.startswith("__editable__")} <= {"toque"}


@pytest.mark.parametrize("room", sorted({*ROOMS} - {"kernels"}))
def test_no_module_has_two_names(room: str) -> None:
    command = [sys.executable, "-c", f"import {room}"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"ImportError: {room} is imported as toque.{room}" in refused.stderr


def test_a_type_checker_sees_the_public_names_that_there_are() -> None:
    stub = ast.parse((ROOT / "toque" / "__init__.pyi").read_text())
    seen = {
        each.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for each in node.names
    }
    there = {name: f"toque.{face}" for face in reversed(toque._FACES)
             for name in importlib.import_module(f"toque.{face}").__all__}  # fmt: skip
    assert seen == there


def test_make_alone_prints_every_target_that_is_promised():
    printed = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    promised = {"setup", "demo", "up", "down", "test", "lint", "format", "bench", "clean"}
    assert promised <= set(re.findall(r"make ([a-z-]+) ", printed))
