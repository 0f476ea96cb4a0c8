"""The commands of docs/functions.md that start a platform, ask it, run a Ray job on it and end it, in a fresh folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Page
from tests.ports import free_port
from toque.ray_apps.local import down
from toque.ray_apps.local.state_file import find_platform

pytestmark = [pytest.mark.proof, pytest.mark.ray, pytest.mark.timeout(600)]
PAGE = Page(ROOT / "docs" / "functions.md")


@dataclass(frozen=True)
class StartedPlatform:
    """A folder with the page's first module, in which the page's commands run, on ports of this test's own."""

    folder: Path
    port: int

    def block(self, containing: str) -> str:
        """The page's block of shell that contains a text."""
        (text,) = (each.text for each in PAGE.blocks if each.language == "bash" and containing in each.text)
        return text

    def run(self, commands: str) -> str:
        """What the commands print. They see no address but those of this platform."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("TOQUE_", "RAY_"))}
        environment |= {
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "PYTHONPATH": str(ROOT),
        }
        ran = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", commands.replace(":8000/", f":{self.port}/")],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout


@pytest.fixture
def started(tmp_path: Path) -> Iterator[StartedPlatform]:
    (block,) = (each for each in PAGE.blocks if each.file_name == "hello.py")
    (tmp_path / "hello.py").write_text(block.text)
    yield StartedPlatform(tmp_path, free_port())
    down(tmp_path / ".toque")


def test_the_page_s_commands_start_ask_and_end_a_platform(started: StartedPlatform) -> None:
    up, run, end = started.block("toque up --project hello").splitlines()
    started.run(up.partition("#")[0] + f" --port {started.port}")
    assert '"hello Ada"' in started.run(run)
    assert "hello Ada" in started.run(started.block("/functions/greet"))
    assert f"127.0.0.1:{started.port}" in started.run("toque status")
    assert started.run(started.block("ray job submit")).splitlines()[-1] == '"hello Ada"'
    started.run(end)
    assert find_platform(started.folder / ".toque") is None
    assert '"hello world"' in started.run(started.block("toque run greet --here"))
