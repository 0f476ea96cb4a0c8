"""Function that drains the prediction log, to be scheduled or called."""

from __future__ import annotations

from pathlib import Path

from functions.prediction_log.drain import DrainResult, drain
from functions.prediction_log.errors import PredictionLogError
from functions.prediction_log.wal_root import default_wal_root
from functions.runtime.context import context
from functions.runtime.function import function

__all__ = ["drain_predictions"]


@function
def drain_predictions(wal_root: str | None = None) -> DrainResult:
    """Move logged predictions and labels from the stream into their tables, each exactly once.

    wal_root: the folder of write-ahead files on this machine whose orphans are shipped first; the default is
        where all processes of this platform put them.
    Raises: PredictionLogError if there is no Redis; redis.RedisError if it does not answer.
    """
    here = context()
    if here.redis_url is None:
        raise PredictionLogError("the prediction log needs Redis; set TOQUE_REDIS_URL")
    root = Path(wal_root) if wal_root is not None else default_wal_root(here.store_url)
    return drain(here.store, here.redis_url, wal_root=root)
