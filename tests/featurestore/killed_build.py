"""A process that builds a training set in shards and kills itself: `killed_build.py STORE_URL WHEN NUMBER`.

WHEN is a method of the build's record, before whose NUMBERth call it dies, or `after_commit`.
"""

import os
import signal
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from toque.functions import Context, use_context
from toque.functions.features import jobs, large_training_sets
from toque.functions.features.jobs import build_training_set
from toque.functions.features.large_training_sets import BuildRecord
from toque.registry import TableSnapshot, open_store

START = datetime(2013, 6, 1, tzinfo=UTC)
END = START + timedelta(days=30)


def built(store_url: str, asked: TableSnapshot, *, share: float, name: str) -> TableSnapshot:
    """Build the set of the tests; a tiny share makes shards of 700 rows."""
    context = Context(open_store(store_url), store_url, clock=lambda: END, actor="ada", memory_share=share)
    with use_context(context):
        return build_training_set("late", asked, "label", START, END, name=name)


def dying(before: Any, number: int) -> Any:
    """Wrap a function to kill this process before its call of that number."""
    calls = 0

    def call(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*args, **options)

    return call


if __name__ == "__main__":
    url, when, number = sys.argv[1:]
    large_training_sets._FEWEST_ROWS = 700
    if when == "commit":
        jobs.overwrite_with_parts = dying(jobs.overwrite_with_parts, int(number))
    else:
        setattr(BuildRecord, when, dying(getattr(BuildRecord, when), int(number)))
    built(url, TableSnapshot(name="entities", version=1), share=1e-9, name="training/killed")
