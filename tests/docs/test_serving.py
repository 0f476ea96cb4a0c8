"""The model of docs/serving.md is registered, served and asked by the commands of that page."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.pages import Page
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
PAGE = Page(ROOT / "docs" / "serving.md")
MODULE, BINARY, GRPC = (block.text for block in PAGE.blocks if block.language == "python")
SERVE, CURL = [block.text for block in PAGE.blocks if block.language == "bash"][:2]
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class ServedTotal:
    """The page's model, served by the page's commands on ports of this test's own."""

    folder: Path
    ports: tuple[int, int]

    def run(self, command: list[str] | str) -> str:
        """The output of a block of the page."""
        if isinstance(command, str):
            command = ["bash", "-ec", self.moved(command)]
        answered = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        assert answered.returncode == 0, answered.stderr
        return answered.stdout

    def moved(self, block: str) -> str:
        """A block with this test's ports."""
        return block.replace("8000", str(self.ports[0])).replace("8001", str(self.ports[1]))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedTotal]:
    page = ServedTotal(tmp_path_factory.mktemp("page"), (free_port(), free_port()))
    (page.folder / "total.py").write_text(MODULE)
    paths = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = os.environ | {"PATH": paths, "PYTHONPATH": str(ROOT)}
    environment.pop("TOQUE_REDIS_URL", None)
    command = page.moved(SERVE).replace("python -m toque.ray_apps", "exec python -m toque.ray_apps")
    with (page.folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-ec", command], cwd=page.folder, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
    try:
        deadline = time.monotonic() + 120
        while b"ready\n" not in (page.folder / "log").read_bytes():
            assert process.poll() is None, (page.folder / "log").read_text()
            assert time.monotonic() < deadline, (page.folder / "log").read_text()
            time.sleep(0.05)
        yield page
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def test_the_curl_command_is_answered(served: ServedTotal) -> None:
    assert '"data":[6.0]' in served.run(CURL)


@pytest.mark.parametrize("block", [BINARY, GRPC], ids=["binary over HTTP", "gRPC"])
def test_a_client_of_the_page_is_answered(served: ServedTotal, block: str) -> None:
    assert served.run([sys.executable, "-c", served.moved(block)]) == "[[3.]\n [3.]]\n"
