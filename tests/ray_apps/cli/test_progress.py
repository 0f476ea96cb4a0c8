"""The bars of the command line: drawn at a terminal, silent elsewhere."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from toque.ray_apps.cli.transfer import invocation_bar, transfer_bar
from toque.registry import Registry, open_store


def test_a_bar_is_full_when_all_is_stored(tmp_path: Path):
    files = tmp_path / "files"
    files.mkdir()
    (files / "weights").write_bytes(b"w" * 7000)
    (files / "note").write_bytes(b"n" * 2)
    registry = Registry(open_store(f"file://{tmp_path / 'store'}"), actor="ada")
    registry.create_model("m")
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with transfer_bar("storing m", 7002, console=console) as moved:
        registry.create_version("m", files, on_progress=moved)
    assert "storing m" in screen.getvalue()
    assert "7.0/7.0 kB" in screen.getvalue()


def test_in_a_pipe_nothing_is_drawn(capsys: pytest.CaptureFixture[str]):
    pipe = io.StringIO()
    for console in (Console(file=pipe), None):
        with transfer_bar("storing m", 10, console=console) as moved:
            moved(10)
    assert (pipe.getvalue(), capsys.readouterr()) == ("", ("", ""))


def test_an_invocation_reports_how_far_it_is_at_a_terminal_only():
    invocation: dict[str, Any] = {
        "function": "peel",
        "progress": {"done": 1, "total": 4, "text": "peeling"},
    }
    screen, pipe = io.StringIO(), io.StringIO()
    with invocation_bar(console=Console(file=screen, force_terminal=True, width=80)) as report:
        report(invocation | {"progress": None})
        report(invocation)
    assert "peeling" in screen.getvalue()
    assert "25%" in screen.getvalue()
    with invocation_bar(console=Console(file=pipe)) as report:
        report(invocation)
    assert pipe.getvalue() == ""
