"""Prometheus series of trainings that run now, by experiment."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from toque.clusters.telemetry.metrics import Bounded
from toque.functions.runtime.context import context
from toque.functions.training.loop.epoch import Epoch

__all__ = ["show_epoch"]

_LABELS = ("workspace", "experiment")
_experiments = Bounded()

LOSS = Gauge(
    "toque_training_loss",
    "Loss of the last epoch of a training that runs, by the rows it is of.",
    (*_LABELS, "rows"),
    multiprocess_mode="livemostrecent",
)
ROWS = Counter("toque_training_rows", "Rows that trainings have learned from, each once an epoch.", _LABELS)
BUSY = Gauge(
    "toque_training_busy_ratio",
    "Share of the last epoch in which no step waited for rows.",
    _LABELS,
    multiprocess_mode="livemin",
)
EPOCHS = Counter("toque_training_epochs", "Epochs that were trained.", _LABELS)


def show_epoch(experiment: str, epoch: Epoch) -> None:
    """Show the losses and speed of an epoch that has just ended."""
    labels = (context().workspace, _experiments(experiment))
    LOSS.labels(*labels, "train").set(epoch.train_loss)
    LOSS.labels(*labels, "valid").set(epoch.valid_loss)
    ROWS.labels(*labels).inc(round(epoch.rows_per_s * epoch.seconds))
    BUSY.labels(*labels).set(epoch.busy)
    EPOCHS.labels(*labels).inc()
