"""The commands that docs/registry.md shows are commands."""

import re
import shlex
from pathlib import Path

import pytest

from ray_apps.cli.main import parser

PAGE = Path(__file__).parents[2] / "docs" / "registry.md"
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
COMMANDS = [shlex.split(line, comments=True) for block in BLOCKS for line in block.splitlines()]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_of_the_page_is_understood(command: list[str]):
    assert command[0] == "toque"
    parser().parse_args([word for word in command[1:] if word != "…"])


def test_the_page_shows_commands():
    assert len(COMMANDS) > 10
