"""An executor that is polled in a thread, as the ticker does it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toque.functions import Context, use_context
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.ledger import Ledger
from toque.registry import open_store


@contextmanager
def polled_executor(folder: Path, *, project: str | None = None) -> Iterator[Context]:
    """Run what is submitted in a context over a new store in `folder`, which is the one in force."""
    url = f"file://{folder / 'store'}"
    with use_context(Context(open_store(url), url, project=project, actor="ada")) as context:
        executor, stop = Executor(context, Ledger(context.store, actor="executor")), threading.Event()

        def run() -> None:
            with use_context(context):
                while not stop.wait(0.1):
                    executor.poll()

        thread = threading.Thread(target=run)
        thread.start()
        yield context
        stop.set()
        thread.join()
        executor.close()
