"""What a trial tells after each epoch, under the names that Tune, its run and its state know it by."""

from __future__ import annotations

from functions.training.loop.training_loop import Epoch

METRIC = "valid_loss"
EPOCHS = "epochs"  # how many it has behind it
FINISHED = "finished"  # whether it has trained to its end


def told_of(epoch: Epoch) -> dict[str, float]:
    """What is kept of an epoch."""
    return {
        METRIC: epoch.valid_loss,
        "train_loss": epoch.train_loss,
        "epoch_s": epoch.seconds,
        "rows_per_s": epoch.rows_per_s,
    }
