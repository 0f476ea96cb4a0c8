"""Evidence of a rollout: sums by arm and cohort, made from the prediction log."""

from typing import TYPE_CHECKING

from functions.renamed import moved_names

if not TYPE_CHECKING:  # a type checker must not take every name as there
    __getattr__ = moved_names(__name__, "functions.rollout.evidence.sums")
