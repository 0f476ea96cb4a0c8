"""A bar at the terminal for what is stored or fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from registry.store.object_store import Progress as OnProgress


@contextmanager
def progress_bar(label: str, size_bytes: int, *, console: Console | None = None) -> Iterator[OnProgress]:
    """A bar over `size_bytes`; gives what `on_progress` of `create_version` and `download` takes.

    console: where it is drawn, if that is a terminal; None: standard error.
    """
    screen = console or Console(stderr=True)
    if not screen.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task(label, total=size_bytes)
        yield lambda moved_bytes: bar.update(task, advance=moved_bytes)
