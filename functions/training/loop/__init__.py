"""The training loop, alone or on several workers: steps, epochs, sharding, cost and interruption."""

from typing import TYPE_CHECKING

from functions.renamed import moved_names

if not TYPE_CHECKING:  # a type checker must not take every name as there
    __getattr__ = moved_names(__name__, "functions.training.loop.training_loop")
