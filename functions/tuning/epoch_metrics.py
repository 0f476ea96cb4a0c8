"""Metrics of a trial's epoch, under the names that Tune, its run and its saved state use."""

from __future__ import annotations

from toque.functions.training.loop.epoch import Epoch

METRIC = "valid_loss"
EPOCHS = "epochs"  # number of epochs trained so far
FINISHED = "finished"  # whether the trial has trained to its end


def metrics_of(epoch: Epoch) -> dict[str, float]:
    """Metrics that are kept of an epoch."""
    return {
        METRIC: epoch.valid_loss,
        "train_loss": epoch.train_loss,
        "epoch_s": epoch.seconds,
        "rows_per_s": epoch.rows_per_s,
    }
