import io
from pathlib import Path

from rich.console import Console

from registry import Registry
from registry.progress import progress_bar


def test_a_bar_is_full_when_all_is_stored(reg: Registry, model_files: Path):
    reg.create_model("m")
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with progress_bar("storing m", 7002, console=console) as on_progress:
        reg.create_version("m", model_files, on_progress=on_progress)
    assert "storing m" in screen.getvalue()
    assert "7.0/7.0 kB" in screen.getvalue()


def test_in_a_pipe_nothing_is_drawn():
    pipe = io.StringIO()
    with progress_bar("storing m", 10, console=Console(file=pipe)) as on_progress:
        on_progress(10)
    assert pipe.getvalue() == ""
