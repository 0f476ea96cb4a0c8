"""Functions of the prediction log: its drain, to be scheduled or called, and what it has lost."""

from __future__ import annotations

from clusters.redis_clients import open_redis
from functions.prediction_log.drain import DrainResult, drain
from functions.prediction_log.errors import PredictionLogError
from functions.prediction_log.losses import LossState, losses_of, report_losses
from functions.prediction_log.wal_root import default_wal_root
from functions.runtime.context import Context, context
from functions.runtime.function import function

__all__ = ["drain_predictions", "drain_workspace", "prediction_log_losses"]


@function(http=True)
def drain_predictions() -> DrainResult:
    """Move logged predictions and labels from the stream into their tables, each exactly once.

    Write-ahead files that dead processes of this platform left on this machine are shipped first.
    Raises: PredictionLogError if there is no Redis; redis.RedisError if it does not answer.
    """
    return drain_workspace(context())


@function(http=True, role="viewer")
def prediction_log_losses() -> LossState:
    """Report the writers of the log that vanished, on which node, and how many requests they may have taken along."""
    return losses_of(context()).refresh()


def drain_workspace(used: Context) -> DrainResult:
    """Drain the log of a workspace, and write off the writers that vanished.

    Raises: PredictionLogError if there is no Redis; redis.RedisError if it does not answer.
    """
    if used.redis_url is None:
        raise PredictionLogError("the prediction log needs Redis; set TOQUE_REDIS_URL")
    moved = drain(
        used.store,
        used.redis_url,
        workspace=used.workspace,
        wal_root=default_wal_root(used.store_url, used.log_folder),
    )
    client = open_redis(used.redis_url, timeout_s=30.0)
    try:
        lost = report_losses(used, client)
    finally:
        client.close()
    return moved + DrainResult(lost=sum(not loss.back for loss in lost))
