"""Plans of rollouts: how long one will take and what it can detect, simulated before it starts."""

from typing import TYPE_CHECKING

from functions.renamed import moved_names

if not TYPE_CHECKING:  # a type checker must not take every name as there
    __getattr__ = moved_names(__name__, "functions.rollout.planning.jobs")
