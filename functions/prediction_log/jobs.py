"""Function that drains the prediction log, to be scheduled or called."""

from __future__ import annotations

from functions.prediction_log.drain import DrainResult, drain
from functions.prediction_log.errors import PredictionLogError
from functions.prediction_log.wal_root import default_wal_root
from functions.runtime.context import context
from functions.runtime.function import function

__all__ = ["drain_predictions"]


@function(http=True)
def drain_predictions() -> DrainResult:
    """Move logged predictions and labels from the stream into their tables, each exactly once.

    Write-ahead files that dead processes of this platform left on this machine are shipped first.
    Raises: PredictionLogError if there is no Redis; redis.RedisError if it does not answer.
    """
    here = context()
    if here.redis_url is None:
        raise PredictionLogError("the prediction log needs Redis; set TOQUE_REDIS_URL")
    return drain(
        here.store,
        here.redis_url,
        workspace=here.workspace,
        wal_root=default_wal_root(here.store_url),
    )
