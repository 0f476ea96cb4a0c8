"""Progress bars on standard error: of bytes that are moved, and of an invocation that reports how far it is.

Where standard error is not a terminal nothing is drawn, and rich, which draws, is not imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Moved = Callable[[int], None]
Report = Callable[[dict[str, Any]], None]


@contextmanager
def transfer_bar(label: str, size_bytes: int, *, console: Console | None = None) -> Iterator[Moved]:
    """Draw a bar over `size_bytes`; gives the call that takes the bytes of each piece as it is moved.

    That call is what `on_progress` of `Registry.create_version` and `download` takes. console: where the bar is drawn if
    that is a terminal; None: standard error.
    """
    screen = console or _terminal()
    if screen is None or not screen.is_terminal:
        yield lambda _: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task(label, total=size_bytes)
        yield lambda moved_bytes: bar.update(task, advance=moved_bytes)


@contextmanager
def invocation_bar(*, console: Console | None = None) -> Iterator[Report]:
    """Draw the progress that an invocation reports; gives the call that takes the invocation as the platform shows it.

    console: as for `transfer_bar`.
    """
    screen = console or _terminal()
    if screen is None or not screen.is_terminal:
        yield lambda _: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("", total=1.0, visible=False)

        def report(invocation: dict[str, Any]) -> None:
            at = invocation["progress"]
            if at:
                text = at["text"] or invocation["function"]
                bar.update(task, description=text, completed=at["done"], total=at["total"], visible=True)

        yield report


def _terminal() -> Console | None:
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    return Console(stderr=True)
