"""The commands that docs/experiments-guide.md shows are commands."""

import re
import shlex
from pathlib import Path

import pytest

from ray_apps.cli.main import parser

PAGE = (Path(__file__).parents[2] / "docs" / "experiments-guide.md").read_text()
COMMANDS = re.findall(r"^    (toque .*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_guide_is_understood(command: str):
    parser().parse_args(shlex.split(command)[1:])


def test_the_guide_shows_commands():
    assert len(COMMANDS) >= 9
