"""Functions of the prediction log: its drain, to be scheduled or called, and what it has lost."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from toque.clusters.redis_clients import open_redis
from toque.functions.prediction_log.errors import PredictionLogError
from toque.functions.prediction_log.writing.drain import DrainResult, Share, drain, waiting_writers
from toque.functions.prediction_log.writing.lost_writers import LossState, losses_of, report_losses
from toque.functions.prediction_log.writing.wal import default_wal_root
from toque.functions.runtime.context import Context, context, use_context
from toque.functions.runtime.declaration import Resources
from toque.functions.runtime.function import function
from toque.functions.runtime.run import cluster

__all__ = ["drain_predictions", "drain_workspace", "prediction_log_losses"]


_WRITERS_PER_DRAIN = 8
_MOST_DRAINS = 16


@function(http=True)
def drain_predictions() -> DrainResult:
    """Move logged predictions and labels from the stream into their tables, each exactly once.

    Write-ahead files that dead processes of this platform left on this machine are shipped first. Where many writers wait
    on a Ray cluster, drains on several nodes share them.
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
    moved = _shared(used, used.redis_url) + drain(
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


def _shared(used: Context, redis_url: str) -> DrainResult:
    """Let drains on several nodes share the writers, where many wait on a Ray cluster."""
    total = DrainResult()
    waiting = waiting_writers(redis_url, workspace=used.workspace) if cluster.running() else 0
    shares = min(waiting // _WRITERS_PER_DRAIN, _MOST_DRAINS)
    if shares > 1:
        with use_context(used):
            drains = [drain_share.remote(index, shares) for index in range(shares)]
        for each in drains:
            total = total.beside(each.result())
    return total


@function(resources=Resources(num_cpus=0))  # trainings that hold every CPU do not hold up the log
def drain_share(
    index: Annotated[int, Field(le=10_000, ge=0, description="Number of the share, in [0, count).")],
    count: Annotated[
        int, Field(le=10_000, ge=1, description="Number of shares that the writers are divided into.")
    ],
) -> DrainResult:
    """Move the records of one share of the writers.

    Raises: as `drain_predictions`; ValueError if there is no such share.
    """
    if index >= count:
        raise ValueError(f"index={index} of count={count} shares: they are numbered 0 to {count - 1}")
    used = context()
    if used.redis_url is None:
        raise PredictionLogError("the prediction log needs Redis; set TOQUE_REDIS_URL")
    return drain(used.store, used.redis_url, workspace=used.workspace, share=Share(index, count))
