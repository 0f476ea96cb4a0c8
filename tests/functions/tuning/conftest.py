"""Sweeps use the store, training set and single thread of the tests of training."""

from tests.functions.training.conftest import cluster, context, one_thread, training_set

__all__ = ["cluster", "context", "one_thread", "training_set"]
